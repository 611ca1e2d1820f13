"""Which host gets which version.

Best fit in decreasing order of memory, replicas spread over hosts and then zones, and nothing
moved that can stay where it is. What is loaded in excess goes; what nobody asked for goes; a
replica that answers is never given up for one that does not yet.

When orders are sent, what was measured, and how long a failed load rests is the caller's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.domain.host import HostedModel
from services.domain.model import ModelKey, ModelState
from services.domain.objects import ModelVersion
from services.policy.fitting import (
    Measured,
    Room,
    Site,
    Standing,
    failed_text,
    mib,
    mismatch,
    reasons_against,
    state_of,
)


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
    rooms = {site.host_id: Room(site, wanted, measured) for site in sites}
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
        if site.standing is not Standing.LEAVING
        and version.model_key not in site.outdated
        and mismatch(version, site.record) is None
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
    ready = sum(state_of(by_id[host_id], key) is ModelState.READY for host_id in kept)
    satisfied = ready >= version.min_replicas
    found = []
    for site in sites:
        state = state_of(site, key)
        if site.standing is not Standing.LISTED or site.host_id in kept:
            continue
        if key in site.outdated and state is not ModelState.UNLOADING:
            found.append(Unload(key, site.host_id, "its contents are not those of the registry any more"))
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


def _fill(versions: Sequence[ModelVersion], rooms: Mapping[str, Room], kept: dict[ModelKey, list[str]]) -> list[Load]:
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


def _best_room(version: ModelVersion, rooms: Mapping[str, Room], holders: Sequence[str]) -> Room | None:
    """The room that failed it least, in the zone with the fewest of its replicas, with the least left over."""
    zones: dict[str, int] = {}
    for host_id in holders:
        zone = rooms[host_id].site.record.zone
        zones[zone] = zones.get(zone, 0) + 1

    def rank(room: Room) -> tuple[int, int, int, str]:
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


def _load(version: ModelVersion, room: Room, ordinal: int) -> Load:
    left = f"best fit, {mib(room.free_bytes)} left"
    failure = room.site.failures.get(version.model_key)
    again = f", try {failure.count + 1} here" if failure else ""
    return Load(version.model_key, room.site.host_id, f"replica {ordinal} of {version.min_replicas}: {left}{again}")


def _lacking(
    versions: Sequence[ModelVersion], rooms: Mapping[str, Room], kept: Mapping[ModelKey, Sequence[str]]
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
            and state_of(rooms[host_id].site, key) is not ModelState.READY
        ]
        missing = version.min_replicas - len(holders) + len(retried)
        if missing > 0:
            reasons = [f"trying again: {failed_text(host_id, failure)}" for host_id, failure in retried]
            if len(holders) < version.min_replicas:
                reasons += reasons_against(version, rooms, holders)
            found.append(Unplaced(key, missing, "; ".join(reasons)))
    return found
