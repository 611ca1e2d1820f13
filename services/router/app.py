"""Wires one router."""

import asyncio
import contextlib
import os
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

from google.protobuf.message import Message

from modelyard.inference.v1 import inference_pb2, opaque_pb2
from modelyard.openinference.v2 import grpc_service_pb2
from services.chassis import instruments
from services.chassis.channels import open_channel
from services.chassis.process import Process
from services.chassis.server import DeadlineRule, Server
from services.chassis.shared_counts import LocalCounts, SharedCounts
from services.chassis.telemetry import Telemetry
from services.domain.clock import Clock, SystemClock
from services.domain.host import HostLoad, HostRecord
from services.domain.rng import KeyedRng
from services.policy.keeping import Kept
from services.router import v2_pool
from services.router.cache import AnswerCache, Entry
from services.router.canonical import Canonical
from services.router.catalog import Catalog
from services.router.composing import Composer
from services.router.config import Config
from services.router.deciding_code import policy_version
from services.router.decision_log import DecisionLog
from services.router.feedback import Feedback
from services.router.frames import Received
from services.router.host_client import HostClient
from services.router.host_picking import Fleet
from services.router.log_entries import Entries, Origin
from services.router.log_files import LogFiles
from services.router.many import Many
from services.router.pipeline import Limits, Pipeline
from services.router.ports import Counts
from services.router.servicer import Calls, InferenceServicer, encoded, request_ids
from services.router.snapshot import Snapshot
from services.router.v2_servicer import GRPCInferenceServicer

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
V2_SERVICE = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

# A class that keeps the bytes stands in for the message class; the server asks for no more than FromString.
FIRST_SNAPSHOT_S = 5.0
"""How long a worker waits for something to route by before it takes calls."""

_DECODES = cast("type[Message]", Received)


async def start(config: Config, process: Process) -> None:
    """Begin to follow the registry and to serve."""
    clock = SystemClock()
    telemetry = Telemetry(
        service="router",
        instance=config.name,
        otlp_endpoint=config.otlp_endpoint,
        sample_ratio=config.trace_ratio,
    )
    process.on_stop("telemetry", telemetry.shutdown)
    stop_metrics = instruments.serve_metrics(config.metrics_port)
    process.on_stop("metrics", lambda: asyncio.to_thread(stop_metrics))

    registry = open_channel(config.registry)
    process.on_stop("registry channel", registry.close)
    server = Server(
        address=config.address,
        telemetry=telemetry,
        insecure=config.insecure,
        reuse_port=config.worker is not None,
        engine=config.engine,
    )

    first = asyncio.Event()

    def changed(snapshot: Snapshot) -> None:
        first.set()
        hosts.keep(snapshot.hosts.values())
        _set_serving(server, not server.draining)

    catalog = Catalog(
        registry=registry, path=config.snapshot, writes=config.writes_snapshot, clock=clock, changed=changed
    )

    def heard(host: HostRecord, load: HostLoad) -> None:
        pipeline.watch.heard(host, load)

    hosts = HostClient(
        telemetry=telemetry,
        clock=clock,
        on_lost=catalog.lost,
        on_heard=heard,
    )
    process.on_stop("host channels", hosts.close)
    instruments.ROUTER_SNAPSHOT_AGE.set_function(catalog.silent_s)
    process.on_stop("snapshot on disk", catalog.save)
    log = None if config.decision_log_dir is None else _decision_log(config, config.decision_log_dir, clock)
    if log is not None:
        process.on_stop("decision log", partial(asyncio.to_thread, log.close))
    feedback = Feedback(telemetry=telemetry, clock=clock)
    pipeline = Pipeline(
        catalog=catalog,
        hosts=hosts,
        feedback=feedback,
        clock=clock,
        rng=KeyedRng(config.seed),
        fleet=Fleet(routers=config.senders, zone=config.zone, zone_way_s=config.zone_way_s),
        limits=Limits(
            most_in_flight=config.max_in_flight,
            reserve_s=config.reserve_s,
            retry_share=config.share,
            routers=config.routers,
            money_share=1.0 / config.senders,
        ),
        counts=_counts(config),
        composes=Composer(),
        recorder=log,
        cache=_answers(config, feedback, clock) if config.cache_bytes else None,
    )
    process.on_stop("copies for shadows", pipeline.close)
    process.spawn("watch over hosts", pipeline.watch.run())
    calls = Calls(pipeline=pipeline, ids=request_ids())
    many = Many(calls=calls, telemetry=telemetry, encode=encoded)
    server.add(
        SERVICE,
        InferenceServicer(calls=calls, many=many, pipeline=pipeline),
        deadline=DeadlineRule.OPTIONAL,
        messages={
            "modelyard.inference.v1.InferRequest": _DECODES,
            "modelyard.inference.v1.InferManyRequest": opaque_pb2.OpaqueInferManyRequest,
        },
    )
    server.add(
        V2_SERVICE,
        GRPCInferenceServicer(calls=calls, snapshot=catalog.snapshot, hosts=hosts, version=_own_version()),
        deadline=DeadlineRule.OPTIONAL,
        name=v2_pool.SERVICE,
        messages={"modelyard.openinference.v2.ModelInferRequest": _DECODES},
        reflection_pool=v2_pool.build(),
    )
    _set_serving(server, False)
    await catalog.start()
    process.spawn("registry watch", catalog.follow())
    process.spawn("housekeeping", catalog.housekeep())
    if config.worker is not None:
        # The kernel sends a worker that listens its share of new connections, whether it can serve them or not.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(first.wait(), FIRST_SNAPSHOT_S)
    await server.start()
    process.on_stop("server", partial(server.drain, wind_down=many.wind_down))
    _set_serving(server, catalog.snapshot() is not None)


def _answers(config: Config, feedback: Feedback, clock: Clock) -> AnswerCache:
    kept: Kept[bytes, Entry] = Kept(config.cache_bytes)
    instruments.ROUTER_CACHE_BYTES.set_function(lambda: kept.size_bytes)
    instruments.ROUTER_CACHE_ENTRIES.set_function(lambda: len(kept))
    return AnswerCache(kept=kept, messages=Canonical(os.urandom(32)), feedback=feedback, clock=clock)


def _decision_log(config: Config, directory: Path, clock: Clock) -> DecisionLog:
    origin = Origin(
        router=config.name,
        release=_own_version(),
        policy_version=policy_version(),
        seed=config.seed,
        routers=config.senders,
        zone=config.zone,
        zone_way_s=config.zone_way_s,
        ratio=config.decision_log_ratio,
    )
    files = LogFiles(
        directory, config.name, most_bytes=config.decision_log_max_bytes, most_files=config.decision_log_files
    )
    log = DecisionLog(
        files,
        Entries(origin),
        own_zone=config.zone,
        ratio=config.decision_log_ratio,
        clock=clock,
        written=instruments.ROUTER_LOG_ENTRIES.labels("written"),
        dropped=instruments.ROUTER_LOG_ENTRIES.labels("dropped"),
    )
    log.start()
    return log


def _counts(config: Config) -> Counts:
    if config.worker is None or config.worker_counts is None:
        return LocalCounts()
    return SharedCounts(config.worker_counts, workers=config.workers, worker=config.worker)


def _set_serving(server: Server, serving: bool) -> None:
    """Health says SERVING from the first snapshot on, whether from the registry or from disk."""
    for name in (SERVICE.full_name, v2_pool.SERVICE, ""):
        server.set_serving(name, serving)


def _own_version() -> str:
    try:
        return version("modelyard")
    except PackageNotFoundError:
        return "unknown"
