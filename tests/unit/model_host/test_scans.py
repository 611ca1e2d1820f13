"""What is looked at before a library reads a file. What all of it refuses: tests/integration/model_host/hostile."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.domain.errors import ArtifactRejected
from services.domain.host import DeviceKind
from services.model_host.backends.onnx_scan import check_onnx
from services.model_host.backends.safetensors_check import ITEM_BYTES, check_safetensors
from services.model_host.devices.cpu import CpuDevice
from services.model_host.memory_bound import bounded, bounded_on
from tests.support.onnx_file import linear_onnx

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
MIB = 1 << 20


def test_what_the_library_writes_is_found_right(tmp_path: Path) -> None:
    for name, dtype in DTYPES.items():
        tensors = {"a": torch.zeros(3, 5).to(dtype), "b": torch.zeros(0, 4).to(dtype), "c": torch.zeros(()).to(dtype)}
        safetensors.torch.save_file(tensors, tmp_path / name, metadata={"format": "pt"})
        check_safetensors(tmp_path / name)
        assert name in ITEM_BYTES
    safetensors.torch.save_file({"bytes": torch.zeros(7, dtype=torch.uint8), "x": torch.zeros(9)}, tmp_path / "mixed")
    check_safetensors(tmp_path / "mixed")


@given(st.binary(max_size=200), st.integers(0, 300))
def test_every_safetensors_file_is_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.safetensors"
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(noise)], "data_offsets": [0, len(noise)]}}).encode()
    for content in (noise, length.to_bytes(8, "little") + noise, length.to_bytes(8, "little") + header + noise):
        path.write_bytes(content)
        try:
            check_safetensors(path)
        except ArtifactRejected as error:
            assert error.message.startswith("noise.safetensors is a broken safetensors file")  # noqa: PT017
        else:
            assert len(content) >= 8


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_every_onnx_file_is_walked_to_its_end_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes
) -> None:
    honest = linear_onnx(np.ones((4, 3), np.float32))
    path = tmp_path_factory.getbasetemp() / "m.onnx"
    path.write_bytes(honest)
    check_onnx(path)
    path.write_bytes(honest[:at] + noise + honest[at + len(noise) :])
    try:
        check_onnx(path)
    except ArtifactRejected as error:
        assert "m.onnx" in error.message  # noqa: PT017


def test_a_process_cannot_grow_beyond_its_bound_and_goes_on_after_it() -> None:
    """In a process of its own: what another test holds or frees would count here."""
    script = (
        "import numpy as np\n"
        "from services.model_host.memory_bound import bounded\n"
        "with bounded(100 << 20):\n"
        "    np.ones(50 << 20, np.uint8)\n"
        "    try: np.ones(200 << 20, np.uint8)\n"
        "    except MemoryError: print('refused')\n"
        "np.ones(200 << 20, np.uint8)\n"
        "print('goes on')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["refused", "goes on"]


def test_the_bound_is_taken_off_again_whatever_happens() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)

    def fail() -> None:
        with bounded(100 * MIB):
            assert resource.getrlimit(resource.RLIMIT_DATA) != before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    device = CpuDevice(name="test", memory_bytes=MIB)
    assert device.kind is DeviceKind.CPU
    with bounded_on(device):
        assert resource.getrlimit(resource.RLIMIT_DATA) != before


def test_onnxruntime_tells_nobody_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """By itself it keeps an id of the machine, and sends names and hashes of models to its maker."""
    (tmp_path / "m.onnx").write_bytes(linear_onnx(np.ones((4, 3), np.float32)))
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "import sys\n"
        "from services.model_host.backends.onnx_backend import OnnxBackend\n"
        "from services.model_host.devices.cpu import CpuDevice\n"
        "device = CpuDevice(name='test', memory_bytes=1 << 30)\n"
        "OnnxBackend(threads=1).prepare(device)\n"
        "import numpy as np, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "session.run(None, {'x': np.ones((2, 4), np.float32)})\n"
    )
    environ = {"HOME": str(home), "TMPDIR": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", script, tmp_path / "m.onnx"], check=True, env=environ, timeout=60)
    assert list(home.iterdir()) == []
