"""A small client of the mesh: arrays in, arrays and the decision behind them out, in a trace of its own."""

from dataclasses import dataclass
from typing import Any

import grpc.aio
from numpy.typing import NDArray

from examples.tensors import Arrays, infer_request, outputs
from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from modelyard.openinference.v2 import grpc_service_pb2 as v2
from services.chassis.channels import call
from services.chassis.telemetry import Telemetry, TraceContext, attach, detach, outgoing_metadata

TIMEOUT_S = 20.0
OPEN_PROTOCOL = "/inference.GRPCInferenceService"
DECISION_KEY = "x-modelyard-decision"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    outputs: dict[str, NDArray[Any]]
    decision: inference_pb2.Decision


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """What a client of the Open Inference Protocol sees."""

    response: v2.ModelInferResponse
    decision: str
    """The essentials of the decision, from the trailing metadata."""


class Caller:
    """Calls one router."""

    def __init__(self, channel: grpc.aio.Channel, telemetry: Telemetry) -> None:
        """Call through `channel`; the client's own spans go to `telemetry`."""
        self._native = inference_pb2_grpc.InferenceServiceStub(channel)
        self._model_infer: grpc.aio.UnaryUnaryMultiCallable[v2.ModelInferRequest, v2.ModelInferResponse] = (
            channel.unary_unary(
                f"{OPEN_PROTOCOL}/ModelInfer",
                request_serializer=v2.ModelInferRequest.SerializeToString,
                response_deserializer=v2.ModelInferResponse.FromString,
            )
        )
        self._model_ready: grpc.aio.UnaryUnaryMultiCallable[v2.ModelReadyRequest, v2.ModelReadyResponse] = (
            channel.unary_unary(
                f"{OPEN_PROTOCOL}/ModelReady",
                request_serializer=v2.ModelReadyRequest.SerializeToString,
                response_deserializer=v2.ModelReadyResponse.FromString,
            )
        )
        self._telemetry = telemetry

    async def infer(
        self,
        name: str,
        inputs: Arrays,
        *,
        prefer: inference_pb2.Preference.ValueType = inference_pb2.PREFERENCE_BALANCED,
    ) -> Answer:
        """One inference by the native service, inside a trace that begins here.

        Raises:
            services.domain.errors.YardError: It was refused or failed.
        """
        request = infer_request(name, inputs)
        request.route.prefer = prefer
        with self._telemetry.span("demo", kind="client", attributes={"route": name}):
            response = await call(self._native.Infer, request, timeout_s=TIMEOUT_S)
        return Answer(outputs(response), response.decision)

    async def infer_untraced(self, request: inference_pb2.InferRequest) -> inference_pb2.InferResponse:
        """One inference that no part of the mesh traces; for many calls at once.

        Raises:
            services.domain.errors.YardError: It was refused or failed.
        """
        token = attach(TraceContext.new(False))
        try:
            return await call(self._native.Infer, request, timeout_s=TIMEOUT_S)
        finally:
            detach(token)

    async def ready(self, model: str, version: str) -> bool:
        """Whether the router has a host for a version of a model.

        Raises:
            services.domain.errors.YardError: The router does not answer.
        """
        request = v2.ModelReadyRequest(name=model, version=version)
        return (await call(self._model_ready, request, timeout_s=TIMEOUT_S)).ready

    async def infer_plain(self, request: v2.ModelInferRequest) -> PlainAnswer:
        """One inference by the Open Inference Protocol V2, as its own clients do it.

        Raises:
            grpc.aio.AioRpcError: It was refused or failed.
        """
        with self._telemetry.span("demo", kind="client", attributes={"route": request.model_name}):
            rpc = self._model_infer(request, timeout=TIMEOUT_S, metadata=outgoing_metadata())
            response = await rpc
            trailing = await rpc.trailing_metadata()
        decision = next((str(value) for key, value in trailing or () if key == DECISION_KEY), "")
        return PlainAnswer(response, decision)
