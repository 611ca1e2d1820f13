"""The CUDA path on a real card, in under three minutes: `python -m pytest tests/gpu -m gpu`.

What these claim of CUDA, simulated devices claim of the rest of the host (`tests/integration/model_host/test_devices`).
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from modelyard.host.v1 import host_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.domain.host import DeviceKind
from services.model_host.backends.torch_tensors import to_arrays, to_device
from services.model_host.devices.base import ComputeDevice
from services.model_host.devices.choosing import choose
from services.model_host.devices.cuda import CudaDevice
from services.model_host.devices.self_test import TOLERANCE, golden_inputs, golden_results, self_test
from services.model_host.predictor import gather
from services.model_host.tensors import NDArray
from tests.support.host import (
    artifact_of,
    execute_request,
    model_object,
    raw_outputs,
    running_host,
    spec,
    version_object,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(170),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
BUDGET_BYTES = 2048 * MIB
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def device() -> Iterator[ComputeDevice]:
    """The card, with a budget, adopted by the thread of the tests; the thread gets its old stream back."""
    before = torch.cuda.current_stream()
    chosen = choose("auto", BUDGET_BYTES)
    chosen.adopt_thread()
    yield chosen
    torch.cuda.set_stream(before)
    torch.cuda.set_per_process_memory_fraction(1.0, 0)


def test_the_card_is_chosen_and_its_budget_kept(device: ComputeDevice) -> None:
    assert isinstance(device, CudaDevice)
    assert (device.kind, device.memory_bytes) == (DeviceKind.CUDA, BUDGET_BYTES)
    assert device.name == torch.cuda.get_device_name(0)
    free_bytes, _ = torch.cuda.mem_get_info()
    assert choose("cuda", 0).memory_bytes == pytest.approx(0.9 * free_bytes, rel=0.05)
    choose("cuda", BUDGET_BYTES)  # the allocator's limit is the process's: as it was


def test_it_computes_right_with_and_without_tensor_cores(device: ComputeDevice) -> None:
    self_test(device)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        found, expected = device.golden(golden_inputs()), golden_results(golden_inputs())
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert (found.product == expected.product).all()
    assert np.abs(found.features - expected.features).max() <= TOLERANCE


def test_a_thread_that_was_adopted_computes_on_a_stream_of_its_own(device: ComputeDevice) -> None:
    assert torch.cuda.current_stream() != torch.cuda.default_stream()


def test_batches_are_gathered_in_page_locked_memory(device: ComputeDevice) -> None:
    many: list[Mapping[str, NDArray]] = [{"x": np.full((2, 1000), n, np.float32)} for n in range(3)]
    batch = gather(many, [2, 2, 2], 6, device.staging)
    assert torch.from_numpy(batch["x"]).is_pinned()
    assert batch["x"][::2, 0].tolist() == [0.0, 1.0, 2.0]
    assert to_arrays({"x": to_device(batch["x"], CUDA)})["x"].tolist() == batch["x"].tolist()


def test_memory_that_is_used_again_and_again_never_mixes_batches(device: ComputeDevice) -> None:
    rng = np.random.default_rng(7)
    kept: list[tuple[float, NDArray]] = []
    for turn in range(400):
        rows = int(rng.integers(1, 400))
        staged = device.staging((rows, 257), np.dtype(np.float32))
        staged[...] = turn
        tensor = to_device(staged, CUDA)
        del staged
        for _ in range(3):
            tensor = tensor + 1.0  # keeps the stream busy behind the copy
        kept.append((turn + 3.0, to_arrays({"y": tensor})["y"]))
        kept = kept[-20:]
        assert all((answer == value).all() for value, answer in kept[:: max(1, len(kept) // 4)])


def test_a_small_type_travels_small_and_bfloat16_comes_back(device: ComputeDevice) -> None:
    pixels = device.staging((4, 8), np.dtype(np.uint8))
    pixels[...] = 200
    answers = to_arrays({"f": to_device(pixels, CUDA, torch.float32) / 2, "b": to_device(pixels, CUDA, torch.bfloat16)})
    assert answers["f"].max() == 100.0
    assert answers["b"].dtype == np.float32
    assert answers["b"].max() == 200.0


def test_the_meter_sees_what_was_taken_and_what_is_kept(device: ComputeDevice) -> None:
    before_bytes = device.held_bytes()
    with device.measure() as peak:
        kept = torch.zeros(64 * MIB, dtype=torch.uint8, device=CUDA)
        torch.zeros(128 * MIB, dtype=torch.uint8, device=CUDA)
    assert peak.peak_bytes == pytest.approx(192 * MIB, rel=0.1)
    assert peak.kept_bytes == pytest.approx(64 * MIB, rel=0.1)
    assert device.held_bytes() - before_bytes == pytest.approx(64 * MIB, rel=0.1)
    del kept
    assert abs(device.held_bytes() - before_bytes) < 8 * MIB


def test_usage_is_what_the_driver_says(device: ComputeDevice) -> None:
    kept = torch.zeros(256 * MIB, dtype=torch.uint8, device=CUDA)
    usage = device.usage()
    assert usage.own_bytes >= 256 * MIB
    assert 0 < usage.free_bytes < torch.cuda.get_device_properties(0).total_memory
    assert usage.utilization is None or 0.0 <= usage.utilization <= 1.0
    print(f"\n{device.name}: {usage}")
    del kept


def test_beyond_the_budget_memory_runs_out_and_less_still_fits(device: ComputeDevice) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(BUDGET_BYTES + 256 * MIB, dtype=torch.uint8, device=CUDA)
    assert device.is_out_of_memory(caught.value)
    assert not device.is_broken(caught.value)
    device.release()
    assert int(torch.ones(64 * MIB, dtype=torch.uint8, device=CUDA)[:9].sum()) == 9


def test_what_a_model_does_wrong_does_not_condemn_the_device(device: ComputeDevice) -> None:
    with pytest.raises(RuntimeError) as shapes:
        torch.ones(2, 3, device=CUDA) @ torch.ones(4, 5, device=CUDA)
    assert not device.is_broken(shapes.value)
    refused = RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. Non-contiguous input?")
    assert not device.is_broken(refused)


POISONED = """
import os
import torch
from services.model_host.devices.choosing import choose

device = choose("cuda", 1 << 30)
device.adopt_thread()
table = torch.zeros(4, 4, device="cuda")
try:
    print(table[torch.tensor([99], device="cuda")].sum().item())
except RuntimeError as error:
    assert device.is_broken(error), repr(error)
    assert not device.is_out_of_memory(error)
else:
    raise SystemExit("an index out of range went unseen")
refused = RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")
assert device.is_broken(refused), "a device that computes no more is broken, whatever the error said"
print("CONDEMNED", flush=True)
os._exit(0)  # a poisoned context may not be torn down
"""


def test_a_device_side_assert_condemns_the_process() -> None:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
    done = subprocess.run(
        [sys.executable, "-c", POISONED],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "CONDEMNED" in done.stdout, done.stdout + done.stderr[-2000:]


def test_copies_from_page_locked_memory_are_the_faster_ones(device: ComputeDevice) -> None:
    """Says how much; what is fast depends on the machine, so that nothing is asserted."""
    rows, plain = device.staging((64 * MIB,), np.dtype(np.uint8)), np.zeros(64 * MIB, np.uint8)
    for name, array in (("page-locked", rows), ("pageable", plain), ("page-locked", rows), ("pageable", plain)):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        to_device(array, CUDA)
        end.record()
        end.synchronize()
        print(f"\n{name}: {64 * MIB / begin.elapsed_time(end) / 1e6:.1f} GB/s", end="")


async def test_a_host_on_the_card_answers_as_the_cpu_does_and_gives_its_memory_back(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(3)
    sizes = (256, 2048, 2048, 10)
    layers = [torch.nn.Linear(have, want) for have, want in pairwise(sizes)]
    weights = tmp_path / "mlp.safetensors"
    state = {
        f"layers.{n}.{name}": value for n, layer in enumerate(layers) for name, value in layer.state_dict().items()
    }
    save_file(state, weights)
    rows = np.random.default_rng(5).standard_normal((8, 256)).astype(np.float32)
    with torch.inference_mode():
        hidden = torch.from_numpy(rows)
        for index, layer in enumerate(layers):
            hidden = layer(hidden) if index == len(layers) - 1 else torch.relu(layer(hidden))
    model = model_object("mlp", inputs=(spec("features", shape=(-1, 256)),), outputs=(spec("values", shape=(-1, 10)),))
    version = version_object(
        "mlp",
        backend="torch",
        architecture="mlp",
        options={"sizes": "256,2048,2048,10", "task": "regress"},
        artifact=artifact_of(weights),
        max_batch_size=64,
    )
    async with running_host(tmp_path, "--memory-bytes", str(BUDGET_BYTES), device="cuda") as host:
        hosted = await host.load(version, model)
        assert hosted.memory_bytes >= weights.stat().st_size
        status = await host.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=5)
        assert status.record.device.kind == resources_pb2.DEVICE_KIND_CUDA
        request = execute_request({"features": ("FP32", rows)}, model="mlp")
        for _ in range(20):
            answer = await host.stub.Execute(request, timeout=10)
            np.testing.assert_allclose(raw_outputs(answer.response)["values"], hidden.numpy(), atol=2e-2, rtol=2e-2)
        key = model_pb2.ModelKey(model="mlp", version="1.0.0")
        order = host_pb2.UnloadModelRequest(key=key, decision_id="u1", fencing_token=1)
        await host.stub.UnloadModel(order, timeout=10)
        await host.gone("mlp")
        assert "did not give its memory back" not in host.log.read_text()
