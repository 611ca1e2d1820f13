"""What the batch queue asks of the device, and how that can fail."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from services.model_host.calls import Call, Step


class OutOfDeviceMemory(Exception):
    """The device had no memory for a batch; it can go on with smaller ones."""


class DeviceBroken(Exception):
    """The device will not compute again in this process."""


Done: TypeAlias = Callable[[Sequence[Step] | None, BaseException | None], None]
"""Takes the steps, or else what went wrong."""


class Compute(Protocol):
    """The device."""

    def start(self, model: object, calls: Sequence[Call], *, together: bool, predicted_s: float, done: Done) -> None:
        """Begin to compute calls of one version; another `start` comes only after `done`.

        A callback, because a task for each batch costs more than a small model computes.

        Args:
            model: The version, as it was opened with.
            calls: At least one.
            together: As one batch, or one after another.
            predicted_s: How long it should take.
            done: Called on the event loop, later, with steps that cover every call once; or with
                `OutOfDeviceMemory`, `DeviceBroken`, or an error that nobody foresaw.
        """
        ...
