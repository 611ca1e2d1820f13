"""GGUF files: blocks become the numbers that they say, and what is no such file is refused."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.zoo.gguf import Gguf, GgufError
from examples.zoo.smollm2 import halves_apart

F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def value(item: Any) -> bytes:
    """A value with its type."""
    match item:
        case bool():
            return struct.pack("<I?", 7, item)
        case int():
            return struct.pack("<II", 4, item)
        case float():
            return struct.pack("<If", 6, item)
        case str():
            return struct.pack("<I", 8) + text(item)
        case list():
            kind = 8 if isinstance(item[0], str) else 4
            items = b"".join(text(each) if kind == 8 else struct.pack("<I", each) for each in item)
            return struct.pack("<IIQ", 9, kind, len(item)) + items
    raise AssertionError(item)


def write(
    path: Path,
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]],
    *,
    metadata: dict[str, Any] | None = None,
    version: int = 3,
) -> Path:
    """A file; a tensor is its type, its shape with rows first, and its blocks."""
    metadata = metadata or {}
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(name) + value(item) for name, item in metadata.items())
    data = b""
    for name, (kind, shape, blocks) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", kind, len(data))
        data += blocks + bytes(-len(blocks) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def half(number: float) -> bytes:
    return np.float16(number).tobytes()


def test_metadata_is_read(tmp_path: Path) -> None:
    told = {"name": "yard", "layers": 3, "epsilon": 0.5, "adds": True, "tokens": ["a", "bc"], "kinds": [1, 3]}

    file = Gguf(write(tmp_path / "a.gguf", {}, metadata=told))

    assert file.metadata == told


def test_plain_numbers_keep_their_shape(tmp_path: Path) -> None:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = {
        "full": (F32, (2, 3), numbers.tobytes()),
        "half": (F16, (2, 3), numbers.astype(np.float16).tobytes()),
    }
    file = Gguf(write(tmp_path / "a.gguf", tensors))

    assert file.names == ("full", "half")
    assert file.kind("half") == "F16"
    assert np.array_equal(file.tensor("full"), numbers)
    assert np.array_equal(file.tensor("half"), numbers)


def test_blocks_of_8_bits_are_scaled(tmp_path: Path) -> None:
    block = half(0.5) + np.arange(-16, 16, dtype=np.int8).tobytes()

    file = Gguf(write(tmp_path / "a.gguf", {"t": (Q8_0, (1, 32), block)}))

    assert file.tensor("t").tolist() == [[0.5 * number for number in range(-16, 16)]]


def test_blocks_of_4_bits_are_scaled_from_their_least_number(tmp_path: Path) -> None:
    packed = bytes(low | (15 - low) << 4 for low in range(16))
    block = half(0.25) + half(-2.0) + packed

    file = Gguf(write(tmp_path / "a.gguf", {"t": (Q4_1, (2, 32), block * 2)}))

    expected = [0.25 * number - 2.0 for number in (*range(16), *range(15, -1, -1))]
    assert file.tensor("t").tolist() == [expected, expected]


def test_the_two_features_of_a_rotation_come_apart() -> None:
    """What a converter to GGUF does to a projection of two heads, undone."""
    original = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    in_file = original.reshape(2, 2, 2, 3).swapaxes(1, 2).reshape(8, 3)

    assert np.array_equal(halves_apart(in_file, 2), original)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda raw: b"GGML" + raw[4:], "no GGUF file"),
        (lambda raw: raw[:4] + struct.pack("<I", 1) + raw[8:], "no GGUF file"),
        (lambda raw: raw[:8] + struct.pack("<Q", 1 << 60) + raw[16:], "entries"),
        (lambda raw: raw[:30], "cut off"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, broken: Any, message: str) -> None:
    path = write(tmp_path / "a.gguf", {"t": (F32, (4,), bytes(16))}, metadata={"name": "yard"})
    path.write_bytes(broken(path.read_bytes()))

    with pytest.raises(GgufError, match=message):
        Gguf(path)


def test_tensors_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    tensors = {"cut": (F32, (1000,), bytes(16)), "odd": (Q8_0, (1, 33), bytes(68)), "other": (12, (256,), bytes(144))}
    file = Gguf(write(tmp_path / "a.gguf", tensors))

    for name, message in (("cut", "cut off"), ("odd", "fill"), ("other", "type 12"), ("none", "no tensor")):
        with pytest.raises(GgufError, match=message):
            file.tensor(name)
