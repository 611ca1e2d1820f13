"""Wires one replica of the registry."""

import asyncio
import uuid

from modelyard.registry.v1 import registry_pb2
from services.chassis.election import Election
from services.chassis.etcd import EtcdClient
from services.chassis.instruments import serve_metrics
from services.chassis.process import Process
from services.chassis.server import DeadlineRule, Server
from services.chassis.telemetry import Telemetry
from services.domain.clock import SystemClock
from services.registry.apply import Applier
from services.registry.attempt_log import AttemptLog
from services.registry.collecting import Collector
from services.registry.config import Config
from services.registry.gates import Gates
from services.registry.history import History
from services.registry.host_memory import HostMemory
from services.registry.host_orders import HostOrders
from services.registry.leases import HostLeases
from services.registry.object_store import ObjectStore
from services.registry.servicer import RegistryServicer
from services.registry.smoke import SmokeRunner
from services.registry.upkeep import Upkeep
from services.registry.values import Values
from services.registry.watch_hub import WatchHub

ELECTION = "registry"
"""Name of the election."""

SERVICE = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"]


async def start(config: Config, process: Process) -> None:
    """Begin to serve and to follow etcd; health says so once the first state was read."""
    clock = SystemClock()
    telemetry = Telemetry(
        service="registry",
        instance=config.name,
        otlp_endpoint=config.otlp_endpoint,
        sample_ratio=config.trace_ratio,
    )
    process.on_stop("telemetry", telemetry.shutdown)
    stop_metrics = serve_metrics(config.metrics_port)
    process.on_stop("metrics", lambda: asyncio.to_thread(stop_metrics))

    client = EtcdClient(config.etcd, clock=clock)
    process.on_stop("etcd client", client.close)
    store = ObjectStore(client=client, clock=clock)
    orders = HostOrders(client=client, clock=clock)
    leases = HostLeases(client=client, clock=clock, orders=orders)
    hub = WatchHub(revisions=store, hosts=leases, clock=clock)
    values = Values(client=client, clock=clock)
    attempts = AttemptLog(values=values, clock=clock)
    gates = Gates(attempts=attempts, smoke=SmokeRunner(hosts=lambda: hub.known_hosts, clock=clock))
    applier = Applier(store=store, gates=gates, clock=clock, new_request_id=lambda: f"registry-{uuid.uuid4()}")
    memory = HostMemory(values=values, clock=clock)
    history = History(values=values, applier=applier, clock=clock)
    servicer = RegistryServicer(
        applier=applier,
        store=store,
        hub=hub,
        leases=leases,
        orders=orders,
        memory=memory,
        history=history,
        attempts=attempts,
        clock=clock,
    )

    process.spawn("store watch", hub.run())
    process.spawn("host orders", orders.follow())
    server = Server(address=config.address, telemetry=telemetry)
    server.add(SERVICE, servicer, deadline=DeadlineRule.REQUIRED, endless=("Watch", "RegisterHost"))
    server.set_serving(SERVICE.full_name, False)
    await server.start()
    process.on_stop("server", server.drain)
    process.spawn("readiness", _announce(hub, server, store))

    election = Election(endpoints=config.etcd, name=ELECTION, candidate=config.name, clock=clock)
    process.on_stop("election", election.close)
    upkeep = Upkeep(
        election=election,
        collector=Collector(values=values, clock=clock, keep_revisions=config.keep_revisions),
        memory=memory,
        attempts=attempts,
        client=client,
        clock=clock,
        collect_every_s=config.collect_every_s,
    )
    process.spawn("upkeep", upkeep.run())
    process.spawn("store metrics", upkeep.follow_store())


async def _announce(hub: WatchHub, server: Server, store: ObjectStore) -> None:
    await hub.ready.wait()
    server.set_serving(SERVICE.full_name, True)
    await store.prepare()
