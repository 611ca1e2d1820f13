"""Requests that differ in nothing but their id and their tensors: known by where these lie, they need no parsing.

A caller sends one kind of request over and over, with other data in it. Of each length and name the last layout is
kept: which bytes are fixed, and where id and tensors lie between them. Bytes that agree with the fixed ones
are the same message with another id and other tensors, by protobuf's wire format. All else is parsed.
"""

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.encoding import read_varint

LAYOUTS_KEPT = 1024
"""Kinds of requests remembered."""

SMALL_BYTES = 16 * 1024
"""A request up to this size is parsed whole where its layout is not known: quicker than looking for its tensors."""

FIXED_BYTES = 4096
"""A layout with more fixed bytes, such as one with typed tensors, is not worth comparing."""

_ID = pb.InferRequest.ID_FIELD_NUMBER
_RAW_CONTENTS = pb.InferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER


@dataclass(slots=True, eq=False)
class Layout:
    """One kind of request."""

    message: pb.InferRequest
    """The request without id and `raw_input_contents`. Not to be changed."""
    tensors: tuple[tuple[int, int], ...]
    """Offset and length of each entry of `raw_input_contents`."""
    lengths: tuple[int, ...]
    """The lengths alone."""
    id_at: tuple[int, int]
    """Offset and end of the id; equal if there is none."""
    fixed: tuple[tuple[int, bytes], ...]
    """Offset and contents of what all such requests have in common."""
    notes: object = None
    """What its reader has worked out for all such requests."""

    def matches(self, raw: bytes) -> bool:
        """Whether `raw`, of the same length, is such a request."""
        for at, piece in self.fixed:  # noqa: SIM110 - a generator costs twice as much
            if not raw.startswith(piece, at):
                return False
        return True

    def id_of(self, raw: bytes) -> str:
        """The id in `raw`.

        Raises:
            DecodeError: It is not UTF-8.
        """
        start, end = self.id_at
        if start == end:
            return ""
        try:
            return raw[start:end].decode()
        except UnicodeDecodeError:
            raise DecodeError("the id is not UTF-8") from None


def layout_of(raw: bytes) -> Layout | None:
    """The layout of `raw`; None for bytes that only a parser should judge."""
    tensors: list[tuple[int, int]] = []
    fixed: list[tuple[int, bytes]] = []
    rest: list[bytes] = []
    id_at = (0, 0)
    piece_at, at, end = 0, 0, len(raw)
    try:
        while at < end:
            field_at = at
            tag, at = read_varint(raw, at)
            number = tag >> 3
            match tag & 7:
                case 2:
                    length, at = read_varint(raw, at)
                    if number in (_ID, _RAW_CONTENTS):
                        fixed.append((piece_at, raw[piece_at:at]))
                        piece_at = at + length
                        if number == _RAW_CONTENTS:
                            tensors.append((at, length))
                        elif id_at == (0, 0):
                            id_at = (at, at + length)
                        else:
                            return None  # the last of several ids counts
                    at += length
                case 0:
                    _, at = read_varint(raw, at)
                case 1:
                    at += 8
                case 5:
                    at += 4
                case _:
                    return None
            if number not in (_ID, _RAW_CONTENTS):
                rest.append(raw[field_at:at])
        if at != end:
            return None
        message = pb.InferRequest.FromString(b"".join(rest))
    except DecodeError:
        return None
    if piece_at < end:
        fixed.append((piece_at, raw[piece_at:]))
    return Layout(message, tuple(tensors), tuple(length for _, length in tensors), id_at, tuple(fixed))


class Layouts:
    """The kinds of requests that one process has met."""

    def __init__(self) -> None:
        """None yet."""
        self._kept: dict[tuple[int, bytes], _Kept] = {}

    def of(self, raw: bytes) -> Layout | None:
        """The layout of `raw`, if it is known; else None, and perhaps it is known the next time.

        A layout takes longer to work out than a small message to parse. So one is worked out at the second request
        without one, and after failing to match at the fourth, the eighth and so on in a row. Of a large one it
        always is: parsing would copy the tensors.
        """
        if len(raw) < 2:
            return None
        key = (len(raw), raw[: raw[1] + 2])  # the first field is the name, as all encoders write it
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= LAYOUTS_KEPT:
                self._kept.clear()
            kept = self._kept[key] = _Kept()
        layout = kept.layout
        if layout is not None and layout.matches(raw):
            kept.missed = 1
            return layout
        kept.missed += 1
        due = kept.missed > 1 and not kept.missed & (kept.missed - 1)
        if not due and len(raw) <= SMALL_BYTES:
            return None
        layout = layout_of(raw)
        if layout is not None and sum(len(piece) for _, piece in layout.fixed) <= FIXED_BYTES:
            kept.layout = layout
        return layout


@dataclass(slots=True)
class _Kept:
    layout: Layout | None = None
    missed: int = 0
