"""What a kept answer costs inside a router, and whether calls made to be mistaken for each other are: no network."""

import os
import resource
from collections.abc import Iterable

from benchmarks.cache_pairs import Asked, Pair
from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.shared_counts import LocalCounts
from services.chassis.telemetry import Telemetry
from services.domain.caching import Cache
from services.domain.clock import SystemClock
from services.domain.host import Device, DeviceKind, HostedModel, HostRecord
from services.domain.model import ModelKey, ModelState, TensorSpec
from services.domain.objects import Backend, Metadata, Model, ModelVersion, Object, Route, RouteTarget, Single
from services.domain.request import InferCall, RouteOptions
from services.domain.rng import KeyedRng
from services.domain.service_class import ORDINARY, ServiceClass
from services.policy.keeping import Kept
from services.router.answer_scope import Stem, about_of, framed
from services.router.attempting import HostAnswer
from services.router.cache import AnswerCache, Entry
from services.router.canonical import Canonical
from services.router.composing import Composer
from services.router.feedback import Feedback
from services.router.frames import Payload, Received
from services.router.host_picking import Fleet
from services.router.pipeline import Limits, Pipeline
from services.router.snapshot import Objects, Snapshot
from services.router.wire import call_from

ROUNDS = 5
_CLOCK = SystemClock()
_STEM = Stem(b"ready", b"all", shared=False, chooses=False, kept_of=frozenset())
_VERSION = ModelVersion(Metadata("sure"), "1.0.0", Backend("identity"))
_SPEC = TensorSpec("x", "UINT8", (-1, -1))
_OBJECTS: tuple[Object, ...] = (
    Model(Metadata("sure"), (_SPEC,), (_SPEC,), deterministic=True),
    _VERSION,
    Route(Metadata("kept"), Single(RouteTarget("sure")), cache=Cache(ttl_s=3600.0)),
    Route(Metadata("plain"), Single(RouteTarget("sure"))),
)
_HOST = HostRecord(
    "a", "127.0.0.1:1", "cpu", "", Device(DeviceKind.CPU, "cpu", 1 << 30),
    (HostedModel(ModelKey("sure", "1.0.0"), ModelState.READY),), False, 1,
)  # fmt: skip


class _Answers:
    """A host that has answered already."""

    async def execute(
        self, host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
    ) -> HostAnswer:
        """At once."""
        answer = pb.InferResponse(model_name="sure", model_version="1.0.0", raw_output_contents=[bytes(100)])
        return HostAnswer(answer.SerializeToString(), 0.0, 0.001, 1, None)


class _Catalog:
    def __init__(self) -> None:
        self._snapshot = Snapshot(Objects().changed(1, _OBJECTS), {"a": _HOST})

    def snapshot(self) -> Snapshot:
        """Always the same."""
        return self._snapshot


def _pipeline() -> Pipeline:
    telemetry = Telemetry(service="router", instance="bench", otlp_endpoint=None, sample_ratio=0.0)
    feedback = Feedback(telemetry=telemetry, clock=_CLOCK)
    kept: Kept[bytes, Entry] = Kept(64 << 20)
    return Pipeline(
        catalog=_Catalog(),
        hosts=_Answers(),
        feedback=feedback,
        clock=_CLOCK,
        rng=KeyedRng(0),
        fleet=Fleet(routers=1, zone="", zone_way_s=0.002),
        limits=Limits(most_in_flight=4096, reserve_s=0.005, retry_share=1.0, money_share=1.0),
        counts=LocalCounts(),
        composes=Composer(),
        cache=AnswerCache(kept=kept, messages=Canonical(os.urandom(32)), feedback=feedback, clock=_CLOCK),
    )


def request(route: str, size_bytes: int) -> pb.InferRequest:
    """One with a tensor of so many bytes."""
    made = pb.InferRequest(model_name=route, id="bench", raw_input_contents=[bytes(size_bytes)])
    made.inputs.add(name="x", datatype="UINT8", shape=[1, size_bytes])
    return made


def _calls(route: str, size_bytes: int, count: int) -> list[InferCall]:
    raw = request(route, size_bytes).SerializeToString()
    received = [Received.FromString(raw) for _ in range(max(count, 4))][-count:]
    return [call_from(each, (), trace_id="0" * 32, made_up_id="made-up") for each in received]


async def cost_us(route: str, size_bytes: int, *, count: int) -> float:
    """CPU microseconds of one call that passes the whole pipeline, all threads together; the least of some rounds."""
    pipeline, calls = _pipeline(), _calls(route, size_bytes, 16)
    for call in calls:
        await pipeline.route(call, remaining_s=None)
    best = float("inf")
    for _ in range(ROUNDS):
        began_s = _cpu_s()
        for at in range(count):
            await pipeline.route(calls[at % len(calls)], remaining_s=None)
        best = min(best, (_cpu_s() - began_s) / count)
    await pipeline.close()
    return best * 1e6


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _key(canonical: Canonical, asked: Asked) -> bytes | None:
    payload = Payload(asked.request().SerializeToString())
    call = InferCall(asked.route, "", "", (), RouteOptions(tenant=asked.tenant), None, "", payload)
    under = Route(Metadata(asked.route), Single(RouteTarget("sure")))
    return canonical.key(call, framed(_STEM.of_ready, about_of(under, _STEM, call, ORDINARY)))


def mistaken(pairs: Iterable[Pair]) -> int:
    """How many pairs are taken for what they are not: the same call, or different ones."""
    canonical, count = Canonical(os.urandom(32)), 0
    one: Asked | None = None
    key: bytes | None = None
    for pair in pairs:
        if pair.one is not one:
            one = pair.one
            key = _key(canonical, one)
        other = _key(canonical, pair.other)
        count += key is None or other is None or (key == other) is not pair.same
    return count
