"""Chance that replays: a keyed hash of (seed, request id, purpose) instead of a generator's state."""

import hashlib


class KeyedRng:
    """Draws that depend on nothing but their key, so that a logged decision can be made again."""

    __slots__ = ("_seed",)

    def __init__(self, seed: int) -> None:
        """Key every draw with `seed`, a 64-bit integer."""
        self._seed = seed.to_bytes(8, "little", signed=False)

    def bits(self, request_id: str, purpose: str) -> int:
        """A 64-bit integer, uniform over (seed, request_id, purpose)."""
        digest = hashlib.blake2b(purpose.encode() + b"\0" + request_id.encode(), digest_size=8, key=self._seed).digest()
        return int.from_bytes(digest, "little")

    def unit(self, request_id: str, purpose: str) -> float:
        """A float in [0, 1)."""
        return (self.bits(request_id, purpose) >> 11) * 2.0**-53
