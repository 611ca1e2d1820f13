"""Overload: calls of three tiers at up to ten times of what a host can do, with its defence and without.

The device waits instead of computing, so that the peak is known and the CPU is left to the host and its caller.
The top tier asks for a fifth of the peak whatever the load is; the others bring what is missing to it.
"""

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.host_figures import Figures
from benchmarks.host_load import Outcomes, Source, Void, goodput_per_s, late_share, poisson, share_in_time
from benchmarks.host_models import Subject, waiting
from benchmarks.host_process import HOST, Host
from benchmarks.host_stream import Saturation, offer, open_line
from modelyard.type.v1 import service_class_pb2

BASE_MS, PER_ROW_MS, BATCH = 6.0, 3.0, 16
"""16 rows in 54 ms: 296 a second, so that ten times of it are not yet more than the host can read."""

SCALES = {"1x": 0.95, "2x": 2.0, "5x": 5.0, "10x": 10.0}
"""Offered load by name, as a multiple of the peak."""

GOLD_SHARE = 0.2
"""Of the peak; at each scale."""

SILVER_SHARE = 0.4
"""Of what is beside gold; the rest is bronze."""

GOLD_S, SILVER_S, BRONZE_S = 0.25, 0.5, 1.0
"""Deadlines. Two batches and the way there fit into the shortest."""

TENANTS, MANY = 4, 40
"""Of each tier: few, each of which brings as much as the device can do, and many."""

WARM_S = 1.0
"""Of each run; it does not count."""

TAIL_S = 0.3
"""The load goes on for so long after what counts, so that its last calls have the same company as the others."""

MOST_QUEUED = 10_000_000
PROGRAMS = {
    "host": HOST,
    "fifo": ("benchmarks.host_planted", "fifo"),
    "unguarded": ("benchmarks.host_planted", "unguarded"),
}
"""What is run: the product, and what it is compared with."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one host did at one load."""

    goodput_per_s: float
    gold_share: float
    """Calls of the top tier answered in time."""
    gold_calls: int
    wasted_share: float
    """Of its device time, by the host's own count."""
    late_share: float
    """Of its device time, by what came too late for its caller."""
    late_ms: float
    """P99 of how late the generator was."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One load on one program."""

    program: str
    scale: str
    seconds: float
    tenants: int = TENANTS

    @property
    def name(self) -> str:
        """In figures."""
        return f"{self.program}_{self.scale}" if self.tenants == TENANTS else f"many_{self.scale}"


FULL = (
    *(Trial("host", scale, 8.0) for scale in ("1x", "2x", "5x")),
    Trial("host", "10x", 20.0),
    Trial("host", "10x", 12.0, tenants=MANY),
    *(Trial(program, scale, 5.0) for program in ("fifo", "unguarded") for scale in SCALES),
)
"""At the highest load so long that a share of 0.999 of the top tier means something."""

QUICK = (
    Trial("host", "10x", 4.0),
    Trial("fifo", "10x", 1.0),
    Trial("unguarded", "10x", 1.0),
)


def sources(subject: Subject, peak_per_s: float, scale: float, *, tenants: int = TENANTS) -> list[Source]:
    """Who calls, at a multiple of the peak."""
    rest = (scale - GOLD_SHARE) * peak_per_s
    tiers = (
        ("gold", 1, GOLD_SHARE * peak_per_s, GOLD_S),
        ("silver", 3, SILVER_SHARE * rest, SILVER_S),
        ("bronze", 6, (1.0 - SILVER_SHARE) * rest, BRONZE_S),
    )
    return [
        Source(
            name=f"{tier}-{number}",
            per_s=per_s / tenants,
            timeout_s=timeout_s,
            key=subject.key,
            requests=subject.requests,
            service_class=service_class_pb2.ServiceClass(
                tenant=f"{tier}-{number}", tier=tier, band=band, sheddable=tier == "bronze", preempts=True
            ),
        )
        for tier, band, per_s, timeout_s in tiers
        for number in range(tenants)
    ]


async def peak_per_s(host: Host, subject: Subject, seconds: float) -> float:
    """Answers a second while there is always more to do, and no deadline presses."""
    source = Source("all", 0.0, 30.0, subject.key, subject.requests)
    async with open_line(host.channel) as line:
        await Saturation(line, source, in_flight=4 * BATCH).run(seconds=0.3)
        return await Saturation(line, source, in_flight=4 * BATCH).run(seconds=seconds)


async def run_trial(folder: Path, trial: Trial, subject: Subject, peak: float, *, seed: int) -> Run:
    """One fresh host under one load.

    Raises:
        Void: The generator was late.
    """
    flags = () if trial.program == "host" else ("--max-queued", str(MOST_QUEUED))
    callers = sources(subject, peak, SCALES[trial.scale], tenants=trial.tenants)
    plan = poisson(callers, WARM_S + trial.seconds + TAIL_S, seed=seed)
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(Host(folder, program=PROGRAMS[trial.program], flags=flags))
        await host.load(subject.model, subject.version)
        line = await stack.enter_async_context(open_line(host.channel))
        outcomes = await offer(line, plan, grace_s=BRONZE_S)
        done = await host.done(subject.name)
    outcomes.check_generator()
    return run_of(outcomes, seconds=trial.seconds, wasted_share=done.wasted_s / max(1e-9, done.device_s))


def run_of(outcomes: Outcomes, *, seconds: float, wasted_share: float) -> Run:
    """What became of the calls after the warm-up."""

    def is_gold(source: Source) -> bool:
        return source.name.startswith("gold")

    until_s = WARM_S + seconds
    counted = outcomes.of(is_gold) & (outcomes.plan.at_s >= WARM_S) & (outcomes.plan.at_s < until_s)
    return Run(
        goodput_per_s=goodput_per_s(outcomes, from_s=WARM_S, until_s=until_s),
        gold_share=share_in_time(outcomes, is_gold, from_s=WARM_S, until_s=until_s),
        gold_calls=int(counted.sum()),
        wasted_share=wasted_share,
        late_share=late_share(outcomes),
        late_ms=outcomes.late_ms(0.99),
    )


async def measure(folder: Path, *, quick: bool, seed: int, tell: Callable[[str], None]) -> Figures:
    """Every load on every program; what is compared gets the same calls."""
    subject = waiting("tiers", base_ms=BASE_MS, per_row_ms=PER_ROW_MS, batch=BATCH)
    async with Host(folder / "peak") as host:
        await host.load(subject.model, subject.version)
        peak = await peak_per_s(host, subject, 1.0 if quick else 4.0)
    figures: Figures = {"overload_peak_per_s": peak}
    tell(f"peak {peak:.0f}/s")
    late_ms = 0.0
    for trial in QUICK if quick else FULL:
        try:
            run = await run_trial(folder / trial.name, trial, subject, peak, seed=seed)
        except Void as void:
            tell(f"{trial.name}: void: {void}")
            continue
        late_ms = max(late_ms, run.late_ms)
        figures |= {
            f"goodput_{trial.name}": run.goodput_per_s / peak,
            f"gold_in_slo_{trial.name}": run.gold_share,
            f"wasted_{trial.name}": run.wasted_share,
            f"late_{trial.name}": run.late_share,
        }
        tell(
            f"{trial.name}: goodput {run.goodput_per_s / peak:.3f} of the peak, gold {run.gold_share:.4f} of "
            f"{run.gold_calls}, wasted {run.wasted_share:.4f}, late {run.late_share:.4f}, "
            f"generator late {run.late_ms:.1f} ms"
        )
    return figures | {"overload_generator_late_p99_ms": late_ms}
