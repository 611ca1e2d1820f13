"""Looks at the device about once a second: how busy it is, what is free, and whether it is still there."""

from collections.abc import Callable
from functools import partial

from services.chassis.telemetry import logger
from services.model_host.devices.base import ComputeDevice, Usage
from services.model_host.worker import Worker


class DeviceWatch:
    """The device of one host, as it stood when it was last looked at."""

    def __init__(
        self, *, worker: Worker, device: ComputeDevice, computed: Callable[[], float], broken: Callable[[], None]
    ) -> None:
        """Look on `worker`, which is started elsewhere and has nothing else to do: a device that hangs hangs it.

        Args:
            worker: The thread to look on.
            device: What is looked at.
            computed: Share of about the last second in which this host computed.
            broken: Called when looking shows that nothing will compute here again.
        """
        self._worker = worker
        self._device = device
        self._computed = computed
        self._broken = broken
        self.usage: Usage | None = None
        """None before the first look."""

    @property
    def utilization(self) -> float:
        """Share of about the last second in which the device computed: by its driver, else in which this host did."""
        said = None if self.usage is None else self.usage.utilization
        return self._computed() if said is None else said

    async def look(self) -> None:
        """Look once. A device that cannot be asked keeps its last answer."""
        try:
            self.usage = await self._worker.run(self._device.usage)
        except Exception as error:
            if await self._worker.run(partial(self._device.is_broken, error)):
                logger().critical("the device is broken, as seen from outside", exc_info=error)
                self._broken()
            else:
                logger().debug("the device does not say how it stands", exc_info=error)
