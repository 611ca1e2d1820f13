"""torch: weights poured into a registered architecture.

Weights are data: safetensors, or a state dict that `torch.load(weights_only=True)` reads. A `torch.export`
archive carries its own code and can run more when it is read; only hosts that trust their artifacts
take one, from versions that declare `executes_code`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from services.domain.errors import ArtifactRejected
from services.domain.host import DeviceKind
from services.domain.objects import Model, ModelVersion
from services.model_host.backends.base import GenerativeModel, LoadedModel
from services.model_host.backends.formats import Format, format_of
from services.model_host.backends.safetensors_check import check_safetensors
from services.model_host.devices.base import ComputeDevice, Staging
from services.model_host.tensors import NDArray, bf16_from_float, float_from_bf16

EXPORTED = "exported"
"""The architecture name of a `torch.export` archive, which brings its own."""


class TorchModel:
    """An architecture with its weights, called in inference mode."""

    def __init__(
        self, predict: Callable[[dict[str, NDArray]], dict[str, NDArray]], model: Model, staging: Staging = np.empty
    ) -> None:
        """Call `predict`; inputs and outputs of `model` that are BF16 are float32 for it.

        Args:
            predict: Computes, given writable arrays.
            model: The schema.
            staging: Memory for inputs that must be copied because they are views of received bytes.
        """
        self._staging = staging
        self._predict = predict
        self._bf16_inputs = frozenset(spec.name for spec in model.inputs if spec.datatype == "BF16")
        self._bf16_outputs = frozenset(spec.name for spec in model.outputs if spec.datatype == "BF16")

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Compute without gradients."""
        import torch  # noqa: PLC0415

        given = {
            name: float_from_bf16(array) if name in self._bf16_inputs else self._writable(array)
            for name, array in inputs.items()
        }
        with torch.inference_mode():
            outputs = self._predict(given)
        for name in self._bf16_outputs & outputs.keys():
            outputs[name] = bf16_from_float(outputs[name])
        return outputs

    def _writable(self, array: NDArray) -> NDArray:
        """`array`, copied if it is a view of received bytes: torch has no read-only tensors."""
        if array.flags.writeable:
            return array
        copied = self._staging(array.shape, array.dtype)
        copied[...] = array
        return copied


class ParkableTorchModel(TorchModel):
    """One whose weights can wait in the host's memory: pinned there, if the device is another, to come back fast."""

    def __init__(
        self,
        predict: Callable[[dict[str, NDArray]], dict[str, NDArray]],
        model: Model,
        staging: Staging,
        module: Any,
        where: Any,
    ) -> None:
        """As a TorchModel; `module` has the weights, and computes on the torch device `where`."""
        super().__init__(predict, model, staging)
        self._module = module
        self._where = where

    @property
    def parked_bytes(self) -> int:
        """Bytes of its weights."""
        tensors = (*self._module.parameters(), *self._module.buffers())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def park(self) -> None:
        """Move the weights to the host's memory."""
        if self._where.type != "cpu":
            self._module.to("cpu")
            for tensor in (*self._module.parameters(), *self._module.buffers()):
                tensor.data = tensor.data.pin_memory()

    def unpark(self) -> None:
        """Move the weights to the device."""
        self._module.to(self._where, non_blocking=True)
        if self._where.type != "cpu":
            import torch  # noqa: PLC0415

            torch.cuda.current_stream().synchronize()


@contextmanager
def _uninitialised() -> Iterator[None]:
    """Let modules be made without drawing initial weights, each of which is overwritten: that took most of a load.

    The names are the process's, and only the loading thread makes modules.
    """
    from torch.nn import init  # noqa: PLC0415

    drawing = {name: function for name, function in vars(init).items() if name.endswith("_") and callable(function)}
    try:
        for name in drawing:
            setattr(init, name, _as_it_is)
        yield
    finally:
        for name, function in drawing.items():
            setattr(init, name, function)


def _as_it_is(tensor: Any, *_: Any, **__: Any) -> Any:
    return tensor


class TorchBackend:
    """Loads weights into architectures."""

    def __init__(self, *, trusts_artifacts: bool, threads: int) -> None:
        """Take `torch.export` archives only if `trusts_artifacts`; compute with `threads` threads."""
        self._trusts_artifacts = trusts_artifacts
        self._threads = threads

    def prepare(self, device: ComputeDevice) -> None:
        """Import torch and its architectures, start the device."""
        import safetensors.torch  # noqa: F401, PLC0415
        import torch  # noqa: PLC0415

        from services.model_host.backends import architectures  # noqa: F401, PLC0415

        torch.set_num_threads(self._threads)
        torch.zeros(1, device=_torch_device(device))

    def load(
        self,
        artifact: Path | None,
        files: Mapping[str, Path],
        version: ModelVersion,
        model: Model,
        device: ComputeDevice,
    ) -> LoadedModel | GenerativeModel:
        """Read the weights and pour them into the architecture.

        Raises:
            ArtifactRejected: The format is not allowed, or weights and architecture do not fit.
        """
        from services.model_host.backends import architectures  # noqa: PLC0415

        assert artifact is not None
        where = _torch_device(device)
        found = format_of(artifact)
        if found is Format.TORCH_EXPORT or version.backend.architecture == EXPORTED:
            return self._exported(artifact, found, version, model, device)
        with _uninitialised():
            architecture = architectures.build(version.backend.architecture, version.backend.options, files)
        state = _state_dict(artifact, found)
        module = architecture.module
        try:
            module.load_state_dict(state, strict=True)
        except RuntimeError as error:
            said = " ".join(str(error).split())
            raise ArtifactRejected(f"the weights do not fit '{version.backend.architecture}': {said}"[:500]) from error
        module.eval()
        module.requires_grad_(False)
        module.to(where)
        if version.generation is not None and isinstance(architecture, architectures.Generative):
            del state  # the module has its own, and packs them anew
            return architecture.generator(version.generation, where)
        return ParkableTorchModel(
            lambda inputs: architecture.predict(inputs, where), model, device.staging, module, where
        )

    def _exported(
        self, artifact: Path, found: Format, version: ModelVersion, model: Model, device: ComputeDevice
    ) -> LoadedModel:
        import torch  # noqa: PLC0415

        from services.model_host.backends.torch_tensors import to_arrays, to_device  # noqa: PLC0415

        if found is not Format.TORCH_EXPORT:
            raise ArtifactRejected(
                f"architecture '{EXPORTED}' is a torch.export archive; {artifact.name} is {found.value}"
            )
        if not version.backend.executes_code or not self._trusts_artifacts:
            raise ArtifactRejected(
                f"{artifact.name} is a torch.export archive, which can run code when it is read: it needs "
                "backend.executes_code and a pool that trusts its artifacts"
            )
        where = _torch_device(device)
        program = torch.export.load(artifact)
        module = program.module()
        module.to(where)
        names = [spec.name for spec in model.outputs]
        inputs = [spec.name for spec in model.inputs]

        def predict(given: dict[str, NDArray]) -> dict[str, NDArray]:
            tensors = [to_device(given[name], where) for name in inputs if name in given]
            answers = module(*tensors)
            answers = answers if isinstance(answers, tuple | list) else (answers,)
            return to_arrays(dict(zip(names, answers, strict=False)))

        return TorchModel(predict, model, device.staging)


def _state_dict(artifact: Path, found: Format) -> Mapping[str, Any]:
    """The weights, read without running anything of theirs.

    Raises:
        ArtifactRejected: They are not pure data.
    """
    import torch  # noqa: PLC0415
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    if found is Format.SAFETENSORS:
        check_safetensors(artifact)
        try:
            return load_file(artifact)
        except SafetensorError as error:
            raise ArtifactRejected(f"{artifact.name} is a broken safetensors file: {error}") from error
    if found not in (Format.TORCH_ZIP, Format.PICKLE):
        raise ArtifactRejected(
            f"torch takes safetensors files or state dicts that weights_only reads; {artifact.name} is {found.value}"
        )
    try:
        state = torch.load(artifact, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle.UnpicklingError for code, anything for a broken file
        raise ArtifactRejected(
            f"{artifact.name} is {found.value} that torch.load(weights_only=True) refuses: it holds more than weights "
            "and could run code. Save the state dict, best as safetensors"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ArtifactRejected(f"{artifact.name} is no state dict: names with tensors and nothing else")
    return state


def _torch_device(device: ComputeDevice) -> Any:
    import torch  # noqa: PLC0415

    return torch.device("cuda" if device.kind is DeviceKind.CUDA else "cpu")
