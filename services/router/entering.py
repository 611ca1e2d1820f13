"""Who may enter: calls at once in this router, of a route, a tier and a tenant, and how fast a tenant may call.

Limits hold over all routers: each router keeps to its part, all of its workers together. A call counts from here to its
answer, once, under the name that it called; what its route asks on the way, and copies for shadows, do not count again.
A refused call takes nothing. What the limits mean is `policy/limiting`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from services.domain.errors import Overloaded, RateLimited, TooManyInFlight
from services.domain.objects import Route
from services.domain.rules import Rules
from services.domain.service_class import LAST_BAND, ServiceClass
from services.domain.tenancy import RateLimit
from services.policy.admission import FULL_RETRY_S, Reject, admit_to_router, room_of
from services.policy.limiting import Bucket, admit_at_rate, admit_one_more, part_of
from services.router.ports import Cell, Counts

_LAST = ServiceClass(band=LAST_BAND, sheddable=True)

NOTHING: Sequence[Cell] = ()
"""What a call without limits counts in."""


class _Limit(NamedTuple):
    """Of calls at once."""

    kind: str
    name: tuple[str, ...]
    most: int
    whose: str
    """Whose it is, for people."""


class _Pass(NamedTuple):
    """What a call that comes in counts in, and takes its token of."""

    cells: Sequence[Cell]
    bucket: Cell | None = None
    spilled: float = 0.0
    """What has spilled of the bucket."""


class Entrance:
    """Lets calls in; one per router."""

    def __init__(self, counts: Counts, *, most: int, routers: int, refused: Callable[[str], None]) -> None:
        """Count in `counts`.

        Args:
            counts: Of this router, all of its workers together.
            most: Calls that the router holds.
            routers: How many of them share each limit.
            refused: Told which limit refused a call.
        """
        self._counts = counts
        self._most = most
        self._part = 1.0 / routers
        self._refused = refused
        self._crowded = room_of(_LAST, most=most)
        """Calls from which on some classes do not come in any more."""

    def enter(self, rules: Rules, route: Route, in_flight: int, now_s: float) -> Sequence[Cell]:
        """Let a call in, beside so many others in the router.

        Returns:
            What to `leave` when it ends.

        Raises:
            Overloaded: It may not enter now; says which limit it met, and when to come again.
        """
        if not (rules.limited or route.max_in_flight or in_flight >= self._crowded):
            return NOTHING
        found = self._look(rules, route, in_flight, now_s)
        if isinstance(found, Overloaded):
            self._refused(found.metadata["limit"])
            raise found
        if found.bucket is not None:
            found.bucket.take(found.spilled)
        for cell in found.cells:
            cell.enter()
        return found.cells

    def leave(self, cells: Sequence[Cell]) -> None:
        """A call that entered has ended."""
        for cell in cells:
            cell.leave()

    def full(self) -> Overloaded:
        """Why no call comes in, whatever its class; counts one that does not."""
        self._refused("router")
        return self._full()

    def refusal(self, rules: Rules, route: Route, now_s: float) -> Overloaded | None:
        """Why a call would not come in now, if it would not. Takes nothing, counts nothing."""
        in_flight = self._counts.in_flight()
        if in_flight >= self._most:
            return self._full()
        found = self._look(rules, route, in_flight, now_s)
        return found if isinstance(found, Overloaded) else None

    def _full(self) -> Overloaded:
        return Overloaded(
            f"this router has {self._most} calls, the most it holds",
            retry_after_s=FULL_RETRY_S,
            metadata={"limit": "router", "most": str(self._most)},
        )

    def _look(self, rules: Rules, route: Route, in_flight: int, now_s: float) -> _Pass | Overloaded:
        """Whether every limit leaves room for a call; the first one that does not."""
        verdict = admit_to_router(rules.service_class, in_flight=in_flight, most=self._most)
        if isinstance(verdict, Reject):
            return _crowded_out(rules.service_class, verdict, in_flight=in_flight, most=self._most)
        cells = []
        for limit in _limits(rules, route):
            cell = self._counts.cell((limit.kind, *limit.name))
            most = part_of(limit.most, cell.share * self._part)
            verdict = admit_one_more(in_flight=cell.in_flight(), most=most)
            if isinstance(verdict, Reject):
                return _met(limit, verdict, most=most)
            cells.append(cell)
        tenant = rules.tenant
        if tenant is None or tenant.rate_limit is None:
            return _Pass(cells)
        rate, name = tenant.rate_limit, tenant.metadata.name
        # Another rate or another burst is another bucket, full to begin with.
        bucket = self._counts.cell(("rate", name, rate.requests_per_s, rate.burst))
        part = bucket.share * self._part
        per_s, burst = rate.requests_per_s * part, max(1.0, rate.burst * part)
        token = admit_at_rate(Bucket(per_s, burst, bucket.taken(), bucket.spilled()), now_s=now_s)
        if isinstance(token, Reject):
            here = "" if part == 1.0 else f", of which {per_s:g} a second and {burst:g} at once here"
            return _too_fast(name, rate, token, here=here)
        return _Pass(cells, bucket, token.spilled)


def _limits(rules: Rules, route: Route) -> Iterator[_Limit]:
    """Those of calls at once that hold for a call, in the order they are looked at."""
    if route.max_in_flight:
        name = route.metadata.name
        yield _Limit("route", (name,), route.max_in_flight, f"route '{name}'")
    tier, policy, tenant = rules.tier, rules.policy, rules.tenant
    if tier is not None and policy is not None and tier.max_in_flight:
        of = policy.metadata.name
        yield _Limit("tier", (of, tier.name), tier.max_in_flight, f"tier '{tier.name}' of policy '{of}'")
    if tenant is not None and tenant.max_in_flight:
        name = tenant.metadata.name
        yield _Limit("tenant", (name,), tenant.max_in_flight, f"tenant '{name}'")


def _crowded_out(service_class: ServiceClass, verdict: Reject, *, in_flight: int, most: int) -> Overloaded:
    room = room_of(service_class, most=most)
    of = f"band {service_class.band}" + (" that may be shed" if service_class.sheddable else "")
    return Overloaded(
        f"this router has {in_flight} calls and takes those of {of} up to {room}: what is left of the {most} it holds "
        "is kept for those that go before",
        retry_after_s=verdict.retry_after_s,
        metadata={"limit": "band", "name": str(service_class.band), "most": str(room)},
    )


def _met(limit: _Limit, verdict: Reject, *, most: int) -> TooManyInFlight:
    here = "" if most == limit.most else f" here, its part of the {limit.most} over all routers"
    return TooManyInFlight(
        f"{limit.whose} has as many calls in flight as it may: {most}{here}",
        retry_after_s=verdict.retry_after_s,
        metadata={"limit": limit.kind, "name": "/".join(limit.name), "most": str(limit.most)},
    )


def _too_fast(name: str, rate: RateLimit, verdict: Reject, *, here: str) -> RateLimited:
    return RateLimited(
        f"tenant '{name}' may make {rate.requests_per_s:g} calls a second and {rate.burst} at once{here}; "
        f"the next in {verdict.retry_after_s:.3g} s",
        retry_after_s=verdict.retry_after_s,
        metadata={
            "limit": "tenant_rate",
            "name": name,
            "requests_per_s": f"{rate.requests_per_s:g}",
            "burst": str(rate.burst),
        },
    )
