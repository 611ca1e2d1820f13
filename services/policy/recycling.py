"""When a host process that does not give its memory back is better started anew."""

FLOOR_BYTES = 64 << 20
"""What frameworks keep for good after their first model: thread pools, caches, code. It is no leak."""

SHARE = 0.25
"""Share of what a version took that may stay behind: allocators keep pieces that are partly in use."""

URGENT_SHARE = 0.25
"""Share of the host's budget that may be lost while versions are served: more is worth their short absence."""


def unreturned_bytes(*, took_bytes: int, freed_bytes: int) -> int:
    """What an unload left behind, if that is more than allocators may keep; else 0.

    Args:
        took_bytes: What the version was measured to take for as long as it was loaded.
        freed_bytes: How much less the process holds after the unload.
    """
    left_bytes = took_bytes - max(0, freed_bytes)
    return left_bytes if left_bytes > max(FLOOR_BYTES, int(SHARE * took_bytes)) else 0


def recycles(*, lost_bytes: int, budget_bytes: int, versions: int) -> bool:
    """Whether the process should end and be started anew.

    Args:
        lost_bytes: What unloads have left behind so far.
        budget_bytes: What models may take on this host in all.
        versions: How many are still here; without any, a restart costs nobody anything.
    """
    return lost_bytes > 0 and (versions == 0 or lost_bytes > URGENT_SHARE * budget_bytes)
