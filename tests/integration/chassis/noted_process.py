"""A process of the chassis, to be started, signalled and watched by the tests.

It says `serving PORT` once it is ready, and what it stops in which order, on stdout.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from services.chassis import process
from services.chassis.process import Process
from services.chassis.server import DeadlineRule, Server
from services.domain.errors import StoreUnavailable
from tests.integration.chassis.notes import SERVICE, Notes, telemetry


@dataclass(frozen=True)
class Config:
    """What goes wrong in it."""

    address: str = "127.0.0.1:0"
    """Where to listen."""
    trouble: Literal["none", "crash", "hang", "no-store", "bug", "slow-start"] = "none"
    """What goes wrong."""
    log_level: str = "info"
    instance: str = "noted-0"

    def faults(self) -> list[str]:
        """Nothing of its own."""
        return [] if ":" in self.address else ["--address must be HOST:PORT"]


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def saying(text: str) -> Callable[[], Awaitable[None]]:
    async def stop() -> None:
        say(text)

    return stop


async def hang() -> None:
    say("hanging")
    await asyncio.Event().wait()


async def watch() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        say("watch cancelled")


async def crash(notes: Notes) -> None:
    await notes.entered.wait()
    raise ValueError("the task is broken")


async def start(config: Config, running: Process) -> None:
    running.on_stop("store", saying("store closed"))
    running.spawn("watch", watch())
    if config.trouble == "no-store":
        raise StoreUnavailable("etcd at 127.0.0.1:7679 does not answer; start it or change --etcd")
    if config.trouble == "bug":
        raise KeyError("a bug")
    if config.trouble == "slow-start":
        say("starting")
        await asyncio.Event().wait()
    notes = Notes()
    server = Server(address=config.address, telemetry=telemetry())
    server.add(SERVICE, notes, deadline=DeadlineRule.REQUIRED, endless=("Follow",))
    port = await server.start()

    async def drain() -> None:
        say("draining")
        notes.release.set()
        await server.drain(lame_duck_s=0.2)
        say("drained")

    running.on_stop("server", drain)
    if config.trouble == "hang":
        running.on_stop("hang", hang, timeout_s=600.0)
    if config.trouble == "crash":
        running.spawn("crash", crash(notes))
    say(f"serving {port}")


if __name__ == "__main__":
    sys.exit(process.main("noted", Config, start))
