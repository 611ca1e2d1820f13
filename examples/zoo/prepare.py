"""Makes the zoo ready: finds and checks weights, trains the small models, measures all, writes manifests.

    python -m examples.zoo.prepare [FOLDER]

Writes into FOLDER (default `build/zoo`): `artifacts/`, `held_out/` (rows that no fit saw), `manifests/` (for
`yardctl apply -f`), and `prepared.json`, by which a second run sees that nothing has changed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from examples.progress import Progress, console
from examples.zoo import stamp, weights
from examples.zoo.manifesting import TemplateError
from examples.zoo.measuring import MeasuringError
from examples.zoo.weights import WeightsError
from services.domain.errors import YardError

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = ROOT / "build" / "zoo"
PACKAGES = ("numpy", "onnxruntime", "safetensors", "scikit-learn", "skops", "tokenizers", "torch")
"""Libraries whose versions decide what is made."""


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
    fingerprint = stamp.fingerprint_of(
        (Path(__file__).parent, ROOT / "services" / "model_host" / "backends"), packages=PACKAGES, root=ROOT
    )
    if stamp.is_fresh(folder, fingerprint):
        return ready
    # Only now: a run that finds nothing to do need not wait for torch and scikit-learn to be imported.
    from examples.zoo import making  # noqa: PLC0415

    made = making.make(folder, manifests=ready.manifests, held_out=ready.held_out, progress=progress)
    stamp.write(folder, fingerprint, made)
    return ready


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
