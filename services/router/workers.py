"""One router process, or several on one address: which of them this is."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace

from services.chassis import instruments
from services.chassis.process import Process
from services.chassis.shared_counts import CountsTable
from services.chassis.worker_link import Link
from services.chassis.workers import Workers, flags_of, reserve
from services.domain.clock import SystemClock
from services.policy.restarting import backoff_s
from services.router import app
from services.router.config import Config

REST_FIRST_S = 0.1
"""Rest before a worker that ended is started again; it doubles with each end in a row."""

REST_LONGEST_S = 5.0


async def start(config: Config, process: Process) -> None:
    """Begin what the settings say: a parent and its workers, one of those workers, or a router by itself."""
    if config.worker is not None:
        await _work(config, process)
    elif config.workers > 1:
        await _lead(config, process)
    else:
        await app.start(config, process)


async def _work(config: Config, process: Process) -> None:
    link = Link(process)
    link.open()
    await app.start(config, process)
    link.serves()


async def _lead(config: Config, process: Process) -> None:
    clock = SystemClock()
    holder, address = await reserve(config.address, insecure=config.insecure, clock=clock)
    table = CountsTable(config.workers)

    async def let_go() -> None:
        table.close()
        holder.close()

    process.on_stop("address", let_go)

    def command(worker: int) -> Sequence[str]:
        own = replace(
            config,
            address=address,
            metrics_port=0,
            worker=worker,
            worker_counts=table.fd,
            instance=f"{config.name}/{worker}",
        )
        return (sys.executable, "-m", "services.router", *flags_of(own))

    workers = Workers(
        command,
        table=table,
        count=config.workers,
        rest_s=lambda in_a_row: backoff_s(in_a_row, first_s=REST_FIRST_S, longest_s=REST_LONGEST_S),
        serving=instruments.ROUTER_WORKERS,
        restarts=instruments.ROUTER_WORKER_RESTARTS,
        clock=clock,
    )
    stop_metrics = instruments.serve_metrics(config.metrics_port, registry=workers.registry())
    process.on_stop("metrics", lambda: asyncio.to_thread(stop_metrics))
    await workers.start(process)
