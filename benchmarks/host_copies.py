"""How often a large tensor is copied in a host between the wire and torch, and back; one line of JSON.

    python -m benchmarks.host_copies

Takes the host's own steps one after the other, in this process, on a request as gRPC hands it over. A copy shows as
memory that Python or numpy allocated during the step (tracemalloc); what protobuf and gRPC allocate in C does not. That
an array is a view of the received bytes is checked as such.
"""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.host_models import waiting
from modelyard.host.v1 import host_pb2
from modelyard.host.v1 import opaque_pb2 as pb
from services.chassis.layouts import Layouts
from services.chassis.object_codec import object_from
from services.domain.objects import Model, ModelVersion
from services.model_host.backends.torch_backend import TorchModel
from services.model_host.backends.torch_tensors import to_arrays, to_device
from services.model_host.execution import Command
from services.model_host.predictor import Predictor
from services.model_host.tensors import NDArray
from services.model_host.wire import Plan, Schema, Tensors, encode_answer, plan_of, tensors_by

LARGE_BYTES = 600_000
DIGITS = 2


def measured() -> dict[str, float]:
    """Copies by step, and whether what the model sees is what was received."""
    import torch  # noqa: PLC0415 - after OpenMP's settings of whoever runs this

    subject = waiting("large", batch=32, row_bytes=LARGE_BYTES)
    model, version = object_from(subject.model), object_from(subject.version)
    assert isinstance(model, Model)
    assert isinstance(version, ModelVersion)
    schema = Schema(model, version.model_key, max_batch_size=version.max_batch_size)
    execute, dispatch = _messages(subject.requests[0], subject.key.model, subject.key.version)
    plan = _plan(Command.FromString(execute).request, schema)
    seen: list[NDArray] = []

    def predict(given: dict[str, NDArray]) -> dict[str, NDArray]:
        seen.append(given["x"])
        return to_arrays({"x": to_device(given["x"], torch.device("cpu"))})

    predictor = Predictor(TorchModel(predict, model), model, version)
    by_execute, command = _copies(lambda: Command.FromString(execute))
    by_dispatch, _ = _copies(lambda: _received(dispatch))
    decoding, tensors = _copies(lambda: tensors_by(plan, command.request))
    assert isinstance(tensors, Tensors)
    received = np.frombuffer(command.request, np.uint8)
    computing, outputs = _copies(lambda: predictor.predict(tensors.inputs, tensors.rows))
    answering, _ = _copies(lambda: _answered(schema, outputs))
    return {
        "copies_received_execute": by_execute,
        "copies_received_dispatch": by_dispatch,
        "copies_decoded": decoding,
        "copies_into_torch": computing,
        "copies_answered": answering,
        "array_is_view": float(np.shares_memory(tensors.inputs["x"], received)),
        "torch_is_view": float(np.shares_memory(seen[-1], received)),
    }


def _messages(request: bytes, model: str, version: str) -> tuple[bytes, bytes]:
    """The request as a router sends it: in a call of its own, and on a stream."""
    execute = host_pb2.ExecuteRequest()
    execute.key.model, execute.key.version = model, version
    execute.request.ParseFromString(request)
    dispatch = pb.OpaqueDispatchRequest()
    dispatch.calls.add(number=1, key=execute.key, timeout_s=1.0, request=request)
    return execute.SerializeToString(), dispatch.SerializeToString()


def _plan(request: bytes, schema: Schema) -> Plan:
    layouts = Layouts()
    layouts.of(request)
    layout = layouts.of(request)
    assert layout is not None
    plan = plan_of(layout, schema)
    assert plan is not None
    return plan


def _received(message: bytes) -> bytes:
    return pb.OpaqueDispatchRequest.FromString(message).calls[0].request


def _answered(schema: Schema, outputs: dict[str, NDArray]) -> bytes:
    return encode_answer(schema, schema.all_outputs, outputs, request_id="", raw=True).SerializeToString()


def _copies(step: Callable[[], Any]) -> tuple[float, Any]:
    """How many times the tensor's size a step allocates at once, and what it gives."""
    step()  # what is made once does not count
    tracemalloc.start()
    try:
        before_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        given = step()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return round((peak_bytes - before_bytes) / LARGE_BYTES, DIGITS), given


if __name__ == "__main__":
    print(json.dumps(measured()))
