"""Zip files that lead out of themselves, swell, or say one thing to one reader and another to the next."""

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.tree import DecisionTreeClassifier
from skops import io as skops_io

from tests.integration.model_host.hostile.workshop import Hostile, Wanted, Workshop, unzipped, zipped

_Make = Callable[[Workshop], Wanted]


def corpus() -> Iterator[Hostile]:
    """Everything of this kind."""
    for name in ("../schema.json", "/schema.json", "a/../../schema.json", "..\\schema.json", "a\nb/schema.json"):
        yield Hostile(f"member named {name!r}", "sklearn", _named(name), says="leads out of it")
    yield Hostile("member that is a link", "torch", _linked, says="holds a link")
    yield Hostile("bomb", "sklearn", _bomb, says="unpacks to")
    yield Hostile("bomb for torch", "torch", _torch_bomb, says="unpacks to")
    yield Hostile("bomb of overlapping members", "sklearn", _overlapping, says="unpacks to")
    yield Hostile("zips in zips", "sklearn", _nested)
    yield Hostile("members of one name", "torch", _twice, says="two files of one name")
    yield Hostile("encrypted member", "torch", _encrypted, says="encrypted or packed")
    for packed in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield Hostile(f"packed by method {packed}", "torch", _packed(packed), says="encrypted or packed")
    yield Hostile("truncated archive", "torch", _truncated, says="broken archive")
    yield Hostile("archive behind something else", "sklearn", _prefixed)
    yield Hostile("member shorter than it says", "sklearn", _lying)
    yield Hostile("members without number", "torch", _many, says="are the most")
    yield Hostile("archive of nothing", "torch", lambda shop: shop.file("m.pt", b"PK\x05\x06" + b"\0" * 18))
    yield Hostile("tar that climbs", "torch", _tar)
    yield Hostile("skops with a foreign function", "sklearn", _foreign_function, says="not trusted")
    for loader in ("FunctionNode", "TypeNode", "ObjectNode", "MethodNode", "OperatorFuncNode", "NoSuchNode"):
        yield Hostile(f"skops: os.system by {loader}", "sklearn", _by_node(loader))
    yield Hostile("skops that reads outside of itself", "sklearn", _outside)
    yield Hostile("skops with a pickle in it", "sklearn", _pickle_inside)
    yield Hostile("skops with an array of any size", "sklearn", _endless_array)
    yield Hostile("skops nested 100,000 deep", "sklearn", _deep_schema)
    yield Hostile("skops that refers to itself", "sklearn", _circle)
    yield Hostile("skops without JSON", "sklearn", lambda shop: shop.archive("m.skops", {"schema.json": b"<html>"}))
    yield Hostile("skops with a schema too large", "sklearn", _large_schema, says="describes itself")
    yield Hostile(
        "skops with a tree that leads out", "sklearn", _tree("left_child", 1 << 40), says="leads out of itself"
    )
    yield Hostile("skops with a tree without an end", "sklearn", _tree("right_child", 0), says="leads out of itself")
    yield Hostile("skops with a column that is not there", "sklearn", _tree("feature", 1 << 30), says="leads out")
    yield Hostile("skops of a dict", "sklearn", _no_estimator, says="has no predict")
    for how in ("declared as data", "that may run code", "with a code flag alone"):
        yield Hostile(f"torch.export, tampered with, {how}", "torch", _exported, **_EXPORTED[how])


_EXPORTED: dict[str, dict[str, Any]] = {
    "declared as data": {"says": "can run code"},
    "that may run code": {"architecture": "exported", "executes_code": True, "says": "does not trust artifacts"},
    "with a code flag alone": {"executes_code": True, "says": "does not trust artifacts"},
}


def _named(name: str) -> _Make:
    return lambda workshop: workshop.archive("m.skops", {name: b"{}"})


def _linked(workshop: Workshop) -> Wanted:
    link = zipfile.ZipInfo("m/data.pkl")
    link.external_attr = 0o120777 << 16
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    return workshop.file("m.pt", content.getvalue())


def _bomb(workshop: Workshop) -> Wanted:
    return workshop.archive("m.skops", {"schema.json": b" " * (32 << 20)}, zipfile.ZIP_DEFLATED)


def _torch_bomb(workshop: Workshop) -> Wanted:
    members = {"m/data.pkl": b"\x80\x02}.", "m/data/0": b"\0" * (32 << 20), "m/version": b"3\n"}
    return workshop.archive("m.pt", members, zipfile.ZIP_DEFLATED)


def _overlapping(workshop: Workshop) -> Wanted:
    """A thousand names for one squeezed megabyte: each alone is within the ratio of its own bytes."""
    content = zipped({"000": b"\0" * (1 << 20)}, zipfile.ZIP_DEFLATED)
    directory = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entry = content[directory:end]
    entries = b"".join(entry.replace(b"000", f"{number:03}".encode()) for number in range(1000))
    closing = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1000, 1000, len(entries), directory, 0)
    return workshop.file("m.skops", content[:directory] + entries + closing)


def _nested(workshop: Workshop) -> Wanted:
    inner = workshop.pickled()
    for depth in range(8):
        inner = zipped({f"{depth}.zip": inner, "data.bin": inner})
    return workshop.file("m.skops", inner)


def _saved(what: object) -> bytes:
    content = io.BytesIO()
    torch.save(what, content)
    return content.getvalue()


def _twice(workshop: Workshop) -> Wanted:
    """Honest to a reader that takes the last of a name, not to one that takes the first."""
    members = unzipped(_saved({"layers.0.weight": torch.zeros(3, 4), "layers.0.bias": torch.zeros(3)}))
    (program,) = (name for name in members if name.endswith("data.pkl"))
    other = f"{program[:-1]}L"
    content = zipped({other: workshop.pickled(), **members})
    return workshop.file("m.pt", content.replace(other.encode(), program.encode()))


def _encrypted(workshop: Workshop) -> Wanted:
    content = bytearray(zipped({"m/data.pkl": workshop.pickled()}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return workshop.file("m.pt", bytes(content))


def _packed(packed: int) -> _Make:
    return lambda workshop: workshop.archive("m.pt", {"m/data.pkl": workshop.pickled() * 100}, packed)


def _truncated(workshop: Workshop) -> Wanted:
    content = _saved({"layers.0.bias": torch.zeros(3)})
    return workshop.file("m.pt", content[: len(content) // 2])


def _prefixed(workshop: Workshop) -> Wanted:
    """zipfile finds an archive at the end of anything."""
    return workshop.file("m.skops", b"#!/bin/sh\n" + zipped({"schema.json": b"{}"}))


def _lying(workshop: Workshop) -> Wanted:
    content = bytearray(zipped({"schema.json": b"{" + b" " * 100_000 + b"}"}, zipfile.ZIP_DEFLATED))
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", 2)
    return workshop.file("m.skops", bytes(content))


def _many(workshop: Workshop) -> Wanted:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number in range(100_001):
            archive.writestr(zipfile.ZipInfo(str(number)), b"")
    return workshop.file("m.pt", content.getvalue())


def _tar(workshop: Workshop) -> Wanted:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("pickle", "storages", "tensors", "../../escaped"):
            member = tarfile.TarInfo(name)
            member.size = len(workshop.pickled())
            archive.addfile(member, io.BytesIO(workshop.pickled()))
    return workshop.file("m.pt", content.getvalue())


# --- skops ---------------------------------------------------------------------------------------


def _dumped(what: object) -> dict[str, bytes]:
    return unzipped(skops_io.dumps(what))


def _fitted() -> LogisticRegression:
    return LogisticRegression(max_iter=1000).fit(*load_iris(return_X_y=True))


def _with_schema(workshop: Workshop, change: Callable[[dict[str, Any]], None]) -> Wanted:
    """An honest estimator's file, with another description."""
    members = _dumped(_fitted())
    schema = json.loads(members["schema.json"])
    change(schema)
    return workshop.archive("m.skops", {**members, "schema.json": json.dumps(schema).encode()})


def _foreign_function(workshop: Workshop) -> Wanted:
    import os

    return workshop.archive("m.skops", _dumped(make_pipeline(FunctionTransformer(os.system))))


def _by_node(loader: str) -> _Make:
    def make(workshop: Workshop) -> Wanted:
        node = {
            "__class__": "system",
            "__module__": "posix",
            "__loader__": loader,
            "content": {"module_path": "posix", "function": "system", "func": "system", "obj": {}, "attrs": {}},
            "attrs": {"command": f"touch {workshop.canary}"},
            "__id__": 1,
        }
        return _with_schema(workshop, lambda schema: schema["content"]["content"].update(C=node))

    return make


def _arrays(schema: Any) -> Iterator[dict[str, Any]]:
    """Every node of a schema that names a file."""
    if isinstance(schema, dict):
        if "file" in schema:
            yield schema
        for inner in schema.values():
            yield from _arrays(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _arrays(inner)


def _outside(workshop: Workshop) -> Wanted:
    np.save(workshop.folder / "secret.npy", np.zeros((3, 4)))

    def change(schema: dict[str, Any]) -> None:
        for node in _arrays(schema):
            node["file"] = f"../../{workshop.folder.name}/secret.npy"

    return _with_schema(workshop, change)


def _with_arrays(workshop: Workshop, content: bytes) -> Wanted:
    members = _dumped(_fitted())
    return workshop.archive(
        "m.skops", {name: content if name.endswith(".npy") else old for name, old in members.items()}
    )


def _pickle_inside(workshop: Workshop) -> Wanted:
    array = np.empty(1, np.object_)
    array[0] = workshop.payload
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return _with_arrays(workshop, content.getvalue())


def _endless_array(workshop: Workshop) -> Wanted:
    """The header of an array says how much memory there has to be."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }"
    header = header.ljust(117) + b"\n"
    return _with_arrays(workshop, b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + b"\0" * 64)


def _deep_schema(workshop: Workshop) -> Wanted:
    return workshop.archive("m.skops", {"schema.json": b'{"content":' * 100_000 + b"1" + b"}" * 100_000})


def _circle(workshop: Workshop) -> Wanted:
    """A node that stands for one that it lies in."""

    def change(schema: dict[str, Any]) -> None:
        schema["content"]["content"]["C"] = {**schema, "content": {}, "__loader__": "CachedNode"}

    return _with_schema(workshop, change)


def _large_schema(workshop: Workshop) -> Wanted:
    rng = np.random.default_rng(1)
    noise = rng.integers(97, 122, 3 << 20, np.uint8).tobytes()
    return workshop.archive("m.skops", {"schema.json": noise + b" " * (62 << 20)}, zipfile.ZIP_DEFLATED)


def _tree(field: str, value: int) -> _Make:
    """A tree as compiled code walks it, without a look at where it goes."""

    def make(workshop: Workshop) -> Wanted:
        estimator = DecisionTreeClassifier(max_depth=3, random_state=1).fit(*load_iris(return_X_y=True))
        state = estimator.tree_.__getstate__()
        state["nodes"][field][0] = value
        estimator.tree_.__setstate__(state)
        return workshop.archive("m.skops", _dumped(estimator))

    return make


def _no_estimator(workshop: Workshop) -> Wanted:
    return workshop.archive("m.skops", _dumped({"coef_": np.zeros(4)}))


# --- torch.export --------------------------------------------------------------------------------


def _exported(workshop: Workshop) -> Wanted:
    return workshop.file("m.pt2", tampered_export(workshop))


def tampered_export(workshop: Workshop) -> bytes:
    """A torch.export archive whose sample inputs, which it is loaded with, are the payload."""
    exported = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),))
    content = io.BytesIO()
    torch.export.save(exported, content)
    members = unzipped(content.getvalue())
    (samples,) = (name for name in members if "sample_inputs" in name)
    return zipped({**members, samples: _saved(workshop.payload)})
