"""The whole of it: `python -m tests.chaos.registry --rounds 300 --seed 1`.

Prints what goes on to stderr, and one line of JSON to stdout. Exits with 0 if nothing was found and every planted bug
was; with 1 if not; with 2 if the run is void: too little traffic, or a kind of fault that never came.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.registry.cluster import scratch
from tests.chaos.registry.faulty import BUGS
from tests.chaos.registry.pauses import Paused, pause_leaders
from tests.chaos.registry.planted import catch, plan
from tests.chaos.registry.run import Plan, Report, Void, run

ELECTIONS = 64
"""Leaders that are paused together."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _figures(report: Report) -> dict[str, Any]:
    verdict = report.verdict
    return {
        "rounds": report.rounds,
        "applies": report.applies,
        "acknowledged": report.acknowledged,
        "least_acknowledged_in_a_round": report.least_acknowledged,
        "unknown": report.unknown,
        "resolved": report.resolved,
        "done_unanswered": report.done_unanswered,
        "revisions": report.revisions,
        "collected": report.collected,
        "kills": report.count("kill_registry", "kill_leading_registry"),
        "stops": report.count("stop_"),
        "restarts": report.count("restart_"),
        "partitions": report.count("cut_"),
        "answers_lost": report.count("lose_answers"),
        "etcd_leader_kills": report.count("kill_etcd_leader", "kill_etcd_majority"),
        "etcd_kills": report.count("kill_etcd"),
        "reader_resumes": report.resumes,
        "watch_cuts": report.watch_cuts,
        "plans_published": report.published,
        "lost": len(verdict.lost),
        "torn": len(verdict.torn) + len(report.verify),
        "phantom": len(verdict.phantom),
        "order_violations": len(verdict.order),
        "reader_faults": len(verdict.readers),
        "watch_faults": len(verdict.watches),
        "internal_errors": len(report.internal),
        "no_network": report.no_network,
    }


def missing(report: Report) -> list[str]:
    """What a run must have had, and had not."""
    wanted = {
        "kills": report.count("kill_registry", "kill_leading_registry"),
        "stops": report.count("stop_"),
        "etcd leader kills": report.count("kill_etcd_leader", "kill_etcd_majority"),
        "partitions": report.count("cut_") if not report.no_network else 1,
        "unknown outcomes": report.unknown,
        "writes that nobody answered": report.done_unanswered,
        "plans": report.published,
        "cuts of watches": report.watch_cuts,
    }
    return [name for name, count in wanted.items() if not count]


def sound(report: Report) -> bool:
    """Whether nothing was found."""
    return report.verdict.clean and not report.verify and not report.internal


async def _main(rounds: int, seed: int, pauses: int, directory: Path) -> int:
    start_s = time.monotonic()
    try:
        report = await run(Plan(rounds=rounds, seed=seed, directory=directory / "run", say=_say))
    except Void as void:
        print(json.dumps({"void": str(void)}))
        return 2
    for line in (*report.verdict.lines(), *report.verify, *report.internal[:10]):
        _say(line)
    _say(f"rounds done after {time.monotonic() - start_s:.0f} s: {dict(report.faults)}")
    paused = await pause_leaders(directory / "pauses", pauses=pauses, elections=min(ELECTIONS, pauses))
    _say(f"pauses done after {time.monotonic() - start_s:.0f} s: {paused.pauses}, {dict(paused.answers)}")
    unfenced = await pause_leaders(directory / "unfenced", pauses=1, elections=min(ELECTIONS, pauses), bug="no-fencing")
    found: dict[str, Sequence[str]] = {}
    for bug in BUGS:
        found[bug] = await catch(bug, directory, seed=seed)
        _say(f"planted {bug}: {', '.join(found[bug]) or 'NOT FOUND'}")
    without = await run(plan(directory / "no-bug", seed=seed, bug=""))
    _say(f"the same without a bug: {'clean' if sound(without) else without.verdict.lines()}")
    figures = {
        **_figures(report),
        **_pause_figures(report, paused, unfenced),
        "planted_bugs_caught": sum(1 for kinds in found.values() if kinds),
        "planted_bugs": found,
        "clean_without_them": sound(without),
        "seed": seed,
        "took_s": round(time.monotonic() - start_s, 1),
    }
    print(json.dumps(figures), flush=True)
    if lacks := missing(report):
        _say(f"void: without {', '.join(lacks)}")
        return 2
    trusted = sound(report) and sound(without) and not paused.stale and not paused.held
    return 0 if trusted and unfenced.stale and all(found.values()) else 1


def _pause_figures(report: Report, paused: Paused, unfenced: Paused) -> dict[str, int]:
    return {
        "pauses": paused.pauses,
        "writes_refused_after_loss": paused.answers["refused"],
        "accepted_after_loss": len(report.verdict.stale) + len(paused.stale),
        "held_after_loss": paused.held,
        "accepted_after_loss_without_the_fence": len(unfenced.stale),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.registry")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pauses", type=int, default=1000)
    parser.add_argument("--directory", type=Path, help="keeps data and logs; default: none kept")
    options = parser.parse_args()
    # One that is asked to end leaves nothing behind either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.directory is not None:
        sys.exit(asyncio.run(_main(options.rounds, options.seed, options.pauses, options.directory)))
    with scratch() as path:
        sys.exit(asyncio.run(_main(options.rounds, options.seed, options.pauses, path)))
