"""The models that are measured, and the calls that measure them: each with bytes that only a right answer contains.

`identity` answers its inputs, so that what is left is the mesh; `mlp` is a small network (64, 256, 10; weights drawn
with a fixed seed) on the torch backend, whose calls the host batches.
"""

import asyncio
import random
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from benchmarks.generators import Call
from benchmarks.places import FOLDER
from benchmarks.shapes import Work
from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from services.domain.clock import SystemClock

SMALL_BYTES = 200
LARGE_BYTES = 600_000
SIZES = (64, 256, 10)
SEED = 20_26
READY_WITHIN_S = 90.0
INFER = "/modelyard.inference.v1.InferenceService/Infer"
INFER_MANY = "/modelyard.inference.v1.InferenceService/InferMany"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"

_MANIFEST = """\
kind: Model
metadata: {{ name: mlp }}
spec:
  description: A small network with random weights.
  inputs: [{{ name: features, datatype: FP32, shape: [-1, {features}] }}]
  outputs:
    - {{ name: logits, datatype: FP32, shape: [-1, {classes}] }}
    - {{ name: probabilities, datatype: FP32, shape: [-1, {classes}] }}
    - {{ name: label, datatype: INT64, shape: [-1] }}
---
kind: ModelVersion
metadata: {{ name: mlp }}
spec:
  version: 1.0.0
  backend: {{ name: torch, architecture: mlp, options: {{ sizes: "{sizes}" }} }}
  artifact: {{ uri: mlp.safetensors }}
  batching: {{ max_batch_size: 64 }}
  min_replicas: 1
  service_time: 1ms
"""
_CLOCK = SystemClock()


class WrongAnswer(Exception):
    """A model did not answer, or not what it should; nothing is measured then."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The models in a folder, and what to send them."""

    manifests: Path
    identity: Path
    """The manifest of the identity model alone."""
    calls: dict[Work, Call]
    """What the mesh is sent."""
    bare: dict[Work, Call]
    """What an echo is sent: as many bytes of tensor, without anything around them. Its method is the echo's."""
    requests: dict[Work, inference_pb2.InferRequest]
    """The requests of `calls`, to check one answer of."""
    logits: NDArray[np.float32]
    """What the network must answer."""


def prepare(folder: Path, *, echo_method: str) -> Prepared:
    """Write manifests, weights, requests and expectations into `folder`."""
    manifests = folder / "models"
    manifests.mkdir()
    shutil.copy(FOLDER / "identity.yaml", manifests)
    rng = np.random.default_rng(SEED)
    weights = _weights(rng)
    save_file(weights, str(manifests / "mlp.safetensors"))
    text = _MANIFEST.format(features=SIZES[0], classes=SIZES[-1], sizes=",".join(map(str, SIZES)))
    (manifests / "mlp.yaml").write_text(text)

    features = rng.standard_normal((1, SIZES[0])).astype(np.float32)
    logits = _forward(weights, features)
    tensors = {size: random.Random(SEED).randbytes(size) for size in (SMALL_BYTES, LARGE_BYTES)}
    identity = {size: _request("identity", "x", "UINT8", (1, size), raw) for size, raw in tensors.items()}
    mlp = _request("mlp", "features", "FP32", features.shape, features.tobytes())
    # Its label is the one output that does not depend on the batch's size by a rounding: field 6, eight bytes.
    label = b"\x32\x08" + int(logits.argmax()).to_bytes(8, "little")

    def written(name: str, content: bytes) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    small, large = (written(f"tensor-{size}", raw) for size, raw in tensors.items())
    small_request, large_request = (
        written(f"infer-{size}", each.SerializeToString()) for size, each in identity.items()
    )
    return Prepared(
        manifests=manifests,
        identity=manifests / "identity.yaml",
        calls={
            "200 B": Call(INFER, small_request, small),
            "600 KB": Call(INFER, large_request, large),
            "MLP": Call(INFER, written("infer-mlp", mlp.SerializeToString()), written("label", label)),
            "ModelStreamInfer": Call(STREAM_INFER, small_request, small),
            "InferMany": Call(INFER_MANY, small_request, small),
        },
        bare={"200 B": Call(echo_method, small, small), "600 KB": Call(echo_method, large, large)},
        requests={"200 B": identity[SMALL_BYTES], "600 KB": identity[LARGE_BYTES], "MLP": mlp},
        logits=logits,
    )


def _weights(rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    for index, (have, want) in enumerate(pairwise(SIZES)):
        found[f"layers.{index}.weight"] = (rng.standard_normal((want, have)) / have**0.5).astype(np.float32)
        found[f"layers.{index}.bias"] = rng.standard_normal(want).astype(np.float32)
    return found


def _forward(weights: dict[str, NDArray[np.float32]], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    last = len(SIZES) - 2
    for index in range(last + 1):
        rows = rows @ weights[f"layers.{index}.weight"].T + weights[f"layers.{index}.bias"]
        if index < last:
            rows = np.maximum(rows, 0)
    return rows


def _request(model: str, name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> inference_pb2.InferRequest:
    request = inference_pb2.InferRequest(model_name=model)
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)
    return request


async def check_answers(router: str, prepared: Prepared, works: tuple[Work, ...]) -> None:
    """Wait until the models answer, and compare one answer of each with what it must be.

    Raises:
        WrongAnswer: One does not answer, or wrongly.
    """
    async with grpc.aio.insecure_channel(router) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        for work in works:
            request = prepared.requests[work]
            answer = await _answered(stub, request)
            if work != "MLP":
                right = list(answer.raw_output_contents) == list(request.raw_input_contents)
            else:
                outputs = {each.name: raw for each, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)}
                logits = np.frombuffer(outputs["logits"], np.float32).reshape(1, -1)
                label = int(np.frombuffer(outputs["label"], np.int64)[0])
                right = np.allclose(logits, prepared.logits, atol=1e-4) and label == prepared.logits.argmax()
            if not right:
                raise WrongAnswer(f"{request.model_name} at {router} answered something else than it should ({work})")


async def _answered(stub: Any, request: inference_pb2.InferRequest) -> inference_pb2.InferResponse:
    end_s = _CLOCK.now_s() + READY_WITHIN_S
    while True:
        try:
            answer: inference_pb2.InferResponse = await stub.Infer(request, timeout=5.0)
        except grpc.aio.AioRpcError as error:
            if _CLOCK.now_s() > end_s:
                raise WrongAnswer(f"{request.model_name} does not answer: {error.details()}") from error
            await asyncio.sleep(0.1)
        else:
            return answer


def has_infer_many() -> bool:
    """Whether the contract has InferMany."""
    return "InferMany" in inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods_by_name
