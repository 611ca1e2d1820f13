"""Which code decides: a digest of it, by which a log says what made its choices."""

import hashlib
from functools import cache
from pathlib import Path

_SERVICES = Path(__file__).resolve().parents[1]
_DECIDING = (
    "domain/*.py",
    "policy/*.py",
    *(
        f"router/{name}.py"
        for name in (
            "destination",
            "expecting",
            "host_picking",
            "looking",
            "planning",
            "settling",
            "snapshot",
            "unanswerable",
        )
    ),
)


@cache
def policy_version() -> str:
    """SHA-256 over the modules that decisions are made in, hexadecimal; takes some milliseconds, once."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _DECIDING for path in _SERVICES.glob(pattern)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_SERVICES).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
