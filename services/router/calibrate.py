"""Fits a table of what confidences are worth: `python -m services.router.calibrate < SAMPLES`.

`yardctl cascade fit` runs it. Reads lines of `confidence,right`, where right is 1 or 0, and prints one JSON object: the
points, how many samples they are from, and the calibration error of a fit to four fifths on the other fifth.
"""

import json
import sys
from collections.abc import Iterable
from typing import TextIO

from services.policy.calibrating import LEAST_SAMPLES, Sample, calibration_error, fit

HELD_OUT = 5
"""One sample in so many is held out to measure the error."""

UNUSABLE = 2


def main(source: TextIO, to: TextIO, complain: TextIO) -> int:
    """Fit what `source` says; returns the exit status."""
    try:
        samples = list(samples_of(source))
        table = fit(samples)
        held = samples[::HELD_OUT]
        kept = [sample for at, sample in enumerate(samples) if at % HELD_OUT]
        error = calibration_error(fit(kept), held) if len(kept) >= LEAST_SAMPLES else None
    except ValueError as wrong:
        complain.write(f"{wrong}\n")
        return UNUSABLE
    points = [[point.confidence, point.right] for point in table.points]
    right = sum(sample.right for sample in samples) / len(samples)
    to.write(json.dumps({"points": points, "samples": len(samples), "right": right, "calibration_error": error}) + "\n")
    return 0


def samples_of(lines: Iterable[str]) -> Iterable[Sample]:
    """Samples out of lines; a first line without numbers is a heading.

    Raises:
        ValueError: A line is none; says which.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        confidence, _, right = line.partition(",")
        try:
            sure = float(confidence)
        except ValueError:
            if number == 1:
                continue
            raise ValueError(f"line {number}: '{confidence.strip()[:40]}' is no confidence") from None
        said = right.strip().lower()
        if said not in ("0", "1", "true", "false"):
            raise ValueError(f"line {number}: '{said[:40]}' must be 1 for right or 0 for wrong")
        yield Sample(sure, said in ("1", "true"))


if __name__ == "__main__":
    sys.exit(main(sys.stdin, sys.stdout, sys.stderr))
