"""`python -m services.router.replay`: decides anew what logs say, over the objects of their revisions.

Prints one JSON object. What it needs comes from files, so that it asks nobody and can be run wherever they are.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from modelyard.inference.v1 import decision_log_pb2 as pb
from modelyard.registry.v1 import objects_pb2, registry_pb2
from services.chassis.delimited import Delimited
from services.chassis.object_codec import readable
from services.router.deciding_code import policy_version
from services.router.replaying import Replay, Tally, Unreadable
from services.router.snapshot import Objects

SAME, DIFFERENT, UNUSABLE = 0, 1, 2
"""Exit codes: nothing differs; something does, or could not be decided again; a file cannot be used."""

_HELD = 16
"""Most revisions whose objects are held at once."""


def objects_of(path: Path, revision: int) -> Objects:
    """The objects in a file that `yardctl export` wrote, as those of a revision.

    Raises:
        Unreadable: It is no such file, or damaged, or a whole history.
        OSError: It cannot be read.
    """
    records = Delimited(path, registry_pb2.Bundle)
    found: list[objects_pb2.Object] = []
    whole = False
    for at, record in enumerate(records):
        which = record.WhichOneof("record")
        if (at == 0) != (which == "header") or (which == "header" and record.header.history):
            raise Unreadable(f"{path}: not the export of one revision")
        if which == "object":
            found.append(objects_pb2.Object.FromString(record.object))
        whole = which == "end"
    if not whole:
        raise Unreadable(f"{path}: {records.torn or 'is cut off'}")
    return Objects().changed(revision, readable(found)[0])


def main(argv: list[str]) -> int:
    """Replay, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.router.replay", description=__doc__)
    parser.add_argument(
        "--objects",
        action="append",
        default=[],
        metavar="[REVISION=]FILE",
        help="objects as exported; without a revision for all that have no file of their own",
    )
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG")
    given = parser.parse_args(argv)
    try:
        paths = _paths(given.objects)
        report = _replay(given.logs, paths)
    except (OSError, Unreadable, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return UNUSABLE
    sys.stdout.write(json.dumps(report) + "\n")
    return DIFFERENT if report["differences"] or report["unknown_revisions"] else SAME


def _paths(given: list[str]) -> dict[int, Path]:
    """Files by revision; 0 is for all others."""
    found = {}
    for text in given:
        number, separator, path = text.partition("=")
        numbered = bool(separator) and number.isdigit()
        found[int(number) if numbered else 0] = Path(path if numbered else text)
    return found


def _replay(logs: list[Path], paths: Mapping[int, Path]) -> dict[str, object]:
    tally, torn = Tally(), {}

    @lru_cache(_HELD)
    def objects(revision: int) -> Objects | None:
        path = paths.get(revision) or paths.get(0)
        return None if path is None else objects_of(path, revision)

    first_in = ""
    for path in logs:
        replay, entries = Replay(objects, tally), Delimited(path, pb.LogEntry)
        for entry in entries:
            try:
                replay.take(entry)
            except Unreadable as error:
                raise Unreadable(f"{path}: {error}") from None
            if tally.first is not None and not first_in:
                first_in = str(path)
        if not replay.begun:
            raise Unreadable(f"{path}: not a decision log: {entries.torn or 'it is empty'}")
        if entries.torn:
            torn[str(path)] = entries.torn
    report = asdict(tally)
    report["policies"] = sorted(tally.policies)
    if tally.first is not None:
        report["first"]["file"] = first_in
    return {**report, "torn": torn, "policy": policy_version()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
