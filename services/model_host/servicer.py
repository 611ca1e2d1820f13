"""The RPCs of a model host."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc.aio

from modelyard.host.v1 import host_pb2 as pb
from modelyard.host.v1 import opaque_pb2
from modelyard.type.v1 import model_pb2
from services.chassis.codec import LOAD_KEY, key_from, record_to, state_to
from services.chassis.encoding import Encoded, length_delimited
from services.chassis.object_codec import object_from
from services.chassis.telemetry import current
from services.domain.clock import Clock
from services.domain.errors import Fault, InvalidRequest, YardError
from services.domain.model import ModelKey
from services.domain.objects import Model, ModelVersion
from services.model_host.batch_queue import BatchQueue
from services.model_host.dispatching import Context as DispatchContext
from services.model_host.dispatching import Dispatching
from services.model_host.execution import Command, answer_of, answer_takes_long, asked_beside, budget_s
from services.model_host.hosted import Hosted
from services.model_host.lifecycle import Lifecycle
from services.model_host.orders import LoadOrder
from services.model_host.standing import Standing
from services.model_host.status import statistics_to
from services.model_host.streaming import Streaming

_RESPONSE_TAG = b"\x0a"  # ExecuteResponse.response = 1

ExecuteContext: TypeAlias = grpc.aio.ServicerContext[pb.ExecuteRequest, pb.ExecuteResponse]
StreamContext: TypeAlias = grpc.aio.ServicerContext[pb.ExecuteStreamRequest, Any]
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
        dispatching: Dispatching,
        standing: Standing,
        clock: Clock,
        reserve_s: float,
        drain_ordered: Callable[[], None],
    ) -> None:
        """Answer for these.

        Args:
            lifecycle: The versions here.
            queue: Where calls wait for the device.
            dispatching: The streams of calls.
            standing: The host as others see it.
            clock: Time.
            reserve_s: Kept back from each deadline to carry the answer home.
            drain_ordered: Called once a drain was ordered; ends the process when its calls are done.
        """
        self._lifecycle = lifecycle
        self._queue = queue
        self._dispatching = dispatching
        self._standing = standing
        self._streaming = Streaming(queue=queue, standing=standing)
        self._clock = clock
        self._reserve_s = reserve_s
        self._drain_ordered = drain_ordered

    async def Dispatch(
        self, messages: AsyncIterator[opaque_pb2.OpaqueDispatchRequest], context: DispatchContext
    ) -> None:
        """Run many inferences."""
        await self._dispatching.serve(messages, context)

    async def Execute(self, request: Command, context: ExecuteContext) -> Encoded:
        """Run one inference. Errors carry the host's load in trailing metadata."""
        key = request.key
        deadline_at_s = self._clock.now_s() + budget_s(context.time_remaining(), self._reserve_s)
        try:
            return await self._execute(self._lifecycle.ready(key), request, deadline_at_s)
        except YardError:
            context.set_trailing_metadata(((LOAD_KEY, self._load_of(key)),))
            raise

    async def ExecuteStream(self, request: Command, context: StreamContext) -> None:
        """Run one inference, answer in pieces. Errors carry the host's load in trailing metadata."""
        key = request.key
        deadline_at_s = self._clock.now_s() + budget_s(context.time_remaining(), self._reserve_s)
        try:
            await self._streaming.serve(self._lifecycle.ready(key), request, deadline_at_s, context.write)
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
            statistics=statistics_to(self._queue.statistics, {lane.key: lane for lane in lanes}),
        )

    async def _execute(self, hosted: Hosted, command: Command, deadline_at_s: float) -> Encoded:
        layout = self._dispatching.layouts.of(command.request)
        asked = await asked_beside(hosted, command.request, layout, deadline_at_s=deadline_at_s, trace=current())
        if command.service_class is not None:
            asked.call.share = self._queue.share_of(command.service_class)
        answer = await self._queue.submit(asked.lane, asked.call)
        if answer_takes_long(asked, answer):
            response = await asyncio.to_thread(answer_of, asked, answer)
        else:
            response = answer_of(asked, answer)
        rest = pb.ExecuteResponse(batch_size=answer.batch_size)
        rest.queue.FromNanoseconds(int(answer.queue_s * 1e9))
        rest.compute.FromNanoseconds(int(answer.compute_s * 1e9))
        self._standing.fill_load(rest.load, (asked.lane,))
        # The tensors are copied once, into the bytes that are sent.
        field = length_delimited(_RESPONSE_TAG, response.parts, len(response))
        return Encoded((*field, rest.SerializeToString()))

    def _load_of(self, key: ModelKey) -> bytes:
        lanes = [hosted.lane for hosted in self._lifecycle.hosted() if hosted.key == key and hosted.lane is not None]
        return self._standing.load(lanes).SerializeToString()


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
