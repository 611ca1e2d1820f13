"""What hosts are given to compute, and the requests for it: devices that wait, and real models of the zoo."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.places import ROOT
from examples.tensors import infer_request, texts
from examples.zoo.prepare import Prepared
from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import model_pb2
from yardctl import manifests

VERSION = "1.0.0"
ZOO = ROOT / "build" / "zoo"
REQUESTS = 256
"""Different requests of a real model, sent in turn."""

PHOTO = (300, 451, 3)
PHOTOS = 4
SEED = 20_26
_WORDS = ("every", "model", "is", "in", "its", "place", "and", "answers", "when", "asked", "while", "others", "wait")


@dataclass(frozen=True, slots=True)
class Subject:
    """A version, and what to ask it."""

    model: objects_pb2.Object
    version: objects_pb2.Object
    requests: Sequence[bytes]
    inputs: Sequence[Mapping[str, NDArray[Any]]]
    """The same, as arrays."""

    @property
    def name(self) -> str:
        """Of the model."""
        return self.model.metadata.name

    @property
    def key(self) -> model_pb2.ModelKey:
        """Names the version."""
        return model_pb2.ModelKey(model=self.name, version=self.version.model_version.version)

    def with_batches_of(self, rows: int) -> "Subject":
        """The same with another largest batch."""
        version = objects_pb2.Object()
        version.CopyFrom(self.version)
        version.model_version.batching.max_batch_size = rows
        return Subject(self.model, version, self.requests, self.inputs)


def waiting(
    name: str, *, base_ms: float = 0.0, per_row_ms: float = 0.0, batch: int, row_bytes: int = 200, rows: int = 1
) -> Subject:
    """An identity whose batch of b rows takes base + per_row * b, without using the CPU.

    Args:
        name: Of the model.
        base_ms: Time of a batch.
        per_row_ms: And of each of its rows.
        batch: Most rows of a batch; 1 never batches.
        row_bytes: Size of a row.
        rows: Rows of a request.
    """
    spec = model_pb2.TensorSpec(name="x", datatype="UINT8", shape=[-1, row_bytes])
    model = objects_pb2.Object(
        metadata=objects_pb2.Metadata(name=name), model=objects_pb2.ModelSpec(inputs=[spec], outputs=[spec])
    )
    options = {"base_ms": f"{base_ms:g}", "per_row_ms": f"{per_row_ms:g}"} if base_ms or per_row_ms else {}
    version = objects_pb2.Object(
        metadata=objects_pb2.Metadata(name=name),
        model_version=objects_pb2.ModelVersionSpec(
            version=VERSION,
            backend=objects_pb2.Backend(name="identity", options=options),
            batching=objects_pb2.Batching(max_batch_size=batch),
        ),
    )
    inputs = {"x": np.random.default_rng(SEED).integers(0, 256, (rows, row_bytes), dtype=np.uint8)}
    return Subject(model, version, [infer_request(name, inputs).SerializeToString()], [inputs])


def request_of(name: str, *, rows: int, row_bytes: int = 200) -> bytes:
    """A request of so many rows for an identity."""
    return waiting(name, batch=1, row_bytes=row_bytes, rows=rows).requests[0]


def real() -> dict[str, Subject]:
    """Versions of the zoo by name, made ready if they are not: digits, sentences (two ways), photos; and one unasked.

    Sentences have 4 to 24 words, so that rows differ in size. Of `silero-vad` there are no requests.
    """
    # In a process of its own: one that has trained models and run a loop of its own is no even load generator any more.
    command = (sys.executable, "-m", "examples.zoo.prepare", str(ZOO))
    subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=True)
    ready = Prepared.in_folder(ZOO)
    objects = [document.object for document in manifests.load([ready.manifests])]
    rng = np.random.default_rng(SEED)
    held_out = np.load(ready.held_out / "digits.npz")
    pixels = next(held_out[name] for name in held_out.files if held_out[name].ndim == 2).astype(np.float32)
    digits = [{"pixels": pixels[index % len(pixels)][None]} for index in range(REQUESTS)]
    sentences = [{"text": texts(" ".join(rng.choice(_WORDS, rng.integers(4, 25))))} for _ in range(REQUESTS)]
    photos = [{"image": rng.integers(0, 256, (1, *PHOTO), dtype=np.uint8)} for _ in range(PHOTOS)]
    inputs: dict[str, Sequence[Mapping[str, NDArray[Any]]]] = {
        "digits-cnn": digits,
        "minilm": sentences,
        "minilm-int8": sentences,
        "efficientnet-lite0": photos,
        "silero-vad": (),
    }
    return {name: _subject(objects, name, each) for name, each in inputs.items()}


def _subject(objects: Sequence[objects_pb2.Object], name: str, inputs: Sequence[Mapping[str, NDArray[Any]]]) -> Subject:
    (model,) = [item for item in objects if item.HasField("model") and item.metadata.name == name]
    (version,) = [item for item in objects if item.HasField("model_version") and item.metadata.name == name]
    requests = [infer_request(name, each).SerializeToString() for each in inputs]
    return Subject(model, version, requests, inputs)
