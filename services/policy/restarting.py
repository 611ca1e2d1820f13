"""How long something that failed rests before it is tried again."""

from dataclasses import dataclass

HOST_FIRST_S = 0.5
"""Rest before the second restart in a row of a host process; the first one is prompt."""

HOST_LONGEST_S = 30.0
"""Longest rest of a host process."""

HOST_HEALTHY_S = 60.0
"""A host process that ran this long starts again with a clean record."""

LOAD_FIRST_S = 1.0
"""Rest after the first failed load of a version on a host."""

LOAD_LONGEST_S = 60.0
"""Longest rest of a failed load."""


@dataclass(frozen=True, slots=True)
class Restarts:
    """Record of one host process."""

    in_a_row: int = 0
    """Ends since it last ran for long."""
    not_before_s: float = 0.0
    """Monotonic time before which it is not started again."""


def backoff_s(failures: int, *, first_s: float, longest_s: float) -> float:
    """Rest after the n-th failure in a row: `first_s`, doubling, at most `longest_s`; 0 without a failure."""
    if failures <= 0:
        return 0.0
    # The exponent is bounded, or 2**failures overflows a float after a day of failing.
    return float(min(longest_s, first_s * 2.0 ** min(failures - 1, 32)))


def after_end(restarts: Restarts, *, ran_s: float, now_s: float) -> Restarts:
    """The record of a host process that ended though it should run.

    Args:
        restarts: Its record so far.
        ran_s: How long it ran.
        now_s: Now.

    Returns:
        Its record from now on: prompt at first, then resting longer each time.
    """
    in_a_row = 1 if ran_s >= HOST_HEALTHY_S else restarts.in_a_row + 1
    rest_s = backoff_s(in_a_row - 1, first_s=HOST_FIRST_S, longest_s=HOST_LONGEST_S)
    return Restarts(in_a_row, now_s + rest_s)
