"""What every framework offers: to load an artifact, and to predict with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from services.domain.objects import Model, ModelVersion
from services.model_host.devices.base import ComputeDevice
from services.model_host.sequences import Advance, Prompt, Wish
from services.model_host.tensors import NDArray


class LoadedModel(Protocol):
    """A model in memory. It is called from one thread at a time."""

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Compute.

        Args:
            inputs: Arrays by input name; batch dimension first where the version batches. They may
                be read-only. BYTES are object arrays of bytes, BF16 its bits in uint16.

        Returns:
            Arrays by output name, in the same conventions.
        """
        ...


@runtime_checkable
class Parkable(Protocol):
    """A model that can wait in the host's memory, off the device. It is not called meanwhile."""

    @property
    def parked_bytes(self) -> int:
        """What it takes there."""
        ...

    def park(self) -> None:
        """Leave the device."""
        ...

    def unpark(self) -> None:
        """Come back to the device.

        Raises:
            Exception: Whatever the device raises, such as for lack of memory.
        """
        ...


@runtime_checkable
class GenerativeModel(Protocol):
    """A model in memory that answers in pieces, many requests at once, each in a slot.

    But for `read`, it is called from one thread at a time. Slots are numbered from 0, and there are as many as the
    version's `generation` says.
    """

    def read(self, inputs: Mapping[str, NDArray], wishes: Mapping[str, Wish]) -> Prompt:
        """Read one request; quickly, and from any thread.

        Args:
            inputs: As of `LoadedModel.predict`.
            wishes: The request's parameters, of which unknown ones are ignored; `seed` is always there.

        Raises:
            InvalidRequest: It cannot be followed.
        """
        ...

    def join(self, slot: int, prompt: Prompt) -> None:
        """Let a sequence have a slot, of which nothing is computed yet."""
        ...

    def step(self, prefill: Sequence[tuple[int, int]], decode: Sequence[int]) -> dict[int, Advance]:
        """Compute one step.

        Args:
            prefill: Slots, and how many further tokens of their prompts to compute. The last token of a prompt
                gives the first one of the answer.
            decode: Slots whose prompts are computed: one further token of each, whatever the others are.

        Returns:
            What it did, by slot.

        Raises:
            Exception: Nothing has changed then that would show, so that the step can be repeated in parts.
        """
        ...

    def leave(self, slot: int) -> None:
        """Free a slot, if a sequence has it."""
        ...

    def collect(self, pieces: Sequence[Mapping[str, NDArray]]) -> dict[str, NDArray]:
        """The whole answer of its pieces, of which there may be none."""
        ...


class Backend(Protocol):
    """A framework."""

    def prepare(self, device: ComputeDevice) -> None:
        """Import and set up what loading needs, so that it does not count as a model's memory."""
        ...

    def load(
        self,
        artifact: Path | None,
        files: Mapping[str, Path],
        version: ModelVersion,
        model: Model,
        device: ComputeDevice,
    ) -> LoadedModel | GenerativeModel:
        """Load a version.

        Args:
            artifact: The weights: a file whose digest was checked; None if the version has none.
            files: The version's further files, checked likewise, by name.
            version: The version.
            model: Its model, for the schema.
            device: Where it will compute.

        Raises:
            ArtifactRejected: The artifact is not of a format this backend takes, or not safe to load.
        """
        ...
