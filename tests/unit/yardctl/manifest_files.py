"""Manifests for tests: written, read, refused."""

from pathlib import Path

import pytest

from services.domain.errors import InvalidRequest
from yardctl.manifests import Document, load


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    """A file with a text."""
    path = folder / name
    path.write_text(text)
    return path


def faults_of(*paths: Path) -> list[str]:
    """Why files are refused, without their folders."""
    with pytest.raises(InvalidRequest) as caught:
        load(paths)
    return [f"{Path(fault.path).name}: {fault.message}" for fault in caught.value.faults]


def only(path: Path) -> Document:
    """The one object of a file."""
    (document,) = load([path])
    return document
