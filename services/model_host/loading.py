"""From an order to a model that serves: fetch, check, load, warm up, measure; on a thread of its own."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import ArtifactRejected, HostUnavailable, InsufficientMemory, ModelFailed, YardError
from services.domain.model import ModelKey
from services.domain.objects import Artifact, Model, ModelVersion
from services.model_host.artifacts import ArtifactStore
from services.model_host.backends.base import Backend, GenerativeModel
from services.model_host.backends.identity import IdentityBackend
from services.model_host.computing import DeviceBroken
from services.model_host.devices.base import ComputeDevice
from services.model_host.generator import Generator
from services.model_host.hosted import Loaded
from services.model_host.memory_bound import bounded_on
from services.model_host.predictor import Predictor, WrongOutput
from services.model_host.recycling import Recycling
from services.model_host.warm_tier import WarmTier
from services.model_host.warmup import warm_up, warm_up_generator
from services.model_host.wire import Schema
from services.model_host.worker import Worker

T = TypeVar("T")

MARGIN = 0.03
"""So much more than its measured peak is set aside for a version: memory fragments, and batches differ."""

MESSAGE_CHARS = 300
"""How much of a framework's own words a record may hold."""


class Loading:
    """Loads versions, one at a time."""

    def __init__(
        self,
        *,
        worker: Worker,
        store: ArtifactStore,
        device: ComputeDevice,
        backends: Mapping[str, Backend],
        recycling: Recycling,
        device_broken: Callable[[], None],
        warm_bytes: int,
        clock: Clock,
    ) -> None:
        """Load on `worker`, which is started elsewhere.

        Args:
            worker: The thread to load on; not the one that computes.
            store: The artifacts of this host.
            device: What versions will compute on.
            backends: By name.
            recycling: Told what versions take, and asked whether it came back.
            device_broken: Called when a load has left the device unable to compute.
            warm_bytes: What versions that left the device may take of the host's memory.
            clock: Time.
        """
        self._worker = worker
        self._store = store
        self._device = device
        self._backends = backends
        self._recycling = recycling
        self._device_broken = device_broken
        self._warm = WarmTier(warm_bytes)
        self._kept_bytes: dict[ModelKey, int] = {}
        self._clock = clock

    async def load(self, model: Model, version: ModelVersion) -> Loaded:
        """Fetch, check, load and warm up.

        Raises:
            ArtifactRejected: An artifact is not what it should be, or not safe.
            InsufficientMemory: The device ran out of memory.
            ModelFailed: The model cannot be loaded, breaks its schema or fails its smoke test; the message says how.
            HostUnavailable: The device broke.
        """
        began_s = self._clock.now_s()
        key = str(version.model_key)
        try:
            loaded, kept_bytes = await self._worker.run(partial(self._load, model, version))
        except DeviceBroken:
            self._device_broken()
            raise HostUnavailable("the device of this host is broken") from None
        except YardError as error:
            logger().warning("load failed", model=key, reason=error.reason, message=error.message)
            raise
        self._recycling.loaded(version.model_key, kept_bytes)
        self._kept_bytes[version.model_key] = kept_bytes
        base_s, per_item_s = loaded.times.overall.line()
        logger().info(
            "loaded",
            model=key,
            took_s=round(self._clock.now_s() - began_s, 3),
            memory_bytes=loaded.memory_bytes,
            batch_base_ms=round(base_s * 1e3, 3),
            batch_per_row_ms=round(per_item_s * 1e3, 3),
        )
        return loaded

    async def bring(self, model: Model, version: ModelVersion) -> object:
        """What computes a version that was loaded here before; nothing is measured again.

        Raises:
            YardError: It cannot be loaded, as of `load`.
        """
        try:
            found = await self._worker.run(partial(self._guarded, version, partial(self._read, model, version)))
        except DeviceBroken:
            self._device_broken()
            raise HostUnavailable("the device of this host is broken") from None
        self._recycling.loaded(version.model_key, self._kept_bytes.get(version.model_key, 0))
        return found

    async def leave(self, model: object) -> None:
        """Take what computes a version off the device, until it is brought again."""
        assert isinstance(model, Predictor)
        self._recycling.left(model.key)
        await self._worker.run(partial(self._warm.park, model))

    async def trim(self) -> None:
        """Give back the memory of what left, without a garbage collection, which holds up the loop as well."""
        await self._worker.run(self._device.trim)

    async def release(self) -> None:
        """Give back the memory of what was dropped."""
        await self._worker.run(self._device.release)

    @asynccontextmanager
    async def unloading(self, key: ModelKey) -> AsyncIterator[None]:
        """Drop the version inside; its memory is then given back, and looked for."""
        self._kept_bytes.pop(key, None)
        async with self._recycling.unloading(key):
            yield
            await self._worker.run(partial(self._warm.forget, key))

    # --- on the loading thread ------------------------------------------------------------------

    def _load(self, model: Model, version: ModelVersion) -> tuple[Loaded, int]:
        """What was loaded, and the bytes that it keeps."""
        return self._guarded(version, partial(self._load_now, model, version))

    def _guarded(self, version: ModelVersion, load: Callable[[], T]) -> T:
        """Do it; whatever is wrong, say so in our words.

        Raises:
            YardError: It cannot be loaded.
            DeviceBroken: Nor anything else.
        """
        try:
            return load()
        except YardError:
            raise
        except WrongOutput as error:
            raise ModelFailed(f"{version.model_key} broke its schema in warm-up: {error}") from None
        except BaseException as error:  # a panic of a library in Rust is no Exception; nobody interrupts this thread
            if self._device.is_out_of_memory(error):
                raise InsufficientMemory(f"the device ran out of memory loading {version.model_key}") from None
            if self._device.is_broken(error):
                logger().critical("the device is broken", model=str(version.model_key), exc_info=error)
                raise DeviceBroken from None
            logger().warning("load raised", model=str(version.model_key), exc_info=error)
            said = " ".join(str(error).split())[:MESSAGE_CHARS]
            # Without `from error`: its frames would keep the model in memory.
            raise ModelFailed(f"{version.model_key} cannot be loaded: {type(error).__name__}: {said}") from None

    def _load_now(self, model: Model, version: ModelVersion) -> tuple[Loaded, int]:
        began_s = self._clock.now_s()
        backend = self._backend(version)
        artifact, files = self._fetch(version)
        with bounded_on(self._device), self._device.measure() as peak:
            loaded = backend.load(artifact, files, version, model, self._device)
            load_s = self._clock.now_s() - began_s
            computes: Predictor | Generator
            if isinstance(loaded, GenerativeModel):
                computes, ceiling = Generator(loaded, model, version), 0
                times = warm_up_generator(computes, model, version, clock=self._clock)
            elif version.generation is not None:
                raise ArtifactRejected(f"{version.model_key} has a 'generation', and does not generate")
            else:
                computes = Predictor(loaded, model, version, self._device.staging)
                times, ceiling = warm_up(computes, model, version, device=self._device, clock=self._clock)
        # Memory that malloc had free already does not show; weights take at least their file's size.
        least_bytes = artifact.stat().st_size if artifact is not None else 0
        answer = Loaded(
            model=computes,
            schema=Schema(
                model,
                version.model_key,
                max_batch_size=version.max_batch_size,
                generates=isinstance(computes, Generator),
                padded=None if isinstance(computes, Generator) else computes.padded,
            ),
            memory_bytes=int((1.0 + MARGIN) * max(peak.peak_bytes, least_bytes)),
            times=times,
            ceiling=ceiling,
            load_s=load_s,
        )
        return answer, peak.kept_bytes

    def _read(self, model: Model, version: ModelVersion) -> Predictor:
        """A version that was warmed up here before."""
        warm = self._warm.take(version.model_key)
        if warm is not None:
            return warm
        backend = self._backend(version)
        artifact, files = self._fetch(version)
        with bounded_on(self._device):
            loaded = backend.load(artifact, files, version, model, self._device)
        if isinstance(loaded, GenerativeModel):
            raise ArtifactRejected(f"{version.model_key} generates, and such a version cannot come and go")
        return Predictor(loaded, model, version, self._device.staging)

    def _backend(self, version: ModelVersion) -> Backend:
        backend = self._backends.get(version.backend.name)
        if backend is None:
            known = ", ".join(sorted(self._backends))
            raise ArtifactRejected(f"backend '{version.backend.name}' is none of {known}")
        backend.prepare(self._device)
        return backend

    def _fetch(self, version: ModelVersion) -> tuple[Path | None, dict[str, Path]]:
        wanted: dict[str, Artifact] = dict(version.files)
        pinned = {item.sha256 for item in wanted.values()}
        if version.artifact is not None:
            pinned.add(version.artifact.sha256)
        files = {name: self._store.fetch(item, pinned=pinned) for name, item in wanted.items()}
        artifact = None if version.artifact is None else self._store.fetch(version.artifact, pinned=pinned)
        return artifact, files


def backends(
    *,
    trusts_artifacts: bool,
    torch_threads: int,
    onnx_threads: int,
    remote_addresses: Sequence[str] = (),
    ca_file: Path | None = None,
) -> dict[str, Backend]:
    """Every backend by name. Frameworks are imported by the first version that needs them."""
    from services.model_host.backends.onnx_backend import OnnxBackend  # noqa: PLC0415
    from services.model_host.backends.plugin_backend import PluginBackend  # noqa: PLC0415
    from services.model_host.backends.remote_backend import RemoteBackend  # noqa: PLC0415
    from services.model_host.backends.sklearn_backend import SklearnBackend  # noqa: PLC0415
    from services.model_host.backends.torch_backend import TorchBackend  # noqa: PLC0415

    return {
        "identity": IdentityBackend(),
        "onnxruntime": OnnxBackend(threads=onnx_threads),
        "plugin": PluginBackend(trusts_artifacts=trusts_artifacts),
        "remote": RemoteBackend(addresses=remote_addresses, ca_file=ca_file),
        "sklearn": SklearnBackend(),
        "torch": TorchBackend(trusts_artifacts=trusts_artifacts, threads=torch_threads),
    }
