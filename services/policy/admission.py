"""May a call enter: how long it may take, and whether it can be answered in that time.

What cannot is refused at once, before it costs anything, with the time after which it may fit.
"""

import enum
from dataclasses import dataclass
from typing import NamedTuple

from services.domain.service_class import LAST_BAND, ServiceClass

LEAST_RETRY_S = 0.010
"""Shortest pause asked of a refused caller."""

FULL_RETRY_S = 10 * LEAST_RETRY_S
"""Pause asked of callers where too much is in flight: nobody knows when some of it ends."""

KEPT_SHARE = 0.2
"""The part of a router that only calls of the first band can fill to the end. Each later band leaves a little more of
it free, and after the last one the sheddable tiers, in the same order."""


class DeadlineSource(enum.Enum):
    """Where the applied deadline came from; names are those of the contract."""

    CALLER = "CALLER"
    ROUTE_DEFAULT = "ROUTE_DEFAULT"
    ROUTE_MAXIMUM = "ROUTE_MAXIMUM"
    TIMEOUT_PARAMETER = "TIMEOUT_PARAMETER"


class Allowance(NamedTuple):
    """The time a call may take."""

    duration_s: float
    source: DeadlineSource


def allowance(*, caller_s: float | None, parameter_s: float | None, default_s: float, longest_s: float) -> Allowance:
    """The time a call may take: the least of what it asks for itself, else the default; never over the longest.

    Args:
        caller_s: What is left of the caller's deadline; None if it set none.
        parameter_s: The request parameter `timeout`; None if there is none.
        default_s: The route's default.
        longest_s: The route's maximum.
    """
    if parameter_s is not None and (caller_s is None or parameter_s < caller_s):
        asked_s, source = parameter_s, DeadlineSource.TIMEOUT_PARAMETER
    elif caller_s is not None:
        asked_s, source = caller_s, DeadlineSource.CALLER
    else:
        asked_s, source = default_s, DeadlineSource.ROUTE_DEFAULT
    if asked_s > longest_s:
        return Allowance(longest_s, DeadlineSource.ROUTE_MAXIMUM)
    return Allowance(asked_s, source)


class RejectReason(enum.Enum):
    """Why a call is not let in."""

    NEVER_IN_TIME = "NEVER_IN_TIME"
    """Not even an idle host would make it."""
    QUEUE_TOO_LONG = "QUEUE_TOO_LONG"
    """A host would make it, were it not for what waits there already."""
    ROUTER_FULL = "ROUTER_FULL"
    """This router has as many calls as it can hold, or keeps what is left for those that go before."""
    LIMIT_MET = "LIMIT_MET"
    """As many calls are in flight as its route, its tier or its tenant may have."""
    TOO_FAST = "TOO_FAST"
    """Its tenant calls faster than it may."""


@dataclass(frozen=True, slots=True)
class Admit:
    """Let it in."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Keep it out."""

    reason: RejectReason
    retry_after_s: float


ADMIT = Admit()


def admit_to_host(*, predicted_s: float, idle_s: float, remaining_s: float, measured: bool) -> Admit | Reject:
    """Whether a call can be answered on the host chosen for it.

    Args:
        predicted_s: Seconds to the answer there.
        idle_s: The same, if the host had nothing else to do.
        remaining_s: Seconds the call may still take.
        measured: Whether the host itself measured the batch time behind both, and of late. What is only
            declared or hearsay refuses nobody: the call is let in, and measures it.
    """
    if predicted_s <= remaining_s or not measured:
        return ADMIT
    if idle_s > remaining_s:
        return Reject(RejectReason.NEVER_IN_TIME, LEAST_RETRY_S)
    return Reject(RejectReason.QUEUE_TOO_LONG, max(LEAST_RETRY_S, predicted_s - remaining_s))


def room_of(service_class: ServiceClass, *, most: int) -> int:
    """How many calls a router may have in flight before it takes no more of a class.

    Args:
        service_class: The class.
        most: Calls that the router holds at all.

    Returns:
        1 to `most`. Never more for a later band than for an earlier one, nor for any sheddable class than for one
        that is not.
    """
    rank = service_class.band - 1 + (LAST_BAND if service_class.sheddable else 0)
    return most - int(most * KEPT_SHARE * rank / (2 * LAST_BAND - 1))


def admit_to_router(service_class: ServiceClass, *, in_flight: int, most: int) -> Admit | Reject:
    """Whether a router that holds `most` calls takes one more of a class beside those in flight."""
    if in_flight < room_of(service_class, most=most):
        return ADMIT
    return Reject(RejectReason.ROUTER_FULL, FULL_RETRY_S)
