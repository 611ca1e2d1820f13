"""What hosts of which nothing is known are taken for: as fast as the fastest of their kind that is heard of."""

import math

WINDOW_S = 5.0
"""The least of what was heard in this window and the one before it counts."""


class Prior:
    """Batch time of a version on a kind of device: t(b) = base_s + per_item_s * b.

    The least of what hosts report, not the last: a host that is slow, or thawed, must not make others look as it is.
    A host that is taken for too fast shows with its first answer.
    """

    __slots__ = ("_least", "_since_s", "base_s", "per_item_s")

    def __init__(self, base_s: float, per_item_s: float = 0.0) -> None:
        """Start from what the version declares."""
        self.base_s = base_s
        self.per_item_s = per_item_s
        self._since_s = -math.inf
        self._least = (math.inf, 0.0)

    def heard(self, base_s: float, per_item_s: float, now_s: float) -> None:
        """Take note of what a host reports of itself."""
        heard, time_s = (base_s, per_item_s), base_s + per_item_s
        least = self._least
        if now_s - self._since_s > WINDOW_S:
            # What was heard in the window that ended; nothing of it counts if that was long ago.
            known = least if now_s - self._since_s <= 2.0 * WINDOW_S else heard
            self._since_s, self._least = now_s, heard
            self.base_s, self.per_item_s = known if known[0] + known[1] <= time_s else heard
            return
        if time_s < least[0] + least[1]:
            self._least = heard
        if time_s < self.base_s + self.per_item_s:
            self.base_s, self.per_item_s = heard
