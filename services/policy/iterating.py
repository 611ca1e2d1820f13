"""Batching of sequences that generate: what one iteration computes, and when a newcomer's first token would come.

Between two iterations sequences join and leave (Yu et al., "Orca", OSDI 2022). Prompts are computed in chunks
beside the others' next tokens (Agrawal et al., "Sarathi-Serve", OSDI 2024), so that a long one delays nobody's
next token by more than one chunk; prompts take turns, so that a long one does not delay a short one's first token
by more than that either.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

NEW_WEIGHT = 0.2
"""Weight of a new measurement in the means."""

FIRST_ANSWER_TOKENS = 64.0
"""How long an answer is taken to be before one has ended."""


@dataclass(slots=True)
class IterationTimes:
    """How long iterations take, learned from each: `step_s + prompt_tokens * prompt_token_s`."""

    step_s: float
    prompt_token_s: float
    answer_tokens: float = FIRST_ANSWER_TOKENS
    """Mean length of answers."""

    def observe(self, *, prompt_tokens: int, took_s: float) -> None:
        """An iteration took `took_s`, what the device did for others meanwhile included."""
        if prompt_tokens == 0:
            self.step_s += NEW_WEIGHT * (took_s - self.step_s)
        else:
            token_s = max(0.0, took_s - self.step_s) / prompt_tokens
            self.prompt_token_s += NEW_WEIGHT * (token_s - self.prompt_token_s)

    def answered(self, tokens: int) -> None:
        """An answer ended after `tokens`."""
        self.answer_tokens += NEW_WEIGHT * (tokens - self.answer_tokens)

    def prefill_s(self, tokens: int, chunk_tokens: int) -> float:
        """Seconds to compute a prompt of `tokens` alone."""
        return math.ceil(tokens / chunk_tokens) * self.step_s + tokens * self.prompt_token_s


def chunks(left: Sequence[int], *, chunk_tokens: int) -> tuple[int, ...]:
    """How many tokens of each prompt the next iteration computes.

    A prompt is always cut in the same places, whoever is beside it: what is computed for it stays the same to the last
    bit. So one that the rest of an iteration has no room for waits for the next one.

    Args:
        left: Tokens of each that are yet to be computed, in the order of their turns.
        chunk_tokens: Most in all.

    Returns:
        As many numbers: of the first in turn its next chunk, of others theirs where that leaves room.
    """
    shares = []
    room = chunk_tokens
    for tokens in left:
        share = min(tokens, chunk_tokens)
        shares.append(share if share <= room else 0)
        room -= shares[-1]
    return tuple(shares)


@dataclass(frozen=True, slots=True)
class Crowd:
    """The sequences that a newcomer meets."""

    free: int
    """Slots that nobody has."""
    ahead: Sequence[int]
    """Tokens of the prompts of those that wait and are due before it."""
    prompts_left: Sequence[int]
    """Tokens of prompts that are being computed, and yet to be."""
    answers_left: Sequence[int]
    """Tokens that each sequence with a slot is expected to want still."""


class Forecast(NamedTuple):
    """When a first token would come."""

    own_s: float
    """For its own prompt, were it alone."""
    wait_s: float
    """For others."""


def answer_left(tokens: int, *, most: int, mean: float) -> int:
    """How many more tokens an answer that has `tokens` of at most `most` is expected to want."""
    return max(1, min(most, math.ceil(mean)) - tokens) if tokens < mean else max(1, (most - tokens) // 2)


def first_token(times: IterationTimes, prompt_tokens: int, crowd: Crowd, *, chunk_tokens: int) -> Forecast:
    """When the first token of a newcomer would come.

    Args:
        times: How long iterations take.
        prompt_tokens: Tokens of its prompt.
        crowd: Whom it meets.
        chunk_tokens: Tokens of prompts in one iteration.
    """
    own_s = times.prefill_s(prompt_tokens, chunk_tokens)
    taken = len(crowd.answers_left)
    slot_s = 0.0
    short_of = len(crowd.ahead) + 1 - crowd.free
    if short_of > 0 and taken:
        # The n-th slot to come free; behind more newcomers than there are slots, whole answers later.
        rounds, place = divmod(short_of - 1, taken)
        steps = sorted(crowd.answers_left)[place] + rounds * times.answer_tokens
        slot_s = steps * times.step_s
    # While its own prompt is computed, others' prompts take turns with it.
    together = [*crowd.prompts_left, *crowd.ahead[: max(0, crowd.free)]]
    others_tokens = sum(min(tokens, prompt_tokens) for tokens in together)
    beside_s = times.prefill_s(prompt_tokens + others_tokens, chunk_tokens) - own_s
    return Forecast(own_s, slot_s + beside_s)
