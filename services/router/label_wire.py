"""protobuf ⇄ domain for labels of answers."""

import math

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.errors import Fault, InvalidRequest
from services.router.labelling import Label, Labelled
from services.router.wire import LONGEST_NOTE, LONGEST_VALUE, text_faults

LONGEST_ID = 512
"""Longest request id and name that is looked up."""


def label_from(request: pb.FeedbackRequest) -> Label:
    """A label.

    Raises:
        InvalidRequest: It says nothing, or what cannot be; names every fault.
    """
    faults = [] if request.request_id else [Fault("request_id", "must be that of the call, as in its Decision")]
    quality = request.quality if request.HasField("quality") else None
    cost = request.cost_microusd if request.HasField("cost_microusd") else None
    if quality is None and cost is None:
        faults.append(Fault("quality", "is missing, and so is cost_microusd: say one of them"))
    if quality is not None and not 0.0 <= quality <= 1.0:
        faults.append(Fault("quality", f"{quality} must be in [0, 1]"))
    if cost is not None and not 0.0 <= cost < math.inf:
        faults.append(Fault("cost_microusd", f"{cost} must be finite and not negative"))
    if bool(request.model) != bool(request.version):
        faults.append(Fault("version", "stands together with model, as in the Decision"))
    if not request.model and (request.domain or request.complexity):
        faults.append(Fault("model", "is missing: domain and complexity stand beside it, as in the Decision"))
    for path, text, longest in (
        ("request_id", request.request_id, LONGEST_ID),
        ("model", request.model, LONGEST_ID),
        ("version", request.version, LONGEST_ID),
        ("metric", request.metric, LONGEST_NOTE),
        ("segment", request.segment, LONGEST_VALUE),
        ("domain", request.domain, LONGEST_NOTE),
        ("complexity", request.complexity, LONGEST_NOTE),
    ):
        faults += text_faults(path, text, longest)
    if faults:
        raise InvalidRequest.of(faults)
    return Label(
        request.request_id,
        quality,
        request.metric,
        request.segment,
        cost,
        request.model,
        request.version,
        request.domain,
        request.complexity,
    )


def response_from(labelled: Labelled) -> pb.FeedbackResponse:
    """What became of it."""
    return pb.FeedbackResponse(
        model=labelled.key.model,
        version=labelled.key.version,
        learned=not labelled.reason,
        reason=labelled.reason,
        quality=labelled.quality,
    )
