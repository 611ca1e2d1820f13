"""Artifacts in a real host: what is served, what is refused before anything reads it."""

import pickle
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
import safetensors.torch
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from skops import io as skops_io

from modelyard.host.v1 import host_pb2
from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import model_pb2
from tests.support.host import (
    FAILED,
    HostProcess,
    artifact_of,
    execute_request,
    model_object,
    raw_outputs,
    running_host,
    spec,
    version_object,
)
from tests.support.onnx_file import linear_onnx

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostProcess]:
    """One for all tests here: each loads a model of its own name."""
    async with running_host(tmp_path_factory.mktemp("host")) as running:
        yield running


class Planted:
    """Unpickling it leaves a mark on the disk."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, (f"open({str(self.mark)!r}, 'w').close()",))


def classifier(name: str, inputs: str = "FP32") -> objects_pb2.Object:
    outputs = [spec("label", "INT64", [-1]), spec("probabilities", inputs, [-1, 3])]
    return model_object(name, inputs=[spec("x", inputs)], outputs=outputs)


async def test_torch_weights_serve(host: HostProcess, tmp_path: Path) -> None:
    state = {"layers.0.weight": torch.from_numpy(WEIGHTS.T.copy()), "layers.0.bias": torch.zeros(3)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    version = version_object(
        "mlp",
        backend="torch",
        architecture="mlp",
        options={"sizes": "4,3", "input": "x"},
        artifact=artifact_of(tmp_path / "w.safetensors"),
    )
    hosted = await host.load(version, classifier("mlp"))
    assert hosted.memory_bytes > 0

    rows = np.eye(4, dtype=np.float32)
    reply = await host.stub.Execute(execute_request({"x": ("FP32", rows)}, model="mlp"), timeout=10)

    answer = raw_outputs(reply.response)
    assert answer["label"].tolist() == [2, 2, 2, 2]
    assert np.allclose(answer["probabilities"].sum(axis=1), 1.0)


async def test_unloading_gives_the_memory_back(host: HostProcess, tmp_path: Path) -> None:
    process = psutil.Process(host.pid)

    async def load(name: str, width: int, decision: str) -> int:
        state = {"layers.0.weight": torch.ones(width, 1000), "layers.0.bias": torch.zeros(width)}
        safetensors.torch.save_file(state, tmp_path / f"{name}.safetensors")
        version = version_object(
            name,
            backend="torch",
            architecture="mlp",
            options={"sizes": f"1000,{width}", "input": "x"},
            artifact=artifact_of(tmp_path / f"{name}.safetensors"),
            max_batch_size=2,
        )
        outputs = [spec("label", "INT64", [-1])]
        model = model_object(name, inputs=[spec("x", shape=[-1, 1000])], outputs=outputs)
        return (await host.load(version, model, decision_id=decision)).memory_bytes

    async def unload(name: str) -> None:
        key = model_pb2.ModelKey(model=name, version="1.0.0")
        await host.stub.UnloadModel(host_pb2.UnloadModelRequest(key=key, decision_id="u", fencing_token=1), timeout=5)
        await host.gone(name)

    await load("small", 10, "d1")  # torch itself is in memory from here on
    before_bytes = process.memory_info().rss
    measured_bytes = await load("large", 30_000, "d2")
    held_bytes = process.memory_info().rss - before_bytes
    await unload("large")
    left_bytes = process.memory_info().rss - before_bytes

    assert measured_bytes >= 120_000_000
    assert held_bytes >= 100_000_000
    assert left_bytes < 0.2 * held_bytes
    await unload("small")


async def test_onnx_and_scikit_learn_serve(host: HostProcess, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(linear_onnx(WEIGHTS))
    linear = model_object("linear", inputs=[spec("x")], outputs=[spec("y", shape=[-1, 3])])
    await host.load(version_object("linear", backend="onnxruntime", artifact=artifact_of(tmp_path / "m.onnx")), linear)
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    reply = await host.stub.Execute(execute_request({"x": ("FP32", rows)}, model="linear"), timeout=10)
    assert np.array_equal(raw_outputs(reply.response)["y"], rows @ WEIGHTS)

    samples, species = load_iris(return_X_y=True)
    iris = LogisticRegression(max_iter=1000).fit(samples, species)
    skops_io.dump(iris, tmp_path / "iris.skops")
    version = version_object("iris", backend="sklearn", artifact=artifact_of(tmp_path / "iris.skops"))
    await host.load(version, classifier("iris", "FP64"))
    reply = await host.stub.Execute(execute_request({"x": ("FP64", samples[::10])}, model="iris"), timeout=10)
    assert np.array_equal(raw_outputs(reply.response)["label"], iris.predict(samples[::10]))


async def test_a_wrong_digest_is_refused_before_anything_parses_the_file(host: HostProcess, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "evil.skops").write_bytes(pickle.dumps(Planted(mark)))
    artifact = artifact_of(tmp_path / "evil.skops")
    artifact.sha256 = "0" * 64
    await host.order(version_object("wrong", backend="sklearn", artifact=artifact), classifier("wrong"))
    hosted = await host.settled("wrong")
    assert hosted.state == FAILED
    assert f"and {'0' * 64} is declared" in hosted.message
    assert not mark.exists()


@pytest.mark.parametrize("backend", ["sklearn", "torch", "onnxruntime"])
async def test_a_pickle_is_refused_by_every_backend_and_does_not_run(
    host: HostProcess, tmp_path: Path, backend: str
) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Planted(mark)))
    name = f"pickle-{backend}"
    version = version_object(
        name,
        backend=backend,
        architecture="mlp" if backend == "torch" else "",
        options={"sizes": "4,3"},
        artifact=artifact_of(tmp_path / "evil.bin"),
    )
    await host.order(version, classifier(name))
    hosted = await host.settled(name)
    assert hosted.state == FAILED
    assert "pickle" in hosted.message
    assert not mark.exists()


async def test_a_model_that_fails_says_so_without_the_payload(host: HostProcess, tmp_path: Path) -> None:
    """An ONNX MatMul takes [n, 4] only; the schema lets any width in."""
    (tmp_path / "m.onnx").write_bytes(linear_onnx(WEIGHTS))
    free = model_object("free", inputs=[spec("x", shape=[-1, -1])], outputs=[spec("y", shape=[-1, 3])])
    tensor = objects_pb2.WarmupTensor(shape=[1, 4])
    version = version_object(
        "free",
        backend="onnxruntime",
        artifact=artifact_of(tmp_path / "m.onnx"),
        warmup=[objects_pb2.WarmupSample(inputs={"x": tensor})],
    )
    await host.load(version, free)
    wide = execute_request({"x": ("FP32", np.full((1, 5), 42.5, np.float32))}, model="free")
    with pytest.raises(Exception, match=r"model free:1\.0\.0 failed on this input") as caught:
        await host.stub.Execute(wide, timeout=10)
    assert "42.5" not in str(caught.value)
    narrow = execute_request({"x": ("FP32", np.ones((1, 4), np.float32))}, model="free")
    assert (await host.stub.Execute(narrow, timeout=10)).batch_size == 1
