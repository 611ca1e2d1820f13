"""Where things are: the repository, what was built for the benchmark, and what it writes."""

from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
BUILD = ROOT / "build" / "bench"
"""The generator, Envoy, and what a quick run writes. Made by `tools/bench_tools.sh`."""

RECORD = "last.json"
PLOT = "hot_path.svg"
PAGE = "README.md"
