"""One attempt of one call: the hop to the host that was planned, and what is learned of that host by it.

Whether another follows is the pipeline's and `policy/retrying`'s business.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from services.domain.clock import Clock
from services.domain.deadline import Deadline
from services.domain.errors import BudgetExhausted, HostUnavailable, Overloaded, YardError
from services.domain.host import HostLoad, HostRecord
from services.domain.model import ModelKey
from services.domain.request import InferCall
from services.domain.service_class import ServiceClass
from services.policy import scoring, silence
from services.router.decision import Attempt, Decision
from services.router.host_book import take_failure, take_report
from services.router.planning import Plan

_SAYS_NOTHING = (BudgetExhausted, HostUnavailable, Overloaded)
"""Failures by which a host that does not get anywhere does not show that it does."""

RESERVE_SHARE = 0.1
"""Most of a short deadline that is kept back to answer in."""


class HostAnswer(NamedTuple):
    """What a host answered."""

    payload: object
    """Its message, never looked into here."""
    queue_s: float
    compute_s: float
    batch_size: int
    load: HostLoad | None


class AttemptFailed(Exception):
    """A host did not answer; `load` is what it said of itself all the same."""

    def __init__(
        self, error: YardError, load: HostLoad | None, *, never_sent: bool = False, begun: bool = False
    ) -> None:
        """Failed for `error`; `never_sent` if the host has not seen the call, `begun` if a part was handed on."""
        super().__init__(error.message)
        self.begun = begun
        self.error = error
        self.load = load
        self.never_sent = never_sent


class Hosts(Protocol):
    """The single hop."""

    async def execute(
        self, host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
    ) -> HostAnswer:
        """Run a call on one host.

        Raises:
            AttemptFailed: It failed or was refused.
        """
        ...


class AttemptFeedback(Protocol):
    """Who is told how attempts go."""

    def attempted(self, attempt: Attempt) -> None:
        """An attempt ended."""
        ...

    def probed(self, host_id: str, *, answered: bool) -> None:
        """A probe was answered, or was not."""
        ...

    def opened(self, host_id: str, what: str) -> None:
        """The circuit of a `host`, or of a `version` on it, opened."""
        ...


class _Waiting(scoring.Owed):
    """Somebody who waits for a host's answer."""

    __slots__ = ("left", "task")
    left: bool
    task: "asyncio.Task[object] | None"
    """The one that waits; None if it cannot go elsewhere."""

    def leave(self) -> None:
        """End the wait as if the connection had been lost."""
        if self.task is not None and not self.left:
            self.left = True
            self.task.cancel()


LARGE_BYTES = 128 * 1024
"""A request from this size on goes by itself. On a stream it would be quicker up to about 400 KB (docs/performance.md),
but it would hold up the calls behind it, and a typed one the host's loop while it is converted. It is not sent twice:
calls that go by themselves leave memory behind when they are cancelled."""


def is_large(call: InferCall) -> bool:
    """Whether it goes by itself."""
    return sum([each.raw_bytes or 8 * (each.typed_count or 0) for each in call.inputs]) >= LARGE_BYTES


class Attempting:
    """Makes attempts."""

    def __init__(self, *, hosts: Hosts, feedback: AttemptFeedback, clock: Clock, reserve_s: float) -> None:
        """Over `hosts`; keep `reserve_s` of each deadline to carry the answer home."""
        self._hosts = hosts
        self._feedback = feedback
        self._clock = clock
        self._reserve_s = reserve_s

    async def run(
        self,
        call: InferCall,
        plan: Plan,
        decision: Decision,
        deadline: Deadline,
        *,
        elsewhere: bool = False,
        more: bool = False,
        hedge: bool = False,
    ) -> HostAnswer | AttemptFailed:
        """Try one host; what follows from it is learned here.

        Args:
            call: The call.
            plan: The attempt.
            decision: Told how it went.
            deadline: Of the call.
            elsewhere: Whether there are other hosts for the call.
            more: Whether the call may be attempted again.
            hedge: Whether it races another.

        Raises:
            BudgetExhausted: Nothing is left of the deadline.
        """
        reserve_s = min(self._reserve_s, RESERVE_SHARE * deadline.remaining_s())
        timeout_s = deadline.for_hop(reserve_s=max(0.0, reserve_s))
        state = plan.state
        host = state.host
        sent_s = self._clock.now_s()
        band = decision.service_class.band
        owed: _Waiting | None = None
        # How long a copy takes, behind everybody, or an answer in pieces, nobody can tell; and only streams, which many
        # calls share, say meanwhile that the host lives.
        if elsewhere and not decision.is_copy and plan.option.version.generation is None and not is_large(call):
            owed = _Waiting(state, sent_s, plan.predicted_s, timeout_s, probe=plan.probe)
            # What was sent to a host that was silent before has to pay for another attempt, and may not be able to.
            leaves = more and (plan.probe or not host.suspect) and decision.rules.protection.ejection
            owed.task = asyncio.current_task() if leaves else None
            owed.left = False
            host.owed.add(owed)
        if plan.probe:
            scoring.begin_probe(state)
        work_s = scoring.sent(state, sent_s, band)
        answered = False
        try:
            answer = await self._hosts.execute(
                plan.record,
                plan.option.key,
                call.payload,
                service_class=decision.service_class,
                timeout_s=timeout_s,
            )
            answered = True
        except AttemptFailed as failure:
            now_s = self._clock.now_s()
            took_s = now_s - sent_s
            take_report(state, failure.load, plan.option.key, now_s)
            if not isinstance(failure.error, _SAYS_NOTHING):
                host.silent_s = host.missed_s = 0.0
            hung = took_s >= timeout_s > scoring.HUNG_FACTOR * plan.predicted_s and not failure.begun
            # A copy waits behind everybody: that it took long, or was refused, says nothing of the host.
            if not decision.is_copy or isinstance(failure.error, HostUnavailable):
                opened = take_failure(state, failure.error, now_s, hung=hung)
                if opened:
                    self._feedback.opened(host.host_id, opened)
            self._note(decision, Attempt(plan.record.host_id, took_s, failure.error, hedge))
            return failure
        except asyncio.CancelledError:
            took_s = self._clock.now_s() - sent_s
            if owed is None:
                raise
            if not owed.left or owed.task is None or owed.task.uncancel() > 0:
                silence.gave_up(host, owed, self._clock.now_s())
                if decision.racing:
                    self._note(decision, Attempt(plan.record.host_id, took_s, None, hedge, cancelled=True))
                raise
            error = HostUnavailable(f"host {host.host_id} has fallen silent")
            self._note(decision, Attempt(plan.record.host_id, took_s, error, hedge))
            return AttemptFailed(error, None)
        finally:
            scoring.ended(state, work_s, band)
            if owed is not None:
                host.owed.discard(owed)
            if plan.probe:
                scoring.end_probe(state, self._clock.now_s(), answered=answered)
                self._feedback.probed(host.host_id, answered=answered)
        now_s = self._clock.now_s()
        took_s = now_s - sent_s
        network_s = max(0.0, took_s - answer.queue_s - answer.compute_s)
        scoring.answered(state, network_s, now_s, took_s=took_s, predicted_s=plan.predicted_s)
        take_report(state, answer.load, plan.option.key, now_s)
        self._note(decision, Attempt(plan.record.host_id, took_s, None, hedge))
        stages = decision.stages
        stages.queue_s, stages.compute_s, stages.network_s = answer.queue_s, answer.compute_s, network_s
        decision.batch_size = answer.batch_size
        return answer

    def _note(self, decision: Decision, attempt: Attempt) -> None:
        decision.attempts.append(attempt)
        self._feedback.attempted(attempt)


def final(error: YardError, tried: Sequence[str], why: str) -> YardError:
    """`error`, with what was tried; of a single attempt as it came."""
    error.metadata.setdefault("attempts", str(len(tried)))
    error.metadata.setdefault("hosts", ",".join(tried))
    error.metadata.setdefault("gave_up", why)
    return error
