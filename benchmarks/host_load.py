"""Calls for a host and what becomes of them: who sends how many when, and what came back when.

Arrivals are Poisson and seeded, so that two hosts get the same calls at the same times. A call is timed from when it
was to leave, whether or not it left then; how late calls left is kept, and a run whose generator was late is void.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.type.v1 import model_pb2, service_class_pb2

LATE_MS = 25.0
"""A generator whose P99 is later than this measured itself."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Void(Exception):
    """A run that does not count; the text says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """Calls of one tenant for one version."""

    name: str
    per_s: float
    """Calls a second; rows do not count."""
    timeout_s: float
    key: model_pb2.ModelKey
    requests: Sequence[bytes]
    """Encoded InferRequests, sent in turn."""
    rows: int = 1
    service_class: service_class_pb2.ServiceClass | None = None
    """None: for nobody in particular."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Calls to be sent, in order of time."""

    sources: Sequence[Source]
    at_s: Floats
    """When each is to leave, from the start."""
    who: NDArray[np.int64]
    """Whose it is, as an index into `sources`."""

    def __len__(self) -> int:
        """Calls."""
        return len(self.at_s)


def poisson(sources: Sequence[Source], seconds: float, *, seed: int) -> Plan:
    """Poisson arrivals of every source for so long; the same for the same seed."""
    at: list[Floats] = []
    who: list[NDArray[np.int64]] = []
    for index, source in enumerate(sources):
        rng = np.random.default_rng((seed, index))
        count = int(source.per_s * seconds + 8 * (source.per_s * seconds) ** 0.5) + 8
        times = np.cumsum(rng.exponential(1.0 / source.per_s, count))
        times = times[times < seconds]
        at.append(times)
        who.append(np.full(len(times), index))
    times, owners = np.concatenate(at), np.concatenate(who)
    order = np.argsort(times, kind="stable")
    return Plan(sources, times[order], owners[order])


@dataclass(slots=True)
class Outcomes:
    """What became of the calls of a plan. Times count from its start, like those of the plan."""

    plan: Plan
    sent_s: Floats = field(init=False)
    ended_s: Floats = field(init=False)
    """When the result came; NaN if none did."""
    answered: Flags = field(init=False)
    compute_s: Floats = field(init=False)
    batch_size: NDArray[np.int64] = field(init=False)
    failures: dict[str, int] = field(default_factory=dict)
    """Calls that failed, by reason."""

    def __post_init__(self) -> None:
        """Nothing came yet."""
        count = len(self.plan)
        self.sent_s = np.full(count, np.nan)
        self.ended_s = np.full(count, np.nan)
        self.answered = np.zeros(count, np.bool_)
        self.compute_s = np.zeros(count)
        self.batch_size = np.zeros(count, np.int64)

    @property
    def timeouts_s(self) -> Floats:
        """Each call's."""
        return np.array([source.timeout_s for source in self.plan.sources])[self.plan.who]

    @property
    def rows(self) -> NDArray[np.int64]:
        """Each call's."""
        return np.array([source.rows for source in self.plan.sources])[self.plan.who]

    @property
    def took_s(self) -> Floats:
        """From when each was to leave until its result; NaN if none came."""
        return self.ended_s - self.plan.at_s

    @property
    def in_time(self) -> Flags:
        """Whether each was answered within its deadline, counted from when it was to leave."""
        return self.answered & (np.nan_to_num(self.took_s, nan=np.inf) <= self.timeouts_s)

    def of(self, belongs: Callable[[Source], bool]) -> Flags:
        """Whether each is of such a source."""
        return np.array([belongs(source) for source in self.plan.sources])[self.plan.who]

    def late_ms(self, share: float) -> float:
        """By how much this share of the calls at most left later than planned."""
        late = self.sent_s - self.plan.at_s
        return 1e3 * float(np.quantile(late[~np.isnan(late)], share)) if len(late) else 0.0

    def check_generator(self) -> None:
        """Refuse a run whose generator was late.

        Raises:
            Void: It was.
        """
        late_ms = self.late_ms(0.99)
        if late_ms > LATE_MS or np.isnan(self.sent_s).any():
            raise Void(f"the generator was late: P99 {late_ms:.0f} ms, {int(np.isnan(self.sent_s).sum())} calls unsent")


def goodput_per_s(outcomes: Outcomes, *, from_s: float, until_s: float) -> float:
    """Answers within their deadline, per second of those that came in between.

    Not of calls that were sent in between: those would be answered after it, too, when nothing else comes any more.
    """
    came = (outcomes.ended_s >= from_s) & (outcomes.ended_s < until_s)
    return float((outcomes.in_time & came).sum()) / (until_s - from_s)


def share_in_time(outcomes: Outcomes, belongs: Callable[[Source], bool], *, from_s: float, until_s: float) -> float:
    """Share of the calls of such sources, of those that were to leave in between, answered within their deadline."""
    chosen = outcomes.of(belongs) & _between(outcomes, from_s, until_s)
    return float((outcomes.in_time & chosen).sum() / chosen.sum()) if chosen.any() else 0.0


def device_seconds(outcomes: Outcomes, *, from_s: float, until_s: float) -> Floats:
    """Device time of the answers that came in between, by source.

    A batch takes `compute_s`, the same number in the result of every call in it and, to the nanosecond, in none of
    another batch: what carries the same one was computed together, and each call had its part of it by its rows.
    """
    answered, rows = outcomes.answered, outcomes.rows
    came = answered & (outcomes.ended_s >= from_s) & (outcomes.ended_s < until_s)
    _, batch = np.unique(outcomes.compute_s, return_inverse=True)
    rows_of_batch = np.bincount(batch[answered], rows[answered], minlength=int(batch.max(initial=0)) + 1)
    own_s = np.where(came, outcomes.compute_s * rows / np.maximum(1, rows_of_batch[batch]), 0.0)
    had_s: Floats = np.bincount(outcomes.plan.who, own_s, minlength=len(outcomes.plan.sources)).astype(np.float64)
    return had_s


def late_share(outcomes: Outcomes) -> float:
    """Share of the device time of all answers that went into those which came after their deadline."""
    everything = (outcomes.compute_s / np.maximum(1, outcomes.batch_size))[outcomes.answered]
    late = (outcomes.compute_s / np.maximum(1, outcomes.batch_size))[outcomes.answered & ~outcomes.in_time]
    return float(late.sum() / everything.sum()) if len(everything) else 0.0


def jain(values: Sequence[float] | NDArray[Any]) -> float:
    """Jain's index of fairness: 1 where all have the same, 1/n where one has all."""
    found = np.asarray(values, np.float64)
    squares = float((found**2).sum()) * len(found)
    return float(found.sum()) ** 2 / squares if squares else 0.0


def _between(outcomes: Outcomes, from_s: float, until_s: float) -> Flags:
    found: Flags = (outcomes.plan.at_s >= from_s) & (outcomes.plan.at_s < until_s)
    return found
