"""protobuf → domain for the router: calls in. Decides nothing but whether a message is well formed."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from google.protobuf.message import DecodeError

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.codec import CONTENTS
from services.domain.caching import CachePolicy
from services.domain.errors import Fault, InvalidRequest
from services.domain.model import TensorMeta
from services.domain.request import NO_WISHES, InferCall, Preference, RouteOptions
from services.router.frames import Payload, Received

ROUTE_KEY = "x-modelyard-route-bin"
"""Metadata with a serialized RouteOptions, for callers that cannot set field 100."""

REQUEST_ID_KEY = "x-request-id"
"""Metadata with the request's id, for callers that leave the field empty."""

NAME_KEYS = ("mm-vmodel-id", "mm-model-id", "seldon-model")
"""Metadata in which callers of other meshes name the model, if the field is empty; the first one there counts."""

LONGEST_ID = 256
"""Longest request id, in characters; it stands in answers and logs."""

LONGEST_NOTE = 64
"""Longest domain, complexity and key of a label, in characters; they stand in answers, logs and tables."""

LONGEST_VALUE = 128
"""Longest value of a label."""

MOST_LABELS = 16
"""Most labels of a call."""

_READ_KEYS = frozenset({ROUTE_KEY, REQUEST_ID_KEY, *NAME_KEYS})


_PREFERENCES = {
    pb.PREFERENCE_UNSPECIFIED: Preference.BALANCED,
    pb.PREFERENCE_BALANCED: Preference.BALANCED,
    pb.PREFERENCE_LATENCY: Preference.LATENCY,
    pb.PREFERENCE_COST: Preference.COST,
    pb.PREFERENCE_QUALITY: Preference.QUALITY,
}

_CACHES = {
    pb.CACHE_POLICY_UNSPECIFIED: CachePolicy.DEFAULT,
    pb.CACHE_POLICY_DEFAULT: CachePolicy.DEFAULT,
    pb.CACHE_POLICY_BYPASS: CachePolicy.BYPASS,
    pb.CACHE_POLICY_REFRESH: CachePolicy.REFRESH,
}

Metadata = Iterable[tuple[str, str | bytes]]


class _Asked(NamedTuple):
    """What all requests of one layout ask for."""

    inputs: tuple[TensorMeta, ...]
    options: RouteOptions
    timeout_s: float | None


def call_from(
    received: Received, metadata: Metadata, *, trace_id: str, made_up_id: str, dry: bool = False
) -> InferCall:
    """A request as the decisions see it.

    Args:
        received: The request.
        metadata: The call's metadata.
        trace_id: Of the current trace.
        made_up_id: The request's id, if the caller gives none.
        dry: True lets tensors come without contents.

    Raises:
        InvalidRequest: Contents, parameters or options are malformed; names each.
    """
    message, layout = received.message, received.layout
    headers = {key: value for key, value in metadata if key in _READ_KEYS}
    faults: list[Fault] = []
    known = None if layout is None or headers or dry else layout.notes
    if isinstance(known, _Asked):
        inputs, options, timeout_s = known
    else:
        inputs = _inputs(received, faults, dry=dry)
        options, timeout_s = _options(message, headers, faults)
        if layout is not None and not (faults or headers or dry):
            layout.notes = _Asked(inputs, options, timeout_s)
    own_id = received.request_id
    request_id = own_id or (_text(headers.get(REQUEST_ID_KEY, "")) if headers else "")
    if len(request_id) > LONGEST_ID:
        faults.append(Fault("id", f"has {len(request_id)} characters, more than {LONGEST_ID}"))
    if faults:
        raise InvalidRequest.of(faults)
    name = message.model_name
    if not name and headers:
        name = next((_text(headers[key]) for key in NAME_KEYS if key in headers), "")
    request_id = request_id or made_up_id
    payload = Payload(received.raw, "" if own_id else request_id, layout)
    return InferCall(name, message.model_version, request_id, inputs, options, timeout_s, trace_id, payload)


def _inputs(received: Received, faults: list[Fault], *, dry: bool) -> tuple[TensorMeta, ...]:
    message, lengths = received.message, received.raw_lengths
    inputs = message.inputs
    if not lengths:
        return tuple([_typed(tensor, dry=dry) for tensor in inputs])
    if len(lengths) != len(inputs):
        if len(lengths) < len(inputs):
            hint = f"input '{inputs[len(lengths)].name}' has none"
        else:
            hint = f"entry {len(inputs)} belongs to no input"
        faults.append(Fault("raw_input_contents", f"{len(lengths)} entries for {len(inputs)} inputs: {hint}"))
    found = []
    for index, (tensor, length) in enumerate(zip(inputs, lengths, strict=False)):
        if tensor.HasField("contents"):
            text = f"input '{tensor.name}' has contents beside raw_input_contents: a request is all typed or all raw"
            faults.append(Fault(f"inputs[{index}].contents", text))
        found.append(TensorMeta(tensor.name, tensor.datatype, tuple(tensor.shape), length))
    return tuple(found)


def _typed(tensor: pb.InferRequest.InferInputTensor, *, dry: bool) -> TensorMeta:
    if not tensor.HasField("contents"):
        return TensorMeta(tensor.name, tensor.datatype, tuple(tensor.shape), None, None if dry else 0)
    field = CONTENTS.get(tensor.datatype)
    count = 0 if field is None else len(getattr(tensor.contents, field))
    return TensorMeta(tensor.name, tensor.datatype, tuple(tensor.shape), None, count)


def _options(
    message: pb.InferRequest, headers: dict[str, str | bytes], faults: list[Fault]
) -> tuple[RouteOptions, float | None]:
    """Wishes and the parameter `timeout`: field 100 goes before metadata, metadata before parameters."""
    has_field, has_parameters = message.HasField("route"), bool(message.parameters)
    if not has_field and not has_parameters and ROUTE_KEY not in headers:
        return NO_WISHES, None
    wishes = pb.RouteOptions()
    timeout_s = _parameters(message, wishes, faults) if has_parameters else None
    header = headers.get(ROUTE_KEY)
    if header is not None:
        try:
            wishes.MergeFromString(header if isinstance(header, bytes) else header.encode())
        except DecodeError:
            faults.append(Fault(ROUTE_KEY, "is no serialized modelyard.inference.v1.RouteOptions"))
    if has_field:
        wishes.MergeFrom(message.route)
    if wishes.HasField("min_quality") and not 0.0 <= wishes.min_quality <= 1.0:
        faults.append(Fault("route.min_quality", f"{wishes.min_quality} must be in [0, 1]"))
    if wishes.max_cost_microusd < 0:
        faults.append(Fault("route.max_cost_microusd", f"{wishes.max_cost_microusd} must not be negative"))
    if len(wishes.session) > LONGEST_ID:
        faults.append(Fault("route.session", f"has {len(wishes.session)} characters, more than {LONGEST_ID}"))
    faults += _kind_faults(wishes)
    preference = _PREFERENCES.get(wishes.prefer)
    if preference is None:
        faults.append(Fault("route.prefer", f"{wishes.prefer} is no Preference"))
    if wishes.cache not in _CACHES:
        faults.append(Fault("route.cache", f"{wishes.cache} is no CachePolicy"))
    return options_of(wishes, preference or Preference.BALANCED), timeout_s


def _kind_faults(wishes: pb.RouteOptions) -> Iterator[Fault]:
    """What is wrong with domain, complexity and labels."""
    texts = [("route.domain", wishes.domain, LONGEST_NOTE), ("route.complexity", wishes.complexity, LONGEST_NOTE)]
    if len(wishes.labels) > MOST_LABELS:
        yield Fault("route.labels", f"has {len(wishes.labels)} labels, more than {MOST_LABELS}")
    else:
        for key, value in wishes.labels.items():
            if not key:
                yield Fault("route.labels", "has a label without a key")
            texts += [
                ("route.labels", key, LONGEST_NOTE),
                (f"route.labels[{key[:LONGEST_NOTE]}]", value, LONGEST_VALUE),
            ]
    for path, text, longest in texts:
        yield from text_faults(path, text, longest)


def text_faults(path: str, text: str, longest: int) -> Iterator[Fault]:
    """What is wrong with a line of at most `longest` characters."""
    if len(text) > longest:
        yield Fault(path, f"has a text of {len(text)} characters, more than {longest}")
    elif text and not text.isprintable():
        yield Fault(path, "has a text with characters that cannot be printed, or of several lines")


def options_of(wishes: pb.RouteOptions, prefer: Preference) -> RouteOptions:
    """Wishes that were checked; `prefer` is what their own preference means."""
    return RouteOptions(
        max_cost_microusd=wishes.max_cost_microusd if wishes.HasField("max_cost_microusd") else None,
        min_quality=wishes.min_quality if wishes.HasField("min_quality") else None,
        prefer=prefer,
        zone=wishes.zone,
        idempotent=wishes.idempotent if wishes.HasField("idempotent") else True,
        explain=wishes.explain,
        tenant=wishes.tenant,
        tier=wishes.tier,
        priority=wishes.priority,
        session=wishes.session,
        cache=_CACHES.get(wishes.cache, CachePolicy.DEFAULT),
        hedge=wishes.hedge if wishes.HasField("hedge") else True,
        labels=tuple(sorted(wishes.labels.items())) if wishes.labels else (),
        domain=wishes.domain,
        complexity=wishes.complexity,
    )


def _parameters(message: pb.InferRequest, wishes: pb.RouteOptions, faults: list[Fault]) -> float | None:
    """Put what the parameters wish into `wishes`; returns `timeout` in seconds, None without or for 0."""
    parameters = message.parameters
    timeout_s: float | None = None
    if "timeout" in parameters:
        timeout_us = _number(parameters["timeout"])
        if timeout_us is None or timeout_us < 0 or timeout_us != int(timeout_us):
            faults.append(Fault("parameters[timeout]", "must be a whole number of microseconds, 0 or more"))
        elif timeout_us > 0:
            timeout_s = timeout_us * 1e-6
    if "max_cost_microusd" in parameters:
        cost = _number(parameters["max_cost_microusd"])
        if cost is None or not 0 <= cost < 2**63:
            faults.append(Fault("parameters[max_cost_microusd]", "must be a number, 0 or more"))
        else:
            wishes.max_cost_microusd = int(cost)
    if "min_quality" in parameters:
        quality = _number(parameters["min_quality"])
        if quality is None:
            faults.append(Fault("parameters[min_quality]", "must be a number in [0, 1]"))
        else:
            wishes.min_quality = quality
    if "priority" in parameters:
        priority = _number(parameters["priority"])
        if priority is None or priority != int(priority) or not 0 <= priority < 2**31:
            faults.append(Fault("parameters[priority]", "must be a whole number, 0 or more"))
        else:
            wishes.priority = int(priority)
    if "tier" in parameters:
        wishes.tier = parameters["tier"].string_param
        if not wishes.tier:
            faults.append(Fault("parameters[tier]", "must be the name of a tier"))
    if "cache" in parameters:
        asked = parameters["cache"].string_param
        if asked.upper() in CachePolicy.__members__:
            wishes.cache = pb.CachePolicy.Value(f"CACHE_POLICY_{asked.upper()}")
        else:
            faults.append(Fault("parameters[cache]", "must be one of default, bypass, refresh"))
    for name in ("domain", "complexity"):
        if name in parameters:
            text = parameters[name].string_param
            if not text:
                faults.append(Fault(f"parameters[{name}]", "must be a text"))
            setattr(wishes, name, text)
    for name in ("sequence_id", "session"):
        if name in parameters:
            wishes.session = _key(parameters[name]) or wishes.session
    return timeout_s


def _key(parameter: pb.InferParameter) -> str:
    """Text, or a number as text; empty for 0, by which clients say that there is none."""
    which = parameter.WhichOneof("parameter_choice")
    value = "" if which is None else getattr(parameter, which)
    return str(value) if value else ""


def _number(parameter: pb.InferParameter) -> float | None:
    """A finite number, also one sent as text; None for anything else."""
    which = parameter.WhichOneof("parameter_choice")
    if which is None or which == "bool_param":
        return None
    try:
        value = float(getattr(parameter, which))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
