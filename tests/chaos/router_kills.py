"""Hosts killed one after the other under load: `python -m tests.chaos.router_kills --kills 200 --seed 1`.

Prints what goes on to stderr, and one line of JSON to stdout. Exits with 0 if no call failed, with 1 if one did, with 2
if the run is void: too few calls, or too few that a kill hit.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.host_load import Void
from benchmarks.router_kills import run


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Kill, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of arrivals")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelyard-kills-") as name:
        found = asyncio.run(run(Path(name), kills=arguments.kills, seed=arguments.seed, tell=_say))
    print(json.dumps({**vars(found), "extra_ms": round(found.extra_ms), "failures": dict(found.failures)}))
    try:
        found.check()
    except Void as void:
        _say(f"void: {void}")
        return 2
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
