"""A tensor with its elements, on its way from an answer into a request or another answer."""

from typing import NamedTuple

from services.domain.model import TensorMeta


class RawTensor(NamedTuple):
    """One tensor; its elements are not looked into as long as it is only passed on."""

    datatype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview
    """Little-endian, row-major, as in `raw_input_contents`."""

    def meta(self, name: str) -> TensorMeta:
        """What a request says of it."""
        return TensorMeta(name, self.datatype, self.shape, raw_bytes=len(self.raw))
