"""`python -m tests.support.simulated_host FILE ...`: a model host on a simulated device.

It is the product's host but for its device and for what loads models onto it. FILE says what is wrong with
the device from the start, by one word: `wrong`, `broken`, or nothing. The other arguments are a host's.
"""

import sys
from pathlib import Path

from services.chassis.process import Process, main
from services.model_host.app import serve
from services.model_host.backends.identity import IdentityBackend
from services.model_host.config import Config
from tests.fakes.simulated_device import Fault, OnSimulated, SimulatedDevice


async def start(config: Config, process: Process) -> None:
    """Serve on a device that is as the file says."""
    device = SimulatedDevice(memory_bytes=config.memory_bytes)
    state = STATE.read_text().strip()
    device.computes_wrongly = state == "wrong"
    if state == "broken":
        device.inject(Fault.ECC)
    await serve(config, process, device, {"identity": OnSimulated(IdentityBackend(), device)})


if __name__ == "__main__":
    STATE = Path(sys.argv.pop(1))
    sys.exit(main("model_host", Config, start))
