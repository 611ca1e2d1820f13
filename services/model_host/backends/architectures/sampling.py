"""The next token by its scores: the likeliest one, or one drawn by a number that the caller brings."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are taken."""

    temperature: float = 0.0
    """0 takes the likeliest token; higher values draw, and flatten the odds."""
    top_p: float = 1.0
    """Draws from the least set of likeliest tokens that has this much of the odds (Holtzman et al., ICLR 2020)."""
    seed: int = 0
    """Keys the draws: the same seed and scores give the same tokens."""


def take(scores: torch.Tensor, sampling: Sampling, chance: float) -> int:
    """One token.

    Args:
        scores: Of every token, [vocabulary].
        sampling: How.
        chance: A random number in [0, 1); not used where the likeliest token is taken.
    """
    if sampling.temperature <= 0.0:
        return int(scores.argmax())
    odds = torch.softmax(scores.double() / sampling.temperature, dim=-1)
    if sampling.top_p >= 1.0:
        return _drawn(odds, chance)
    ordered, tokens = odds.sort(descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    return int(tokens[_drawn(ordered.masked_fill(before >= sampling.top_p, 0.0), chance)])


def _drawn(odds: torch.Tensor, chance: float) -> int:
    """The place where the running sum of the odds passes `chance` of the whole."""
    sums = odds.cumsum(dim=-1)
    place = int(torch.searchsorted(sums, sums[-1] * chance, right=True))
    return min(place, int(odds.nonzero()[-1]))  # rounding must not lead beyond the last possible one
