"""Durations and sizes as people write them: `250ms`, `1m30s`, `512MiB`. Exact in both directions."""

import re
from decimal import Decimal

_NANOS = {"h": 3_600_000_000_000, "m": 60_000_000_000, "s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|us|ns|m|s)")
_DURATION = re.compile(rf"-?(?:{_DURATION_PART.pattern})+")
_SIZE = re.compile(r"(-?\d+(?:\.\d+)?) ?(B|[kMGT]B|[KMGT]iB)")


def parse_duration(text: str) -> int:
    """Nanoseconds of `30s`, `250ms` or `1m30s`.

    Raises:
        ValueError: It is none, or finer than a nanosecond.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f"'{text}' is no duration such as 30s, 250ms or 1m30s")
    total = sum(Decimal(part[1]) * _NANOS[part[2]] for part in _DURATION_PART.finditer(text))
    nanos = int(total)
    if nanos != total:
        raise ValueError(f"'{text}' is finer than a nanosecond")
    return -nanos if text.startswith("-") else nanos


def format_duration(nanos: int) -> str:
    """The inverse of `parse_duration`: a whole number of the largest unit, up to seconds, that is exact."""
    unit = next(unit for unit in ("s", "ms", "us", "ns") if nanos % _NANOS[unit] == 0)
    return f"{nanos // _NANOS[unit]}{unit}"


def parse_size(text: str) -> int:
    """Bytes of `512MiB` or `1.5GB`.

    Raises:
        ValueError: It is none, or not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is no size such as 512MiB or 2GB")
    total = Decimal(match[1]) * _BYTES[match[2]]
    if total != int(total):
        raise ValueError(f"'{text}' is no whole number of bytes")
    return int(total)


def format_size(size_bytes: int) -> str | int:
    """The inverse of `parse_size` where a binary unit is exact, else the number of bytes."""
    for unit in ("TiB", "GiB", "MiB"):
        if size_bytes and size_bytes % _BYTES[unit] == 0:
            return f"{size_bytes // _BYTES[unit]}{unit}"
    return size_bytes
