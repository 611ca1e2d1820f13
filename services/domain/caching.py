"""Answers that are kept: what a route says of them, and what a caller wants of them."""

import enum
from dataclasses import dataclass

MAX_AGE_S = 24 * 3600.0
"""Longest that an answer may be kept, and longest that it may stand in past that."""


@dataclass(frozen=True, slots=True)
class Cache:
    """How a route keeps answers."""

    ttl_s: float
    """How old one may become."""
    coalesce: bool = True
    """Identical calls under way at once are computed once."""
    stale_s: float = 0.0
    """How long past `ttl_s` one may stand in where all else fails."""


class CachePolicy(enum.Enum):
    """What a caller wants of kept answers."""

    DEFAULT = "DEFAULT"
    BYPASS = "BYPASS"
    """Computed, and not kept."""
    REFRESH = "REFRESH"
    """Computed, and kept in place of an older one."""


class CacheStatus(enum.Enum):
    """What kept answers had to do with a call."""

    HIT = "HIT"
    MISS = "MISS"
    COALESCED = "COALESCED"
    """The answer to an identical call that was under way."""
    BYPASS = "BYPASS"
