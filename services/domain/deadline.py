"""The time a call may still take, carried from hop to hop."""

from typing import NamedTuple

from services.domain.clock import Clock
from services.domain.errors import BudgetExhausted

LONGEST_S = 24 * 3600.0
"""Deadlines are cut to this; a client may send 1e15 seconds, which overflows timers."""


class Deadline(NamedTuple):
    """A fixed point on a clock's monotonic time."""

    at_s: float
    clock: Clock

    @classmethod
    def after(cls, duration_s: float, clock: Clock) -> "Deadline":
        """The point `duration_s` seconds from now, at most a day away."""
        return cls(clock.now_s() + min(duration_s, LONGEST_S), clock)

    @classmethod
    def from_remaining(cls, remaining_s: float | None, clock: Clock) -> "Deadline":
        """The deadline of a call that has `remaining_s` left; None means a day."""
        return cls.after(LONGEST_S if remaining_s is None else remaining_s, clock)

    def remaining_s(self) -> float:
        """Seconds left; negative once passed."""
        return self.at_s - self.clock.now_s()

    def for_hop(self, *, reserve_s: float) -> float:
        """Seconds the next hop may take, when `reserve_s` are kept to answer in.

        Raises:
            BudgetExhausted: Nothing but the reserve is left.
        """
        left_s = self.remaining_s() - reserve_s
        if left_s <= 0.0:
            raise BudgetExhausted(
                f"the deadline leaves {max(0.0, left_s + reserve_s) * 1e3:.1f} ms, "
                f"and {reserve_s * 1e3:.1f} ms of it are kept to answer in"
            )
        return left_s
