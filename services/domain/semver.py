"""How versions are named and ordered: Semantic Versioning 2.0.0."""

import re

_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?"
)


def is_semver(version: str) -> bool:
    """Whether `version` may name a version."""
    return _SEMVER.fullmatch(version) is not None


def semver_order(version: str) -> tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...]]:
    """Sort key of a valid semver, by its section 11; build metadata does not count."""
    match = _SEMVER.fullmatch(version)
    if match is None:
        return ((-1, -1, -1), False, ())
    release = (int(match[1]), int(match[2]), int(match[3]))
    if match[4] is None:
        return (release, True, ())
    parts = tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in match[4].split("."))
    return (release, False, parts)
