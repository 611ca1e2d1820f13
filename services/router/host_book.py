"""What this router has learned of each host, kept from snapshot to snapshot, and how it learns."""

import math
from collections.abc import Sequence

from services.domain.errors import (
    BudgetExhausted,
    HostUnavailable,
    Internal,
    ModelFailed,
    ModelNotReady,
    Overloaded,
    YardError,
)
from services.domain.host import HostLoad, HostRecord
from services.domain.model import ModelKey
from services.domain.objects import ModelVersion
from services.policy import scoring
from services.policy.scoring import HostState, VersionState
from services.router.snapshot import Option, Snapshot


class HostBook:
    """The local counters of every version on every host of the current snapshot."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._snapshot: Snapshot | None = None
        self._hosts: dict[tuple[str, str, int], HostState] = {}
        self._versions: dict[tuple[HostState, ModelKey], VersionState] = {}
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
                host = hosts.get(process) or self._hosts.get(process) or HostState(record.host_id)
                hosts[process] = host
                state = self._versions.get((host, key))
                if state is None:
                    state = self._newcomer(version, host, record, records, now_s, first=first)
                versions[host, key] = state
        self._hosts, self._versions = hosts, versions

    def states(self, option: Option) -> Sequence[VersionState]:
        """What is known of the option's hosts, in their order; of the snapshot last turned to."""
        found = self._of_option.get(option)
        if found is None:
            found = [self._versions[self._hosts[_process_of(record)], option.key] for record in option.hosts]
            self._of_option[option] = found
        return found

    def _newcomer(
        self,
        version: ModelVersion,
        host: HostState,
        record: HostRecord,
        ready: Sequence[HostRecord],
        now_s: float,
        *,
        first: bool,
    ) -> VersionState:
        """Start from what a host with a like device measured, else from what the version declares."""
        base_s, per_item_s = version.service_time_s, 0.0
        for other in ready:
            if other.device.kind is record.device.kind and (known := self._hosts.get(_process_of(other))) is not None:
                state = self._versions.get((known, version.model_key))
                if state is not None and state.measured_at_s > -math.inf:
                    base_s, per_item_s = state.base_s, state.per_item_s
                    break
        ramps = not first and len(ready) > 1
        return VersionState(host, base_s=base_s, per_item_s=per_item_s, now_s=now_s, ramps=ramps)


def _process_of(record: HostRecord) -> tuple[str, str, int]:
    return (record.host_id, record.address, record.pid)


def take_report(state: VersionState, load: HostLoad | None, key: ModelKey, now_s: float) -> None:
    """Learn what a host says of itself with a result; `key` is the version the result is of."""
    if load is None or load.sequence <= state.host.sequence:
        return
    state.host.sequence = load.sequence
    for model in load.models:
        if model.key == key:
            scoring.reported(state, model, now_s)
    if load.draining:
        scoring.punish_host(state, now_s)


def take_failure(state: VersionState, error: YardError, now_s: float, *, hung: bool) -> None:
    """Learn from a failed attempt, where it was the fault of the host or of the version on it.

    Args:
        state: The version on the host.
        error: What it failed with.
        now_s: Monotonic seconds.
        hung: Whether it ran out of a time that should have been ample.
    """
    match error:
        case HostUnavailable():
            state.host.suspect = True
            scoring.punish_host(state, now_s)
        case BudgetExhausted() if hung:
            scoring.punish_host(state, now_s)
        case ModelFailed() | Internal() | ModelNotReady():
            scoring.punish_version(state, now_s)
        case Overloaded():
            scoring.punish_version(state, now_s, pushback_s=error.retry_after_s)
