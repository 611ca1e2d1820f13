"""Which load generator measures here, and how it is run.

The compiled one (`benchmarks/generator`, built by `tools/bench_tools.sh`) costs a tenth of the CPU of the one on
grpc.aio (`benchmarks/load.py`), which takes its place where nothing can be compiled and cannot do all that it can.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.places import BUILD, ROOT

COMPILED = BUILD / "generator"
LONGER_S = 60.0
"""A generator that runs for so much longer than asked hangs."""
_COMPILED_ONLY = frozenset({"--stream", "--many", "--cancel-share", "--count", "--cap", "--metadata"})

Name = Literal["nghttp2", "grpc.aio"]


class LoadError(Exception):
    """The generator could not do its work; the text says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run of the generator."""

    answered: int
    failed: int
    cancelled: int
    per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    generator_cpu_us: float
    """CPU that the generator used, by request answered."""
    seconds: float
    failures: dict[str, int]
    """Failed requests by gRPC status or cause."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is sent: a method, the bytes of a request, and bytes that each right answer contains."""

    method: str
    payload: Path
    expect: Path | None = None


@dataclass(frozen=True, slots=True)
class Generator:
    """A load generator, as a command."""

    name: Name
    command: tuple[str, ...]

    def can(self, flags: tuple[str, ...]) -> bool:
        """Whether it knows all of the flags."""
        return self.name == "nghttp2" or not _COMPILED_ONLY.intersection(flags)

    def run(self, target: str, call: Call, flags: tuple[str, ...], *, seconds: float) -> Outcome:
        """Load `target` (host:port), in a process of its own, and wait for what comes of it.

        Args:
            target: The server.
            call: What to send.
            flags: How: callers or rate, streams.
            seconds: How long; 0 where `flags` give a count.

        Raises:
            LoadError: It could not be run, or hung.
        """
        command = [*self.command, "--target", target, "--method", call.method, "--payload", str(call.payload), *flags]
        if call.expect is not None:
            command += ["--expect", str(call.expect)]
        if seconds:
            command += ["--seconds", str(seconds)]
        limit_s = seconds + LONGER_S if seconds else None
        try:
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=limit_s)
        except subprocess.CalledProcessError as error:
            raise LoadError(str(error.stderr).strip() or f"the generator ended with code {error.returncode}") from error
        except subprocess.TimeoutExpired as error:
            raise LoadError(f"the generator hangs at {target}") from error
        found = json.loads(done.stdout)
        found.pop("generator", None)
        found.pop("reconnected", None)
        return Outcome(**found)


def find_generator() -> Generator:
    """The compiled one if it was built, else the one on grpc.aio."""
    if COMPILED.exists():
        return Generator("nghttp2", (str(COMPILED),))
    return Generator("grpc.aio", (sys.executable, "-m", "benchmarks.load"))
