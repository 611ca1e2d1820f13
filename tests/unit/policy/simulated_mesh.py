"""A mesh in simulated time, to see what balancing comes to: routers of their own knowledge, hosts with one queue each.

Loads ride on results, as they do between real routers and hosts; a call's way takes time both there and back.
"""

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.domain.host import ModelLoad
from services.domain.model import ModelKey
from services.domain.rng import KeyedRng
from services.policy import scoring
from services.policy.balancing import Draw, Pick
from services.policy.prior import Prior
from services.policy.scoring import HostState, VersionState

KEY = ModelKey("m", "1.0.0")
RNG = KeyedRng(7)


@dataclass(slots=True)
class Call:
    """One call."""

    number: int
    session: str
    due_s: float
    router: int
    host: int = -1
    work_s: float = 0.0
    took_s: float = 0.0


Chooser = Callable[[Call, Sequence[VersionState], float, Draw], Pick]
"""Takes a host for a call, by a router's states, the time and the call's chance."""


@dataclass(slots=True)
class Host:
    """One host, which does one call at a time."""

    service_s: float
    way_s: float = 0.0005
    """To it, and as long back."""
    spread: float = 0.0
    """Of service times: 0 is none, 1 as much as of an exponential distribution."""
    since_s: float = 0.0
    """When it came."""
    waiting: deque[Call] = field(default_factory=deque)
    running: Call | None = None


class Mesh:
    """It."""

    def __init__(self, hosts: Sequence[Host], choose: Chooser, *, routers: int = 1, seed: int = 1) -> None:
        """Let `choose` choose among `hosts`."""
        self.hosts = hosts
        self.now_s = 0.0
        self.done: list[Call] = []
        self._choose = choose
        self._chance = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._states = [self._knowledge() for _ in range(routers)]
        self._routers = routers

    def _knowledge(self) -> list[VersionState]:
        prior = Prior(0.010)
        return [
            VersionState(HostState(f"h{at:02}"), prior, known_since_s=host.since_s, ramps=host.since_s > 0.0)
            for at, host in enumerate(self.hosts)
        ]

    def run(self, per_s: float, seconds: float, *, sessions: int = 0) -> None:
        """Poisson arrivals of `per_s` for so long, at routers by chance; then until all are answered."""
        at_s, number = self.now_s, 0
        while (at_s := at_s + self._chance.expovariate(per_s)) < seconds:
            session = f"s{self._chance.randrange(sessions)}" if sessions else ""
            call = Call(number, session, at_s, self._chance.randrange(self._routers))
            self._at(at_s, lambda call=call: self._arrives(call))  # type: ignore[misc]
            number += 1
        while self._events:
            self.now_s, _, event = heapq.heappop(self._events)
            event()

    def _at(self, at_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._count), event))

    def _arrives(self, call: Call) -> None:
        states = [
            state
            for state, host in zip(self._states[call.router], self.hosts, strict=True)
            if host.since_s <= self.now_s
        ]
        draw = Draw(lambda _: RNG.bits(f"call-{call.number}", "host/1"))
        state = self._choose(call, states, self.now_s, draw).state
        call.host = self._states[call.router].index(state)
        call.work_s = scoring.sent(state, self.now_s)
        host = self.hosts[call.host]
        self._at(self.now_s + host.way_s, lambda: self._queues(call, host))

    def _queues(self, call: Call, host: Host) -> None:
        if host.running is None:
            self._starts(call, host)
        else:
            host.waiting.append(call)

    def _starts(self, call: Call, host: Host) -> None:
        host.running = call
        takes_s = host.service_s * (1.0 - host.spread + host.spread * self._chance.expovariate(1.0))
        self._at(self.now_s + takes_s, lambda: self._ends(call, host))

    def _ends(self, call: Call, host: Host) -> None:
        host.running = None
        if host.waiting:
            self._starts(host.waiting.popleft(), host)
        running = int(host.running is not None)
        load = ModelLoad(KEY, len(host.waiting), running, 1, host.service_s, 0.0)
        self._at(self.now_s + host.way_s, lambda: self._answered(call, host, load))

    def _answered(self, call: Call, host: Host, load: ModelLoad) -> None:
        state = self._states[call.router][call.host]
        scoring.ended(state, call.work_s)
        scoring.answered(state, 2.0 * host.way_s, self.now_s)
        scoring.reported(state, load, self.now_s)
        call.took_s = self.now_s - call.due_s
        self.done.append(call)

    def of(self, from_s: float = 0.0, until_s: float = 1e9) -> list[Call]:
        """Calls that came in a span."""
        return [call for call in self.done if from_s <= call.due_s < until_s]

    def mean_ms(self, from_s: float = 0.0) -> float:
        """Mean of what calls took."""
        took = [call.took_s for call in self.of(from_s)]
        return 1e3 * sum(took) / len(took)

    def p99_ms(self, from_s: float = 0.0) -> float:
        """99th percentile of the same."""
        took = sorted(call.took_s for call in self.of(from_s))
        return 1e3 * took[int(0.99 * len(took))]

    def shares(self, from_s: float = 0.0, until_s: float = 1e9) -> dict[int, float]:
        """Each host's share of the calls."""
        calls = self.of(from_s, until_s)
        counts = Counter(call.host for call in calls)
        return {at: counts[at] / len(calls) for at in range(len(self.hosts))}
