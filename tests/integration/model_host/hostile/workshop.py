"""What hostile artifacts are made in and of."""

import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.registry.v1 import objects_pb2
from tests.support.host import model_object, spec, version_object
from tests.support.https_server import HttpsServer


class Planted:
    """Unpickling it leaves the canary on the disk."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, (f"open({str(self._canary)!r}, 'w').close()",))


@dataclass(frozen=True)
class Workshop:
    """Where one artifact is made."""

    folder: Path
    """Its own, outside of the host's cache."""
    canary: Path
    """What a payload makes if it runs."""
    server: HttpsServer
    """A server that the host may fetch from, below `/models`."""

    @property
    def payload(self) -> Planted:
        """An object that is made known by being unpickled."""
        return Planted(self.canary)

    def pickled(self, protocol: int = 2) -> bytes:
        """The payload."""
        return pickle.dumps(self.payload, protocol)

    def file(self, name: str, content: bytes) -> "Wanted":
        """A file whose digest is right."""
        path = self.folder / name
        path.write_bytes(content)
        return Wanted(f"file:{path}", hashlib.sha256(content).hexdigest())

    def archive(self, name: str, members: Mapping[str, bytes], packed: int = zipfile.ZIP_STORED) -> "Wanted":
        """A zip file whose digest is right."""
        return self.file(name, zipped(members, packed))


@dataclass(frozen=True)
class Wanted:
    """An artifact as an order names it."""

    uri: str
    sha256: str = "0" * 64
    files: Mapping[str, "Wanted"] = field(default_factory=dict)
    """Further ones beside it, by name."""

    @property
    def message(self) -> objects_pb2.Artifact:
        """For an object."""
        return objects_pb2.Artifact(uri=self.uri, sha256=self.sha256)


@dataclass(frozen=True)
class Hostile:
    """One artifact of the corpus."""

    name: str
    backend: str
    make: Callable[[Workshop], Wanted | None]
    architecture: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    executes_code: bool = False
    says: str = ""
    """Part of what the refusal must say; empty where any will do."""

    def objects(self, key: str, workshop: Workshop) -> tuple[objects_pb2.Object, objects_pb2.Object]:
        """The model and the version of the order, under the name `key`."""
        wanted = self.make(workshop)
        architecture = self.architecture or ("mlp" if self.backend == "torch" else "")
        options = dict(self.options)
        if architecture == "mlp":
            options = {"sizes": "4,3", "input": "x", **options}
        version = version_object(
            key,
            backend=self.backend,
            architecture=architecture,
            options=options,
            artifact=None if wanted is None else wanted.message,
            files={} if wanted is None else {name: each.message for name, each in wanted.files.items()},
            executes_code=self.executes_code,
        )
        return model_of(key, self.backend, texts="tokenizer" in options), version


def model_of(key: str, backend: str, *, texts: bool = False) -> objects_pb2.Object:
    """A model that the honest artifacts of `backend` fit."""
    if backend in ("torch", "sklearn"):
        floats = "FP32" if backend == "torch" else "FP64"
        outputs = [spec("label", "INT64", [-1]), spec("probabilities", floats, [-1, 3])]
        return model_object(key, inputs=[spec("x", floats)], outputs=outputs)
    given = spec("x", "BYTES", [-1]) if texts else spec("x")
    return model_object(key, inputs=[given], outputs=[spec("y", shape=[-1, 3])])


def zipped(members: Mapping[str, bytes], packed: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", packed) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


def unzipped(content: bytes) -> dict[str, bytes]:
    """The members of a zip file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
