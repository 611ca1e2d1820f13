"""Files that run code when they are unpickled, under every name and in every wrapping."""

import bz2
import gzip
import importlib
import io
import lzma
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

from tests.integration.model_host.hostile.workshop import Hostile, Planted, Wanted, Workshop, unzipped, zipped

_Make = Callable[[Workshop], Wanted]


def corpus() -> Iterator[Hostile]:
    """Everything of this kind."""
    for protocol in range(6):
        yield Hostile(f"pickle of protocol {protocol}", "sklearn", _pickle("m.skops", protocol), says="pickle")
    for backend, name in (("torch", "m.safetensors"), ("torch", "m.pt"), ("onnxruntime", "m.onnx")):
        yield Hostile(f"pickle named {name}", backend, _pickle(name, 4))
    yield Hostile("pickle of protocol 0 as a state dict", "torch", _pickle("m.bin", 0))
    for name, code in _OPCODES.items():
        yield Hostile(f"opcodes: {name}", "sklearn", _opcodes(code), says="pickle")
        yield Hostile(f"opcodes for torch: {name}", "torch", _opcodes(code))
    for name, squeeze in _SQUEEZED.items():
        yield Hostile(f"joblib, {name}", "sklearn", _squeezed(squeeze), says="pickle")
    yield Hostile("joblib with arrays", "sklearn", _joblib)
    yield Hostile("npy of objects", "sklearn", _npy)
    yield Hostile("npz of objects", "sklearn", _npz)
    yield Hostile("torch zip", "torch", _torch(zipped_file=True), says="weights_only")
    yield Hostile("torch file of old", "torch", _torch(zipped_file=False), says="weights_only")
    yield Hostile("torch module", "torch", _module, says="weights_only")
    yield Hostile("torch zip for onnxruntime", "onnxruntime", _torch(zipped_file=True), says="takes ONNX files")
    yield Hostile("torch zip with a payload for skops", "sklearn", _torch(zipped_file=True))
    yield Hostile("state dict of numpy scalars", "torch", _numpy_scalars, says="weights_only")
    yield Hostile("state dict that is a list", "torch", _listed, says="no state dict")
    yield Hostile("state dict of other names", "torch", _other_names, says="do not fit")
    yield Hostile("storage longer than its record", "torch", _long_storage)
    yield Hostile("tensor beyond its storage", "torch", _beyond_storage)
    yield Hostile("nested 20,000 deep", "torch", _deep)
    yield Hostile("TorchScript", "torch", _torch_script, says="TorchScript")


def _pickle(name: str, protocol: int) -> _Make:
    return lambda workshop: workshop.file(name, workshop.pickled(protocol))


_OPCODES: dict[str, Callable[[bytes], bytes]] = {
    "os.system": lambda said: b"cos\nsystem\n(S'touch " + said + b"'\ntR.",
    "posix.system by the stack": lambda said: (
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(said) + 6]) + b"touch " + said + b"\x85R."
    ),
    "eval": lambda said: b"\x80\x02c__builtin__\neval\n(X" + _text(b"open('" + said + b"','w')") + b"tR.",
    "subprocess.Popen": lambda said: b"\x80\x02csubprocess\nPopen\n((X\x05\0\0\0touchX" + _text(said) + b"ltR.",
    "runpy": lambda said: b"\x80\x02crunpy\nrun_path\n(X" + _text(said + b".py") + b"tR.",
    "an object's own setter": lambda said: (
        b"\x80\x02ctypes\nSimpleNamespace\n)\x81}X\x01\0\0\0xcos\nsystem\n(X" + _text(b"touch " + said) + b"tRsb."
    ),
    "instance": lambda said: b"(S'touch " + said + b"'\nios\nsystem\n.",
}
"""Programs of the pickle machine, by what they call; each is given the path of the canary."""


def _text(said: bytes) -> bytes:
    return struct.pack("<I", len(said)) + said


def _opcodes(code: Callable[[bytes], bytes]) -> _Make:
    return lambda workshop: workshop.file("m.pkl", code(str(workshop.canary).encode()))


_SQUEEZED: dict[str, Callable[[bytes], bytes]] = {
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def _squeezed(squeeze: Callable[[bytes], bytes]) -> _Make:
    return lambda workshop: workshop.file("m.joblib", squeeze(workshop.pickled()))


def _joblib(workshop: Workshop) -> Wanted:
    content = io.BytesIO()
    importlib.import_module("joblib").dump([np.zeros(1000), workshop.payload], content)
    return workshop.file("m.skops", content.getvalue())


def _objects(payload: Planted) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    array = np.empty(1, np.object_)
    array[0] = payload
    return array


def _npy(workshop: Workshop) -> Wanted:
    content = io.BytesIO()
    np.save(content, _objects(workshop.payload), allow_pickle=True)
    return workshop.file("m.npy", content.getvalue())


def _npz(workshop: Workshop) -> Wanted:
    content = io.BytesIO()
    np.savez(content, weights=_objects(workshop.payload))
    return workshop.file("m.npz", content.getvalue())


def _saved(what: object, *, zipped_file: bool = True) -> bytes:
    content = io.BytesIO()
    torch.save(what, content, _use_new_zipfile_serialization=zipped_file)
    return content.getvalue()


def _state(**more: object) -> dict[str, object]:
    return {"layers.0.weight": torch.zeros(3, 4), "layers.0.bias": torch.zeros(3), **more}


def _torch(*, zipped_file: bool) -> _Make:
    return lambda workshop: workshop.file("m.pt", _saved(_state(x=workshop.payload), zipped_file=zipped_file))


def _module(workshop: Workshop) -> Wanted:
    return workshop.file("m.pt", _saved(torch.nn.Linear(4, 3)))


def _numpy_scalars(workshop: Workshop) -> Wanted:
    return workshop.file("m.pt", _saved(_state(scale=np.float64(1.0), weights=np.zeros(3))))


def _listed(workshop: Workshop) -> Wanted:
    return workshop.file("m.pt", _saved([torch.zeros(3, 4), torch.zeros(3)]))


def _other_names(workshop: Workshop) -> Wanted:
    return workshop.file("m.pt", _saved({"weight": torch.zeros(3, 4)}))


def _patched(old: bytes, new: bytes) -> bytes:
    """A state dict of one tensor of four numbers, its program changed."""
    members = unzipped(_saved({"layers.0.bias": torch.zeros(4)}))
    (program,) = (name for name in members if name.endswith("data.pkl"))
    assert members[program].count(old) == 1
    members[program] = members[program].replace(old, new)
    return zipped(members)


def _long_storage(workshop: Workshop) -> Wanted:
    """The program says a million elements, the archive has four: what lies behind them in memory would be weights."""
    many = b"J" + struct.pack("<i", 1 << 20)
    return workshop.file("m.pt", _patched(b"K\x04t", many + b"t"))


def _beyond_storage(workshop: Workshop) -> Wanted:
    many = b"J" + struct.pack("<i", 1 << 30)
    return workshop.file("m.pt", _patched(b"K\x04\x85", many + b"\x85"))


def _deep(workshop: Workshop) -> Wanted:
    members = unzipped(_saved({"layers.0.bias": torch.zeros(4)}))
    (program,) = (name for name in members if name.endswith("data.pkl"))
    members[program] = b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."
    return workshop.file("m.pt", zipped(members))


def _torch_script(workshop: Workshop) -> Wanted:
    code = f"def forward(self, x):\n  return ops.aten.touch({str(workshop.canary)!r})\n"
    members = {
        "m/data.pkl": workshop.pickled(),
        "m/constants.pkl": pickle.dumps(()),
        "m/code/__torch__/m.py": code.encode(),
        "m/version": b"3\n",
    }
    return workshop.archive("m.pt", members)
