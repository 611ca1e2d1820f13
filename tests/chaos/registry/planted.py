"""Runs with a bug planted: a checker that does not find it proves nothing of the product."""

from dataclasses import replace
from pathlib import Path

from tests.chaos.registry import faulty
from tests.chaos.registry.checker import Verdict
from tests.chaos.registry.faulty import Bug
from tests.chaos.registry.run import Plan, run

ROUNDS = 2
TRIES = 3
"""Whether a bug shows is a matter of timing, if not much: so many seeds are tried."""

EXPECTED: dict[Bug, tuple[str, ...]] = {
    "no-compare": ("lost", "torn"),
    "no-fencing": ("stale",),
    "created-header": ("watches",),
    "no-memory": ("phantom",),
}
"""Which findings each bug must lead to, at least."""


def plan(directory: Path, *, seed: int, bug: str) -> Plan:
    """A short run without faults, in a hurry; without a bug nothing is found in it."""
    return Plan(
        rounds=ROUNDS,
        seed=seed,
        directory=directory,
        bug=bug,
        faults=False,
        apart=False,
        pause_s=0.05,
        publish_s=0.0,
        converge_s=5.0,
    )


async def catch(bug: Bug, directory: Path, *, seed: int) -> tuple[str, ...]:
    """Run with a bug; returns the kinds of findings, and none if those expected are not among them."""
    for each in range(seed, seed + TRIES):
        found = kinds(await _verdict(plan(directory / f"{bug}-{each}", seed=each, bug=bug)))
        if set(EXPECTED[bug]) <= set(found):
            return found
    return ()


async def _verdict(with_bug: Plan) -> Verdict:
    if with_bug.bug != "created-header":
        return (await run(with_bug)).verdict
    with faulty.planted("created-header"):
        # The registries only take a watch as a hint and read the head themselves; so it is the watch that is judged.
        return (await run(replace(with_bug, bug=""))).verdict


def kinds(verdict: Verdict) -> tuple[str, ...]:
    """The kinds of findings that a verdict has."""
    return tuple(name for name in Verdict.__dataclass_fields__ if getattr(verdict, name))
