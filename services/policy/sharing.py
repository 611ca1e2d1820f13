"""How much of what is left of a deadline one may take, if others come after it."""

BEHIND_FACTOR = 2.0
"""Those behind are left this many times what they are expected to take: registered times are rough."""

BEHIND_MOST = 0.5
"""Most of what is left that is kept for those behind: whoever is asked first is the one that the route wants."""


def share_s(remaining_s: float, behind_s: float) -> float:
    """Seconds for the one that is asked now.

    Args:
        remaining_s: What is left.
        behind_s: What those behind are expected to take; 0 if there are none.
    """
    return remaining_s - min(BEHIND_MOST * remaining_s, BEHIND_FACTOR * behind_s)
