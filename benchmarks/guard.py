"""Whether the mesh has become slower: compares the ratios of a run with the recorded ones.

    python -m benchmarks.guard                   # a fresh quick run
    python -m benchmarks.guard --record FILE     # a run that was recorded before

Ratios, because absolute times say as much about the machine as about the code. A command for people and for
schedules, not a test: a busy machine can make it fail. Exits with 1 on a regression, with 2 where there is nothing to
compare.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import HIGHER_IS_BETTER, RATIOS
from benchmarks.places import BUILD, FOLDER, RECORD, ROOT

TOLERANCE = 0.15
OPTIONAL = frozenset({"native_vs_envoy"})
"""Figures whose absence says something of the machine only: Envoy could not be installed there."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One ratio, then and now."""

    name: str
    then: float | None
    now: float | None
    change: float | None
    """Positive is better, as a share of what it was."""
    is_regression: bool

    @property
    def word(self) -> str:
        """In a word."""
        if self.is_regression:
            return "REGRESSION" if self.now is not None else "MISSING"
        return "ok" if self.change is not None else "not compared"


def compare(then: dict[str, float | None], now: dict[str, float | None], *, tolerance: float) -> list[Verdict]:
    """Judge every ratio.

    Args:
        then: Ratios by name, as recorded.
        now: Those to judge.
        tolerance: Share by which one may be worse.
    """
    found = []
    for name in RATIOS:
        before, after = then.get(name), now.get(name)
        if before and after:
            change = after / before - 1 if name in HIGHER_IS_BETTER else before / after - 1
            found.append(Verdict(name, before, after, change, change < -tolerance))
        else:
            lost = before is not None and after is None and name not in OPTIONAL
            found.append(Verdict(name, before, after, None, lost))
    return found


def medians_in(path: Path) -> dict[str, float | None]:
    """The figures of a record by name.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no record.
    """
    try:
        figures = json.loads(path.read_text())["figures"]
        return {name: spread and float(spread["median"]) for name, spread in figures.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of the benchmark") from error


def conditions_in(path: Path) -> dict[str, object]:
    """How a record was made; empty if it does not say."""
    found = json.loads(path.read_text()).get("conditions", {})
    return found if isinstance(found, dict) else {}


def differences(then: dict[str, object], now: dict[str, object]) -> list[str]:
    """Conditions that differ and matter, for people to know."""
    named = ("generator", "lead", "cores", "processor", "envoy")
    return [f"{name}: {then.get(name)} then, {now.get(name)} now" for name in named if then.get(name) != now.get(name)]


def table(verdicts: list[Verdict]) -> str:
    """For people."""
    rows = [f"{'ratio':20} {'then':>8} {'now':>8} {'better by':>10}"]
    for each in verdicts:
        then, now = (f"{value:8.3f}" if value is not None else f"{'-':>8}" for value in (each.then, each.now))
        change = f"{each.change:+10.1%}" if each.change is not None else f"{'-':>10}"
        rows.append(f"{each.name:20} {then} {now} {change}  {each.word}")
    return "\n".join(rows)


def main() -> int:
    """Compare; measure first if no record is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="a record to judge; without it a quick run is made")
    parser.add_argument("--against", type=Path, default=FOLDER / RECORD, help="the record to compare with")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share by which a ratio may be worse")
    arguments = parser.parse_args()
    record = arguments.record or BUILD / RECORD
    if arguments.record is None:
        done = subprocess.run([sys.executable, "-m", "benchmarks.hot_path", "--quick"], cwd=ROOT, check=False)
        if done.returncode:
            return 2
    try:
        verdicts = compare(medians_in(arguments.against), medians_in(record), tolerance=arguments.tolerance)
        notes = differences(conditions_in(arguments.against), conditions_in(record))
    except (OSError, ValueError) as error:
        print(f"nothing to compare: {error}", file=sys.stderr)
        return 2
    print(table(verdicts))
    for note in notes:
        print(f"note: {note}")
    worse = [each.name for each in verdicts if each.is_regression]
    if worse:
        print(f"worse by more than {arguments.tolerance:.0%}, or missing: {', '.join(worse)}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
