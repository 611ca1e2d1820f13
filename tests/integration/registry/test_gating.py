"""Gates over real gRPC and etcd, with a real host that a version is tested on before it lands."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.channels import call
from services.domain.errors import GateFailed, ObjectNotFound
from services.domain.model import TensorSpec
from services.domain.objects import (
    Artifact,
    Backend,
    Metadata,
    ModelVersion,
    Route,
    RouteTarget,
    Single,
    SmokeTest,
    WarmupTensor,
)
from tests.fakes.objects import a_model, a_pool, a_version
from tests.integration.registry.replicas import Replica, until
from tests.support.host import HostProcess, running_host

MODEL = replace(a_model("echo"), outputs=(TensorSpec("x", "FP32", (-1, 4)),))
ROW = np.array([[1, 2, 3, 4]], "<f4")
SAMPLE = WarmupTensor((1, 4), ROW.tobytes())


def smoke_tested(
    version: str, *, expected: WarmupTensor = SAMPLE, tolerance: float = 0.0, max_latency_s: float | None = None
) -> ModelVersion:
    """A version of the identity that is expected to answer `expected`."""
    test = SmokeTest({"x": SAMPLE}, {"x": expected}, tolerance, max_latency_s)
    return replace(a_version("echo", version, replicas=0), smoke=test)


@pytest.fixture
async def staging(replica: Replica, tmp_path: Path) -> AsyncIterator[HostProcess]:
    """A host of a staging pool, listed, and the model."""
    await replica.apply([replace(a_pool("staging", mib=1000), staging=True), MODEL])
    async with running_host(tmp_path, pool="staging", registry=replica.address) as host:

        async def listed() -> bool:
            return await replica.hosts() == ["test-0"]

        await until(listed)
        yield host


async def test_a_version_lands_once_a_staging_host_answers_as_expected(replica: Replica, staging: HostProcess) -> None:
    applied = await replica.apply([smoke_tested("1.0.0", max_latency_s=5.0)], timeout_s=30.0)

    (finding,) = applied.findings
    assert (finding.gate, finding.key.version, finding.passed) == ("smoke", "1.0.0", True)
    assert "answered as expected in" in finding.text
    assert "on test-0" in finding.text
    await staging.gone("echo", "1.0.0")

    almost = WarmupTensor((1, 4), (ROW + 1e-3).astype("<f4").tobytes())
    await replica.apply([smoke_tested("1.1.0", expected=almost, tolerance=0.01)], timeout_s=30.0)
    repeated = await replica.apply([smoke_tested("1.1.0", expected=almost, tolerance=0.01)], timeout_s=30.0)
    assert (repeated.revision, list(repeated.findings)) == (3, []), "what is there is not tested again"


@pytest.mark.parametrize(
    ("version", "why"),
    [
        (
            smoke_tested("2.0.0", expected=WarmupTensor((1, 4), (ROW * 2).tobytes())),
            "answered 1 as element 0 of output 'x'",
        ),
        (smoke_tested("2.0.0", expected=WarmupTensor((2, 4), b"")), r"in \[1, 4\], expected \[2, 4\]"),
        (smoke_tested("2.0.0", max_latency_s=1e-9), "ms on test-0, at most 1e-06 ms"),
        (
            replace(
                smoke_tested("2.0.0"),
                backend=Backend("onnxruntime"),
                artifact=Artifact("file:/nowhere/model.onnx", "0" * 64),
            ),
            "cannot be loaded: ",
        ),
    ],
)
async def test_a_version_that_does_not_answer_as_expected_leaves_a_record_and_nothing_else(
    replica: Replica, staging: HostProcess, version: ModelVersion, why: str
) -> None:
    with pytest.raises(GateFailed, match=why) as refused:
        await replica.apply([version, a_model("beside")], timeout_s=30.0)

    assert isinstance(refused.value.__cause__, grpc.aio.AioRpcError)
    assert refused.value.__cause__.code() is grpc.StatusCode.FAILED_PRECONDITION
    (attempt,) = (await call(replica.stub.ListAttempts, pb.ListAttemptsRequest(), timeout_s=5.0)).attempts
    assert attempt.id == refused.value.metadata["attempt"]
    assert [(finding.gate, finding.passed) for finding in attempt.findings] == [("smoke", False)]
    assert (attempt.change_count, len(await replica.history())) == (2, 1)
    with pytest.raises(ObjectNotFound):
        await replica.get("Model/beside")
    await staging.gone("echo", "2.0.0")


async def test_an_owner_approves_and_the_same_change_lands(replica: Replica) -> None:
    route = Route(Metadata("read"), Single(RouteTarget("echo")), owner="olga", protected=True)
    await replica.apply([MODEL, a_version("echo"), route])
    changed = replace(route, description="another")

    with pytest.raises(GateFailed, match="once one of olga has approved of attempt"):
        await replica.apply([changed])
    (attempt,) = (await call(replica.stub.ListAttempts, pb.ListAttemptsRequest(), timeout_s=5.0)).attempts
    request = pb.ApproveRequest(attempt_id=attempt.id, author="olga", reason="looks right")
    approval = (await call(replica.stub.Approve, request, timeout_s=5.0)).approval
    applied = await replica.apply([changed])

    assert approval.change_digest == attempt.change_digest
    assert (applied.revision, applied.findings[0].text) == (2, "olga has approved")
