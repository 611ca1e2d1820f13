"""Writes down what a router decided, beside the calls: a bounded queue and one thread that writes.

A call hands over what is to be written and goes on; only what changes by the next call is copied. Where the disk does
not keep up, entries are dropped, counted, and their number is written instead; nobody waits.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import YardError
from services.domain.request import InferCall
from services.domain.rng import KeyedRng
from services.domain.rules import NO_RULES, Money, Rules
from services.policy.balancing import Draw
from services.policy.escalating import Enough, Escalate, Facts
from services.router.decision import Decision
from services.router.destination import Destination
from services.router.labelling import Labelled
from services.router.log_entries import Begun, Chosen, Ended, Entries, Item, LabelCame
from services.router.log_escalations import Audited, Weighed
from services.router.log_files import LogFiles
from services.router.log_profiles import profile_of
from services.router.log_states import take
from services.router.planning import Plan, Planner, Seen
from services.router.snapshot import Snapshot

QUEUED = 16384
"""Most entries that wait to be written; each holds about 5 KB at the most."""

REST_S = 0.05
"""How often what waits is written: an entry that woke the writer would cost more than one that is found."""

TOGETHER = 16
"""Entries encoded before they are written: to write lets go of the interpreter's lock, for which calls may wait."""

_SAMPLING = KeyedRng(0)
"""The same on every router, whatever its seed: all of them log a call, or none does."""


class Counter(Protocol):
    """What is counted."""

    def inc(self, amount: float = 1) -> None:
        """So many more."""
        ...


class DecisionLog:
    """The log of one process."""

    def __init__(
        self,
        files: LogFiles,
        entries: Entries,
        *,
        own_zone: str,
        ratio: float,
        clock: Clock,
        written: Counter,
        dropped: Counter,
        queued: int = QUEUED,
    ) -> None:
        """Log into `files`.

        Args:
            files: Where to.
            entries: Makes what is written.
            own_zone: The zone that the router stands in; empty for any.
            ratio: Share of calls that are logged, in (0, 1].
            clock: Time.
            written: Counts entries.
            dropped: Counts those that are not written.
            queued: Most that wait.
        """
        self.own_zone = own_zone
        self.now_s = clock.now_s
        self._files = files
        self._entries = entries
        self._ratio = ratio
        self._clock = clock
        self._written = written
        self._dropped = dropped
        self._most = queued
        self._queue: deque[Item] = deque()
        self._sequence = 0
        self._missing = 0
        self._told = 0
        self._complained = False
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="decision log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and end. Blocks for as long as the disk takes."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self.write()
        self._guarded(self._files.close, 0)

    def begin(
        self,
        call: InferCall,
        snapshot: Snapshot,
        decision: Decision,
        planner: Planner,
        *,
        at_s: float,
        left_s: float | None,
    ) -> "CallRecord | None":
        """As `recording.Recorder.begin`."""
        self._sequence += 1
        if self._ratio < 1.0 and _SAMPLING.unit(call.request_id, "decision log") >= self._ratio:
            return None
        begun = Begun(
            self._sequence,
            at_s,
            snapshot.revision,
            profile_of(call),
            call.request_id,
            call.trace_id,
            left_s,
            decision.deadline_s,
            decision.deadline_source,
            decision.service_class,
            decision.strategy,
        )
        return CallRecord(self, begun, snapshot, planner)

    def label(self, labelled: Labelled, now_s: float) -> None:
        """As `labelling.LabelLog.label`."""
        if self._ratio >= 1.0 or _SAMPLING.unit(labelled.label.request_id, "decision log") < self._ratio:
            self.put(LabelCame(labelled, now_s))

    def put(self, item: Item) -> None:
        """Have it written, unless too much waits."""
        if len(self._queue) >= self._most:
            self._missing += 1
            self._dropped.inc()
        else:
            self._queue.append(item)

    def write(self) -> None:
        """Write what waits; the writer's thread does."""
        for _ in range(-(-len(self._queue) // TOGETHER)):
            batch = [self._queue.popleft() for _ in range(min(TOGETHER, len(self._queue)))]
            self._guarded(lambda batch=batch: self._write(batch), len(batch))  # type: ignore[misc]

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(REST_S)
            self.write()

    def _write(self, batch: list[Item]) -> None:
        now_s = self._clock.now_s()
        if self._files.full(now_s):
            wall_s = self._clock.wall_s()
            self._files.begin(self._entries.begin(wall_s=wall_s, now_s=now_s), wall_s=wall_s, now_s=now_s)
        parts = []
        missing = self._missing
        if missing > self._told:
            parts.append(self._entries.gap(missing - self._told))
            self._told = missing
        parts += map(self._entries.entry, batch)
        self._files.write(b"".join(parts))
        self._written.inc(len(batch))
        self._complained = False

    def _guarded(self, step: Callable[[], None], count: int) -> None:
        """Do a step on the disk; what fails of it is dropped, and the first of several failures in a row logged."""
        try:
            step()
        except Exception as error:  # the log of decisions must not end the decisions
            self._missing += count
            self._dropped.inc(count)
            # What the file refers to may not be in it: the next entry begins another one.
            with contextlib.suppress(OSError):
                self._files.close()
            if not self._complained:
                self._complained = True
                expected = isinstance(error, OSError)
                logger().error("decisions are not logged", why=str(error), exc_info=None if expected else error)


class CallRecord:
    """What is written down of one call; makes its plans."""

    __slots__ = ("_begun", "_log", "_planner", "_snapshot")

    def __init__(self, log: DecisionLog, begun: Begun, snapshot: Snapshot, planner: Planner) -> None:
        """Make plans by `planner`, on `snapshot`."""
        self._log = log
        self._begun = begun
        self._snapshot = snapshot
        self._planner = planner

    def at(self, snapshot: Snapshot) -> "CallRecord":
        """The same, for plans by another view."""
        return CallRecord(self._log, self._begun, snapshot, self._planner)

    def plan(
        self,
        call: InferCall,
        destination: Destination,
        *,
        now_s: float,
        remaining_s: float,
        draw: Draw,
        excluded: Collection[str] = (),
        rules: Rules = NO_RULES,
        seen: Seen | None = None,
    ) -> Plan | YardError:
        """As `Planner.plan`."""
        seen = seen or Seen()
        plan = self._planner.plan(
            call,
            destination,
            now_s=now_s,
            remaining_s=remaining_s,
            draw=draw,
            excluded=excluded,
            rules=rules,
            seen=seen,
        )
        taken = take(
            seen,
            zone=call.options.zone,
            own_zone=self._log.own_zone,
            session=call.options.session,
            excluded=excluded,
            draw=draw,
            rules=rules,
            now_s=now_s,
        )
        begun = self._begun
        known = begun.profile
        # A route's parts are asked by names of their own, some with other inputs; the call itself as it began.
        same = call.name is known.name and call.inputs is known.inputs and call.options is known.options
        profile = known if same and call.version is known.version else profile_of(call)
        self._log.put(
            Chosen(
                begun,
                self._snapshot,
                profile,
                destination.target,
                now_s,
                remaining_s,
                draw.number,
                draw.drawn,
                tuple(excluded),
                rules.service_class,
                taken,
                seen,
                plan,
                rules.money,
            )
        )
        return plan

    def escalated(self, route: str, step: int, facts: Facts, verdict: Enough | Escalate, money: Money | None) -> None:
        """As `recording.Record.escalated`."""
        self._log.put(Weighed(self._begun, route, step, facts, verdict, money))

    def audited(self, route: str, step: int, confidence: float, agreed: bool) -> None:
        """As `recording.Record.audited`."""
        self._log.put(Audited(self._begun, route, step, confidence, agreed))

    def ended(self, decision: Decision, status: str) -> None:
        """The call ended now."""
        stages, told = decision.stages, decision.told
        self._log.put(
            Ended(
                self._begun,
                status,
                self._log.now_s() - self._begun.start_s,
                "" if told is None else told.arm,
                None if told is None else told.propensity,
                tuple(decision.attempts),
                stages.queue_s,
                stages.compute_s,
                decision.batch_size,
                decision.cached,
            )
        )
