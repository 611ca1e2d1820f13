"""Whether a failed call is tried again, and where. Nothing else in the mesh retries.

Retries cost a budget per route, so that an outage is not met with a multiple of the load. One kind
is free: a call that was on a host in good standing when that host went away. A host goes away
once, with the calls it had, so those retries are bounded by what was in flight; every later call
to it pays. So the loss of a host costs no caller an error, however little traffic there was to
fill the budget, while at the failure of everything attempts stay near one per call. The same goes for
calls that a host refuses because it drains or has just unloaded the version: it does so once; and for probes.
"""

import enum
from dataclasses import dataclass

from services.domain.errors import (
    BudgetExhausted,
    Draining,
    HostUnavailable,
    Internal,
    ModelFailed,
    ModelNotReady,
    Overloaded,
    YardError,
)

BUDGET_BURST = 20.0
"""Retries that may come at once, and that a quiet route starts with."""

BUDGET_FLOOR_PER_S = 1.0
"""Retries per second that even a route with next to no traffic may make: a tenth of nothing would leave its
one caller without any."""

BACKOFF_FIRST_S = 0.025
BACKOFF_LONGEST_S = 1.0


class Fate(enum.Enum):
    """What is known of a failed attempt."""

    NEVER_RAN = "NEVER_RAN"
    """The host refused it before doing anything: it may be sent again whatever it does."""
    MAY_HAVE_RUN = "MAY_HAVE_RUN"
    """It may be sent again only if doing it twice is as good as once."""
    FINAL = "FINAL"
    """Every host would say the same, or there is no time left."""


def fate_of(error: YardError) -> Fate:
    """What a host's error says of the attempt.

    An overload without pushback is final: the host gave no hint that anything would help.
    """
    if isinstance(error, ModelNotReady | Draining) or (isinstance(error, BudgetExhausted) and error.refused):
        return Fate.NEVER_RAN
    if isinstance(error, HostUnavailable | ModelFailed | Internal):
        return Fate.MAY_HAVE_RUN
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        return Fate.MAY_HAVE_RUN
    return Fate.FINAL


class RetryBudget:
    """A token bucket of retries, filled by answered calls and a little by time (as gRFC A6 has it).

    Calls that fail fill nothing: while everything fails, a burst and what time brings are all there is.
    """

    __slots__ = ("_at_s", "_floor_per_s", "_most", "_tokens")

    def __init__(self, now_s: float, *, share: float) -> None:
        """Start full.

        Args:
            now_s: Monotonic seconds.
            share: Part of the whole that this budget is, in (0, 1]: 1/N for each of N workers that serve the
                route as one. What answers earn needs no share: each worker sees its own only.
        """
        # Below one no retry could ever be taken: from twenty workers on, a burst is one retry for each of them.
        self._most = max(1.0, BUDGET_BURST * share)
        self._floor_per_s = BUDGET_FLOOR_PER_S * share
        self._tokens = BUDGET_BURST * share
        self._at_s = now_s

    def earn(self, retries: float) -> None:
        """Count a call that was answered, which pays for so many retries: a tenth as a rule."""
        self._tokens = min(self._most, self._tokens + retries)

    def spend(self, now_s: float) -> bool:
        """Take one retry, if there is one."""
        self._tokens = min(self._most, self._tokens + self._floor_per_s * (now_s - self._at_s))
        self._at_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


@dataclass(frozen=True, slots=True)
class Attempted:
    """A failed attempt, and what is left to try with."""

    error: YardError
    never_sent: bool
    """The host cannot have seen the call: there was no connection."""
    number: int
    """1 for the first attempt."""
    most: int
    """Attempts allowed, the first included."""
    idempotent: bool
    in_good_standing: bool
    """The host went away, or refused a version that it had, and nothing spoke against it when the call was sent; or the
    attempt was a probe, of which each host gets one in a while."""
    pays: bool
    """Whether its policy lets answered calls pay for retries at all."""
    remaining_s: float
    """Seconds until the deadline."""
    others: bool
    """Whether another host can take the call."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again."""

    elsewhere: bool
    backoff_s: float
    """Seconds to wait before; 0 when the call goes elsewhere."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Answer with the error."""

    reason: str


def decide(attempted: Attempted, budget: RetryBudget, *, now_s: float, chance: float) -> Retry | GiveUp:
    """Whether to try again.

    Args:
        attempted: The failed attempt.
        budget: The route's; charged if the answer is yes and the retry is not free.
        now_s: Monotonic seconds.
        chance: A random number in [0, 1) for the full jitter of the backoff.
    """
    fate = Fate.NEVER_RAN if attempted.never_sent else fate_of(attempted.error)
    if fate is Fate.FINAL:
        return GiveUp("no other attempt would end better")
    if fate is Fate.MAY_HAVE_RUN and not attempted.idempotent:
        return GiveUp("it may have run, and is not idempotent")
    # What never ran costs a round trip at most, and is tried once on each host: no attempt while there are others.
    refused = fate is Fate.NEVER_RAN and attempted.others
    if attempted.number >= attempted.most and not refused:
        return GiveUp(f"{attempted.number} attempts are the most allowed")
    backoff_s = 0.0
    if not attempted.others:
        backoff_s = chance * min(BACKOFF_LONGEST_S, BACKOFF_FIRST_S * 2.0 ** (attempted.number - 1))
        if attempted.error.retry_after_s is not None:
            backoff_s = max(backoff_s, attempted.error.retry_after_s)
    if backoff_s >= attempted.remaining_s:
        return GiveUp("the deadline leaves no time for another")
    if not attempted.in_good_standing and not attempted.pays:
        return GiveUp("its policy pays for no retries")
    if not attempted.in_good_standing and not budget.spend(now_s):
        return GiveUp("the route's retry budget is spent")
    return Retry(attempted.others, backoff_s)
