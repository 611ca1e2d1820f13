"""What faults are brought upon: etcd, a registry, a router, and hosts that a benchmark can make slow, broken or dead.

Nothing restarts a host but the one that asks for it: there is no resource manager.
"""

import asyncio
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import grpc.aio

from benchmarks.host_models import Subject
from benchmarks.host_process import Host
from benchmarks.registry_yard import Yard
from benchmarks.servers import free_base_ports
from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import model_pb2
from services.domain.clock import SystemClock
from yardctl.errors import CommandError
from yardctl.layout import Addresses
from yardctl.parts import ROUTER

KNOWN_WITHIN_S = 30.0
POLL_S = 0.01
CALL_S = 10.0
SOUND, FAIL = "1", "fail"
"""What `benchmarks.router_host` reads, which nothing but a host's process may import."""
_CLOCK = SystemClock()


class FaultyYard:
    """The processes. An async context manager that begins with all of them up and every host READY."""

    def __init__(
        self,
        folder: Path,
        subjects: Sequence[Subject],
        *,
        placed: Mapping[str, Sequence[str]],
        objects: Sequence[objects_pb2.Object] = (),
    ) -> None:
        """Keep everything in `folder`.

        Args:
            folder: Of this yard alone.
            subjects: The versions.
            placed: Ids of hosts, each with the models that it has.
            objects: What else is applied: policies and routes.
        """
        self._folder = folder
        self._subjects = {subject.name: subject for subject in subjects}
        self._placed = placed
        self._objects = objects
        (self._port,) = free_base_ports(1)
        self._addresses = Addresses.from_base(self._port)
        self._yard = Yard(folder / "yard", self._port)
        self._hosts: dict[str, Host] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start everything."""
        try:
            await self._stack.enter_async_context(self._yard)
            objects = [each for subject in self._subjects.values() for each in (subject.model, subject.version)]
            await self._yard.apply([*objects, *self._objects])
            for number, host_id in enumerate(self._placed):
                self._set(host_id, SOUND)
                self._hosts[host_id] = Host(
                    self._folder / host_id,
                    program=("benchmarks.router_host", str(self._state_of(host_id))),
                    memory_bytes=1 << 30,
                    host_id=host_id,
                    registry=self._addresses.registry,
                    address=f"127.0.0.1:{self._addresses.host_base_port + number}",
                )
                self._stack.push_async_exit(self._hosts[host_id])
            await asyncio.gather(*map(self._start, self._placed))
            await self.start_router()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything."""
        await self._stack.aclose()

    @property
    def router(self) -> str:
        """HOST:PORT of the router."""
        return self._addresses.router

    @property
    def hosts(self) -> Sequence[str]:
        """Their ids."""
        return list(self._placed)

    async def apply(self, objects: Sequence[objects_pb2.Object]) -> None:
        """Apply more objects."""
        await self._yard.apply(list(objects))

    async def start_router(self) -> None:
        """Start the router; one that runs is killed before, so that it knows nothing of what was.

        Raises:
            CommandError: It does not know every host in time.
        """
        await self._yard.end(ROUTER)
        await self._yard.start(ROUTER)
        await self.known(self._placed)

    async def renew(self, host_id: str) -> None:
        """Put another router and another process of a host in the place of those that are, which know nothing of it.

        A host that was slow or frozen believes for a while that its batches take so long.

        Raises:
            CommandError: The router does not know every host in time.
        """
        self.kill(host_id)
        await self._yard.end(ROUTER)
        await asyncio.gather(self.heal(host_id), self._yard.start(ROUTER))
        await self.known(self._placed)

    async def known(self, host_ids: Sequence[str] | Mapping[str, Sequence[str]]) -> None:
        """Wait until the router knows exactly these hosts as READY, each for its models.

        Raises:
            CommandError: It does not in time.
        """
        wanted = {name: {host_id for host_id in host_ids if name in self._placed[host_id]} for name in self._subjects}
        end_s = _CLOCK.now_s() + KNOWN_WITHIN_S
        async with grpc.aio.insecure_channel(self.router) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            while (found := {name: await _hosts_of(stub, self._subjects[name]) for name in wanted}) != wanted:
                if _CLOCK.now_s() > end_s:
                    raise CommandError(f"the router knows {found}, not {wanted}")
                await _CLOCK.sleep(POLL_S)

    # --- faults --------------------------------------------------------------------------------

    def slow(self, host_id: str, factor: float) -> None:
        """Let a host take so many times its time from the next batch on."""
        self._set(host_id, f"{factor:g}")

    def fail(self, host_id: str) -> None:
        """Let every batch of a host fail at once."""
        self._set(host_id, FAIL)

    def freeze(self, host_id: str) -> None:
        """Stop a host where it stands: its connections stay."""
        self._hosts[host_id].process.send_signal(signal.SIGSTOP)

    def kill(self, host_id: str) -> None:
        """Send a host SIGKILL."""
        self._hosts[host_id].kill()

    async def heal(self, host_id: str) -> None:
        """Undo whatever was done to a host; one that was killed comes back as another process."""
        self._set(host_id, SOUND)
        host = self._hosts[host_id]
        if host.ended:
            await host.close()
            await self._start(host_id)
        else:
            host.process.send_signal(signal.SIGCONT)

    async def _start(self, host_id: str) -> None:
        host = self._hosts[host_id]
        await host.__aenter__()
        for name in self._placed[host_id]:
            await host.load(self._subjects[name].model, self._subjects[name].version)
        await self._listed(host_id, host.process.pid, len(self._placed[host_id]))

    async def _listed(self, host_id: str, pid: int, models: int) -> None:
        """Wait until the registry lists a process of a host with so many models READY, so that routers soon know it."""
        end_s = _CLOCK.now_s() + KNOWN_WITHIN_S
        while True:
            for record in await self._yard.hosts():
                ready = sum(hosted.state == model_pb2.MODEL_STATE_READY for hosted in record.models)
                if (record.host_id, record.pid, ready) == (host_id, pid, models):
                    return
            if _CLOCK.now_s() > end_s:
                raise CommandError(f"the registry does not list {host_id} as READY")
            await _CLOCK.sleep(POLL_S)

    def _set(self, host_id: str, state: str) -> None:
        """At once: a host must never read half a word."""
        written = self._state_of(host_id).with_suffix(".new")
        written.write_text(state)
        written.replace(self._state_of(host_id))

    def _state_of(self, host_id: str) -> Path:
        return self._folder / f"{host_id}.state"


async def _hosts_of(stub: "inference_pb2_grpc.InferenceServiceAsyncStub", subject: Subject) -> set[str]:
    """Hosts that a router would compare for a version."""
    request = inference_pb2.InferRequest.FromString(subject.requests[0])
    try:
        decision = (await stub.Explain(inference_pb2.ExplainRequest(request=request), timeout=CALL_S)).decision
    except grpc.aio.AioRpcError:
        return set()
    return {host.host for candidate in decision.candidates for host in candidate.hosts}
