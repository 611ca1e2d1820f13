"""A version on this host, and what brings it into memory and lets it serve."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from services.domain.errors import YardError
from services.domain.model import ModelKey, ModelState
from services.domain.objects import Model, ModelVersion
from services.model_host.lane import Lane
from services.model_host.orders import LoadOrder
from services.policy.batch_times import ServiceTimes


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version in memory."""

    model: object
    """What computes it; opaque here."""
    schema: object
    """What its requests must look like; opaque here."""
    memory_bytes: int
    """Measured peak, of loading and of warming up at every batch size, and a margin."""
    times: ServiceTimes
    ceiling: int
    """Most rows that fit the device, if not all batch sizes do; else 0."""
    load_s: float = 0.0
    """What reading it took, warming up not counted: what bringing it back will take."""


class Loader(Protocol):
    """Brings versions into memory."""

    async def load(self, model: Model, version: ModelVersion) -> Loaded:
        """Fetch, check, load and warm up.

        Raises:
            YardError: It cannot be loaded; the message says why.
        """
        ...

    async def bring(self, model: Model, version: ModelVersion) -> object:
        """What computes a version that was loaded here before; nothing is measured again.

        Raises:
            YardError: It cannot be loaded; the message says why.
        """
        ...

    async def leave(self, model: object) -> None:
        """Take what computes a version off the device, until it is brought again; nobody else refers to it."""
        ...

    async def trim(self) -> None:
        """Give back the memory of what left, quickly: callers wait for what comes in its place."""
        ...

    async def release(self) -> None:
        """Give back the memory of what was dropped."""
        ...

    def unloading(self, key: ModelKey) -> AbstractAsyncContextManager[None]:
        """Drop the version inside; its memory is then given back, and looked for."""
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

    def arrived(self, lane: Lane, model: object) -> None:
        """The lane's version is in memory again, as `model`."""
        ...

    def refuse_all(self, lane: Lane, error: YardError) -> None:
        """The lane's version does not come into memory: its calls fail with `error`."""
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

    @property
    def on_demand(self) -> bool:
        """Whether it may leave memory and come back."""
        return self.order.version.on_demand

    @property
    def resident_bytes(self) -> int:
        """What it takes of the device's memory now, as measured."""
        return self.memory_bytes if self.lane is None or self.lane.resident else 0
