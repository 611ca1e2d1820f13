"""From an order to a model that serves: fetch, check, load, warm up, measure; on a thread of its own."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import ArtifactRejected, InsufficientMemory, ModelFailed, YardError
from services.domain.objects import Artifact, Model, ModelVersion
from services.model_host.artifacts import ArtifactStore
from services.model_host.backends.base import Backend
from services.model_host.backends.identity import IdentityBackend
from services.model_host.device import ComputeDevice
from services.model_host.lifecycle import Loaded
from services.model_host.predictor import Predictor, WrongOutput
from services.model_host.warmup import warm_up
from services.model_host.wire import Schema
from services.model_host.worker import Worker

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
        clock: Clock,
    ) -> None:
        """Load on `worker`, which is started elsewhere.

        Args:
            worker: The thread to load on; not the one that computes.
            store: The artifacts of this host.
            device: What versions will compute on.
            backends: By name.
            clock: Time.
        """
        self._worker = worker
        self._store = store
        self._device = device
        self._backends = backends
        self._clock = clock

    async def load(self, model: Model, version: ModelVersion) -> Loaded:
        """Fetch, check, load and warm up.

        Raises:
            ArtifactRejected: An artifact is not what it should be, or not safe.
            InsufficientMemory: The device ran out of memory.
            ModelFailed: The model cannot be loaded or breaks its schema; the message says how.
        """
        began_s = self._clock.now_s()
        key = str(version.model_key)
        try:
            loaded = await self._worker.run(partial(self._load, model, version))
        except YardError as error:
            logger().warning("load failed", model=key, reason=error.reason, message=error.message)
            raise
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

    async def release(self) -> None:
        """Give back the memory of what was dropped."""
        await self._worker.run(self._device.release)

    # --- on the loading thread ------------------------------------------------------------------

    def _load(self, model: Model, version: ModelVersion) -> Loaded:
        try:
            return self._load_now(model, version)
        except YardError:
            raise
        except WrongOutput as error:
            raise ModelFailed(f"{version.model_key} broke its schema in warm-up: {error}") from None
        except (Exception, SystemExit) as error:
            if self._device.is_out_of_memory(error):
                raise InsufficientMemory(f"the device ran out of memory loading {version.model_key}") from None
            logger().warning("load raised", model=str(version.model_key), exc_info=error)
            said = " ".join(str(error).split())[:MESSAGE_CHARS]
            # Without `from error`: its frames would keep the model in memory.
            raise ModelFailed(f"{version.model_key} cannot be loaded: {type(error).__name__}: {said}") from None

    def _load_now(self, model: Model, version: ModelVersion) -> Loaded:
        backend = self._backends.get(version.backend.name)
        if backend is None:
            known = ", ".join(sorted(self._backends))
            raise ArtifactRejected(f"backend '{version.backend.name}' is none of {known}")
        backend.prepare(self._device)
        artifact, files = self._fetch(version)
        with self._device.measure() as peak:
            loaded = backend.load(artifact, files, version, model, self._device)
            predictor = Predictor(loaded, model, version)
            times, ceiling = warm_up(predictor, model, version, device=self._device, clock=self._clock)
        # Memory that malloc had free already does not show; weights take at least their file's size.
        least_bytes = artifact.stat().st_size if artifact is not None else 0
        return Loaded(
            model=predictor,
            schema=Schema(model, version.model_key, max_batch_size=version.max_batch_size),
            memory_bytes=max(peak.peak_bytes, least_bytes),
            times=times,
            ceiling=ceiling,
        )

    def _fetch(self, version: ModelVersion) -> tuple[Path | None, dict[str, Path]]:
        wanted: dict[str, Artifact] = dict(version.files)
        pinned = {item.sha256 for item in wanted.values()}
        if version.artifact is not None:
            pinned.add(version.artifact.sha256)
        files = {name: self._store.fetch(item, pinned=pinned) for name, item in wanted.items()}
        artifact = None if version.artifact is None else self._store.fetch(version.artifact, pinned=pinned)
        return artifact, files


def backends(*, trusts_artifacts: bool, torch_threads: int) -> dict[str, Backend]:
    """Every backend by name. Frameworks are imported by the first version that needs them."""
    from services.model_host.backends.onnx_backend import OnnxBackend  # noqa: PLC0415
    from services.model_host.backends.sklearn_backend import SklearnBackend  # noqa: PLC0415
    from services.model_host.backends.torch_backend import TorchBackend  # noqa: PLC0415

    return {
        "identity": IdentityBackend(),
        "onnxruntime": OnnxBackend(),
        "sklearn": SklearnBackend(),
        "torch": TorchBackend(trusts_artifacts=trusts_artifacts, threads=torch_threads),
    }
