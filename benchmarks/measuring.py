"""Measures: loads a subject once, and keeps what every repetition gave."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import psutil

from benchmarks.generators import Generator, LoadError, Outcome
from benchmarks.shapes import Load, Shape, SubjectName, Work
from benchmarks.subjects import Subject
from services.domain.clock import SystemClock

_CLOCK = SystemClock()

Repetitions = dict[int, float]
"""A figure by the number of the repetition."""


class Void(Exception):
    """A measurement that does not count; the text says why."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Middle, least and most of several repetitions."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Of these; None of none."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found)) if found else None


@dataclass(slots=True)
class Series:
    """Every repetition of one shape on one subject, by figure."""

    values: dict[str, Repetitions] = field(default_factory=dict)
    voids: list[str] = field(default_factory=list)

    def add(self, repetition: int, figures: Mapping[str, float]) -> None:
        """Take one repetition."""
        for name, value in figures.items():
            self.values.setdefault(name, {})[repetition] = value

    def of(self, name: str) -> Repetitions:
        """A figure's repetitions; none if it was not measured."""
        return self.values.get(name, {})

    def spread(self, name: str) -> Spread | None:
        """A figure's middle, least and most."""
        return Spread.of(self.of(name).values())


@dataclass(slots=True)
class Results:
    """Every series, by subject, work and load."""

    series: dict[tuple[SubjectName, Work, str], Series] = field(default_factory=dict)
    repetitions: int = 0
    """Rounds that count."""

    def of(self, subject: SubjectName, work: Work, load: Load) -> Series:
        """The series; an empty one if there is none."""
        return self.series.get((subject, work, load.name), Series())

    def kept(self, subject: SubjectName, shape: Shape) -> Series:
        """The series, to add to."""
        return self.series.setdefault((subject, shape.work, shape.load.name), Series())

    def others_share(self) -> float:
        """Share of the machine's CPU that went to whatever was not measured, in the middle of all measurements."""
        found = [value for series in self.series.values() for value in series.of("others_share").values()]
        return statistics.median(found) if found else 0.0

    def voids(self) -> Iterator[str]:
        """What did not count, as text."""
        for (subject, work, load), series in self.series.items():
            for why in series.voids:
                yield f"{subject}, {work}, {load}: {why}"


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds that a process has used, user and system."""
    times = process.cpu_times()
    return float(times.user + times.system)


def machine_cpu_s() -> float:
    """CPU seconds that all of the machine has used."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def spent_cpu_s() -> float:
    """CPU seconds of this process and of those that it started and that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def measure(generator: Generator, subject: Subject, shape: Shape, seconds: float) -> dict[str, float]:
    """Load a subject once.

    Raises:
        Void: It could not be done, or calls failed although none had to.
    """
    started_s, machine_s = _CLOCK.now_s(), machine_cpu_s()
    before = {name: cpu_s(process) for name, process in subject.processes.items()}
    try:
        outcome = generator.run(subject.target, subject.calls[shape.work], shape.load.flags, seconds=seconds)
    except LoadError as error:
        raise Void(str(error)) from error
    cpu = {name: cpu_s(process) - before[name] for name, process in subject.processes.items()}
    refuse(outcome, is_open=shape.load.is_open)
    capacity_s = (_CLOCK.now_s() - started_s) * (psutil.cpu_count() or 1)
    own_s = sum(cpu.values()) + outcome.generator_cpu_us * outcome.answered / 1e6
    return {
        "per_s": outcome.per_s,
        "p50_ms": outcome.p50_ms,
        "p99_ms": outcome.p99_ms,
        "max_ms": outcome.max_ms,
        "failed_share": outcome.failed / (outcome.answered + outcome.failed),
        "generator_cpu_us": outcome.generator_cpu_us,
        **{f"{name}_cpu_us": used_s * 1e6 / outcome.answered for name, used_s in cpu.items()},
        "cpu_us": sum(cpu.values()) * 1e6 / outcome.answered,
        "others_share": max(0.0, (machine_cpu_s() - machine_s - own_s) / capacity_s),
    }


def refuse(outcome: Outcome, *, is_open: bool) -> None:
    """Refuse what says nothing.

    Raises:
        Void: Nothing was answered, or calls failed in closed loop.
    """
    if not outcome.answered or (outcome.failed and not is_open):
        causes = ", ".join(f"{cause}: {count}" for cause, count in outcome.failures.items())
        raise Void(f"{outcome.failed} of {outcome.answered + outcome.failed} calls failed ({causes})")


def measure_all(
    generator: Generator,
    subjects: Mapping[SubjectName, Subject],
    shapes: Iterable[Shape],
    *,
    repetitions: int,
    seconds: float,
    warm_s: float,
    until_s: float,
    tell: Callable[[str], None],
) -> Results:
    """Every shape on every subject in turn, so that drift of the machine hits all; a first round warms up.

    Args:
        generator: What loads.
        subjects: What is up.
        shapes: What to measure.
        repetitions: Rounds that count.
        seconds: Of each measurement.
        warm_s: Of each in the round that does not count.
        until_s: When to be done, by the monotonic clock: a round that would end later does not begin, unless it is
            the first that counts.
        tell: Told of every measurement.
    """
    results = Results()
    took_s = 0.0
    for repetition in range(repetitions + 1):
        begun_s = _CLOCK.now_s()
        if repetition > 1 and begun_s + took_s > until_s:
            tell(f"no time for more than {results.repetitions} repetitions")
            break
        for shape in shapes:
            for name in shape.subjects:
                subject = subjects.get(name)
                if subject is None or shape.work not in subject.calls or not generator.can(shape.load.flags):
                    continue
                at = f"{repetition}/{repetitions} {name:8} {shape.work:16} {shape.load.name:31}"
                try:
                    figures = measure(generator, subject, shape, seconds if repetition else warm_s)
                except Void as void:
                    tell(f"{at} void: {void}")
                    if repetition:
                        results.kept(name, shape).voids.append(str(void))
                    continue
                if repetition:
                    results.kept(name, shape).add(repetition, figures)
                tell(
                    f"{at} {figures['per_s']:8,.0f}/s  P50 {figures['p50_ms']:8.2f} ms  "
                    f"P99 {figures['p99_ms']:8.2f} ms  {figures['cpu_us']:7.0f} µs CPU"
                )
        results.repetitions = repetition
        took_s = _CLOCK.now_s() - begun_s
    return results
