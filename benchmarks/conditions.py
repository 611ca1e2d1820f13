"""What a figure depends on besides the code: machine, versions, commit, how it was measured."""

import datetime
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from benchmarks.envoy import CONCURRENCY, envoy_version
from benchmarks.places import ROOT
from benchmarks.shapes import SubjectName

PACKAGES = ("grpcio", "protobuf", "uvloop", "numpy", "torch", "pygrpc-native")


@dataclass(frozen=True, slots=True)
class Conditions:
    """How and where it was measured."""

    day: str
    commit: str
    """With `+` where the tree held more than the commit."""
    cores: int
    processor: str
    system: str
    python: str
    packages: dict[str, str]
    envoy: str | None
    envoy_concurrency: int
    generator: str
    lead: SubjectName
    """The engine that figures without an engine's name are of."""
    repetitions: int
    seconds: float
    quick: bool
    others_share: float
    """Share of the machine's CPU that went to whatever was not measured, in the middle of all measurements."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def conditions_now(
    *, generator: str, lead: SubjectName, repetitions: int, seconds: float, quick: bool, others_share: float
) -> Conditions:
    """Those of this machine and this tree."""
    return Conditions(
        day=datetime.datetime.now(datetime.UTC).date().isoformat(),
        commit=_git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
        cores=psutil.cpu_count() or 0,
        processor=_processor(),
        system=f"{platform.system()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages={name: found for name in PACKAGES if (found := _version(name))},
        envoy=envoy_version(),
        envoy_concurrency=CONCURRENCY,
        generator=generator,
        lead=lead,
        repetitions=repetitions,
        seconds=seconds,
        quick=quick,
        others_share=round(others_share, 3),
    )


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
