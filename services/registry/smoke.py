"""Smoke tests: a version that comes is loaded on a staging host, run on its own sample, and taken off again.

Staging hosts are those of pools that say so. The resource manager leaves them alone, so that only the registry loads
anything there; routers find nothing on them that they could be asked for.
"""

import asyncio
import contextlib
import math
import uuid
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from modelyard.host.v1 import host_pb2, host_pb2_grpc
from modelyard.inference.v1 import inference_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.chassis.channels import call, open_channel
from services.chassis.closeness import difference
from services.chassis.codec import device_kind_to, key_to, seconds_from
from services.chassis.object_codec import object_to
from services.domain.clock import Clock
from services.domain.errors import BudgetExhausted, YardError
from services.domain.model import ITEM_BYTES, TensorSpec
from services.domain.objects import Model, ModelVersion, ObjectKey, Pool, SmokeTest, WarmupTensor
from services.policy.gating import Finding, Review

GATE = "smoke"

CALL_S = 5.0
"""How long a host may take to answer an order or a question."""

POLL_S = 0.1
"""Time between two looks whether a version is ready."""

FENCING_TOKEN = 1
"""Of all orders to staging hosts, which nobody else orders."""

_DTYPES = {
    "BOOL": "?", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
"""Datatypes that are compared as numbers; others must be the same bytes."""


class _Failed(Exception):
    """The test did not pass; the text says why."""


class SmokeRunner:
    """`gates.Smoke` over gRPC."""

    def __init__(self, *, hosts: Callable[[], Sequence[resources_pb2.HostRecord]], clock: Clock) -> None:
        """Store the arguments.

        Args:
            hosts: Those listed now.
            clock: Time.
        """
        self._hosts = hosts
        self._clock = clock
        self._turns: dict[str, asyncio.Lock] = {}

    def wanted(self, review: Review) -> bool:
        """Whether a version comes that has a smoke test."""
        return any(True for _ in _coming(review))

    async def run(self, review: Review, *, timeout_s: float) -> list[Finding]:
        """Run the tests one after the other; see `gates.Smoke`."""
        until_s = self._clock.now_s() + timeout_s
        findings = []
        for version, test in _coming(review):
            try:
                text = await self._run(review, version, test, until_s)
            except _Failed as failed:
                findings.append(Finding(GATE, version.key, False, str(failed)))
            except BudgetExhausted:
                findings.append(Finding(GATE, version.key, False, f"was not done in the {timeout_s:.1f} s left for it"))
            except YardError as error:
                findings.append(Finding(GATE, version.key, False, f"the staging host says: {error.message}"))
            else:
                findings.append(Finding(GATE, version.key, True, text))
        return findings

    async def _run(self, review: Review, version: ModelVersion, test: SmokeTest, until_s: float) -> str:
        model = review.after(ObjectKey("Model", version.metadata.name))
        assert isinstance(model, Model)
        record = self._staging_host(review, version)
        async with self._turns.setdefault(record.host_id, asyncio.Lock()), open_channel(record.address) as channel:
            stub = host_pb2_grpc.ModelHostServiceStub(channel)
            try:
                await self._load(stub, model, version, until_s)
                took_s = await self._execute(stub, model, version, test, until_s)
            finally:
                order = host_pb2.UnloadModelRequest(key=key_to(version.model_key), fencing_token=FENCING_TOKEN)
                with contextlib.suppress(YardError):  # the host has gone, and the version with it
                    await call(stub.UnloadModel, order, timeout_s=CALL_S)
        if test.max_latency_s is not None and took_s > test.max_latency_s:
            raise _Failed(f"took {took_s * 1e3:.1f} ms on {record.host_id}, at most {test.max_latency_s * 1e3:g} ms")
        return f"answered as expected in {took_s * 1e3:.1f} ms on {record.host_id}"

    def _staging_host(self, review: Review, version: ModelVersion) -> resources_pb2.HostRecord:
        """A host to test on; of several the one that has the fewest models.

        Raises:
            _Failed: There is none.
        """
        fitting = [
            record
            for record in self._hosts()
            if isinstance(pool := review.after(ObjectKey("Pool", record.pool)), Pool)
            and pool.staging
            and not record.draining
            and (version.device_kind is None or record.device.kind == device_kind_to(version.device_kind))
            and (record.trusts_artifacts or not version.backend.executes_code)
        ]
        if not fitting:
            raise _Failed("has a smoke test, and no staging host is listed that could run it")
        return min(fitting, key=lambda record: (len(record.models), record.host_id))

    async def _load(
        self, stub: "host_pb2_grpc.ModelHostServiceAsyncStub", model: Model, version: ModelVersion, until_s: float
    ) -> None:
        order = host_pb2.LoadModelRequest(
            model=object_to(model),
            version=object_to(version),
            decision_id=f"smoke-{uuid.uuid4().hex}",
            fencing_token=FENCING_TOKEN,
        )
        await call(stub.LoadModel, order, timeout_s=CALL_S)
        while True:
            status = await call(stub.GetStatus, host_pb2.GetStatusRequest(), timeout_s=CALL_S)
            wanted = key_to(version.model_key)
            hosted = next((each for each in status.record.models if each.key == wanted), None)
            if hosted is not None and hosted.state == model_pb2.MODEL_STATE_READY:
                return
            if hosted is None or hosted.state == model_pb2.MODEL_STATE_FAILED:
                raise _Failed(f"cannot be loaded: {hosted.message if hosted is not None else 'it was taken off'}")
            if self._clock.now_s() >= until_s:
                raise BudgetExhausted("the version is still loading")
            await self._clock.sleep(POLL_S)

    async def _execute(
        self,
        stub: "host_pb2_grpc.ModelHostServiceAsyncStub",
        model: Model,
        version: ModelVersion,
        test: SmokeTest,
        until_s: float,
    ) -> float:
        """Run the sample.

        Returns:
            Seconds that the host took, waiting and computing.
        """
        request = host_pb2.ExecuteRequest(key=key_to(version.model_key), request=_request(model, test))
        left_s = until_s - self._clock.now_s()
        answer = await call(stub.Execute, request, timeout_s=left_s)
        for misfit in _misfits(model, test, answer.response):
            raise _Failed(misfit)
        return seconds_from(answer.queue) + seconds_from(answer.compute)


def _coming(review: Review) -> Iterator[tuple[ModelVersion, SmokeTest]]:
    """Versions that are new and have a test; what is there already has passed, or came before there were any."""
    for change in review.changes:
        version = review.touched.get(change.key)
        if isinstance(version, ModelVersion) and version.smoke is not None and change.key not in review.before:
            yield version, version.smoke


def _request(model: Model, test: SmokeTest) -> inference_pb2.InferRequest:
    request = inference_pb2.InferRequest(model_name=model.metadata.name, id="smoke")
    for spec in model.inputs:
        tensor = test.inputs.get(spec.name)
        if tensor is not None:
            request.inputs.add(name=spec.name, datatype=spec.datatype, shape=tensor.shape)
            request.raw_input_contents.append(tensor.raw or bytes(math.prod(tensor.shape) * ITEM_BYTES[spec.datatype]))
    return request


def _misfits(model: Model, test: SmokeTest, answer: inference_pb2.InferResponse) -> Iterator[str]:
    """What is not as the test expects it."""
    given = {output.name: index for index, output in enumerate(answer.outputs)}
    for spec in model.outputs:
        want = test.outputs.get(spec.name)
        if want is None:
            continue
        index = given.get(spec.name)
        if index is None:
            yield f"answered no output '{spec.name}'"
        elif list(answer.outputs[index].shape) != list(want.shape):
            yield f"answered output '{spec.name}' in {list(answer.outputs[index].shape)}, expected {list(want.shape)}"
        elif misfit := _differs(spec, want, answer.raw_output_contents[index], test.tolerance):
            yield misfit


def _differs(spec: TensorSpec, want: WarmupTensor, raw: bytes, tolerance: float) -> str:
    """How a tensor differs from what is expected by more than the tolerance; empty if it does not."""
    dtype = _DTYPES.get(spec.datatype)
    if dtype is None:
        return "" if raw == want.raw else f"answered other bytes than expected in output '{spec.name}'"
    found = np.frombuffer(raw, dtype).astype(np.float64)
    expected = np.frombuffer(want.raw, dtype).astype(np.float64) if want.raw else np.zeros_like(found)
    if found.shape != expected.shape:
        return f"answered {found.size} elements in output '{spec.name}', expected {expected.size}"
    return difference(spec.name, found, expected, tolerance)
