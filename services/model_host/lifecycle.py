"""Which versions are on this host, and what an order does to them.

Orders are answered at once; loading goes on beside serving, one version at a time. The device's
memory bounds what is taken: what a version declares before it is loaded, what it was measured to
take afterwards. How to load is behind `Loader`, how to serve behind `Serving`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from services.domain.clock import Clock
from services.domain.errors import Draining, InsufficientMemory, ModelNotReady, YardError
from services.domain.host import DeviceKind, HostedModel
from services.domain.model import ModelKey, ModelState
from services.domain.objects import Model, ModelVersion
from services.model_host.lane import Lane
from services.model_host.orders import Fence, LoadOrder, Unloads, check_load, check_same
from services.policy.batch_times import ServiceTimes


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version in memory."""

    model: object
    """What computes it; opaque here."""
    schema: object
    """What its requests must look like; opaque here."""
    memory_bytes: int
    """Measured peak, of loading and warming up."""
    times: ServiceTimes
    ceiling: int
    """Most rows that fit the device, if not all batch sizes do; else 0."""


class Loader(Protocol):
    """Brings versions into memory."""

    async def load(self, model: Model, version: ModelVersion) -> Loaded:
        """Fetch, check, load and warm up.

        Raises:
            YardError: It cannot be loaded; the message says why.
        """
        ...

    async def release(self) -> None:
        """Give back the memory of what was dropped."""
        ...


class Serving(Protocol):
    """Where loaded versions take calls."""

    def open(
        self,
        key: ModelKey,
        model: object,
        *,
        max_batch_size: int,
        max_wait_s: float,
        slo_s: float | None,
        times: ServiceTimes,
        ceiling: int = 0,
    ) -> Lane:
        """A lane for a version."""
        ...

    async def close(self, lane: Lane) -> None:
        """Take no new calls, return once the last is answered."""
        ...


@dataclass(slots=True, eq=False)
class Hosted:
    """A version on this host."""

    key: ModelKey
    order: LoadOrder
    ordered_s: float
    state: ModelState = ModelState.LOADING
    message: str = ""
    memory_bytes: int = 0
    load_time_s: float = 0.0
    lane: Lane | None = None
    schema: object = None
    wanted: bool = True
    """False once an unload came while it loads."""
    again: LoadOrder | None = None
    """A load ordered while it unloads."""


class Lifecycle:
    """The versions of one host."""

    def __init__(
        self,
        *,
        loader: Loader,
        serving: Serving,
        device_kind: DeviceKind,
        memory_bytes: int,
        trusts_artifacts: bool,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        """Nothing is loaded until `run` runs.

        Args:
            loader: Brings versions into memory.
            serving: Where they take calls.
            device_kind: What they compute on.
            memory_bytes: What they may take in all.
            trusts_artifacts: Whether artifacts that can run code are taken.
            clock: Time.
            changed: Called after every change of what the host's record says.
        """
        self._loader = loader
        self._serving = serving
        self._device_kind = device_kind
        self._memory_bytes = memory_bytes
        self._trusts_artifacts = trusts_artifacts
        self._clock = clock
        self._changed = changed
        self._hosted: dict[ModelKey, Hosted] = {}
        self._to_load: deque[Hosted] = deque()
        self._wake = asyncio.Event()
        self._unloading: set[asyncio.Task[None]] = set()
        self._unloads = Unloads()
        self._fence = Fence()
        self._draining = False
        self._refusing = False

    # --- questions ------------------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """Whether the host has been told to end."""
        return self._draining

    @property
    def used_bytes(self) -> int:
        """Memory that loaded versions take, as measured."""
        return sum(hosted.memory_bytes for hosted in self._hosted.values())

    def ready(self, key: ModelKey) -> Hosted:
        """The version, to compute with.

        Raises:
            Draining: The host takes no new calls.
            ModelNotReady: The version is not here, or not READY.
        """
        hosted = self._hosted.get(key)
        if self._refusing:
            raise Draining("this host is draining; ask another")
        if hosted is None or hosted.state is not ModelState.READY:
            stands = "not loaded" if hosted is None else hosted.state.value
            raise ModelNotReady(f"{key} is {stands} on this host", metadata={"model": str(key)})
        return hosted

    def hosted(self) -> list[Hosted]:
        """Every version here, by key."""
        return [hosted for _, hosted in sorted(self._hosted.items())]

    def models(self) -> tuple[HostedModel, ...]:
        """Every version here, as the host's record says it."""
        return tuple(
            HostedModel(hosted.key, hosted.state, hosted.message, hosted.memory_bytes, hosted.load_time_s)
            for hosted in self.hosted()
        )

    # --- orders ---------------------------------------------------------------------------------

    def order_load(self, order: LoadOrder) -> ModelState:
        """Take the order to load a version; where it is here already, nothing is done.

        Returns:
            Where the version stands now.

        Raises:
            StaleFencingToken: Another leader has ordered since.
            Draining: The host takes no new work.
            InvalidRequest: The objects are not valid, or of a version that is here in another form.
            ArtifactRejected: The version runs code of its artifact, and this host does not trust it.
            InsufficientMemory: What it declares does not fit beside the others.
        """
        self._fence.pass_through(order.fencing_token)
        if self._draining:
            raise Draining("this host is draining and loads nothing")
        check_load(order, device_kind=self._device_kind, trusts_artifacts=self._trusts_artifacts)
        key = order.version.model_key
        hosted = self._hosted.get(key)
        if hosted is not None and hosted.order.decision_id == order.decision_id:
            return hosted.state
        if hosted is not None and hosted.state in (ModelState.LOADING, ModelState.READY):
            check_same(hosted.order.version, order.version)
            return hosted.state
        if hosted is not None and hosted.state is ModelState.UNLOADING:
            hosted.again = order
            return hosted.state
        self._take(order)
        return ModelState.LOADING

    def order_unload(self, key: ModelKey, decision_id: str, fencing_token: int) -> ModelState | None:
        """Take the order to unload a version, after the calls it has.

        Returns:
            Where the version stands now; None if it is not here.

        Raises:
            StaleFencingToken: Another leader has ordered since.
        """
        self._fence.pass_through(fencing_token)
        hosted = self._hosted.get(key)
        if self._unloads.repeated(key, decision_id) or hosted is None:
            return None if hosted is None else hosted.state
        hosted.again = None
        match hosted.state:
            case ModelState.FAILED:
                self._forget(hosted)
                return None
            case ModelState.LOADING:
                hosted.wanted = False
                if hosted in self._to_load:
                    self._to_load.remove(hosted)
                    self._forget(hosted)
                    return None
                self._set(hosted, ModelState.UNLOADING)
            case ModelState.READY:
                self._set(hosted, ModelState.UNLOADING)
                task = asyncio.get_running_loop().create_task(self._unload(hosted))
                self._unloading.add(task)
                task.add_done_callback(self._unloading.discard)
            case ModelState.UNLOADING:
                pass
        return hosted.state

    def order_drain(self, fencing_token: int) -> None:
        """Take no new work from now on; token 0 is the operator's own hand.

        Raises:
            StaleFencingToken: Another leader has ordered since.
        """
        if fencing_token:
            self._fence.pass_through(fencing_token)
        self._refusing = True
        self.announce_end()

    def announce_end(self) -> None:
        """Say that the host ends soon, so that callers look elsewhere; calls are still taken."""
        if not self._draining:
            self._draining = True
            self._changed()

    async def finish(self) -> None:
        """Refuse new calls, and return once the ones that were taken are answered."""
        self._refusing = True
        lanes = [hosted.lane for hosted in self._hosted.values() if hosted.lane is not None]
        await asyncio.gather(*(self._serving.close(lane) for lane in lanes))

    # --- work -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Load what is ordered, one version after another, until cancelled."""
        try:
            while True:
                while self._to_load:
                    await self._load(self._to_load.popleft())
                self._wake.clear()
                await self._wake.wait()
        finally:
            for task in self._unloading:
                task.cancel()

    def _take(self, order: LoadOrder) -> None:
        self._check_memory(order.version)
        hosted = Hosted(order.version.model_key, order, self._clock.now_s())
        self._hosted[hosted.key] = hosted
        self._to_load.append(hosted)
        self._wake.set()
        self._changed()

    async def _load(self, hosted: Hosted) -> None:
        refusal = await self._try(hosted)
        if refusal and hosted.wanted:
            hosted.message = refusal
            hosted.load_time_s = self._clock.now_s() - hosted.ordered_s
            self._set(hosted, ModelState.FAILED)
        if hosted.lane is None:
            await self._loader.release()
        if not hosted.wanted:
            self._forget(hosted)
            self._load_again(hosted)

    async def _try(self, hosted: Hosted) -> str:
        """Why it cannot serve; empty if it does, or if nobody wants it any more.

        A frame of its own: what was loaded and is not kept must be gone when memory is released.
        """
        try:
            loaded = await self._loader.load(hosted.order.model, hosted.order.version)
            if hosted.wanted:
                self._accept(hosted, loaded)
        except YardError as error:
            return error.message
        return ""

    def _accept(self, hosted: Hosted, loaded: Loaded) -> None:
        """Let a loaded version serve.

        Raises:
            InsufficientMemory: It takes more than it declared, and more than there is.
        """
        free_bytes = self._memory_bytes - self.used_bytes
        if loaded.memory_bytes > free_bytes:
            raise InsufficientMemory(
                f"{hosted.key} takes {loaded.memory_bytes} bytes as measured (declared: "
                f"{hosted.order.version.memory_bytes}), and {free_bytes} of {self._memory_bytes} are free"
            )
        version = hosted.order.version
        hosted.lane = self._serving.open(
            hosted.key,
            loaded.model,
            max_batch_size=version.max_batch_size,
            max_wait_s=version.max_wait_s,
            slo_s=hosted.order.model.latency_slo_s,
            times=loaded.times,
            ceiling=loaded.ceiling,
        )
        hosted.schema = loaded.schema
        hosted.memory_bytes = loaded.memory_bytes
        hosted.load_time_s = self._clock.now_s() - hosted.ordered_s
        self._set(hosted, ModelState.READY)

    async def _unload(self, hosted: Hosted) -> None:
        assert hosted.lane is not None
        await self._serving.close(hosted.lane)
        hosted.lane.model = None
        hosted.lane = None
        hosted.schema = None
        await self._loader.release()
        self._forget(hosted)
        self._load_again(hosted)

    def _load_again(self, hosted: Hosted) -> None:
        if hosted.again is None or self._draining:
            return
        try:
            self._take(hosted.again)
        except InsufficientMemory as error:
            late = Hosted(hosted.key, hosted.again, self._clock.now_s(), message=error.message)
            self._hosted[hosted.key] = late
            self._set(late, ModelState.FAILED)

    def _set(self, hosted: Hosted, state: ModelState) -> None:
        hosted.state = state
        self._changed()

    def _forget(self, hosted: Hosted) -> None:
        if self._hosted.get(hosted.key) is hosted:
            del self._hosted[hosted.key]
            self._changed()

    def _check_memory(self, version: ModelVersion) -> None:
        taken_bytes = sum(
            hosted.order.version.memory_bytes if hosted.state is ModelState.LOADING else hosted.memory_bytes
            for hosted in self._hosted.values()
        )
        free_bytes = self._memory_bytes - taken_bytes
        if version.memory_bytes > free_bytes:
            raise InsufficientMemory(
                f"{version.model_key} declares {version.memory_bytes} bytes, and {free_bytes} of "
                f"{self._memory_bytes} are free"
            )
