"""What errors mean, page-locked memory, the self-test, processors, and what the driver says; no GPU is needed."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from services.domain.clock import SystemClock
from services.domain.errors import NotSupported
from services.domain.host import DeviceKind
from services.model_host.backends.torch_tensors import to_arrays, to_device
from services.model_host.config import Config
from services.model_host.device_watch import DeviceWatch
from services.model_host.devices import cpu
from services.model_host.devices.affinity import pin, processor_list, processors_of
from services.model_host.devices.base import ComputeDevice, Usage
from services.model_host.devices.choosing import choose
from services.model_host.devices.cpu import CpuDevice
from services.model_host.devices.cuda import CudaDevice, limit_allocator
from services.model_host.devices.cuda_errors import Verdict, verdict
from services.model_host.devices.nvml import NvmlDevice
from services.model_host.devices.pinned import LEAST_BYTES, PinnedPool
from services.model_host.devices.self_test import golden_inputs, golden_results, self_test
from services.model_host.tensors import NDArray
from services.model_host.worker import Worker
from tests.fakes.simulated_device import Fault, SimulatedDevice

ROOT = Path(__file__).resolve().parents[3]
F32 = np.dtype(np.float32)


# --- errors --------------------------------------------------------------------------------------


class OnnxError(Exception):
    """As onnxruntime's, which are of no class that Python knows."""

    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), Verdict.OUT_OF_MEMORY),
        (MemoryError(), Verdict.OUT_OF_MEMORY),
        (torch.AcceleratorError("CUDA error: out of memory"), Verdict.OUT_OF_MEMORY),
        (RuntimeError("CUDA driver error: out of memory"), Verdict.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), Verdict.OUT_OF_MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), Verdict.OUT_OF_MEMORY),
        (OnnxError("BFCArena: Failed to allocate memory for requested buffer of size 9"), Verdict.OUT_OF_MEMORY),
        *((torch.AcceleratorError(fault.value), Verdict.BROKEN) for fault in Fault),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), Verdict.BROKEN),
        (torch.AcceleratorError("an accelerator error in words of its own"), Verdict.BROKEN),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), Verdict.BROKEN),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), Verdict.BROKEN),
        (RuntimeError("CUDA error: the launch timed out and was terminated"), Verdict.BROKEN),
        (OnnxError("CUDA failure 700: an illegal memory access was encountered"), Verdict.BROKEN),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. Non-contiguous input?"), Verdict.REFUSED),
        (torch.AcceleratorError("CUDA error: invalid configuration argument"), Verdict.REFUSED),
        (torch.AcceleratorError("CUDA error: no kernel image is available for execution"), Verdict.REFUSED),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"), Verdict.NOT_CUDA),
        (ValueError("CUDA error: a model's own words"), Verdict.NOT_CUDA),
        (KeyError("CUDA out of memory"), Verdict.NOT_CUDA),
        (SystemExit(3), Verdict.NOT_CUDA),
    ],
)
def test_an_error_is_judged_by_class_and_text(error: BaseException, expected: Verdict) -> None:
    assert verdict(error) is expected


def test_what_a_library_refused_condemns_only_a_device_that_computes_no_more() -> None:
    refused = RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")
    device = SimulatedDevice()
    assert not device.is_broken(refused)
    device.inject(Fault.LAUNCH_FAILURE)
    assert device.is_broken(refused)
    assert not device.is_broken(ValueError())


def test_a_cpu_knows_out_of_memory_in_the_words_of_onnxruntime_too() -> None:
    device = CpuDevice(name="cpu", memory_bytes=1)
    assert device.is_out_of_memory(OnnxError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"))
    assert not device.is_out_of_memory(OnnxError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT"))


# --- a card's memory -----------------------------------------------------------------------------


class Card:
    """What torch and the driver say of a card."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated = self.reserved = self.peak = self.others = 0
        self.process_known = True
        self.fractions: list[float] = []
        answers = {
            "current_stream": lambda: SimpleNamespace(synchronize=lambda: None),
            "empty_cache": lambda: None,
            "get_device_properties": lambda _: SimpleNamespace(total_memory=10_000),
            "max_memory_allocated": lambda: self.peak,
            "mem_get_info": lambda: (10_000 - self.own - self.others, 10_000),
            "memory_allocated": lambda: self.allocated,
            "memory_reserved": lambda: self.reserved,
            "reset_peak_memory_stats": lambda: None,
            "set_per_process_memory_fraction": lambda share, _: self.fractions.append(share),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        self.device = CudaDevice(name="card", memory_bytes=9_000, uuid="none")
        monkeypatch.setattr(self.device, "_nvml", self)
        self.beside = 0

    @property
    def own(self) -> int:
        return self.reserved + self.beside

    def own_bytes(self) -> int | None:
        return self.own if self.process_known else None

    def utilization(self) -> float | None:
        return 0.5


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


def test_a_card_counts_what_torch_and_what_others_in_the_process_took(card: Card) -> None:
    with card.device.measure() as peak:
        card.allocated, card.reserved, card.peak, card.beside = 100, 400, 300, 50
    assert (peak.peak_bytes, peak.kept_bytes) == (350, 150)
    assert card.device.held_bytes() == 150
    card.others = 2000
    assert card.device.held_bytes() == 150
    assert card.device.usage() == Usage(free_bytes=7550, own_bytes=450, utilization=0.5)


def test_what_other_processes_take_is_no_leak_where_the_driver_does_not_tell_them_apart(card: Card) -> None:
    card.process_known = False
    card.allocated, card.reserved = 100, 400
    before_bytes = card.device.held_bytes()
    card.others = 2000
    assert card.device.held_bytes() == before_bytes == 100
    assert card.device.usage() == Usage(free_bytes=7600, own_bytes=400, utilization=0.5)


def test_the_allocator_refuses_what_goes_beyond_the_budget(card: Card) -> None:
    limit_allocator(2_500)
    limit_allocator(20_000)
    assert card.fractions == [0.25, 1.0]


def test_a_thread_that_does_not_compute_gathers_in_plain_memory(card: Card) -> None:
    assert card.device.staging((2, 2), F32).shape == (2, 2)


# --- page-locked memory --------------------------------------------------------------------------


class Blocks:
    """Counts what is allocated, and is idle when told to be."""

    def __init__(self) -> None:
        self.made: list[NDArray] = []
        self.idle = True

    def allocate(self, size_bytes: int) -> NDArray:
        block = np.zeros(size_bytes, np.uint8)
        self.made.append(block)
        return block

    def pool(self, most_bytes: int = 1 << 20) -> PinnedPool:
        return PinnedPool(allocate=self.allocate, idle=lambda: self.idle, most_bytes=most_bytes)


def test_a_block_is_used_again_once_nothing_refers_to_it() -> None:
    blocks = Blocks()
    pool = blocks.pool()
    first = pool.take((3, 5), F32)
    assert (first.shape, first.dtype, first.flags.c_contiguous, first.flags.writeable) == ((3, 5), F32, True, True)
    assert np.shares_memory(first, blocks.made[0])
    del first
    again = pool.take((100,), np.dtype(np.uint8))
    assert np.shares_memory(again, blocks.made[0])
    assert len(blocks.made) == 1


@pytest.mark.parametrize("keep", [lambda a: a[1:2], lambda a: a.T.reshape(-1)[::2], lambda a: torch.from_numpy(a)[0]])
def test_a_view_of_a_view_or_a_tensor_keeps_the_block(keep: Any) -> None:
    blocks = Blocks()
    pool = blocks.pool()
    array = pool.take((2, 4), F32)
    array[...] = 7.0
    kept = keep(array)
    shared = np.shares_memory(np.asarray(kept), array)
    del array
    other = pool.take((2, 4), F32)
    other[...] = 1.0
    assert float(np.asarray(kept).max()) == 7.0
    assert len(blocks.made) == (2 if shared else 1)
    del kept, other
    gc.collect()
    pool.take((2, 4), F32)
    assert len(blocks.made) == (2 if shared else 1)


def test_a_block_that_a_copy_may_still_read_is_not_used_again() -> None:
    blocks = Blocks()
    pool = blocks.pool()
    pool.take((8,), F32)
    blocks.idle = False
    pool.take((8,), F32)
    assert len(blocks.made) == 2
    blocks.idle = True
    pool.take((8,), F32)
    assert len(blocks.made) == 2


def test_the_pool_is_bounded_and_what_it_cannot_give_is_plain_memory() -> None:
    blocks = Blocks()
    pool = blocks.pool(most_bytes=4 * LEAST_BYTES)
    held = [pool.take((LEAST_BYTES,), np.dtype(np.uint8)) for _ in range(6)]
    assert (len(blocks.made), pool.plain, pool.allocated_bytes) == (4, 2, 4 * LEAST_BYTES)
    del held
    large = pool.take((3 * LEAST_BYTES,), np.dtype(np.uint8))  # the small ones make room
    assert (len(blocks.made), pool.plain, pool.allocated_bytes) == (5, 2, 4 * LEAST_BYTES)
    texts = pool.take((3,), np.dtype(np.object_))
    assert texts.dtype == np.object_
    assert pool.take((0, 4), F32).size == 0
    del large, texts
    pool.trim()
    assert pool.allocated_bytes == 0


# --- tensors -------------------------------------------------------------------------------------


def test_tensors_come_back_as_arrays_in_order_and_bfloat16_as_float32() -> None:
    tensor = to_device(np.array([[1, 2]], np.uint8), torch.device("cpu"), torch.float32)
    plain = np.zeros(3)
    arrays = to_arrays({"a": tensor * 2, "b": plain, "c": tensor.to(torch.bfloat16)})
    assert list(arrays) == ["a", "b", "c"]
    assert arrays["a"].tolist() == [[2.0, 4.0]]
    assert arrays["b"] is plain
    assert arrays["c"].dtype == np.float32


# --- self-test -----------------------------------------------------------------------------------


def test_the_cpu_computes_right() -> None:
    device = CpuDevice(name="cpu", memory_bytes=1)
    self_test(device)
    expected, found = golden_results(golden_inputs()), device.golden(golden_inputs())
    for name in ("product", "sums", "features"):
        assert (getattr(found, name) == getattr(expected, name)).all()


def test_the_known_results_are_what_torch_computes() -> None:
    inputs = golden_inputs()
    there = [torch.from_numpy(array) for array in (inputs.left, inputs.right, inputs.image, inputs.kernels)]
    expected = golden_results(inputs)
    assert ((there[0] @ there[1]).numpy() == expected.product).all()
    assert (there[0].sum(dim=1).numpy() == expected.sums).all()
    assert (torch.nn.functional.conv2d(there[2][None], there[3])[0].numpy() == expected.features).all()


def test_a_device_that_computes_wrongly_raises_or_hangs_is_refused() -> None:
    wrong, broken, hanging = SimulatedDevice(), SimulatedDevice(), SimulatedDevice()
    wrong.computes_wrongly = hanging.hangs = True
    broken.inject(Fault.ECC)
    with pytest.raises(NotSupported, match=r"simulated computes wrongly: 1 of 9120 elements of product"):
        self_test(wrong)
    with pytest.raises(NotSupported, match=r"simulated does not compute: AcceleratorError"):
        self_test(broken)
    with pytest.raises(NotSupported, match=r"simulated does not compute: it hangs"):
        self_test(hanging, within_s=0.05)
    sound = SimulatedDevice()
    self_test(sound)
    assert (sound.adopted, sound.copied_bytes > 0, sound.allocated_bytes) == ({"self-test"}, True, 0)


# --- choosing ------------------------------------------------------------------------------------


def test_the_cpu_is_chosen_where_it_is_asked_for_and_its_budget_kept() -> None:
    chosen = choose("cpu", 12345)
    assert (chosen.kind, chosen.memory_bytes) == (DeviceKind.CPU, 12345)
    assert choose("cpu", 0).memory_bytes > 1 << 28


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(NotSupported, match="no CUDA device is here"):
        choose("cuda", 0)
    assert choose("auto", 1).kind is DeviceKind.CPU


def test_the_cpu_says_how_much_memory_is_free_and_how_much_it_holds() -> None:
    usage = CpuDevice(name="cpu", memory_bytes=1).usage()
    assert usage.free_bytes > 1 << 20
    assert usage.own_bytes == pytest.approx(cpu._status_bytes("VmRSS:"), rel=0.5)
    assert usage.utilization is None


# --- processors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"), [("", set()), ("3", {3}), ("0-3,8", {0, 1, 2, 3, 8}), (" 1 , 1-2", {1, 2})]
)
def test_a_list_of_processors_is_read(text: str, expected: set[int]) -> None:
    assert processors_of(text) == expected
    assert processors_of(processor_list(processors_of(text))) == expected


@pytest.mark.parametrize("text", ["a", "-1", "3-1", "1-2-3", "0x1", "1.5", "999999"])
def test_what_is_no_list_of_processors_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no processor"):
        processors_of(text)


def test_a_wrong_list_of_processors_is_a_fault_of_the_configuration() -> None:
    assert Config(host_id="a", pool="b", cpus="0-3,8").faults() == []
    assert Config(host_id="a", pool="b", cpus="3-1").faults() == [
        "cpus: '3-1' is no processor and no range such as 0-3"
    ]


def test_a_processor_that_is_not_there_is_named() -> None:
    with pytest.raises(NotSupported, match=r"cpus: 99998 is not among those this process may use: \d"):
        pin(frozenset({99998}))


def test_every_thread_keeps_to_its_processors_those_included_that_run_already() -> None:
    first = min(os.sched_getaffinity(0))
    script = f"""
import os, threading
from services.model_host.devices.affinity import pin
ready, go = threading.Event(), threading.Event()
seen = []
def look():
    ready.set(); go.wait(); seen.append(os.sched_getaffinity(0))
early = threading.Thread(target=look); early.start(); ready.wait()
pin(frozenset({{{first}}}))
late = threading.Thread(target=look); late.start(); go.set(); early.join(); late.join()
assert seen == [{{{first}}}] * 2 and os.sched_getaffinity(0) == {{{first}}}, seen
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})


# --- what the driver says ------------------------------------------------------------------------


class DriverError(Exception):
    """As NVML's."""


class Driver:
    """NVML of one device."""

    NVMLError = DriverError

    def __init__(self, processes: list[Any] | None, percent: int | None) -> None:
        self.processes = processes
        self.percent = percent

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> Any:
        if self.percent is None:
            raise DriverError("Not Supported")
        return SimpleNamespace(gpu=self.percent, memory=1)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> list[Any]:
        if self.processes is None:
            raise DriverError("Insufficient Permissions")
        return self.processes


def test_the_driver_says_how_busy_the_device_is_and_what_this_process_holds() -> None:
    own = SimpleNamespace(pid=os.getpid(), usedGpuMemory=5 << 20)
    other = SimpleNamespace(pid=1, usedGpuMemory=9 << 20)
    device = NvmlDevice(Driver([other, own], 37), object())
    assert (device.utilization(), device.own_bytes()) == (0.37, 5 << 20)


@pytest.mark.parametrize("processes", [None, [], [SimpleNamespace(pid=os.getpid(), usedGpuMemory=None)]])
def test_what_the_driver_does_not_say_is_missing(processes: list[Any] | None) -> None:
    device = NvmlDevice(Driver(processes, None), object())
    assert (device.utilization(), device.own_bytes()) == (None, None)


async def test_a_device_that_breaks_while_nobody_computes_is_seen() -> None:
    broken: list[bool] = []
    device, worker = SimulatedDevice(), Worker("watch", SystemClock())
    worker.start()
    watch = DeviceWatch(worker=worker, device=device, computed=lambda: 0.5, broken=lambda: broken.append(True))
    assert watch.utilization == 0.5
    device.utilization = 0.25
    block = device.allocate(1000)
    await watch.look()
    assert watch.usage is not None
    assert watch.usage.own_bytes == 1000
    assert watch.utilization == 0.25
    device.inject(Fault.LAUNCH_FAILURE)
    await watch.look()
    assert broken
    assert watch.usage.own_bytes == 1000
    worker.stop()
    del block


def test_the_devices_are_what_a_host_computes_with() -> None:
    devices: list[ComputeDevice] = [SimulatedDevice(), CpuDevice(name="cpu", memory_bytes=1)]
    for device in devices:
        device.adopt_thread()
        staged = device.staging((2, 3), F32)
        assert (staged.shape, staged.dtype) == ((2, 3), F32)
        with device.measure() as peak:
            pass
        assert 0 <= peak.kept_bytes <= max(peak.peak_bytes, 16 << 20)
