"""Third-party clients in a venv of their own: they need another protobuf than the project."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INSTALL_S = 600
RUN_S = 100


def python() -> Path:
    """The venv's Python; made on the first use, which takes a while."""
    script = ROOT / "tools" / "clients_venv.sh"
    with script.open() as lock:
        # Tests in other processes want it as well: one makes it, and they wait.
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(
            [script],
            env={**os.environ, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
    assert made.returncode == 0, f"the clients cannot be installed:\n{made.stderr[-2000:]}"
    return Path(made.stdout.strip().splitlines()[-1])


def run(script: str, *arguments: str) -> Any:
    """Run a script of tests/e2e/clients; what it prints is JSON."""
    path = ROOT / "tests" / "e2e" / "clients" / script
    done = subprocess.run(
        [python(), "-I", path, *arguments], capture_output=True, text=True, timeout=RUN_S, check=False
    )
    assert done.returncode == 0, f"{script} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout)


def descriptors() -> bytes:
    """tritonclient's descriptors, as a serialized FileDescriptorSet."""
    return bytes.fromhex(run("dump_descriptors.py"))
