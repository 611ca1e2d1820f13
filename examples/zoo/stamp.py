"""Whether what was made is still what would be made: a fingerprint of the causes, digests of the results."""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version as version_of
from pathlib import Path

from examples.zoo.weights import sha256_of

STAMP = "prepared.json"
SUFFIXES = (".json", ".py", ".tsv", ".txt", ".wav", ".yaml")
"""Files of the sources that count."""


def fingerprint_of(sources: Iterable[Path], *, packages: Iterable[str], root: Path) -> str:
    """Changes with everything that decides what is made.

    Args:
        sources: Folders with code, manifests and data.
        packages: Libraries.
        root: What is made names files below it by absolute path.
    """
    digest = hashlib.sha256(f"{sys.version}\n{root}\n".encode())
    for package in packages:
        digest.update(f"{package}=={version_of(package)}\n".encode())
    for path in sorted(path for source in sources for path in source.rglob("*") if path.suffix in SUFFIXES):
        digest.update(f"{path.relative_to(root)}\n{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def write(folder: Path, fingerprint: str, made: Sequence[Path]) -> None:
    """Say that `made`, files in `folder`, is complete."""
    files = {str(path.relative_to(folder)): sha256_of(path) for path in made}
    partial = folder / f".{STAMP}"
    partial.write_text(json.dumps({"fingerprint": fingerprint, "files": files}, indent=1) + "\n")
    partial.replace(folder / STAMP)


def is_fresh(folder: Path, fingerprint: str) -> bool:
    """Whether `folder` holds, unchanged, what was made from the causes with this fingerprint."""
    try:
        kept = json.loads((folder / STAMP).read_text())
        return bool(kept["fingerprint"] == fingerprint) and all(
            sha256_of(folder / name) == sha256 for name, sha256 in kept["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
