"""Whether a version fits on a host now, and what is in the way if it does not."""

import enum
from collections.abc import Mapping, Sequence
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
    CORDONED = "CORDONED"
    """Listed, but an operator wants nothing new on it: its replicas count, and it gets no further ones."""
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
    outdated: frozenset[ModelKey] = frozenset()
    """Versions it has with contents that are no longer those of the registry."""

    @property
    def host_id(self) -> str:
        """The host's id."""
        return self.record.host_id


def memory_need(version: ModelVersion, host: HostRecord, measured: Measured) -> int:
    """Bytes a version takes on a host: measured there, else on such a device, else as declared."""
    hosted = host.hosted(version.model_key)
    if hosted is not None and hosted.memory_bytes > 0:
        return hosted.memory_bytes
    return measured.get((version.model_key, host.device.kind), version.memory_bytes)


class Refusal(enum.IntEnum):
    """Why a host does not get a version, in the order in which people want to know."""

    FAILED = 0
    MEMORY = 1
    STANDING = 2
    HELD = 3
    TRUST = 4
    DEVICE = 5
    POOL = 6


_NEVER = frozenset({Refusal.TRUST, Refusal.DEVICE, Refusal.POOL})
"""What no waiting helps against."""


def mismatch(version: ModelVersion, record: HostRecord) -> tuple[Refusal, str] | None:
    """Why a host can never run a version, whatever is free on it; None if it can."""
    if version.pool and record.pool != version.pool:
        return Refusal.POOL, f"no host of pool '{version.pool}' is listed"
    if version.device_kind is not None and version.device_kind is not record.device.kind:
        return Refusal.DEVICE, f"no matching host has a {version.device_kind.value} device"
    if version.backend.executes_code and not record.trusts_artifacts:
        return Refusal.TRUST, "no matching host trusts artifacts that execute code"
    return None


class Room:
    """What is free on one host; whoever hands out versions takes it by `take`.

    Versions that may come and go share what the others leave: together they claim as much as the largest.
    """

    __slots__ = ("_guest_bytes", "_kind", "_measured", "free_bytes", "guests", "hosted", "site")

    def __init__(self, site: Site, versions: Mapping[ModelKey, ModelVersion], measured: Measured) -> None:
        """What is left on `site` beside what it has; `versions` are all that should exist."""
        self.site = site
        self.hosted = {hosted.key: hosted for hosted in site.record.models}
        self._kind = site.record.device.kind
        self._measured = measured
        self.guests = 0
        """Versions here that may come and go."""
        self._guest_bytes = claimed = known = 0
        for hosted in site.record.models:
            version = versions.get(hosted.key)
            claim = self._claim(hosted, version)
            known += hosted.memory_bytes
            if version is not None and version.on_demand:
                self.guests += 1
                self._guest_bytes = max(self._guest_bytes, claim)
            else:
                claimed += claim
        # The host's own sum counts too: it may hold what nobody listed.
        unlisted = max(0, site.record.device.used_bytes - known)
        self.free_bytes = site.record.device.memory_bytes - claimed - self._guest_bytes - unlisted

    def _claim(self, hosted: HostedModel, version: ModelVersion | None) -> int:
        if hosted.state is ModelState.FAILED:
            return 0
        return hosted.memory_bytes if version is None else self.need(hosted.key, version)

    def need(self, key: ModelKey, version: ModelVersion) -> int:
        """Bytes a version takes here; as `memory_need`. `key` is the version's, made once for all hosts."""
        hosted = self.hosted.get(key)
        if hosted is not None and hosted.memory_bytes > 0:
            return hosted.memory_bytes
        return self._measured.get((key, self._kind), version.memory_bytes) if self._measured else version.memory_bytes

    def more(self, key: ModelKey, version: ModelVersion) -> int:
        """Bytes that are claimed here if the version comes: less than it takes where it may come and go."""
        need = self.need(key, version)
        return max(0, need - self._guest_bytes) if version.on_demand else need

    def take(self, key: ModelKey, version: ModelVersion) -> None:
        """The version comes here."""
        more = self.more(key, version)
        self.free_bytes -= more
        if version.on_demand:
            self.guests += 1
            self._guest_bytes += more

    def state(self, key: ModelKey) -> ModelState | None:
        """Where a version stands here; None if it does not."""
        hosted = self.hosted.get(key)
        return None if hosted is None else hosted.state

    def refusal(self, key: ModelKey, version: ModelVersion, holders: Sequence[str]) -> tuple[Refusal, str] | None:
        """Why the version cannot be loaded here now; None if it can."""
        site = self.site
        if never := mismatch(version, site.record):
            return never
        if site.host_id in holders:
            return Refusal.HELD, "every other matching host has it already"
        if site.standing is not Standing.LISTED:
            return Refusal.STANDING, f"{site.host_id} is {site.standing.value.lower()}"
        hosted = self.hosted.get(key)
        if hosted is not None and hosted.state is not ModelState.FAILED:
            return Refusal.STANDING, f"{site.host_id} has yet to unload it"
        failure = site.failures.get(key)
        if failure is not None and failure.resting:
            return Refusal.FAILED, failed_text(site.host_id, failure)
        if self.more(key, version) > self.free_bytes:
            return Refusal.MEMORY, ""
        return None


def reasons_against(version: ModelVersion, rooms: Mapping[str, Room], holders: Sequence[str]) -> list[str]:
    """Why no host takes another replica. What can never fit is told only where nothing else is in the way."""
    key = version.model_key
    refused: dict[Refusal, list[str]] = {}
    for room in rooms.values():
        if refusal := room.refusal(key, version, holders):
            refused.setdefault(refusal[0], []).append(refusal[1])
    if not refused:
        return ["no host is listed"]
    if full := refused.get(Refusal.MEMORY):
        roomiest = max(
            (
                room
                for room in rooms.values()
                if (why := room.refusal(key, version, holders)) and why[0] is Refusal.MEMORY
            ),
            key=lambda room: room.free_bytes - room.more(key, version),
        )
        free_bytes = max(0, roomiest.free_bytes)
        full[:] = [f"needs {mib(roomiest.more(key, version))}, and {roomiest.site.host_id} has {mib(free_bytes)} free"]
    first = min(refused)
    shown = [first] if first in _NEVER else sorted(refused.keys() - _NEVER)
    found: list[str] = []
    for kind in shown:
        reasons = list(dict.fromkeys(refused[kind]))
        found += reasons[:MOST_REASONS]
        if len(reasons) > MOST_REASONS:
            found.append(f"and {len(reasons) - MOST_REASONS} more like it")
    return found


def failed_text(host_id: str, failure: Failure) -> str:
    """A failure in words."""
    times = "once" if failure.count == 1 else f"{failure.count} times"
    return f"{host_id} failed {times}: {failure.message}"


def mib(size_bytes: int) -> str:
    """A size in words."""
    return f"{size_bytes / 2**20:.1f} MiB"
