"""How many calls at once, and how fast they may come: the limits of routes, tiers and tenants.

The token bucket is kept as three sums that only grow, so that several processes keep one together without a lock
(see `chassis/named_counts`): what was let in, what was earned, and what was earned while the bucket was full
and so is lost. It lets in what the bucket of RFC 2697, section 3, with one rate and one size, would.
"""

import math
from typing import NamedTuple

from services.policy.admission import ADMIT, FULL_RETRY_S, Admit, Reject, RejectReason

ALMOST = 0.999
"""So much of a token is one: sums over weeks are rounded, and a caller comes back in time if it comes when told."""


def admit_one_more(*, in_flight: int, most: int) -> Admit | Reject:
    """Whether one more call may be in flight beside those that are."""
    return ADMIT if in_flight < most else Reject(RejectReason.LIMIT_MET, FULL_RETRY_S)


def part_of(most: int, part: float) -> int:
    """What one of several may have of a limit that holds over all of them: rounded down, but at least 1."""
    return max(1, math.floor(most * part + 1e-9))


class Bucket(NamedTuple):
    """What a token bucket has seen."""

    rate_per_s: float
    """Tokens earned a second."""
    burst: float
    """Tokens that it holds; 1 or more."""
    taken: int
    """Tokens taken in all."""
    spilled: float
    """Tokens earned and lost since the clock began, because it was full; 0 of one that was never asked: it is full."""


class Token(NamedTuple):
    """There is one."""

    spilled: float
    """What has spilled by now, if the token is taken."""


def admit_at_rate(bucket: Bucket, *, now_s: float) -> Token | Reject:
    """Whether a bucket has a token now; takes none.

    Returns:
        A token to take, or else in how many seconds exactly there will be one, if nobody else takes it.
    """
    earned = bucket.burst + bucket.rate_per_s * now_s
    tokens = earned - bucket.spilled - bucket.taken
    if tokens >= bucket.burst:
        return Token(earned - bucket.burst - bucket.taken)
    if tokens >= ALMOST:
        return Token(bucket.spilled)
    return Reject(RejectReason.TOO_FAST, (1.0 - tokens) / bucket.rate_per_s)
