"""Whom a call is for, as far as its turn on a device is concerned: its tenant, and the rules of its tier."""

import zlib
from dataclasses import dataclass, field

FIRST_BAND, LAST_BAND = 1, 8
"""Bands by urgency; the first one goes first."""

DEFAULT_BAND = 4
"""Band of calls that no policy says anything about: some may be more urgent, and some less."""


TENANTS = 128
"""Levels within a band: tenants are told apart by a hash, so that overload is borne by some of them and not by part of
each one's calls."""

OPEN = 2 * LAST_BAND * TENANTS
"""The cutoff that refuses nothing."""


@dataclass(frozen=True, slots=True)
class ServiceClass:
    """Calls that are treated alike."""

    tenant: str = ""
    tier: str = ""
    band: int = DEFAULT_BAND
    """1 to 8; 1 goes first."""
    reserved_share: float = 0.0
    """Part of the device's time that other tiers leave to the tier even when they want more, in [0, 1]."""
    weight: float = 1.0
    """The tier's part of what is left, among the tiers of its band."""
    sheddable: bool = False
    """Its calls are the first to be dropped when there is too much work."""
    preempts: bool = True
    """Its calls may push queued calls of lower bands out of a full queue."""

    level: int = field(init=False, compare=False)
    """Where a cutoff meets it, 0 the most important; sheddable classes come after all others."""

    def __post_init__(self) -> None:
        """Work out the level."""
        band = self.band - 1 + (LAST_BAND if self.sheddable else 0)
        object.__setattr__(self, "level", band * TENANTS + zlib.crc32(self.tenant.encode()) % TENANTS)


ORDINARY = ServiceClass()
"""Of calls that come without one."""
