"""Budgets and calibrated cascades over real processes: what an operator applies and fits is what callers meet."""

from pathlib import Path

import grpc.aio
import pytest

from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from services.chassis.errors import from_rpc_error
from services.domain.errors import SpendingExhausted
from services.domain.objects import Metadata, Policy, Route, Tenant
from services.domain.strategies import Cascade, CascadeStep, Escalation, RouteTarget
from services.domain.tenancy import Budget, PriceRules, Tier
from tests.integration.router.test_rollouts import yardctl
from tests.integration.router.zoo import raw
from tests.support.services import Bench, eventually


async def ask(channel: grpc.aio.Channel, name: str, tenant: str = "") -> inference_pb2.Decision:
    request = raw(rows=1)
    request.model_name, request.route.tenant = name, tenant
    answer = await inference_pb2_grpc.InferenceServiceStub(channel).Infer(request, timeout=10.0)
    return answer.decision


async def test_a_budget_refuses_with_the_time_when_there_will_be_money(channel: grpc.aio.Channel, yard: Bench) -> None:
    await yard.apply(
        Policy(Metadata("paid"), (Tier("all", 4),), price=PriceRules(cost_weight=0.0005)),
        Tenant(Metadata("poor"), policy="paid", tier="all", budget=Budget(200, 1000.0)),
    )

    async def known() -> bool:
        try:
            return (await ask(channel, "large", "poor")).cost_weight == 0.0005
        except grpc.aio.AioRpcError as error:
            return isinstance(from_rpc_error(error), SpendingExhausted)

    await eventually(known, "the router knows the tenant")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(channel, "large", "poor")

    error = from_rpc_error(refused.value)
    assert isinstance(error, SpendingExhausted)
    assert error.retry_after_s is not None
    assert error.retry_after_s > 100.0
    assert "tenant 'poor' has 0 left" in error.message


async def test_a_cascade_is_fitted_and_goes_by_the_fit(channel: grpc.aio.Channel, yard: Bench, tmp_path: Path) -> None:
    samples = tmp_path / "samples.csv"
    steps = (CascadeStep(RouteTarget("small"), Escalation("y", 2.5)), CascadeStep(RouteTarget("large")))
    await yard.apply(Route(Metadata("weighed"), Cascade(steps)))
    samples.write_text("confidence,right\n" + "0.1,0\n2.0,1\n" * 60)

    assert "no cascade" in await yardctl(yard, "cascade", "fit", "always", "--samples", str(samples), code=2)
    said = await yardctl(yard, "cascade", "fit", "weighed", "--samples", str(samples))
    assert "1 updated" in said

    async def fitted() -> bool:
        try:
            return "p = " in str((await ask(channel, "weighed")).steps)
        except grpc.aio.AioRpcError:
            return False

    await eventually(fitted, "the router goes by the fit")
    history = " ".join((await yardctl(yard, "history")).split())
    assert "calibration of step 0 of weighed: 120 answers, 50.0% right" in history
