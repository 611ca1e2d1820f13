"""Limits over real sockets: by every protocol, over both workers of a router, and left by calls that are cancelled."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.inference.v1 import inference_pb2_grpc
from modelyard.openinference.v2 import grpc_service_pb2 as v2
from modelyard.type.v1 import error_pb2
from services.chassis.errors import from_rpc_error
from services.domain.errors import RateLimited, TooManyInFlight, YardError
from services.domain.objects import Metadata, Policy, Route, RouteTarget, Single, Tenant
from services.domain.tenancy import RateLimit, Tier
from tests.integration.router.test_workers import CHANNELS, HOLD, Parent, Stub, all_held, callers, parent
from tests.integration.router.zoo import ECHO, VERSIONS, a_version, typed
from tests.support.services import Bench, bench, eventually

WORKERS = 2
RATE_PER_S, BURST = 50.0, 10
OFFERED_PER_S, OFFERED_FOR_S = 200.0, 2.5
MOST = 4
HELD_MS = 8000.0
"""Longer than what a test does meanwhile, on however busy a machine. It waits for none of them."""
HELD_FOR_S = 120.0
"""So much more that a host which still computes what the test before gave up lets the call in."""

OBJECTS = (
    Policy(Metadata("house"), (Tier("gold", 1), Tier("silver", 4))),
    Tenant(Metadata("fast"), "house", "gold", rate_limit=RateLimit(RATE_PER_S, BURST)),
    Tenant(Metadata("other"), "house", "silver"),
    Route(Metadata("narrow"), Single(RouteTarget("hold")), max_in_flight=MOST),
    Route(Metadata("single"), Single(RouteTarget("hold")), max_in_flight=1),
)


async def fill(made: Bench) -> None:
    versions = (VERSIONS["echo"][0], a_version("hold", base_ms=HELD_MS, batch=32))
    await made.apply(ECHO, HOLD, *versions, *OBJECTS)
    for model, version in zip((ECHO, HOLD), versions, strict=True):
        await made.load("host-0", model, version)

    async def ready() -> bool:
        (host,) = await made.listed()
        return sum(hosted.state == 2 for hosted in host.models) == len(versions)

    await eventually(ready, "both models on the host")


def filled(directory: Path, *router_arguments: str) -> Iterator[Bench]:
    with asyncio.Runner() as runner:
        context = bench(directory, hosts=1, router_arguments=router_arguments)
        made = runner.run(context.__aenter__())
        try:
            runner.run(fill(made))
            yield made
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture(scope="module", params=["aio", "native"])
def yard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A registry, a host with both models, and a router on either engine."""
    yield from filled(tmp_path_factory.mktemp("yard"), "--engine", request.param)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The same, for routers with workers."""
    yield from filled(tmp_path_factory.mktemp("served"))


@pytest.fixture
async def channel(yard: Bench) -> AsyncIterator[grpc.aio.Channel]:
    """A caller's channel to the router."""
    async with grpc.aio.insecure_channel(yard.router.address) as opened:
        yield opened


def stub_of(channel: grpc.aio.Channel) -> "inference_pb2_grpc.InferenceServiceAsyncStub":
    return inference_pb2_grpc.InferenceServiceStub(channel)


def of(tenant: str, model: str = "echo") -> pb.InferRequest:
    request = typed(model)
    request.route.tenant = tenant
    return request


async def ending(call: Awaitable[object]) -> YardError | None:
    """How a call ended; None is OK."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


# --- whatever the protocol ---------------------------------------------------------------------------


async def by_infer(channel: grpc.aio.Channel) -> None:
    await stub_of(channel).Infer(typed("single"), timeout=HELD_FOR_S)


async def by_stream(channel: grpc.aio.Channel) -> None:
    async for _ in stub_of(channel).InferStream(pb.InferStreamRequest(request=typed("single")), timeout=HELD_FOR_S):
        pass


async def by_v2(channel: grpc.aio.Channel) -> None:
    method: Any = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", request_serializer=pb.InferRequest.SerializeToString
    )
    await method(typed("single"), timeout=HELD_FOR_S)


BY = {"Infer": by_infer, "InferStream": by_stream, "ModelInfer": by_v2}


async def in_flight(channel: grpc.aio.Channel) -> None:
    """Wait until the one call that the route may have is in."""

    async def there() -> bool:
        explained = await stub_of(channel).Explain(pb.ExplainRequest(request=typed("single")), timeout=20.0)
        return explained.decision.refusal == "route 'single' has as many calls in flight as it may: 1"

    await eventually(there, "the call in the router")


async def nothing_in_flight(channel: grpc.aio.Channel) -> None:
    async def gone() -> bool:
        explained = await stub_of(channel).Explain(pb.ExplainRequest(request=typed("single")), timeout=20.0)
        return not explained.decision.refusal

    await eventually(gone, "the end of the call in the router")


@pytest.mark.parametrize("how", BY)
async def test_a_cancelled_call_makes_room_whatever_its_protocol(channel: grpc.aio.Channel, how: str) -> None:
    call: Callable[[grpc.aio.Channel], Awaitable[None]] = BY[how]
    first = asyncio.ensure_future(call(channel))
    await in_flight(channel)

    second = await ending(call(channel))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)

    assert isinstance(second, TooManyInFlight)
    assert (second.retry_after_s, second.metadata) == (0.1, {"limit": "route", "name": "single", "most": "1"})
    await nothing_in_flight(channel)


async def test_each_call_of_a_stream_is_let_in_or_refused_by_itself(channel: grpc.aio.Channel) -> None:
    stream = stub_of(channel).InferMany(timeout=HELD_FOR_S)
    calls = [
        pb.ManyCall(tag=tag, request=typed(name)) for tag, name in enumerate(["single", "single", "echo"], start=1)
    ]

    await stream.write(pb.InferManyRequest(calls=calls))
    results: dict[int, pb.ManyResult] = {}
    while len(results) < 2:
        message = await stream.read()
        assert isinstance(message, pb.InferManyResponse)
        results |= {result.tag: result for result in message.results}

    assert sorted(results) == [2, 3]
    assert results[2].failure.reason == error_pb2.ERROR_REASON_TOO_MANY_IN_FLIGHT
    assert results[2].failure.retry_after.ToMilliseconds() == 100
    assert results[3].response.decision.model == "echo"
    await stream.write(pb.InferManyRequest(cancels=[1]))
    await nothing_in_flight(channel)
    stream.cancel()


async def test_a_stream_of_the_other_protocol_is_told_of_the_call_that_was_refused(channel: grpc.aio.Channel) -> None:
    first = asyncio.ensure_future(by_infer(channel))
    await in_flight(channel)
    method: Any = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=pb.InferRequest.SerializeToString,
        response_deserializer=v2.ModelStreamInferResponse.FromString,
    )

    answers = [answer async for answer in method(iter([typed("single")]), timeout=HELD_FOR_S)]
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)

    assert len(answers) == 1
    assert "route 'single' has as many calls in flight as it may: 1" in answers[0].error_message
    await nothing_in_flight(channel)


# --- over both workers ------------------------------------------------------------------------------


@pytest.fixture
async def router(served: Bench, tmp_path: Path) -> AsyncIterator[Parent]:
    """A router with two workers."""
    async with parent(served, tmp_path) as made:
        yield made


async def offered(router: Parent, tenant: str, rate_per_s: float) -> tuple[Counter[str], list[YardError], float]:
    """What became of an open loop of calls over all connections; seconds from the first to the last answer."""
    loop = asyncio.get_running_loop()
    async with callers(router.address) as stubs:
        start_s = loop.time()
        calls = []
        for number in range(int(rate_per_s * OFFERED_FOR_S)):
            await asyncio.sleep(max(0.0, start_s + number / rate_per_s - loop.time()))
            calls.append(asyncio.ensure_future(ending(stubs[number % CHANNELS].Infer(of(tenant), timeout=20.0))))
        endings = await asyncio.gather(*calls)
        took_s = loop.time() - start_s
    errors = [error for error in endings if error is not None]
    return Counter("OK" if each is None else each.reason for each in endings), errors, took_s


@pytest.mark.alone  # on a busy machine calls come in heaps, and not at a rate
async def test_a_tenant_gets_its_rate_over_both_workers_and_honest_waits(router: Parent) -> None:
    (counts, errors, took_s), (others, _, _) = await asyncio.gather(
        offered(router, "fast", OFFERED_PER_S), offered(router, "other", RATE_PER_S)
    )
    connections = router.connections()
    metrics = await router.metrics()

    assert set(counts) == {"OK", "RATE_LIMITED"}
    assert set(others) == {"OK"}
    assert counts["OK"] <= BURST + RATE_PER_S * took_s + (WORKERS - 1)
    assert counts["OK"] > BURST  # more where the calls come evenly; on a busy machine they may all come at once
    assert all(
        isinstance(error, RateLimited) and 0.0 < (error.retry_after_s or 0.0) <= 1 / RATE_PER_S for error in errors
    )
    assert metrics["modelyard_router_refused_total limit=tenant_rate"] == counts["RATE_LIMITED"]
    assert len(connections) == WORKERS

    async with callers(router.address) as stubs:
        for number in range(3 * CHANNELS):  # over both workers: a wait that one says is true of the other as well
            refused: YardError | None = None
            while refused is None:
                refused = await ending(stubs[number % CHANNELS].Infer(of("fast"), timeout=20.0))
            assert refused.retry_after_s is not None
            await asyncio.sleep(refused.retry_after_s)
            assert await ending(stubs[(number + 1) % CHANNELS].Infer(of("fast"), timeout=20.0)) is None


async def test_a_routes_limit_holds_over_both_workers_and_workers_that_die_leave_nothing(router: Parent) -> None:
    async with callers(router.address) as stubs:
        held = [hold(stub) for stub in stubs[:MOST]]
        await all_held(router, MOST)
        connections = router.connections()
        refused = await asyncio.gather(*map(hold, stubs))
        for worker in router.workers():
            worker.kill()
        lost = await asyncio.gather(*held)

    assert min(connections) > 0
    assert {type(error) for error in refused} == {TooManyInFlight}
    assert None not in lost

    async def restarted() -> bool:
        return (await router.metrics())["modelyard_router_worker_restarts_total"] == WORKERS and await router.whole()

    await eventually(restarted, "the workers' return")
    async with callers(router.address) as stubs:
        held = [hold(stub) for stub in stubs[:MOST]]
        await all_held(router, MOST)
        one_more = await hold(stubs[0])
        for call in held:
            call.cancel()
        await asyncio.gather(*held, return_exceptions=True)
    assert isinstance(one_more, TooManyInFlight)


def hold(stub: Stub) -> asyncio.Future[YardError | None]:
    return asyncio.ensure_future(ending(stub.Infer(typed("narrow"), timeout=60.0)))
