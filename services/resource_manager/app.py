"""Wires one resource manager."""

import asyncio
import os
from collections.abc import Mapping

from modelyard.resource.v1 import resource_pb2
from services.chassis.channels import open_channel
from services.chassis.election import Election
from services.chassis.instruments import serve_metrics
from services.chassis.process import Process
from services.chassis.server import DeadlineRule, Server
from services.chassis.telemetry import Telemetry
from services.domain.clock import SystemClock
from services.domain.objects import Pool
from services.resource_manager.actuator import Actuator
from services.resource_manager.config import Config
from services.resource_manager.decisions import DecisionJournal
from services.resource_manager.fleet_view import FleetView
from services.resource_manager.launchers.command import ModelHostCommand
from services.resource_manager.launchers.local import LocalLauncher
from services.resource_manager.leading import Leading
from services.resource_manager.reconciler import Reconciler
from services.resource_manager.servicer import ResourceManagerServicer

ELECTION = "resource-manager"
"""Name of the election."""

SERVICE = resource_pb2.DESCRIPTOR.services_by_name["ResourceManagerService"]


class NothingLaunched:
    """Stands where a launcher would, where hosts are run by something else."""

    def surplus(self, pools: Mapping[str, Pool]) -> frozenset[str]:
        """None."""
        del pools
        return frozenset()

    def keep(self, pools: Mapping[str, Pool], *, release: frozenset[str], revision: int) -> None:
        """Keeps nothing."""


async def start(config: Config, process: Process) -> None:
    """Begin to serve, to watch and to campaign."""
    clock = SystemClock()
    telemetry = Telemetry(
        service="resource_manager",
        instance=config.candidate,
        otlp_endpoint=config.otlp_endpoint,
        sample_ratio=config.trace_ratio,
    )
    process.on_stop("telemetry", telemetry.shutdown)
    stop_metrics = serve_metrics(config.metrics_port)
    process.on_stop("metrics", lambda: asyncio.to_thread(stop_metrics))

    registry = open_channel(config.registry)
    process.on_stop("registry channel", registry.close)
    wake = asyncio.Event()
    view = FleetView(registry=registry, clock=clock, changed=wake)
    journal = DecisionJournal(clock)
    actuator = Actuator(registry=registry, telemetry=telemetry)
    launcher = _launcher(config, actuator, journal, clock) if config.launch else None
    reconciler = Reconciler(
        source=view,
        orders=actuator,
        launcher=launcher or NothingLaunched(),
        journal=journal,
        clock=clock,
        candidate=config.candidate,
        wake=wake,
    )
    election = Election(endpoints=config.etcd, name=ELECTION, candidate=config.candidate, clock=clock)
    leading = Leading(election=election, reconciler=reconciler, launcher=launcher, clock=clock, wake=wake)

    server = Server(address=config.address, telemetry=telemetry)
    server.add(SERVICE, ResourceManagerServicer(standpoint=leading, journal=journal), deadline=DeadlineRule.REQUIRED)
    await server.start()
    process.on_stop("server", server.drain)
    process.on_stop("election", election.close)
    process.spawn("registry watch", view.run())
    process.spawn("leader's name", leading.follow_leader())
    if launcher is not None:
        process.spawn("launcher", launcher.run())
    process.spawn("reconciler", leading.reconcile())
    process.spawn("campaign", leading.campaign())
    server.set_serving(SERVICE.full_name, True)
    server.set_serving("", True)


def _launcher(config: Config, actuator: Actuator, journal: DecisionJournal, clock: SystemClock) -> LocalLauncher:
    # Hosts outlive this process, and may outlive its working directory's meaning.
    directory = config.dir.resolve()
    return LocalLauncher(
        directory=directory,
        base_port=config.host_base_port,
        metrics=config.metrics_port != 0,
        processors=sorted(os.sched_getaffinity(0)) if config.share_cpus else (),
        command=ModelHostCommand(
            directory=directory,
            registry=config.registry,
            otlp_endpoint=config.otlp_endpoint,
            trace_ratio=config.trace_ratio,
            log_level=config.log_level,
        ),
        drainer=actuator,
        journal=journal,
        clock=clock,
    )
