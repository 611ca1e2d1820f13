"""Versions that left the device and are kept in the host's memory, so that they come back without being read.

Bounded by bytes; what left longest ago goes first. Not every framework can do that: what cannot is read again.
"""

from collections import OrderedDict

from services.domain.model import ModelKey
from services.model_host.predictor import Predictor


class WarmTier:
    """The versions that are kept. Call it from the loading thread."""

    def __init__(self, max_bytes: int) -> None:
        """Keep at most `max_bytes`; 0 keeps none."""
        self._max_bytes = max_bytes
        self._kept: OrderedDict[ModelKey, tuple[Predictor, int]] = OrderedDict()
        self.used_bytes = 0
        """What they take."""

    def park(self, predictor: Predictor) -> bool:
        """Take a version off the device and keep it; False if it is not kept."""
        size = predictor.parked_bytes
        if size is None or size > self._max_bytes:
            return False
        while self.used_bytes + size > self._max_bytes:
            self.forget(next(iter(self._kept)))
        predictor.park()
        self._kept[predictor.key] = (predictor, size)
        self.used_bytes += size
        return True

    def take(self, key: ModelKey) -> Predictor | None:
        """A version, on the device again; None if it is not kept."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        self.forget(key)
        kept[0].unpark()
        return kept[0]

    def forget(self, key: ModelKey) -> None:
        """Keep a version no longer, if it is kept."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.used_bytes -= kept[1]
