"""What is measured: which work, under which load, on which subjects."""

from dataclasses import dataclass
from typing import Literal

Work = Literal["200 B", "600 KB", "MLP", "ModelStreamInfer", "InferMany"]
SubjectName = Literal["one-hop", "two-hop", "envoy", "aio", "native", "untraced", "traced"]

REFERENCES: tuple[SubjectName, ...] = ("one-hop", "two-hop", "envoy")
MESHES: tuple[SubjectName, ...] = ("aio", "native")
TRACE_RATIOS: dict[SubjectName, float] = {"aio": 0.01, "native": 0.01, "untraced": 0.0, "traced": 1.0}

STREAMS = 4
WINDOW = 16

LABELS: dict[SubjectName, str] = {
    "one-hop": "one-hop grpc.aio",
    "two-hop": "two-hop grpc.aio",
    "envoy": "Envoy → native echo",
    "aio": "mesh, aio engine",
    "native": "mesh, native engine",
    "untraced": "mesh, tracing 0 %",
    "traced": "mesh, tracing 100 %",
}


@dataclass(frozen=True, slots=True)
class Load:
    """One way to load a server."""

    name: str
    flags: tuple[str, ...]
    is_open: bool = False
    """Open loop: calls leave whatever comes back, so that some may fail where there are too many."""


def callers(count: int) -> Load:
    """Closed loop."""
    return Load(f"{count} caller{'s' if count > 1 else ''}", ("--callers", str(count)))


def rate(per_s: int) -> Load:
    """Open loop."""
    return Load(f"{per_s:,}/s open loop", ("--rate", str(per_s)), is_open=True)


def large_rate(per_s: int, cap: int) -> Load:
    """Open loop of large calls: `cap` bounds the memory that those in flight take where they pile up."""
    return Load(f"{per_s:,}/s open loop", ("--rate", str(per_s), "--cap", str(cap)), is_open=True)


def streams(*flags: str) -> Load:
    """Streams with a window each."""
    name = f"{STREAMS} streams, {WINDOW} in flight each"
    return Load(name, ("--stream", *flags, "--callers", str(STREAMS), "--window", str(WINDOW)))


ONE, EIGHT, MANY = callers(1), callers(8), callers(64)
SLOW, FAST = rate(300), rate(1000)
SLOW_LARGE = large_rate(300, cap=256)
STREAM, STREAM_MANY = streams(), streams("--many")


@dataclass(frozen=True, slots=True)
class Shape:
    """One row of the matrix: a work under a load, measured on each subject in turn."""

    work: Work
    load: Load
    subjects: tuple[SubjectName, ...]


def full_matrix() -> tuple[Shape, ...]:
    """Everything."""
    everyone = (*REFERENCES, *MESHES)
    return (
        *(Shape("200 B", load, everyone) for load in (ONE, EIGHT, SLOW, FAST)),
        Shape("200 B", MANY, (*everyone, "untraced", "traced")),
        *(Shape("600 KB", load, everyone) for load in (ONE, EIGHT, MANY, SLOW_LARGE)),
        *(Shape("MLP", load, MESHES) for load in (EIGHT, MANY, SLOW)),
        Shape("ModelStreamInfer", STREAM, MESHES),
        Shape("InferMany", STREAM_MANY, MESHES),
    )


def quick_matrix(lead: SubjectName) -> tuple[Shape, ...]:
    """What the figures by name need, of the engine that leads."""
    return (
        Shape("200 B", ONE, ("two-hop", lead)),
        Shape("200 B", EIGHT, (lead,)),
        Shape("200 B", MANY, ("two-hop", "envoy", *MESHES, "untraced", "traced")),
        Shape("200 B", SLOW, (lead,)),
        Shape("600 KB", EIGHT, ("one-hop", lead)),
        Shape("MLP", MANY, (lead,)),
        Shape("ModelStreamInfer", STREAM, (lead,)),
        Shape("InferMany", STREAM_MANY, (lead,)),
    )
