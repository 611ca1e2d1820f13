"""Which versions are on this host, and what an order does to them.

Orders are answered at once; loading goes on beside serving, one version at a time. The device's
memory bounds what is taken: what a version declares before it is loaded, what it was measured to
take afterwards. Versions that may come and go leave room for each other: which of them are in
memory is `residency`. How to load is behind `Loader`, how to serve behind `Serving`.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from services.domain.clock import Clock
from services.domain.errors import Draining, InsufficientMemory, ModelFailed, ModelNotReady, YardError
from services.domain.host import DeviceKind, HostedModel
from services.domain.model import ModelKey, ModelState
from services.domain.objects import ModelVersion
from services.model_host.hosted import Hosted, Loaded, Loader, Serving
from services.model_host.orders import Fence, LoadOrder, Unloads, check_load, check_same
from services.model_host.residency import Guest, Residency


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
        self._residency = Residency(clock, self._free_bytes, self._leave, self._wake.set)
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
        """Memory that versions take now, as measured."""
        return sum(hosted.resident_bytes for hosted in self._hosted.values())

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
                self._wake.clear()
                guest = self._residency.next_wanted()  # its callers wait
                if guest is not None:
                    await self._bring(guest)
                elif self._to_load:
                    await self._load(self._to_load.popleft())
                else:
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
        version = hosted.order.version
        try:
            await self._residency.make_room(version.memory_bytes, wanted=lambda: hosted.wanted)
            loaded = await self._loader.load(hosted.order.model, version)
            if hosted.wanted:
                # Nothing is waited for now: what it takes is taken already.
                await self._residency.make_room(loaded.memory_bytes, wanted=lambda: False)
                self._accept(hosted, loaded)
        except YardError as error:
            return error.message
        return ""

    def _accept(self, hosted: Hosted, loaded: Loaded) -> None:
        """Let a loaded version serve.

        Raises:
            InsufficientMemory: It takes more than it declared, and more than there is.
        """
        free_bytes = self._free_bytes()
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
        hosted.lane.statistics.loads += 1
        hosted.schema = loaded.schema
        hosted.memory_bytes = loaded.memory_bytes
        hosted.load_time_s = self._clock.now_s() - hosted.ordered_s
        if hosted.on_demand:
            self._residency.came(hosted.lane, memory_bytes=loaded.memory_bytes, load_s=loaded.load_s)
        self._set(hosted, ModelState.READY)

    async def _bring(self, guest: Guest) -> None:
        """Bring a version back into memory that was called while it was away."""
        lane = guest.lane
        hosted = self._hosted[lane.key]
        if not await self._residency.make_room(hosted.memory_bytes, wanted=lambda: lane.queued > 0):
            self._residency.not_back(guest)
            return
        began_s = self._clock.now_s()
        try:
            model = await self._loader.bring(hosted.order.model, hosted.order.version)
        except YardError as error:
            self._residency.gone(lane)
            self._serving.refuse_all(lane, ModelFailed(f"{lane.key} could not be brought into memory: {error.message}"))
            lane.closed, hosted.lane, hosted.schema = True, None, None
            hosted.memory_bytes, hosted.message = 0, error.message
            self._set(hosted, ModelState.FAILED)
            await self._loader.release()
            return
        if hosted.lane is not lane:  # unloaded meanwhile
            del model
            await self._loader.release()
            return
        self._residency.back(guest, load_s=self._clock.now_s() - began_s)
        lane.statistics.loads += 1
        self._serving.arrived(lane, model)

    async def _leave(self, guest: Guest) -> None:
        """Take a version out of memory that others need more."""
        model, guest.lane.model = guest.lane.model, None
        await self._loader.leave(model)
        del model  # else its memory could not be given back
        await self._loader.trim()

    def _free_bytes(self) -> int:
        return self._memory_bytes - self.used_bytes

    async def _unload(self, hosted: Hosted) -> None:
        assert hosted.lane is not None
        self._residency.gone(hosted.lane)
        if not hosted.lane.resident:
            text = f"{hosted.key} is being unloaded here"
            self._serving.refuse_all(hosted.lane, ModelNotReady(text, metadata={"model": str(hosted.key)}))
        await self._serving.close(hosted.lane)
        async with self._loader.unloading(hosted.key):
            hosted.lane.model = None
            hosted.lane = None
            hosted.schema = None
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
        """Refuse what cannot fit. What may come and go needs room for one of them at a time.

        Raises:
            InsufficientMemory: It does not fit beside what stays.
        """
        staying = sum(_claim(hosted) for hosted in self._hosted.values() if not hosted.on_demand)
        if not version.on_demand:
            staying += max((_claim(hosted) for hosted in self._hosted.values() if hosted.on_demand), default=0)
        free_bytes = self._memory_bytes - staying
        if version.memory_bytes > free_bytes:
            raise InsufficientMemory(
                f"{version.model_key} declares {version.memory_bytes} bytes, and {free_bytes} of "
                f"{self._memory_bytes} are free"
            )


def _claim(hosted: Hosted) -> int:
    """What a version takes: as declared until it is measured."""
    return hosted.order.version.memory_bytes if hosted.state is ModelState.LOADING else hosted.memory_bytes
