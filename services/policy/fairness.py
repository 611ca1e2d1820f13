"""Whose call goes next: bands, then fair shares of device time between tiers and tenants.

A band goes before every later one. Inside a band tiers share by weight, and inside a tier tenants share
evenly, both by virtual counters of device-seconds: whoever has had least goes next, and who comes back after
having been away starts level with the others, without a credit for the time away (start-time fair queueing,
Goyal et al. 1996; with device-seconds as the service counted it is VTC, Sheng et al., OSDI 2024). A tier's
reserved share is a debt that the device runs up while the tier waits and gets less than that; a tier that is owed
goes before all bands, so that no band starves.

Within one tenant the earliest deadline goes first; that order is the queue's.
"""

import heapq
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

from services.domain.service_class import ServiceClass

DEBT_WINDOW_S = 1.0
"""The device owes a tier at most its reserved share of this long, so that a tier that had to wait for one long
batch is paid back for that and not for its whole past."""


class _Band:
    __slots__ = ("active", "now_s", "waiting_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        """Virtual time: that of the tier served last."""
        self.active = 0
        """Tenants with calls that wait."""
        self.waiting_s = 0.0
        """Device time of those calls."""


class TierShare:
    """What the tenants of one tier have had."""

    __slots__ = ("active", "band", "bands", "debt_s", "now_s", "reserved_share", "virtual_s", "weight")

    def __init__(self, band: int, bands: _Band, weight: float, reserved_share: float) -> None:
        """Have had nothing."""
        self.band = band
        self.bands = bands
        self.weight = weight
        self.reserved_share = reserved_share
        self.virtual_s = 0.0
        self.now_s = 0.0
        """Virtual time inside the tier: that of the tenant served last."""
        self.debt_s = 0.0
        """Device time that it was to have under its reserved share and has not had."""
        self.active = 0
        """Tenants with calls that wait."""


class TenantShare:
    """What one tenant has had in one tier, and what waits for it. Owned by `Shares`."""

    __slots__ = ("__weakref__", "service_class", "tier", "virtual_s", "waiting", "waiting_s")

    def __init__(self, service_class: ServiceClass, tier: TierShare) -> None:
        """Have had nothing."""
        self.service_class = service_class
        self.tier = tier
        self.virtual_s = 0.0
        self.waiting = 0
        """Calls that wait, for any model."""
        self.waiting_s = 0.0
        """Device time of those calls, as predicted."""


class Turn(Protocol):
    """A call, as far as the order within a batch is concerned."""

    @property
    def rows(self) -> int:
        """Rows it adds to a batch."""
        ...


_T_co = TypeVar("_T_co", bound=Turn, covariant=True)


class Line(Protocol[_T_co]):
    """Calls of one tenant for one model, in the order in which they are to go."""

    @property
    def share(self) -> TenantShare:
        """Whose they are."""
        ...

    @property
    def waiting(self) -> Sequence[_T_co]:
        """The calls; at least one."""
        ...


class Shares:
    """The device's time, as it was shared out so far."""

    def __init__(self) -> None:
        """Nobody has had anything."""
        self._bands: dict[int, _Band] = {}
        self._tiers: dict[tuple[int, str], TierShare] = {}
        # A tenant nobody holds any more has nothing waiting and no stream: it may start level again.
        self._tenants: WeakValueDictionary[ServiceClass, TenantShare] = WeakValueDictionary()
        self._reserved: list[TierShare] = []
        self.active: dict[TenantShare, None] = {}
        """Who has calls that wait."""

    def of(self, service_class: ServiceClass) -> TenantShare:
        """The tenant's share; hold it, for looking it up costs more than counting."""
        share = self._tenants.get(service_class)
        if share is None:
            share = self._tenants[service_class] = TenantShare(service_class, self._tier(service_class))
        return share

    def entered(self, share: TenantShare, cost_s: float) -> None:
        """A call that should take `cost_s` of the device began to wait."""
        share.waiting_s += cost_s
        share.waiting += 1
        tier = share.tier
        tier.bands.waiting_s += cost_s
        if share.waiting == 1:
            share.virtual_s = max(share.virtual_s, tier.now_s)
            if not tier.active:
                tier.virtual_s = max(tier.virtual_s, tier.bands.now_s)
            tier.active += 1
            tier.bands.active += 1
            self.active[share] = None

    def left(self, share: TenantShare, cost_s: float, calls: int = 1) -> None:
        """Calls that were counted with `cost_s` in all do not wait any more."""
        share.waiting -= calls
        share.waiting_s -= cost_s
        tier = share.tier
        tier.bands.waiting_s -= cost_s
        if not share.waiting:
            share.waiting_s = 0.0  # what rounding left over must not grow
            tier.active -= 1
            tier.bands.active -= 1
            if not tier.bands.active:
                tier.bands.waiting_s = 0.0
            del self.active[share]

    def charge(self, share: TenantShare, device_s: float) -> None:
        """Calls of the tenant had `device_s` of the device."""
        tier = share.tier
        tier.now_s = max(tier.now_s, share.virtual_s)
        tier.bands.now_s = max(tier.bands.now_s, tier.virtual_s)
        share.virtual_s += device_s
        tier.virtual_s += device_s / tier.weight
        for other in self._reserved:
            if other is tier:
                other.debt_s -= (1.0 - other.reserved_share) * device_s
            elif other.active:
                other.debt_s += other.reserved_share * device_s
            elif other.debt_s > 0.0:
                other.debt_s = 0.0  # who does not wait is owed nothing
            most_s = other.reserved_share * DEBT_WINDOW_S
            other.debt_s = min(most_s, max(-most_s, other.debt_s))

    def next(self) -> TenantShare:
        """Whose call goes next; somebody's must wait."""
        if len(self.active) == 1:
            return next(iter(self.active))
        return min(self.active, key=rank)

    def in_turn(self) -> list[TenantShare]:
        """Everybody who waits, first to last."""
        return sorted(self.active, key=rank)

    def ahead_s(self, share: TenantShare, own_s: float) -> float:
        """Device time that calls of others get before `share` has had `own_s` more.

        All that waits in earlier bands, and in the tenant's own band as much for each other tenant as for
        itself, if that much waits for them.
        """
        if len(self.active) < 2 and (not self.active or share.waiting):
            return 0.0
        own = share.tier.bands
        earlier_s = sum(band.waiting_s for number, band in self._bands.items() if number < share.tier.band)
        others = own.active - (1 if share.waiting else 0)
        return earlier_s + min(own.waiting_s - share.waiting_s, others * own_s)

    def _tier(self, service_class: ServiceClass) -> TierShare:
        """The tier; its rules are those heard last."""
        band = self._bands.setdefault(service_class.band, _Band())
        key = (service_class.band, service_class.tier)
        tier = self._tiers.get(key)
        if tier is None:
            tier = TierShare(service_class.band, band, service_class.weight, service_class.reserved_share)
            tier.virtual_s = band.now_s
            self._tiers[key] = tier
        tier.weight = service_class.weight
        tier.reserved_share = service_class.reserved_share
        self._reserved = [each for each in self._tiers.values() if each.reserved_share > 0.0]
        return tier


def rank(share: TenantShare) -> tuple[float, float, float]:
    """Sorts who waits, first to last."""
    tier = share.tier
    if tier.debt_s > 0.0:
        return (0.0, -tier.debt_s, share.virtual_s)
    return (tier.band, tier.virtual_s, share.virtual_s)


def in_turn(lines: Sequence[Line[_T_co]], *, row_s: float) -> Iterator[_T_co]:
    """Calls for one model in the order in which they should fill a batch.

    Args:
        lines: Those of each tenant.
        row_s: Device time of one row, by which who has a call in the batch already steps back.
    """
    tiers: dict[TierShare, list[tuple[float, int, int]]] = {}
    for index, line in enumerate(lines):
        tiers.setdefault(line.share.tier, []).append((line.share.virtual_s, index, 0))
    for heap in tiers.values():
        heapq.heapify(heap)
    had_s = dict.fromkeys(tiers, 0.0)
    while tiers:
        tier = next(iter(tiers)) if len(tiers) == 1 else min(tiers, key=lambda each: _tier_rank(each, had_s[each]))
        heap = tiers[tier]
        virtual_s, index, position = heap[0]
        waiting = lines[index].waiting
        call = waiting[position]
        yield call
        cost_s = row_s * call.rows
        had_s[tier] += cost_s
        if position + 1 < len(waiting):
            heapq.heapreplace(heap, (virtual_s + cost_s, index, position + 1))
        else:
            heapq.heappop(heap)
            if not heap:
                del tiers[tier]


def _tier_rank(tier: TierShare, had_s: float) -> tuple[float, float]:
    debt_s = tier.debt_s - had_s
    if debt_s > 0.0:
        return (0.0, -debt_s)
    return (tier.band, tier.virtual_s + had_s / tier.weight)
