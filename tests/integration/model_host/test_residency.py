"""More versions than fit into memory, on a real host with real weights: all answer, each with its own answer."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from safetensors.torch import save_file

from modelyard.host.v1 import host_pb2
from modelyard.registry.v1 import objects_pb2
from tests.support.host import (
    HostProcess,
    execute_request,
    model_object,
    raw_outputs,
    running_host,
    spec,
    version_object,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
MODELS = 6
WIDTH = 1448
"""Two layers of this width are about 16 MiB of weights."""
TAKES_MIB = 24
"""What is declared for one, and what none should take more than."""
BUDGET_MIB = 100


def a_network(seed: int) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(16, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(),
        torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 4),
    )  # fmt: skip


def weights_of(network: torch.nn.Sequential, path: Path) -> objects_pb2.Artifact:
    linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    state = {f"layers.{n}.{name}": value for n, layer in enumerate(linear) for name, value in layer.named_parameters()}
    save_file({name: value.detach().contiguous() for name, value in state.items()}, path)
    return objects_pb2.Artifact(uri=f"file:{path}", sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["read again", "kept warm"])
async def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostProcess]:
    folder = tmp_path_factory.mktemp("residency")
    warm = ("--warm-bytes", str(50 * MIB)) if request.param == "kept warm" else ()
    async with running_host(folder, "--memory-bytes", str(BUDGET_MIB * MIB), *warm) as running:
        for seed in range(MODELS):
            name = f"net-{seed}"
            version = version_object(
                name,
                backend="torch",
                architecture="mlp",
                options={"sizes": f"16,{WIDTH},{WIDTH},{WIDTH},4", "task": "regress", "input": "x"},
                artifact=weights_of(a_network(seed), folder / f"{name}.safetensors"),
                max_batch_size=4,
                memory_bytes=TAKES_MIB * MIB,
            )
            version.model_version.on_demand = True
            model = model_object(name, inputs=[spec("x", shape=(-1, 16))], outputs=[spec("values", shape=(-1, 4))])
            await running.load(version, model=model)
        yield running


async def answer(host: HostProcess, seed: int, rows: np.ndarray) -> np.ndarray:
    request = execute_request({"x": ("FP32", rows)}, model=f"net-{seed}")
    response = await host.stub.Execute(request, timeout=60)
    return raw_outputs(response.response)["values"]


def expected(seed: int, rows: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(a_network(seed)(torch.from_numpy(rows)))


async def status(host: HostProcess) -> host_pb2.GetStatusResponse:
    return await host.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=10)


async def test_all_are_ready_and_answer_right_though_only_some_fit(host: HostProcess) -> None:
    rng = np.random.default_rng(1)
    most_bytes = 0
    for seed in [0, 1, 2, 3, 4, 5, 0, 3, 1, 5, 2, 4]:
        rows = rng.standard_normal((2, 16)).astype(np.float32)
        np.testing.assert_allclose(await answer(host, seed, rows), expected(seed, rows), rtol=1e-3, atol=1e-4)
        now = await status(host)
        most_bytes = max(most_bytes, now.record.device.used_bytes)

    assert 16 * MIB < most_bytes <= BUDGET_MIB * MIB
    done = {each.key.model: each for each in now.statistics}
    assert sum(each.eviction_count for each in done.values()) >= MODELS
    assert sum(each.cold_count for each in done.values()) >= MODELS
    assert all(each.failure_count == each.dropped_count == 0 for each in done.values())
    away = [each for each in now.load.models if each.absent_s > 0.0]
    assert away
    assert len({each.key.model for each in now.load.models}) == MODELS


async def test_many_at_once_each_get_their_own_versions_answer(host: HostProcess) -> None:
    rng = np.random.default_rng(2)
    asked = [(int(seed), rng.standard_normal((1, 16)).astype(np.float32)) for seed in rng.integers(0, MODELS, 120)]
    answers = await asyncio.gather(*(answer(host, seed, rows) for seed, rows in asked))
    for (seed, rows), found in zip(asked, answers, strict=True):
        np.testing.assert_allclose(found, expected(seed, rows), rtol=1e-3, atol=1e-4)
