"""Whom a call is for: told in the Decision, refused where it is not so, and gone by on the hosts."""

import asyncio

import grpc
import grpc.aio
import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.inference.v1 import inference_pb2_grpc
from services.domain.objects import Metadata, Policy, Tenant
from services.domain.tenancy import Tier
from tests.integration.router.zoo import raw
from tests.support.services import Bench, eventually

POLICY = Policy(Metadata("house"), (Tier("gold", 1), Tier("silver", 4, weight=2.0), Tier("bronze", 8, sheddable=True)))
TENANTS = (Tenant(Metadata("rich"), "house", "gold"), Tenant(Metadata("poor"), "house", "bronze"))


def call_of(model: str, *, tenant: str = "", tier: str = "") -> pb.InferRequest:
    request = raw(rows=1)
    request.model_name = model
    request.route.tenant, request.route.tier = tenant, tier
    return request


def stub(channel: grpc.aio.Channel) -> "inference_pb2_grpc.InferenceServiceAsyncStub":
    return inference_pb2_grpc.InferenceServiceStub(channel)


@pytest.fixture(autouse=True)
async def applied(yard: Bench, channel: grpc.aio.Channel) -> None:
    """Policy and tenants, known to the router."""
    await yard.apply(POLICY, *TENANTS)

    async def known() -> bool:
        try:
            answer = await stub(channel).Infer(call_of("echo", tenant="poor"), timeout=5.0)
        except grpc.aio.AioRpcError:
            return False
        return answer.decision.service_class.tier == "bronze"

    await eventually(known, "the router knows the tenants")


async def test_the_decision_says_whom_a_call_was_for(channel: grpc.aio.Channel) -> None:
    answer = await stub(channel).Infer(call_of("echo", tenant="rich", tier="silver"), timeout=10.0)
    told = answer.decision.service_class
    assert (told.tenant, told.tier, told.band, told.weight) == ("rich", "silver", 4, 2.0)

    nobody = await stub(channel).Infer(call_of("echo"), timeout=10.0)
    assert not nobody.decision.HasField("service_class")


async def test_a_priority_is_a_band_where_there_is_no_policy(channel: grpc.aio.Channel) -> None:
    request = call_of("echo")
    request.ClearField("route")
    request.parameters["priority"].uint64_param = 2
    answer = await stub(channel).Infer(request, timeout=10.0)
    assert answer.decision.service_class.band == 2


@pytest.mark.parametrize(
    ("tenant", "tier", "why"),
    [
        ("nobody", "", "there is no tenant 'nobody'"),
        ("poor", "gold", "tenant 'poor' is of tier 'bronze', and 'gold' goes before it"),
        ("rich", "platinum", "'platinum' is no tier of policy 'house': gold, silver, bronze"),
    ],
)
async def test_a_class_that_is_not_for_the_caller_is_refused(
    channel: grpc.aio.Channel, tenant: str, tier: str, why: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(channel).Infer(call_of("echo", tenant=tenant, tier=tier), timeout=10.0)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert why in (caught.value.details() or "")


async def test_an_urgent_call_is_neither_refused_for_what_waits_behind_it_nor_kept_waiting(
    channel: grpc.aio.Channel,
) -> None:
    """30 calls of 200 ms wait on the two hosts, some 3 s of work; the urgent ones have 2 s."""
    ended: list[str] = []
    on_hosts = asyncio.Event()

    async def run(tenant: str, timeout_s: float) -> None:
        await stub(channel).Infer(call_of("held", tenant=tenant), timeout=timeout_s)
        ended.append(tenant)
        if len(ended) == 2:  # all are on the hosts, and the router has heard how many
            on_hosts.set()

    poor = [asyncio.ensure_future(run("poor", 30.0)) for _ in range(30)]
    await on_hosts.wait()
    await asyncio.gather(*(run("rich", 2.0) for _ in range(3)))
    assert ended.count("poor") <= 15
    await asyncio.gather(*poor)
