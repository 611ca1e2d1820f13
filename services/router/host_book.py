"""What this router has learned of each host, kept from snapshot to snapshot, and how it learns."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

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
from services.domain.host import DeviceKind, HostLoad, HostRecord
from services.domain.model import ModelKey
from services.domain.objects import ModelVersion
from services.policy import scoring
from services.policy.balancing import RAMP_S
from services.policy.prior import Prior
from services.policy.scoring import HostState, VersionState
from services.router.destination import Option
from services.router.host_picking import Fleet
from services.router.snapshot import Snapshot

BRIEF = 120
"""Most of an error's text that is kept of it."""


class HostBook:
    """The local counters of every version on every host of the current snapshot."""

    def __init__(self, fleet: Fleet) -> None:
        """Know nothing yet but what `fleet` says."""
        self._fleet = fleet
        self._snapshot: Snapshot | None = None
        self._hosts: dict[tuple[str, str, int], HostState] = {}
        self._versions: dict[tuple[HostState, ModelKey], VersionState] = {}
        self._priors: dict[tuple[ModelKey, DeviceKind], Prior] = {}
        self._of_option: dict[Option, Sequence[VersionState]] = {}

    def turn_to(self, snapshot: Snapshot, now_s: float) -> None:
        """Go by `snapshot` from now on: keep what still stands, forget what went.

        A host that comes back as another process starts anew.
        """
        if snapshot is self._snapshot:
            return
        first = self._snapshot is None
        self._snapshot = snapshot
        self._of_option.clear()
        hosts: dict[tuple[str, str, int], HostState] = {}
        versions: dict[tuple[HostState, ModelKey], VersionState] = {}
        for key, records in snapshot.ready_keys().items():
            version = snapshot.objects.versions.get(key.model, {}).get(key.version)
            if version is None:
                continue
            for record in records:
                process = _process_of(record)
                host = hosts.get(process) or self._hosts.get(process) or self._newcomer(record)
                hosts[process] = host
                state = self._versions.get((host, key))
                if state is None:
                    state = VersionState(
                        host,
                        self._prior(version, record.device.kind),
                        known_since_s=-math.inf if first else now_s,
                        ramps=self._established(key, records, now_s),
                    )
                versions[host, key] = state
        self._hosts, self._versions = hosts, versions
        known = snapshot.objects.versions
        self._priors = {
            key: prior for key, prior in self._priors.items() if key[0].version in known.get(key[0].model, ())
        }

    def hosts(self) -> Collection[HostState]:
        """Everything known of hosts of the snapshot last turned to."""
        return self._hosts.values()

    def heard(self, record: HostRecord, load: HostLoad, now_s: float) -> None:
        """A host says that it lives, and what it has to do; of one that is not known by now nothing is learned."""
        host = self._hosts.get(_process_of(record))
        if host is None:
            return
        host.silent_s = host.missed_s = 0.0
        for model in load.models:
            state = self._versions.get((host, model.key))
            if state is not None:
                take_report(state, load, model.key, now_s)

    def states(self, option: Option) -> Sequence[VersionState]:
        """What is known of the option's hosts, in their order; of the snapshot last turned to."""
        found = self._of_option.get(option)
        if found is None:
            found = [self._versions[self._hosts[_process_of(record)], option.key] for record in option.hosts]
            self._of_option[option] = found
        return found

    def _newcomer(self, record: HostRecord) -> HostState:
        """A host that has not answered yet."""
        host, zone = HostState(record.host_id), self._fleet.zone
        if zone and record.zone != zone:
            host.network_s += self._fleet.zone_way_s
        return host

    def _established(self, key: ModelKey, records: Sequence[HostRecord], now_s: float) -> bool:
        """Whether one of these hosts has served the version for longer than a newcomer's ramp."""
        hosts = (self._hosts.get(_process_of(record)) for record in records)
        states = (self._versions.get((host, key)) for host in hosts if host is not None)
        return any(state is not None and now_s - state.known_since_s > RAMP_S for state in states)

    def _prior(self, version: ModelVersion, kind: DeviceKind) -> Prior:
        prior = self._priors.get((version.model_key, kind))
        if prior is None:
            prior = self._priors[version.model_key, kind] = Prior(version.service_time_s)
        return prior


def _process_of(record: HostRecord) -> tuple[str, str, int]:
    return (record.host_id, record.address, record.pid)


def take_report(state: VersionState, load: HostLoad | None, key: ModelKey, now_s: float) -> None:
    """Learn what a host says of itself with a result; `key` is the version the result is of."""
    if load is None or load.sequence <= state.sequence:
        return
    state.sequence = load.sequence
    state.host.cutoff, state.host.cutoff_at_s = load.cutoff, now_s
    for model in load.models:
        if model.key == key:
            scoring.reported(state, model, now_s)
    if load.draining:
        state.host.circuit.open(now_s, why="drains")


def take_failure(state: VersionState, error: YardError, now_s: float, *, hung: bool) -> str:
    """Learn from a failed attempt, where it was the fault of the host or of the version on it.

    Args:
        state: The version on the host.
        error: What it failed with.
        now_s: Monotonic seconds.
        hung: Whether it ran out of a time that should have been ample.

    Returns:
        Whose circuit it opened, `host` or `version`; empty if none.
    """
    match error:
        case HostUnavailable():
            state.host.suspect = True
            state.host.failures += 1
            opened = state.host.circuit.open(now_s, why="out of reach")
            return "host" if opened else ""
        case BudgetExhausted() if hung:
            state.host.failures += 1
            return "host" if state.host.circuit.open(now_s, why="no answer in ample time") else ""
        case ModelFailed() | Internal():
            state.host.failures += 1
            return "version" if state.circuit.open(now_s, why=_brief(error)) else ""
        case ModelNotReady():
            return "version" if state.circuit.open(now_s, why="not ready") else ""
        case Overloaded(retry_after_s=None):
            return "version" if state.circuit.open(now_s, why="full") else ""
        case Overloaded(retry_after_s=float(pushback_s)):
            state.circuit.push_back(now_s, pushback_s)
    return ""


def _brief(error: YardError) -> str:
    """The beginning of what it says."""
    return f"failed: {error.message[:BRIEF]}"


class Standing(NamedTuple):
    """What spoke against a host when a call was sent to it."""

    suspect: bool
    """The connection broke, or it fell silent, and no answer has come since."""
    punished: bool
    """It failed, or refused the version, lately."""

    def forgives(self, error: YardError) -> bool:
        """Whether `error` could not be known: a host goes away, or gives up a version, once."""
        if isinstance(error, HostUnavailable):
            return not self.suspect
        return isinstance(error, ModelNotReady | Draining) and not self.punished


def take_standing(state: VersionState) -> Standing:
    """How a version on a host stands now."""
    return Standing(state.host.suspect, scoring.in_trouble(state))
