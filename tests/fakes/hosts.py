"""Hosts in memory, behind the router's port: each answers as a test says."""

import asyncio
from collections.abc import Callable

from services.domain.clock import ManualClock
from services.domain.errors import YardError
from services.domain.host import HostLoad, HostRecord, ModelLoad
from services.domain.model import ModelKey
from services.domain.service_class import ServiceClass
from services.router.attempting import AttemptFailed, HostAnswer

Behaviour = Callable[[], YardError | None]


class FakeHosts:
    """Answers every call after `took_s` of the manual clock, unless the host's behaviour is an error."""

    def __init__(self, clock: ManualClock, *, took_s: float = 0.010) -> None:
        """Move `clock` with each call."""
        self.calls: list[tuple[str, ModelKey]] = []
        self.timeouts_s: list[float] = []
        self.behaviour: dict[str, Behaviour] = {}
        self.begun: set[str] = set()
        """Hosts that fail only after a part of the answer has gone out."""
        self.answers: dict[str, Callable[[object], object]] = {}
        """By model: what it makes of a request; others give it back."""
        self.held: dict[str, asyncio.Event] = {}
        """By model: when it answers."""
        self.classes: list[ServiceClass] = []
        self.took_s = took_s
        self._clock = clock
        self._sequence = 0

    def fail(self, host_id: str, error: YardError) -> None:
        """The host fails from now on."""
        self.behaviour[host_id] = lambda: error

    def heal(self, host_id: str) -> None:
        """The host answers from now on."""
        self.behaviour.pop(host_id, None)

    async def execute(
        self, host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
    ) -> HostAnswer:
        """Answer or fail."""
        self.calls.append((host.host_id, key))
        self.timeouts_s.append(timeout_s)
        self.classes.append(service_class)
        if key.model in self.held:
            await self.held[key.model].wait()
        error = self.behaviour.get(host.host_id, lambda: None)()
        self._clock.advance(self.took_s if error is None else 0.001)
        if error is not None:
            raise AttemptFailed(error, None, begun=host.host_id in self.begun)
        self._sequence += 1
        load = ModelLoad(key, 0, 0, 1, self.took_s - 0.002, 0.0)
        return HostAnswer(
            payload=self.answers[key.model](payload) if key.model in self.answers else payload,
            queue_s=0.0,
            compute_s=self.took_s - 0.002,
            batch_size=1,
            load=HostLoad(host.host_id, self._sequence, (load,), 0, 0.0, False),
        )
