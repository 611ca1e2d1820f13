"""Reads an architecture's options, which travel as text, and says what is wrong with them."""

import math
from collections.abc import Mapping
from pathlib import Path

from services.domain.errors import ArtifactRejected


def integer(options: Mapping[str, str], name: str, default: int | None = None, *, least: int = 1) -> int:
    """The option as an integer of at least `least`; without a default it is required.

    Raises:
        ArtifactRejected: It is missing, no integer, or too small.
    """
    text = options.get(name)
    if text is None:
        if default is None:
            raise ArtifactRejected(f"option '{name}' is missing; it must be an integer")
        return default
    try:
        value = int(text)
    except ValueError:
        raise ArtifactRejected(f"option '{name}' must be an integer, '{text}' came") from None
    if value < least:
        raise ArtifactRejected(f"option '{name}' must be at least {least}, {value} came")
    return value


def integers(options: Mapping[str, str], name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The option as positive integers between commas; without a default it is required.

    Raises:
        ArtifactRejected: It is missing, empty, or not all positive integers.
    """
    text = options.get(name)
    if text is None and default is not None:
        return default
    try:
        values = tuple(int(part) for part in (text or "").split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise ArtifactRejected(f"option '{name}' must be positive integers between commas, '{text or ''}' came")
    return values


def number(options: Mapping[str, str], name: str, default: float) -> float:
    """The option as a finite number above 0.

    Raises:
        ArtifactRejected: It is none.
    """
    text = options.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise ArtifactRejected(f"option '{name}' must be a number above 0, '{text}' came")
    return value


def choice(options: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str | None = None) -> str:
    """The option as one of `allowed`; without a default it is required.

    Raises:
        ArtifactRejected: It is missing or another value.
    """
    value = options.get(name, default)
    if value not in allowed:
        raise ArtifactRejected(f"option '{name}' must be one of {', '.join(allowed)}; '{value or ''}' came")
    return value


def file(files: Mapping[str, Path], name: str) -> Path:
    """The version's further file of that name.

    Raises:
        ArtifactRejected: The version has no such file.
    """
    if name not in files:
        have = ", ".join(sorted(files)) or "none"
        raise ArtifactRejected(f"file '{name}' is missing among the version's files ({have})")
    return files[name]
