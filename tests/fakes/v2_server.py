"""A server of the Open Inference Protocol V2 over real gRPC, as Triton or KServe would be: it has one model.

It computes `y = 2 x`, keeps what it was asked, and fails as it is told to.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import trustme

from modelyard.openinference.v2 import grpc_service_pb2 as v2
from modelyard.openinference.v2 import model_config_pb2
from services.model_host.tensors import from_raw, to_raw

LOOPBACK = "127.0.0.1"

_Context = grpc.ServicerContext


def tensor(name: str, datatype: str, *shape: int) -> v2.ModelMetadataResponse.TensorMetadata:
    """One input or output."""
    return v2.ModelMetadataResponse.TensorMetadata(name=name, datatype=datatype, shape=shape)


@dataclass
class FakeV2Server:
    """Serves `model`; for TLS, `certificates` is a folder that gets `ca.pem`."""

    model: str = "doubler"
    inputs: Sequence[v2.ModelMetadataResponse.TensorMetadata] = (tensor("x", "FP32", -1, 4),)
    outputs: Sequence[v2.ModelMetadataResponse.TensorMetadata] = (tensor("y", "FP32", -1, 4),)
    optional: Sequence[str] = ()
    ready: bool = True
    typed: bool = False
    """Answers in typed form, whatever was asked."""
    failure: tuple[grpc.StatusCode, str] | None = None
    changed: Callable[[v2.ModelInferResponse], None] = lambda answer: None
    """Spoils an answer."""
    hold: threading.Event | None = None
    """Answers wait for it."""
    certificates: Path | None = None
    seen: list[v2.ModelInferRequest] = field(default_factory=list)
    left_s: list[float] = field(default_factory=list)
    """What each call's deadline left."""
    cancelled: int = 0
    """Calls that their callers gave up."""

    def __enter__(self) -> "FakeV2Server":
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        methods: dict[str, tuple[Callable[[Any, _Context], Any], Any]] = {
            "ModelReady": (lambda request, context: v2.ModelReadyResponse(ready=self.ready), v2.ModelReadyRequest),
            "ModelMetadata": (self._metadata, v2.ModelMetadataRequest),
            "ModelConfig": (self._config, v2.ModelConfigRequest),
            "ModelInfer": (self._infer, v2.ModelInferRequest),
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(
                method, kind.FromString, lambda answer: answer.SerializeToString()
            )
            for name, (method, kind) in methods.items()
        }
        service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
        self._server.add_generic_rpc_handlers((service,))
        where = f"{LOOPBACK}:0"
        if self.certificates is None:
            self.port = self._server.add_insecure_port(where)
        else:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(self.certificates / "ca.pem"))
            issued = authority.issue_cert("localhost", LOOPBACK)
            chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
            credentials = grpc.ssl_server_credentials([(issued.private_key_pem.bytes(), chain)])
            self.port = self._server.add_secure_port(where, credentials)
        self.address = f"{LOOPBACK}:{self.port}"
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.hold is not None:
            self.hold.set()
        self._server.stop(0).wait()

    def _metadata(self, request: v2.ModelMetadataRequest, context: _Context) -> v2.ModelMetadataResponse:
        if request.name != self.model:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model '{request.name}'")
        return v2.ModelMetadataResponse(name=self.model, inputs=self.inputs, outputs=self.outputs)

    def _config(self, request: v2.ModelConfigRequest, context: _Context) -> v2.ModelConfigResponse:
        if not self.optional:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no configurations here")
        inputs = [model_config_pb2.ModelInput(name=name, optional=True) for name in self.optional]
        return v2.ModelConfigResponse(config=model_config_pb2.ModelConfig(name=self.model, input=inputs))

    def _infer(self, request: v2.ModelInferRequest, context: _Context) -> v2.ModelInferResponse:
        self.seen.append(request)
        self.left_s.append(context.time_remaining())
        if self.hold is not None:
            while not self.hold.wait(0.02):
                if not context.is_active():
                    self.cancelled += 1
                    break
        if self.failure is not None:
            context.abort(*self.failure)
        answer = v2.ModelInferResponse(model_name=self.model, id=request.id)
        (given,), (wanted,) = request.inputs, self.outputs
        array = from_raw(given.datatype, tuple(given.shape), request.raw_input_contents[0])
        doubled = array + array if given.datatype == "BYTES" else np.multiply(array, 2, dtype=array.dtype)
        output = answer.outputs.add(name=wanted.name, datatype=wanted.datatype, shape=given.shape)
        if self.typed:
            fields: dict[str, Any] = {"FP32": output.contents.fp32_contents, "BYTES": output.contents.bytes_contents}
            fields[given.datatype].extend(doubled.ravel().tolist())
        else:
            answer.raw_output_contents.append(to_raw(doubled))
        self.changed(answer)
        return answer
