"""Makes the zoo ready: finds and checks weights, trains the small models, measures all, writes manifests.

    python -m examples.zoo.prepare [FOLDER]

Writes into FOLDER (default `build/zoo`): `artifacts/`, `held_out/` (rows that no fit saw), `manifests/` (for
`yardctl apply -f`), and `prepared.json`, by which a second run sees that nothing has changed.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path

from examples.progress import Progress, console
from examples.zoo import weights
from examples.zoo.manifesting import TemplateError
from examples.zoo.measuring import MeasuringError
from examples.zoo.weights import WeightsError, sha256_of
from services.domain.errors import YardError

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = ROOT / "build" / "zoo"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Where the zoo is."""

    manifests: Path
    held_out: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "Prepared":
        """The zoo of a folder."""
        return cls(folder / "manifests", folder / "held_out")


def main(argv: list[str]) -> int:
    """Prepare into the folder named, or the default one."""
    terminal = console()
    folder = Path(argv[0]).resolve() if argv else DEFAULT_FOLDER
    try:
        ready = prepare(folder, Progress(terminal))
    except (WeightsError, MeasuringError, TemplateError, YardError, OSError) as error:
        terminal.print(f"[red]cannot prepare the zoo:[/red] {error}", soft_wrap=True)
        return 1
    terminal.print(f"  manifests are in {ready.manifests}", soft_wrap=True)
    return 0


def prepare(folder: Path, progress: Progress) -> Prepared:
    """Make the zoo ready in `folder`; quick where it is already.

    Raises:
        WeightsError: A package is missing, or a file is not the pinned one.
        MeasuringError: A version does not load, or the host does not start.
        YardError: A model fails.
    """
    ready = Prepared.in_folder(folder)
    with progress.step("check weights") as step:
        found = {file: file.find() for file in weights.ALL}
        total_mb = sum(path.stat().st_size for path in found.values()) / 1e6
        step.result = f"{len(found)} files, {total_mb:.0f} MB, every SHA-256 as pinned"
    fingerprint = _fingerprint()
    if _is_fresh(folder, fingerprint):
        return ready
    # Only now: a run that finds nothing to do need not wait for torch and scikit-learn to be imported.
    from examples.zoo import making  # noqa: PLC0415

    made = making.make(folder, manifests=ready.manifests, held_out=ready.held_out, progress=progress)
    _stamp(folder, fingerprint, made)
    return ready


def _fingerprint() -> str:
    """Changes with everything that decides what is made: code, manifests, data, libraries."""
    digest = hashlib.sha256(sys.version.encode())
    for package in ("numpy", "onnxruntime", "safetensors", "scikit-learn", "skops", "tokenizers", "torch"):
        digest.update(f"{package}=={version_of(package)}\n".encode())
    sources = (Path(__file__).parent, ROOT / "services" / "model_host" / "backends")
    kept = (".py", ".yaml", ".json", ".tsv", ".wav", ".txt")
    for path in sorted(path for source in sources for path in source.rglob("*") if path.suffix in kept):
        digest.update(f"{path.relative_to(ROOT)}\n{sha256_of(path)}\n".encode())
    digest.update(str(ROOT).encode())  # manifests name files by absolute path
    return digest.hexdigest()


def _is_fresh(folder: Path, fingerprint: str) -> bool:
    """Whether `folder` holds exactly what this would make again."""
    try:
        stamp = json.loads((folder / "prepared.json").read_text())
        return bool(stamp["fingerprint"] == fingerprint) and all(
            sha256_of(folder / name) == sha256 for name, sha256 in stamp["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _stamp(folder: Path, fingerprint: str, made: Sequence[Path]) -> None:
    files = {str(path.relative_to(folder)): sha256_of(path) for path in made}
    partial = folder / ".prepared.json"
    partial.write_text(json.dumps({"fingerprint": fingerprint, "files": files}, indent=1) + "\n")
    partial.replace(folder / "prepared.json")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
