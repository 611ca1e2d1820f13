"""What a call is told that none of its candidates can answer, and when to come again."""

from collections.abc import Collection, Sequence
from typing import Protocol

from services.domain.errors import BudgetExhausted, NoCandidate, NoReadyHost, Overloaded, SpendingExhausted, YardError
from services.domain.rules import Rules
from services.policy.admission import Reject, RejectReason
from services.router.destination import Destination, Option

NO_HOST_RETRY_S = 1.0
"""When to try again while no host is ready: a load or a restart takes about that long at least."""


class Looked(Protocol):
    """One option as a call saw it that it cannot answer."""

    option: Option
    filtered: str
    """Why not."""
    rejected: Reject | None
    """Set if its hosts would take too long, or refuse the call."""
    no_host: bool
    """Whether no host has it ready that may be used."""
    unpaid: bool
    """Whether there is not the money for it."""


def no_host(option: Option, zone: str, excluded: Collection[str]) -> str:
    """Why no host can take a call for `option`, in `zone` if that is not empty, less those `excluded`."""
    if zone and option.hosts and not any(record.zone == zone for record in option.hosts):
        zones = sorted({record.zone or "(none)" for record in option.hosts})
        return f"no host of zone '{zone}' has it ready; zones that have: {', '.join(zones)}"
    if excluded and option.hosts:
        return f"no other host than {', '.join(excluded)} has it ready"
    return "no host has it ready" + (f"; {option.elsewhere}" if option.elsewhere else "")


def nothing_fits(destination: Destination, looks: Sequence[Looked], rules: Rules) -> YardError:
    """The error for a call that no option can take: what time would heal goes before what it would not."""
    name = destination.name
    if not looks:
        return NoReadyHost(
            f"'{name}' has no version yet: apply a ModelVersion", retry_after_s=NO_HOST_RETRY_S, metadata={"name": name}
        )
    why = "; ".join(f"{look.option.key}: {look.filtered}" for look in looks)
    rejected = [look.rejected for look in looks if look.rejected is not None]
    queued = [reject for reject in rejected if reject.reason is RejectReason.QUEUE_TOO_LONG]
    if queued:
        return Overloaded(
            f"'{name}' cannot answer in time: {why}",
            retry_after_s=min(reject.retry_after_s for reject in queued),
            metadata={"name": name},
        )
    if any(look.no_host for look in looks):
        return NoReadyHost(
            f"no host is ready for '{name}': {why}", retry_after_s=NO_HOST_RETRY_S, metadata={"name": name}
        )
    if rules.money is not None and (unpaid := [look.option.version.cost_microusd for look in looks if look.unpaid]):
        return SpendingExhausted(
            f"'{name}' cannot be paid: {why}",
            retry_after_s=rules.money.until_s(min(unpaid)),
            metadata={"name": name},
        )
    if rejected:
        return BudgetExhausted(f"'{name}' cannot answer in time: {why}", metadata={"name": name})
    return NoCandidate(f"'{name}' has no candidate for these wishes: {why}", metadata={"name": name})
