"""The RPCs of a model host."""

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import grpc.aio

from modelyard.host.v1 import host_pb2 as pb
from modelyard.type.v1 import model_pb2
from services.chassis.codec import LOAD_KEY, duration_to, key_from, key_to, record_to, state_to
from services.chassis.object_codec import object_from
from services.chassis.telemetry import current
from services.domain.clock import Clock
from services.domain.deadline import LONGEST_S
from services.domain.errors import Fault, InvalidRequest, YardError
from services.domain.model import ModelKey
from services.domain.objects import Model, ModelVersion
from services.model_host.batch_queue import BatchQueue
from services.model_host.lane import Call, LaneStatistics
from services.model_host.lifecycle import Hosted, Lifecycle
from services.model_host.orders import LoadOrder
from services.model_host.standing import Standing
from services.model_host.wire import Schema, Tensors, fill_response, is_raw, tensors_from, wanted_outputs

LARGE_ELEMENTS = 64 * 1024
"""Requests and answers with more elements are converted on a thread, so that the loop stays free."""

RESERVED_SHARE = 0.1
"""Most of a deadline that is kept back to answer in; a short one is still worth trying."""

ExecuteContext: TypeAlias = grpc.aio.ServicerContext[pb.ExecuteRequest, pb.ExecuteResponse]
LoadContext: TypeAlias = grpc.aio.ServicerContext[pb.LoadModelRequest, pb.LoadModelResponse]
UnloadContext: TypeAlias = grpc.aio.ServicerContext[pb.UnloadModelRequest, pb.UnloadModelResponse]
DrainContext: TypeAlias = grpc.aio.ServicerContext[pb.DrainRequest, pb.DrainResponse]
StatusContext: TypeAlias = grpc.aio.ServicerContext[pb.GetStatusRequest, pb.GetStatusResponse]


class ModelHostServicer:
    """Serves `modelyard.host.v1.ModelHostService`."""

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        queue: BatchQueue,
        standing: Standing,
        clock: Clock,
        reserve_s: float,
        drain_ordered: Callable[[], None],
    ) -> None:
        """Answer for these.

        Args:
            lifecycle: The versions here.
            queue: Where calls wait for the device.
            standing: The host as others see it.
            clock: Time.
            reserve_s: Kept back from each deadline to carry the answer home.
            drain_ordered: Called once a drain was ordered; ends the process when its calls are done.
        """
        self._lifecycle = lifecycle
        self._queue = queue
        self._standing = standing
        self._clock = clock
        self._reserve_s = reserve_s
        self._drain_ordered = drain_ordered

    async def Execute(self, request: pb.ExecuteRequest, context: ExecuteContext) -> pb.ExecuteResponse:
        """Run one inference. Errors carry the host's load in trailing metadata."""
        key = ModelKey(request.key.model, request.key.version)
        deadline_at_s = self._clock.now_s() + self._budget_s(context.time_remaining())
        try:
            return await self._execute(self._lifecycle.ready(key), request, deadline_at_s)
        except YardError:
            context.set_trailing_metadata(((LOAD_KEY, self._load_of(key)),))
            raise

    async def LoadModel(self, request: pb.LoadModelRequest, context: LoadContext) -> pb.LoadModelResponse:
        """Take an order to load."""
        del context
        state = self._lifecycle.order_load(_load_order(request))
        return pb.LoadModelResponse(state=state_to(state))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: UnloadContext) -> pb.UnloadModelResponse:
        """Take an order to unload."""
        del context
        state = self._lifecycle.order_unload(key_from(request.key), request.decision_id, request.fencing_token)
        return pb.UnloadModelResponse(state=model_pb2.MODEL_STATE_UNSPECIFIED if state is None else state_to(state))

    async def Drain(self, request: pb.DrainRequest, context: DrainContext) -> pb.DrainResponse:
        """Take no new work, finish, end."""
        del context
        self._lifecycle.order_drain(request.fencing_token)
        self._drain_ordered()
        return pb.DrainResponse()

    async def GetStatus(self, request: pb.GetStatusRequest, context: StatusContext) -> pb.GetStatusResponse:
        """The host's record, load and statistics."""
        del request, context
        lanes = [hosted.lane for hosted in self._lifecycle.hosted() if hosted.lane is not None]
        return pb.GetStatusResponse(
            record=record_to(self._standing.record()),
            load=self._standing.load(lanes),
            statistics=_statistics(self._queue.statistics),
        )

    async def _execute(self, hosted: Hosted, request: pb.ExecuteRequest, deadline_at_s: float) -> pb.ExecuteResponse:
        schema, lane = hosted.schema, hosted.lane
        assert isinstance(schema, Schema)
        assert lane is not None
        asked = request.request
        wanted = wanted_outputs(asked, schema)
        if sum(math.prod(tensor.shape) for tensor in asked.inputs) > LARGE_ELEMENTS:
            tensors = await asyncio.to_thread(tensors_from, asked, schema)
        else:
            tensors = tensors_from(asked, schema)
        answer = await self._queue.submit(lane, _call(tensors, deadline_at_s))
        outputs = answer.value
        assert isinstance(outputs, dict)
        reply = pb.ExecuteResponse(batch_size=answer.batch_size)
        reply.queue.FromNanoseconds(int(answer.queue_s * 1e9))
        reply.compute.FromNanoseconds(int(answer.compute_s * 1e9))
        response = reply.response
        response.model_name = hosted.key.model
        response.model_version = hosted.key.version
        response.id = asked.id
        if sum(outputs[spec.name].size for spec in wanted) > LARGE_ELEMENTS:
            await asyncio.to_thread(fill_response, response, wanted, outputs, raw=is_raw(asked))
        else:
            fill_response(response, wanted, outputs, raw=is_raw(asked))
        self._standing.fill_load(reply.load, (lane,))
        return reply

    def _budget_s(self, remaining_s: float | None) -> float:
        """What a call may take here, of what its deadline leaves."""
        left_s = LONGEST_S if remaining_s is None else min(remaining_s, LONGEST_S)
        return left_s - min(self._reserve_s, RESERVED_SHARE * left_s)

    def _load_of(self, key: ModelKey) -> bytes:
        lanes = [hosted.lane for hosted in self._lifecycle.hosted() if hosted.key == key and hosted.lane is not None]
        return self._standing.load(lanes).SerializeToString()


def _call(tensors: Tensors, deadline_at_s: float) -> Call:
    return Call(
        payload=tensors,
        deadline_at_s=deadline_at_s,
        rows=tensors.rows,
        elements=tensors.elements,
        group=tensors.group,
        payload_bytes=tensors.payload_bytes,
        trace=current(),
    )


def _load_order(request: pb.LoadModelRequest) -> LoadOrder:
    faults = []
    objects: dict[str, object] = {}
    for name, kind in (("model", Model), ("version", ModelVersion)):
        item = object_from(getattr(request, name)) if request.HasField(name) else None  # type: ignore[arg-type]
        if not isinstance(item, kind):
            faults.append(Fault(name, f"a {kind.__name__} is needed"))
        objects[name] = item
    if faults:
        raise InvalidRequest.of(faults)
    model, version = objects["model"], objects["version"]
    assert isinstance(model, Model)
    assert isinstance(version, ModelVersion)
    return LoadOrder(model, version, request.decision_id, request.fencing_token)


def _statistics(by_key: Mapping[ModelKey, LaneStatistics]) -> list[pb.ModelStatistics]:
    return [
        pb.ModelStatistics(
            key=key_to(key),
            success_count=statistics.success,
            failure_count=statistics.failure,
            dropped_count=statistics.dropped,
            execution_count=statistics.executions,
            queue_total=duration_to(statistics.queue_s),
            compute_total=duration_to(statistics.compute_s),
            batch_counts=statistics.batches,
        )
        for key, statistics in sorted(by_key.items())
    ]
