"""Pairs of requests made to be taken for each other: seeded, endless, each with whether they are the same call.

What is built of protobuf messages alone, so that nothing of what is examined decides what is right.
"""

import random
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from modelyard.inference.v1 import inference_pb2 as pb

TENANTS = ("", "a", "ab", "A", "a\0", "acme", "acm", "acme ", "\u00e9", "e\u0301", "all", "of ", "of a")
ROUTES = ("r", "ra", "a", "rab", "r\0")
NAMES = ("x", "xy", "y", "", "x\0", "\u00e9", "e\u0301", "FP32", "xFP32")
NUMBERS = {"FP32": "f", "FP64": "d", "INT32": "i", "INT64": "q", "UINT8": "B", "BOOL": "?"}
CONTENTS = {
    "FP32": "fp32_contents", "FP64": "fp64_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents",
}  # fmt: skip
SOME_OUTPUTS, OTHER_OUTPUTS = ("x\0", "y"), ("x", "\0y")
ALIKE = 8
"""Pairs in a row whose first call is the same."""
QUIET_NAN = struct.pack("<I", 0x7FC00001)
OTHER_NAN = struct.pack("<I", 0x7FC00002)


class Tensor(NamedTuple):
    """One input."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes
    parameters: tuple[tuple[str, object], ...] = ()


class Asked(NamedTuple):
    """One call."""

    tenant: str
    route: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    parameters: tuple[tuple[str, object], ...] = ()
    typed: bool = False
    request_id: str = ""

    def request(self) -> pb.InferRequest:
        """As it is sent."""
        request = pb.InferRequest(model_name=self.route, id=self.request_id)
        request.route.tenant = self.tenant
        _put(request.parameters, self.parameters)
        for tensor in self.inputs:
            made = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            _put(made.parameters, tensor.parameters)
            if self.typed:
                getattr(made.contents, CONTENTS[tensor.datatype]).extend(_elements(tensor))
            else:
                request.raw_input_contents.append(tensor.raw)
        for name in self.outputs:
            request.outputs.add(name=name)
        return request


class Pair(NamedTuple):
    """Two calls."""

    one: Asked
    other: Asked
    same: bool
    """Whether one may have the other's answer."""
    how: str


def across_tenants(count: int, *, seed: int) -> Iterator[Pair]:
    """Calls of different tenants, alike in all or nearly all else: none may have another's answer."""
    chance = random.Random(seed)
    for number in range(count):
        if number % ALIKE == 0:
            one = _asked(chance)
        name, change = chance.choice(_CHANGES)
        other = change(chance, one) if chance.random() < 0.7 else None
        tenant = chance.choice([each for each in TENANTS if each != one.tenant])
        yield Pair(one, (other or one)._replace(tenant=tenant), False, f"tenant and {name}" if other else "tenant")


def within_tenants(count: int, *, seed: int) -> Iterator[Pair]:
    """Calls of one tenant that are the same, or differ in as little as there is to differ in."""
    chance = random.Random(seed)
    while count:
        one = _asked(chance)
        same = chance.random() < 0.4
        name, change = chance.choice(_DISGUISES if same else _CHANGES)
        other = change(chance, one)
        if other is not None:
            count -= 1
            yield Pair(one, other, same, name)


def _asked(chance: random.Random) -> Asked:
    names = chance.sample(NAMES, chance.randrange(1, 4))
    return Asked(
        chance.choice(TENANTS),
        chance.choice(ROUTES),
        tuple(_tensor(chance, name) for name in names),
        SOME_OUTPUTS if chance.random() < 0.2 else tuple(chance.sample(NAMES, chance.randrange(3))),
        tuple((f"p{at}", chance.choice((0, 1, "1", "", True, 0.5, -0.0, "ab"))) for at in range(chance.randrange(3))),
        typed=chance.random() < 0.4,
    )


def _tensor(chance: random.Random, name: str) -> Tensor:
    if chance.random() < 0.2:
        return Tensor(name, "BYTES", (2,), chance.choice(list(_TEXTS)))
    datatype = chance.choice((*NUMBERS, "BYTES"))
    shape = chance.choice(((2, 3), (6,), (1, 6), (0,), (2,), (1, 1)))
    elements = 1
    for size in shape:
        elements *= size
    if datatype == "BYTES":
        texts = [chance.choice((b"", b"a", b"ab", b"b", b"\0\0\0\0", "\u00e9".encode())) for _ in range(elements)]
        raw = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    else:
        numbers = [chance.choice((0, 1, 2, 3, 100)) for _ in range(elements)]
        raw = struct.pack(f"<{elements}{NUMBERS[datatype]}", *numbers)
    return Tensor(name, datatype, shape, raw)


def _elements(tensor: Tensor) -> list[object]:
    if tensor.datatype != "BYTES":
        form = NUMBERS[tensor.datatype]
        return list(struct.unpack(f"<{len(tensor.raw) // struct.calcsize('<' + form)}{form}", tensor.raw))
    found: list[object] = []
    at = 0
    while at < len(tensor.raw):
        (length,) = struct.unpack_from("<I", tensor.raw, at)
        found.append(tensor.raw[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def _put(parameters: object, values: tuple[tuple[str, object], ...]) -> None:
    for name, value in values:
        parameter = parameters[name]  # type: ignore[index]
        match value:
            case bool():
                parameter.bool_param = value
            case int():
                parameter.int64_param = value
            case float():
                parameter.double_param = value
            case str():
                parameter.string_param = value
            case _:
                parameter.SetInParent()


def _framed(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


_TEXTS = {
    _framed(b"ab", b"c"): _framed(b"a", b"bc"),
    _framed(b"", b"x"): _framed(b"x", b""),
    _framed(b"a\0", b""): _framed(b"a", b"\0"),
}
"""Two texts, and two others that come to the same without their lengths."""

Change = Callable[[random.Random, Asked], Asked | None]
"""Another call, or the same in disguise; None where there is nothing of the kind to do."""


def _at(asked: Asked, at: int, tensor: Tensor) -> Asked:
    return asked._replace(inputs=(*asked.inputs[:at], tensor, *asked.inputs[at + 1 :]))


def _one_byte(chance: random.Random, asked: Asked) -> Asked | None:
    at = chance.randrange(len(asked.inputs))
    tensor = asked.inputs[at]
    if not tensor.raw or tensor.datatype in ("BYTES", "BOOL"):
        return None
    place = chance.randrange(len(tensor.raw))
    raw = bytearray(tensor.raw)
    raw[place] ^= 1 << chance.randrange(7)
    return _at(asked._replace(typed=False), at, tensor._replace(raw=bytes(raw)))


def _moved_bytes(chance: random.Random, asked: Asked) -> Asked | None:
    """The same bytes in a row, of which another part belongs to the next input."""
    if len(asked.inputs) < 2 or not asked.inputs[0].raw:
        return None
    first, second, *rest = asked.inputs
    cut = chance.randrange(len(first.raw))
    moved = first._replace(raw=first.raw[:cut]), second._replace(raw=first.raw[cut:] + second.raw)
    return asked._replace(inputs=(*moved, *rest), typed=False)


def _shape(chance: random.Random, asked: Asked) -> Asked | None:
    at = chance.randrange(len(asked.inputs))
    tensor = asked.inputs[at]
    others = {(2, 3): (3, 2), (6,): (1, 6), (1, 6): (6, 1), (0,): (0, 1), (2,): (1, 2), (1, 1): (1,)}
    return _at(asked, at, tensor._replace(shape=others[tensor.shape]))


def _datatype(chance: random.Random, asked: Asked) -> Asked | None:
    at = chance.randrange(len(asked.inputs))
    tensor = asked.inputs[at]
    others = {"FP32": "INT32", "INT32": "FP32", "FP64": "INT64", "INT64": "FP64", "UINT8": "BOOL", "BYTES": "UINT8"}
    if tensor.datatype not in others:
        return None
    return _at(asked._replace(typed=False), at, tensor._replace(datatype=others[tensor.datatype]))


def _swapped_names(chance: random.Random, asked: Asked) -> Asked | None:
    if len(asked.inputs) < 2 or asked.inputs[0][1:] == asked.inputs[1][1:]:
        return None
    first, second, *rest = asked.inputs
    return asked._replace(inputs=(first._replace(name=second.name), second._replace(name=first.name), *rest))


def _renamed(chance: random.Random, asked: Asked) -> Asked | None:
    at = chance.randrange(len(asked.inputs))
    free = [name for name in NAMES if name not in {tensor.name for tensor in asked.inputs}]
    return _at(asked, at, asked.inputs[at]._replace(name=chance.choice(free)))


def _dropped(chance: random.Random, asked: Asked) -> Asked | None:
    """An input without elements is not one that is missing."""
    return asked._replace(inputs=asked.inputs[1:]) if len(asked.inputs) > 1 else None


def _texts_shifted(chance: random.Random, asked: Asked) -> Asked | None:
    """Where one text ends and the next begins."""
    for at, tensor in enumerate(asked.inputs):
        other = _TEXTS.get(tensor.raw) if tensor.datatype == "BYTES" else None
        if other is not None:
            return _at(asked, at, tensor._replace(raw=other))
    return None


def _outputs_shifted(chance: random.Random, asked: Asked) -> Asked | None:
    """Where one name ends and the next begins: between them are zeros, and so there are in them."""
    return asked._replace(outputs=OTHER_OUTPUTS) if asked.outputs == SOME_OUTPUTS else None


def _nan(chance: random.Random, asked: Asked) -> Asked | None:
    tensor = asked.inputs[0]
    if tensor.datatype != "FP32" or tensor.raw[:4] != bytes(4):
        return None
    other = chance.choice((QUIET_NAN, OTHER_NAN, struct.pack("<f", -0.0)))
    return _at(asked._replace(typed=False), 0, tensor._replace(raw=other + tensor.raw[4:]))


def _parameter_type(chance: random.Random, asked: Asked) -> Asked | None:
    if not asked.parameters:
        return None
    name, value = asked.parameters[0]
    others: list[object] = [0, 1, "1", "", "0", True, False, 1.0, 0.0, -0.0, "True", None]
    same = [other for other in others if not (type(other) is type(value) and repr(other) == repr(value))]
    return asked._replace(parameters=((name, chance.choice(same)), *asked.parameters[1:]))


def _parameter_moved(chance: random.Random, asked: Asked) -> Asked | None:
    if not asked.parameters:
        return None
    at = chance.randrange(len(asked.inputs))
    tensor = asked.inputs[at]._replace(parameters=(asked.parameters[0],))
    return _at(asked, at, tensor)._replace(parameters=asked.parameters[1:])


def _parameter_shifted(chance: random.Random, asked: Asked) -> Asked | None:
    texts = [(at, name, value) for at, (name, value) in enumerate(asked.parameters) if isinstance(value, str) and value]
    if not texts:
        return None
    at, name, value = texts[0]
    shifted = (name + value[0], value[1:])
    return asked._replace(parameters=(*asked.parameters[:at], shifted, *asked.parameters[at + 1 :]))


def _parameter_more(chance: random.Random, asked: Asked) -> Asked | None:
    return asked._replace(parameters=(*asked.parameters, ("new", chance.choice(("", 0, False, None)))))


def _outputs(chance: random.Random, asked: Asked) -> Asked | None:
    if len(asked.outputs) > 1 and chance.random() < 0.5:
        return asked._replace(outputs=asked.outputs[::-1])
    return asked._replace(outputs=asked.outputs[1:] if asked.outputs else ("",))


def _route(chance: random.Random, asked: Asked) -> Asked | None:
    """Another route; with a tenant that makes up for what its name lacks, where that can be."""
    for route in ROUTES:
        if route != asked.route and asked.route.startswith(route):
            return asked._replace(route=route)
    return asked._replace(route=next(route for route in ROUTES if route != asked.route))


def _as_it_was(chance: random.Random, asked: Asked) -> Asked | None:
    return asked


def _shuffled(chance: random.Random, asked: Asked) -> Asked | None:
    inputs, parameters = list(asked.inputs), list(asked.parameters)
    chance.shuffle(inputs)
    chance.shuffle(parameters)
    return asked._replace(inputs=tuple(inputs), parameters=tuple(parameters))


def _other_form(chance: random.Random, asked: Asked) -> Asked | None:
    return asked._replace(typed=not asked.typed)


def _its_own(chance: random.Random, asked: Asked) -> Asked | None:
    """Of the one call alone: id, deadline, whom it is urgent for."""
    own = (("timeout", 5_000_000), ("priority", 2), ("session", "s"), ("sequence_id", 0))
    more = tuple(chance.sample(own, chance.randrange(1, 4)))
    return asked._replace(request_id=f"r{chance.randrange(99)}", parameters=(*asked.parameters, *more))


_CHANGES: tuple[tuple[str, Change], ...] = (
    ("one bit", _one_byte), ("bytes of the next input", _moved_bytes), ("shape", _shape), ("datatype", _datatype),
    ("swapped names", _swapped_names), ("a name", _renamed), ("an input less", _dropped), ("texts", _texts_shifted),
    ("names of outputs", _outputs_shifted),
    ("not a number", _nan), ("a parameter's type", _parameter_type), ("a parameter's place", _parameter_moved),
    ("a parameter's name", _parameter_shifted), ("an empty parameter", _parameter_more), ("outputs", _outputs),
    ("route", _route),
)  # fmt: skip
_DISGUISES: tuple[tuple[str, Change], ...] = (
    ("nothing", _as_it_was), ("order", _shuffled), ("form", _other_form), ("what is its own", _its_own),
)  # fmt: skip
