"""One attempt of one call: the hop to the host that was planned, and what is learned of that host by it.

Whether another follows is the pipeline's and `policy/retrying`'s business.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from services.domain.clock import Clock
from services.domain.deadline import Deadline
from services.domain.errors import HostUnavailable, YardError
from services.domain.host import HostLoad, HostRecord
from services.domain.model import ModelKey
from services.domain.request import InferCall
from services.domain.service_class import ServiceClass
from services.policy import scoring
from services.router.decision import Attempt, Decision
from services.router.host_book import take_failure, take_report
from services.router.planning import Plan

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


class Attempting:
    """Makes attempts."""

    def __init__(self, *, hosts: Hosts, feedback: AttemptFeedback, clock: Clock, reserve_s: float) -> None:
        """Over `hosts`; keep `reserve_s` of each deadline to carry the answer home."""
        self._hosts = hosts
        self._feedback = feedback
        self._clock = clock
        self._reserve_s = reserve_s

    async def run(
        self, call: InferCall, plan: Plan, decision: Decision, deadline: Deadline
    ) -> HostAnswer | AttemptFailed:
        """Try one host; what follows from it is learned here.

        Raises:
            BudgetExhausted: Nothing is left of the deadline.
        """
        reserve_s = min(self._reserve_s, RESERVE_SHARE * deadline.remaining_s())
        timeout_s = deadline.for_hop(reserve_s=max(0.0, reserve_s))
        state = plan.state
        sent_s = self._clock.now_s()
        band = decision.service_class.band
        work_s = scoring.sent(state, sent_s, band)
        try:
            answer = await self._hosts.execute(
                plan.record,
                plan.option.key,
                call.payload,
                service_class=decision.service_class,
                timeout_s=timeout_s,
            )
        except AttemptFailed as failure:
            now_s = self._clock.now_s()
            took_s = now_s - sent_s
            take_report(state, failure.load, plan.option.key, now_s)
            hung = took_s >= timeout_s > scoring.HUNG_FACTOR * plan.predicted_s and not failure.begun
            # A copy waits behind everybody: that it took long, or was refused, says nothing of the host.
            if not decision.is_copy or isinstance(failure.error, HostUnavailable):
                take_failure(state, failure.error, now_s, hung=hung)
            self._note(decision, Attempt(plan.record.host_id, took_s, failure.error))
            return failure
        finally:
            scoring.ended(state, work_s, band)
        now_s = self._clock.now_s()
        took_s = now_s - sent_s
        network_s = max(0.0, took_s - answer.queue_s - answer.compute_s)
        scoring.answered(state, network_s, now_s)
        take_report(state, answer.load, plan.option.key, now_s)
        self._note(decision, Attempt(plan.record.host_id, took_s, None))
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
