"""Which host gets which version.

Best fit in decreasing order of memory, replicas spread over hosts and then zones, and nothing
moved that can stay where it is. What is loaded in excess goes; what nobody asked for goes; a
replica that answers is never given up for one that does not yet.

When orders are sent, what was measured, and how long a failed load rests is the caller's.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.domain.host import DeviceKind, HostedModel, HostRecord
from services.domain.model import ModelKey, ModelState
from services.domain.objects import ModelVersion

Measured = Mapping[tuple[ModelKey, DeviceKind], int]
"""Peak bytes of versions by device kind, as hosts measured them; it replaces what was declared."""


MOST_REASONS = 3
"""Hosts named one by one in a reason; further ones are only counted."""


class Standing(enum.Enum):
    """How far a host can be counted on."""

    LISTED = "LISTED"
    """Listed now: its replicas count, and it may get more."""
    ABSENT = "ABSENT"
    """Not listed for a moment: its replicas count, and it gets no orders."""
    LEAVING = "LEAVING"
    """Draining or about to: its replicas are replaced, and it gets no orders."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of earlier tries to load one version on one host."""

    count: int
    """Tries that failed in a row; at least 1."""
    message: str
    """Why the last one did."""
    resting: bool
    """True until it may be tried again."""


@dataclass(frozen=True, slots=True)
class Site:
    """A host as placement sees it. Orders under way are in its record as if carried out."""

    record: HostRecord
    standing: Standing = Standing.LISTED
    failures: Mapping[ModelKey, Failure] = field(default_factory=dict)

    @property
    def host_id(self) -> str:
        """The host's id."""
        return self.record.host_id


@dataclass(frozen=True, slots=True, order=True)
class Placed:
    """One version on one host."""

    key: ModelKey
    host_id: str


@dataclass(frozen=True, slots=True)
class Load:
    """A version is to be loaded on a host."""

    key: ModelKey
    host_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unload:
    """A version is to be unloaded from a host."""

    key: ModelKey
    host_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A version that lacks replicas."""

    key: ModelKey
    missing: int
    reason: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where versions should be, what has to be done for it, and what cannot be done."""

    placements: tuple[Placed, ...]
    loads: tuple[Load, ...]
    unloads: tuple[Unload, ...]
    unplaced: tuple[Unplaced, ...]


def place(versions: Iterable[ModelVersion], sites: Iterable[Site], measured: Measured) -> Assignment:
    """Bring every version to its minimum of replicas, with as few orders as that takes.

    Args:
        versions: Every version that should exist.
        sites: The hosts, each id once.
        measured: Measured peaks.

    Returns:
        Sorted by version and host. Loads never exceed a host's memory by what is measured,
        else declared, and never put a version twice on one host.
    """
    wanted = sorted(versions, key=lambda version: version.model_key)
    sites = sorted(sites, key=lambda site: site.host_id)
    rooms = {site.host_id: _Room(site, wanted, measured) for site in sites}
    kept: dict[ModelKey, list[str]] = {}
    unloads: list[Unload] = []
    for version in wanted:
        kept[version.model_key] = keep = _replicas_to_keep(version, sites)
        unloads += _surplus(version, sites, keep)
    unloads += _unknown(sites, known={version.model_key for version in wanted})
    loads = _fill(wanted, rooms, kept)
    placements = sorted(Placed(key, host_id) for key, hosts in kept.items() for host_id in hosts)
    return Assignment(
        placements=tuple(placements),
        loads=tuple(sorted(loads, key=_by_key)),
        unloads=tuple(sorted(unloads, key=_by_key)),
        unplaced=tuple(_lacking(wanted, rooms, kept)),
    )


def memory_need(version: ModelVersion, host: HostRecord, measured: Measured) -> int:
    """Bytes a version takes on a host: measured there, else on such a device, else as declared."""
    hosted = host.hosted(version.model_key)
    if hosted is not None and hosted.memory_bytes > 0:
        return hosted.memory_bytes
    return measured.get((version.model_key, host.device.kind), version.memory_bytes)


class _Refusal(enum.IntEnum):
    """Why a host does not get a version, in the order in which people want to know."""

    FAILED = 0
    MEMORY = 1
    STANDING = 2
    HELD = 3
    TRUST = 4
    DEVICE = 5
    POOL = 6


_NEVER = frozenset({_Refusal.TRUST, _Refusal.DEVICE, _Refusal.POOL})
"""What no waiting helps against."""


def _mismatch(version: ModelVersion, record: HostRecord) -> tuple[_Refusal, str] | None:
    """Why a host can never run a version, whatever is free on it; None if it can."""
    if version.pool and record.pool != version.pool:
        return _Refusal.POOL, f"no host of pool '{version.pool}' is listed"
    if version.device_kind is not None and version.device_kind is not record.device.kind:
        return _Refusal.DEVICE, f"no matching host has a {version.device_kind.value} device"
    if version.backend.executes_code and not record.trusts_artifacts:
        return _Refusal.TRUST, "no matching host trusts artifacts that execute code"
    return None


class _Room:
    """What is free on one host while versions are handed out."""

    __slots__ = ("_measured", "free_bytes", "site")

    def __init__(self, site: Site, versions: Sequence[ModelVersion], measured: Measured) -> None:
        self.site = site
        self._measured = measured
        by_key = {version.model_key: version for version in versions}
        claimed = sum(self._claim(hosted, by_key) for hosted in site.record.models)
        # The host's own sum counts too: it may hold what nobody listed.
        self.free_bytes = site.record.device.memory_bytes - max(claimed, site.record.device.used_bytes)

    def _claim(self, hosted: HostedModel, versions: Mapping[ModelKey, ModelVersion]) -> int:
        if hosted.state is ModelState.FAILED:
            return 0
        version = versions.get(hosted.key)
        return hosted.memory_bytes if version is None else self.need(version)

    def need(self, version: ModelVersion) -> int:
        return memory_need(version, self.site.record, self._measured)

    def refusal(self, version: ModelVersion, holders: Sequence[str]) -> tuple[_Refusal, str] | None:
        """Why the version cannot be loaded here now; None if it can."""
        site = self.site
        if never := _mismatch(version, site.record):
            return never
        if site.host_id in holders:
            return _Refusal.HELD, "every other matching host has it already"
        if site.standing is not Standing.LISTED:
            return _Refusal.STANDING, f"{site.host_id} is {site.standing.value.lower()}"
        state = _state(site, version.model_key)
        if state not in (None, ModelState.FAILED):
            return _Refusal.STANDING, f"{site.host_id} is {state.value.lower()} it" if state else ""
        failure = site.failures.get(version.model_key)
        if failure is not None and failure.resting:
            return _Refusal.FAILED, _failed(site.host_id, failure)
        if self.need(version) > self.free_bytes:
            return _Refusal.MEMORY, ""
        return None


def _by_key(order: Load | Unload) -> tuple[ModelKey, str]:
    return (order.key, order.host_id)


def _holders(key: ModelKey, sites: Sequence[Site]) -> list[tuple[Site, HostedModel]]:
    """Sites that have the version ready or loading."""
    found = []
    for site in sites:
        hosted = site.record.hosted(key)
        if hosted is not None and hosted.state in (ModelState.LOADING, ModelState.READY):
            found.append((site, hosted))
    return found


def _replicas_to_keep(version: ModelVersion, sites: Sequence[Site]) -> list[str]:
    """At most the minimum of replicas: ready before loading, listed before absent, then over zones."""
    pool = [
        (site, hosted)
        for site, hosted in _holders(version.model_key, sites)
        if site.standing is not Standing.LEAVING and _mismatch(version, site.record) is None
    ]
    zones: dict[str, int] = {}
    kept: list[str] = []
    while pool and len(kept) < version.min_replicas:
        best = min(
            pool,
            key=lambda item: (
                item[1].state is not ModelState.READY,
                item[0].standing is not Standing.LISTED,
                zones.get(item[0].record.zone, 0),
                item[0].host_id,
            ),
        )
        pool.remove(best)
        zone = best[0].record.zone
        zones[zone] = zones.get(zone, 0) + 1
        kept.append(best[0].host_id)
    return kept


def _surplus(version: ModelVersion, sites: Sequence[Site], kept: Sequence[str]) -> list[Unload]:
    """What goes of a version that is wanted: replicas above the minimum, and remains of failed loads."""
    key = version.model_key
    by_id = {site.host_id: site for site in sites}
    ready = sum(_state(by_id[host_id], key) is ModelState.READY for host_id in kept)
    satisfied = ready >= version.min_replicas
    found = []
    for site in sites:
        state = _state(site, key)
        if site.standing is not Standing.LISTED or site.host_id in kept:
            continue
        above = f"above the {version.min_replicas} wanted replicas"
        if (state is ModelState.READY and satisfied) or (
            state is ModelState.LOADING and len(kept) >= version.min_replicas
        ):
            found.append(Unload(key, site.host_id, above))
        elif state is ModelState.FAILED and satisfied:
            found.append(Unload(key, site.host_id, "failed here and not needed here"))
    return found


def _unknown(sites: Sequence[Site], known: set[ModelKey]) -> list[Unload]:
    return [
        Unload(hosted.key, site.host_id, "the registry has no such version")
        for site in sites
        if site.standing is Standing.LISTED
        for hosted in site.record.models
        if hosted.key not in known and hosted.state is not ModelState.UNLOADING
    ]


def _state(site: Site, key: ModelKey) -> ModelState | None:
    hosted = site.record.hosted(key)
    return None if hosted is None else hosted.state


def _fill(versions: Sequence[ModelVersion], rooms: Mapping[str, _Room], kept: dict[ModelKey, list[str]]) -> list[Load]:
    """Hand out what is missing; `kept` and the rooms are brought up to date.

    A version's first replica comes before any version's second, so that a scarce memory
    serves as many versions as it can; within that, the largest first.
    """
    loads: list[Load] = []
    most = max((version.min_replicas for version in versions), default=0)
    for ordinal in range(most):
        lacking = [version for version in versions if len(kept[version.model_key]) <= ordinal < version.min_replicas]
        lacking.sort(
            key=lambda version: (-max((room.need(version) for room in rooms.values()), default=0), version.model_key)
        )
        for version in lacking:
            if room := _best_room(version, rooms, kept[version.model_key]):
                room.free_bytes -= room.need(version)
                kept[version.model_key].append(room.site.host_id)
                loads.append(_load(version, room, len(kept[version.model_key])))
    return loads


def _best_room(version: ModelVersion, rooms: Mapping[str, _Room], holders: Sequence[str]) -> _Room | None:
    """The room that failed it least, in the zone with the fewest of its replicas, with the least left over."""
    zones: dict[str, int] = {}
    for host_id in holders:
        zone = rooms[host_id].site.record.zone
        zones[zone] = zones.get(zone, 0) + 1

    def rank(room: _Room) -> tuple[int, int, int, str]:
        site = room.site
        failure = site.failures.get(version.model_key)
        return (
            failure.count if failure else 0,
            zones.get(site.record.zone, 0),
            room.free_bytes - room.need(version),
            site.host_id,
        )

    fitting = [room for room in rooms.values() if room.refusal(version, holders) is None]
    return min(fitting, key=rank, default=None)


def _load(version: ModelVersion, room: _Room, ordinal: int) -> Load:
    left = f"best fit, {_mib(room.free_bytes)} left"
    failure = room.site.failures.get(version.model_key)
    again = f", try {failure.count + 1} here" if failure else ""
    return Load(version.model_key, room.site.host_id, f"replica {ordinal} of {version.min_replicas}: {left}{again}")


def _lacking(
    versions: Sequence[ModelVersion], rooms: Mapping[str, _Room], kept: Mapping[ModelKey, Sequence[str]]
) -> list[Unplaced]:
    """Versions without their minimum, and those whose replica is being tried again after a failure."""
    found = []
    for version in versions:
        key = version.model_key
        holders = kept[key]
        retried = [
            (host_id, failure)
            for host_id in holders
            if (failure := rooms[host_id].site.failures.get(key))
            and _state(rooms[host_id].site, key) is not ModelState.READY
        ]
        missing = version.min_replicas - len(holders) + len(retried)
        if missing > 0:
            reasons = [f"trying again: {_failed(host_id, failure)}" for host_id, failure in retried]
            if len(holders) < version.min_replicas:
                reasons += _reasons(version, rooms, holders)
            found.append(Unplaced(key, missing, "; ".join(reasons)))
    return found


def _reasons(version: ModelVersion, rooms: Mapping[str, _Room], holders: Sequence[str]) -> list[str]:
    """Why no host takes another replica. What can never fit is told only where nothing else is in the way."""
    refused: dict[_Refusal, list[str]] = {}
    for room in rooms.values():
        if refusal := room.refusal(version, holders):
            refused.setdefault(refusal[0], []).append(refusal[1])
    if not refused:
        return ["no host is listed"]
    if full := refused.get(_Refusal.MEMORY):
        roomiest = max(
            (room for room in rooms.values() if (why := room.refusal(version, holders)) and why[0] is _Refusal.MEMORY),
            key=lambda room: room.free_bytes - room.need(version),
        )
        free_bytes = max(0, roomiest.free_bytes)
        full[:] = [f"needs {_mib(roomiest.need(version))}, and {roomiest.site.host_id} has {_mib(free_bytes)} free"]
    first = min(refused)
    shown = [first] if first in _NEVER else sorted(refused.keys() - _NEVER)
    found: list[str] = []
    for kind in shown:
        reasons = list(dict.fromkeys(refused[kind]))
        found += reasons[:MOST_REASONS]
        if len(reasons) > MOST_REASONS:
            found.append(f"and {len(reasons) - MOST_REASONS} more like it")
    return found


def _failed(host_id: str, failure: Failure) -> str:
    times = "once" if failure.count == 1 else f"{failure.count} times"
    return f"{host_id} failed {times}: {failure.message}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
