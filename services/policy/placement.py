"""Which host gets which version.

Best fit in decreasing order of memory, replicas spread over hosts and then zones, and nothing
moved that can stay where it is. What is loaded in excess goes; what nobody asked for goes; a
replica that answers is never given up for one that does not yet.

When orders are sent, what was measured, and how long a failed load rests is the caller's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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
)

_TAKES_UNLOADS = frozenset({Standing.LISTED, Standing.CORDONED})


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
    by_key = {version.model_key: version for version in wanted}
    rooms = {site.host_id: Room(site, by_key, measured) for site in sorted(sites, key=lambda site: site.host_id)}
    where: dict[ModelKey, list[Room]] = {}
    for room in rooms.values():
        for key in room.hosted:
            where.setdefault(key, []).append(room)
    kept: dict[ModelKey, list[str]] = {}
    unloads: list[Unload] = []
    for version in wanted:
        having = where.get(version.model_key, [])
        kept[version.model_key] = keep = _replicas_to_keep(version, having)
        unloads += _surplus(version, having, keep)
    unloads += _unknown(rooms.values(), by_key)
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


def _replicas_to_keep(version: ModelVersion, having: Sequence[Room]) -> list[str]:
    """At most the minimum of replicas: ready before loading, listed before absent, then over zones."""
    key = version.model_key
    pool = [
        room
        for room in having
        if room.state(key) in (ModelState.LOADING, ModelState.READY)
        and room.site.standing is not Standing.LEAVING
        and key not in room.site.outdated
        and mismatch(version, room.site.record) is None
    ]
    zones: dict[str, int] = {}
    kept: list[str] = []

    def rank(room: Room) -> tuple[bool, bool, int, str]:
        site = room.site
        return (
            room.state(key) is not ModelState.READY,
            site.standing is not Standing.LISTED,
            zones.get(site.record.zone, 0),
            site.host_id,
        )

    while pool and len(kept) < version.min_replicas:
        best = min(pool, key=rank)
        pool.remove(best)
        zone = best.site.record.zone
        zones[zone] = zones.get(zone, 0) + 1
        kept.append(best.site.host_id)
    return kept


def _surplus(version: ModelVersion, having: Sequence[Room], kept: Sequence[str]) -> list[Unload]:
    """What goes of a version that is wanted: replicas above the minimum, and remains of failed loads."""
    key = version.model_key
    ready = sum(room.site.host_id in kept and room.state(key) is ModelState.READY for room in having)
    satisfied = ready >= version.min_replicas
    found = []
    for room in having:
        site, state = room.site, room.state(key)
        if site.standing not in _TAKES_UNLOADS or site.host_id in kept:
            continue
        why = ""
        if key in site.outdated and state is not ModelState.UNLOADING:
            why = "its contents are not those of the registry any more"
        elif (state is ModelState.READY and satisfied) or (
            state is ModelState.LOADING and len(kept) >= version.min_replicas
        ):
            why = f"above the {version.min_replicas} wanted replicas"
        elif state is ModelState.FAILED and satisfied:
            why = "failed here and not needed here"
        if why:
            found.append(Unload(key, site.host_id, why))
    return found


def _unknown(rooms: Iterable[Room], known: Mapping[ModelKey, ModelVersion]) -> list[Unload]:
    return [
        Unload(hosted.key, room.site.host_id, "the registry has no such version")
        for room in rooms
        if room.site.standing in _TAKES_UNLOADS
        for hosted in room.site.record.models
        if hosted.key not in known and hosted.state is not ModelState.UNLOADING
    ]


def _fill(versions: Sequence[ModelVersion], rooms: Mapping[str, Room], kept: dict[ModelKey, list[str]]) -> list[Load]:
    """Hand out what is missing; `kept` and the rooms are brought up to date.

    A version's first replica comes before any version's second, so that a scarce memory
    serves as many versions as it can; within that, the largest first.
    """
    loads: list[Load] = []
    missing = [
        (-max((room.need(key, version) for room in rooms.values()), default=0), key, version)
        for version in versions
        if len(kept[key := version.model_key]) < version.min_replicas
    ]
    missing.sort(key=lambda entry: entry[:2])
    for ordinal in range(max((version.min_replicas for _, _, version in missing), default=0)):
        for _, key, version in missing:
            holders = kept[key]
            if len(holders) <= ordinal < version.min_replicas and (room := _best_room(key, version, rooms, holders)):
                room.take(key, version)
                holders.append(room.site.host_id)
                loads.append(_load(key, version, room, len(holders)))
    return loads


def _best_room(key: ModelKey, version: ModelVersion, rooms: Mapping[str, Room], holders: Sequence[str]) -> Room | None:
    """The room that failed it least, in the zone with the fewest of its replicas, with the least left over.

    A version that may come and go is put where the fewest of its kind are.
    """
    zones: dict[str, int] = {}
    for host_id in holders:
        zone = rooms[host_id].site.record.zone
        zones[zone] = zones.get(zone, 0) + 1

    def rank(room: Room) -> tuple[int, int, int, int, str]:
        site = room.site
        failure = site.failures.get(key)
        return (
            failure.count if failure else 0,
            zones.get(site.record.zone, 0),
            room.guests if version.on_demand else 0,  # fewer of them have more room each
            room.free_bytes - room.more(key, version),
            site.host_id,
        )

    fitting = [room for room in rooms.values() if room.refusal(key, version, holders) is None]
    return min(fitting, key=rank, default=None)


def _load(key: ModelKey, version: ModelVersion, room: Room, ordinal: int) -> Load:
    left = f"best fit, {mib(room.free_bytes)} left"
    failure = room.site.failures.get(key)
    again = f", try {failure.count + 1} here" if failure else ""
    return Load(key, room.site.host_id, f"replica {ordinal} of {version.min_replicas}: {left}{again}")


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
            if (failure := rooms[host_id].site.failures.get(key)) and rooms[host_id].state(key) is not ModelState.READY
        ]
        missing = version.min_replicas - len(holders) + len(retried)
        if missing > 0:
            reasons = [f"trying again: {failed_text(host_id, failure)}" for host_id, failure in retried]
            if len(holders) < version.min_replicas:
                reasons += reasons_against(version, rooms, holders)
            found.append(Unplaced(key, missing, "; ".join(reasons)))
    return found
