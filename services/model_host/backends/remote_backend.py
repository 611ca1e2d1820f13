"""Models that another server of the Open Inference Protocol V2 computes, such as Triton, KServe or another mesh.

Options: `address`, HOST:PORT of its gRPC service; `model` (default: the model's own name) and `version` (default: the
server's choice) there; `timeout_ms`, the longest that a call may take (default 30,000); `max_in_flight`, how many calls
may be under way (default 64); `tls`, true for a server whose certificate is to be checked; `input.<name>` and
`output.<name>`, where the server calls a tensor differently.

Batches are the server's to make, and no call waits for this host's device: `forwarding` sends each on as it comes.
Nothing is tried twice here: only routers retry.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message

from modelyard.openinference.v2 import grpc_service_pb2 as v2
from services.chassis.channels import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from services.chassis.codec import CONTENTS
from services.chassis.errors import from_rpc_error
from services.domain.errors import (
    ArtifactRejected,
    BudgetExhausted,
    InvalidRequest,
    ModelFailed,
    ModelNotReady,
    Overloaded,
    YardError,
)
from services.domain.model import TensorSpec
from services.domain.objects import Model, ModelVersion
from services.model_host.addresses import is_address
from services.model_host.devices.base import ComputeDevice
from services.model_host.forwarding import Done
from services.model_host.tensors import NUMPY, BadTensor, NDArray, from_raw, to_raw

SERVICE = "/inference.GRPCInferenceService/"
DEFAULT_TIMEOUT_MS = 30_000
LONGEST_TIMEOUT_MS = 3_600_000
DEFAULT_IN_FLIGHT = 64
MOST_IN_FLIGHT = 4096
LOAD_TIMEOUT_S = 10.0
"""For each question that loading asks."""

MESSAGE_CHARS = 500
"""How much of a server's own words is passed on."""

_OPTIONS = ("address", "model", "version", "timeout_ms", "max_in_flight", "tls")

_Answer = TypeVar("_Answer", bound=Message)


class RemoteModel:
    """A model of a server that is connected."""

    def __init__(
        self, server: "_Server", model: Model, version: ModelVersion, *, timeout_s: float, max_in_flight: int
    ) -> None:
        """Ask `server` for the outputs of `model`, `timeout_s` at most for each call."""
        options = version.backend.options
        self._server = server
        self._name = options.get("model", model.metadata.name)
        self._version = options.get("version", "")
        self._theirs = {spec.name: options.get(f"input.{spec.name}", spec.name) for spec in model.inputs}
        self._inputs = {spec.name: spec for spec in model.inputs}
        self._outputs = {options.get(f"output.{spec.name}", spec.name): spec for spec in model.outputs}
        self.max_in_flight = max_in_flight
        self._timeout_s = timeout_s
        self._said = f"remote model '{self._name}' at {server.address}"

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Have it computed there, and wait.

        Raises:
            YardError: The server refused or failed, or answered something else than it declared.
        """
        try:
            answer = self._server.ask(
                "ModelInfer", self._request(inputs), v2.ModelInferResponse, timeout_s=self._timeout_s
            )
        except grpc.RpcError as error:
            raise _failure(self._said, error) from None
        return self._arrays(answer)

    def begin(self, inputs: Mapping[str, NDArray], *, timeout_s: float, done: Done) -> Callable[[], object]:
        """Have it computed there; see `forwarding.Forwards`."""

        def ended(call: Any) -> None:
            try:
                outputs = self._arrays(call.result())
            except grpc.FutureCancelledError:
                done(None, ModelNotReady(f"{self._said}: the call was cancelled"))
            except grpc.RpcError as error:
                done(None, _failure(self._said, error))
            except Exception as error:
                done(None, error)
            else:
                done(outputs, None)

        bound_s = min(self._timeout_s, timeout_s)
        call = self._server.begin("ModelInfer", self._request(inputs), v2.ModelInferResponse, timeout_s=bound_s)
        call.add_done_callback(ended)
        cancel: Callable[[], object] = call.cancel
        return cancel

    def _request(self, inputs: Mapping[str, NDArray]) -> v2.ModelInferRequest:
        request = v2.ModelInferRequest(model_name=self._name, model_version=self._version)
        for name, array in inputs.items():
            request.inputs.add(name=self._theirs[name], datatype=self._inputs[name].datatype, shape=array.shape)
            request.raw_input_contents.append(to_raw(array))
        for name in self._outputs:
            request.outputs.add(name=name)
        return request

    def check(self) -> None:
        """Hold the server's metadata to the schema.

        Raises:
            ArtifactRejected: The server cannot be asked, does not have the model, or it takes or gives something else.
        """
        named = v2.ModelMetadataRequest(name=self._name, version=self._version)
        try:
            ready = v2.ModelReadyRequest(name=self._name, version=self._version)
            if not self._server.ask("ModelReady", ready, v2.ModelReadyResponse, timeout_s=LOAD_TIMEOUT_S).ready:
                raise ArtifactRejected(f"{self._said} is not ready there")
            metadata = self._server.ask("ModelMetadata", named, v2.ModelMetadataResponse, timeout_s=LOAD_TIMEOUT_S)
        except grpc.RpcError as error:
            raise ArtifactRejected(f"{self._said} cannot be asked: {_told(error)}") from None
        faults = []
        # The protocol lets a server leave a schema out; then warm-up alone tells.
        if metadata.inputs:
            wanted = {self._theirs[name]: spec for name, spec in self._inputs.items()}
            faults += _schema_faults("input", wanted, metadata.inputs)
            unfed = {tensor.name for tensor in metadata.inputs} - wanted.keys()
            faults += [f"its input '{name}' is not in the schema" for name in sorted(unfed - self._optional(unfed))]
        if metadata.outputs:
            faults += _schema_faults("output", self._outputs, metadata.outputs)
        if faults:
            raise ArtifactRejected(f"{self._said} does not fit: {'; '.join(faults)}")

    def _optional(self, names: set[str]) -> set[str]:
        """Those of the server's inputs that it can do without, as far as it says so."""
        if not names:
            return names
        named = v2.ModelConfigRequest(name=self._name, version=self._version)
        try:
            answer = self._server.ask("ModelConfig", named, v2.ModelConfigResponse, timeout_s=LOAD_TIMEOUT_S)
        except grpc.RpcError:
            return set()  # an extension, which not every server has
        return {tensor.name for tensor in answer.config.input if tensor.optional}

    def _arrays(self, answer: v2.ModelInferResponse) -> dict[str, NDArray]:
        raws = answer.raw_output_contents
        if raws and len(raws) != len(answer.outputs):
            raise ModelFailed(f"{self._said} answers {len(raws)} raw contents for {len(answer.outputs)} outputs")
        arrays: dict[str, NDArray] = {}
        for index, tensor in enumerate(answer.outputs):
            spec = self._outputs.get(tensor.name)
            if spec is None:
                continue
            if tensor.datatype != spec.datatype:
                raise ModelFailed(
                    f"{self._said} answers '{tensor.name}' as {tensor.datatype[:16]}, not {spec.datatype}"
                )
            try:
                arrays[spec.name] = _array(tensor, raws[index] if raws else None)
            except BadTensor as error:
                raise ModelFailed(f"{self._said} answers a broken '{tensor.name}': {error}") from None
        return arrays


class RemoteBackend:
    """Connects to servers."""

    def __init__(self, *, addresses: Sequence[str], ca_file: Path | None) -> None:
        """Forward to `addresses` and nowhere else; believe certificates as gRPC does, or those of `ca_file`."""
        self._addresses = frozenset(address.lower() for address in addresses)
        self._ca_file = ca_file

    def prepare(self, device: ComputeDevice) -> None:
        """Nothing."""

    def load(
        self,
        artifact: Path | None,
        files: Mapping[str, Path],
        version: ModelVersion,
        model: Model,
        device: ComputeDevice,
    ) -> RemoteModel:
        """Connect, and hold what the server has to the schema.

        Raises:
            ArtifactRejected: The address is not allowed, an option is wrong, or the server's model does not fit.
        """
        del artifact, files, device
        options = version.backend.options
        unknown = [name for name in options if name not in _OPTIONS and not name.startswith(("input.", "output."))]
        if unknown:
            raise ArtifactRejected(f"remote: option '{unknown[0]}' is none of {', '.join(_OPTIONS)}, input.*, output.*")
        address = options.get("address", "").lower()
        if not is_address(address):
            raise ArtifactRejected("remote: option 'address' must be HOST:PORT")
        if address not in self._addresses:
            known = ", ".join(sorted(self._addresses)) or "none"
            raise ArtifactRejected(f"remote: {address} is not among what this host may ask: {known} (remote_addresses)")
        timeout_ms = _number(options, "timeout_ms", DEFAULT_TIMEOUT_MS, most=LONGEST_TIMEOUT_MS)
        in_flight = _number(options, "max_in_flight", DEFAULT_IN_FLIGHT, most=MOST_IN_FLIGHT)
        server = _Server(address, self._credentials(options.get("tls", "false")))
        remote = RemoteModel(server, model, version, timeout_s=timeout_ms / 1e3, max_in_flight=in_flight)
        remote.check()
        return remote

    def _credentials(self, tls: str) -> grpc.ChannelCredentials | None:
        if tls not in ("true", "false"):
            raise ArtifactRejected(f"remote: option 'tls' must be true or false, '{tls[:16]}' came")
        if tls == "false":
            return None
        try:
            roots = None if self._ca_file is None else self._ca_file.read_bytes()
        except OSError as error:
            raise ArtifactRejected(
                f"remote: the file of certificates (ca_file) is not there: {error.strerror}"
            ) from None
        return grpc.ssl_channel_credentials(roots)


class _Server:
    """A channel that goes with whoever uses it."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.address = address
        self._methods: dict[str, Any] = {}
        options = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            # A proxy, or what the server's name says of itself in DNS, would lead elsewhere than was allowed.
            ("grpc.enable_http_proxy", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        target = f"dns:///{address}"
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options)
        weakref.finalize(self, self._channel.close)

    def ask(self, method: str, request: Message, answer: type[_Answer], *, timeout_s: float) -> _Answer:
        """One call, to its end; raises grpc.RpcError."""
        given: _Answer = self._method(method, request, answer)(request, timeout=timeout_s)
        return given

    def begin(self, method: str, request: Message, answer: type[_Answer], *, timeout_s: float) -> Any:
        """One call, begun: a grpc.Future."""
        return self._method(method, request, answer).future(request, timeout=timeout_s)

    def _method(self, name: str, request: Message, answer: type[Message]) -> Any:
        method = self._methods.get(name)
        if method is None:
            method = self._methods[name] = self._channel.unary_unary(
                SERVICE + name,
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
        return method


def _number(options: Mapping[str, str], name: str, default: int, *, most: int) -> int:
    text = options.get(name, str(default))
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 0 < value <= most:
        raise ArtifactRejected(f"remote: option '{name}' must be 1 to {most}, '{text[:16]}' came")
    return value


def _schema_faults(what: str, wanted: Mapping[str, TensorSpec], given: Sequence[Any]) -> list[str]:
    has = {tensor.name: tensor for tensor in given}
    faults = []
    for name, spec in wanted.items():
        tensor = has.get(name)
        if tensor is None:
            faults.append(f"it has no {what} '{name}', but {', '.join(sorted(has))}")
            continue
        if tensor.datatype != spec.datatype:
            faults.append(f"{what} '{name}' is {spec.datatype} in the schema, {tensor.datatype} there")
        shape = tuple(tensor.shape)
        sizes = zip(spec.shape, shape, strict=False)
        if len(shape) != len(spec.shape) or any(ours != theirs and -1 not in (ours, theirs) for ours, theirs in sizes):
            faults.append(f"{what} '{name}' is {list(spec.shape)} in the schema, {list(shape)} there")
    return faults


def _array(tensor: v2.ModelInferResponse.InferOutputTensor, raw: bytes | None) -> NDArray:
    """The tensor's elements, wherever the server put them; raises BadTensor."""
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape):
        raise BadTensor(f"shape {list(shape)} has a negative dimension")
    if raw is not None:
        return from_raw(tensor.datatype, shape, raw)
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise BadTensor(f"{tensor.datatype} comes only in raw form")
    elements = list(getattr(tensor.contents, field))
    try:
        array: NDArray = np.empty(len(elements), NUMPY[tensor.datatype])
        array[:] = elements
        return array.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise BadTensor(str(error)) from None


_CLASSES: Mapping[grpc.StatusCode, type[YardError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: ModelNotReady,
    grpc.StatusCode.UNAVAILABLE: ModelNotReady,
    grpc.StatusCode.CANCELLED: ModelNotReady,
    grpc.StatusCode.DEADLINE_EXCEEDED: BudgetExhausted,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
}
"""What the failure of a server is for callers of this host, which itself is well: another host may reach another
server. All others are failures of the model."""


def _failure(said: str, error: grpc.RpcError) -> YardError:
    known = from_rpc_error(error)
    cls = _CLASSES.get(_code(error), ModelFailed)
    if cls is Overloaded and not isinstance(known, Overloaded):  # gRPC says the same of a message that is too large
        cls = InvalidRequest if isinstance(known, InvalidRequest) else ModelFailed
    text = f"{said}: {_told(error)}"
    return cls(text, retry_after_s=known.retry_after_s, faults=known.faults)


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    code = error.code() if isinstance(error, grpc.Call) else None
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN


def _told(error: grpc.RpcError) -> str:
    details = error.details() if isinstance(error, grpc.Call) else str(error)
    return f"{_code(error).name}: {' '.join(str(details or '').split())}"[:MESSAGE_CHARS]
