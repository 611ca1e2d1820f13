"""Sequences that a model generates: what passes between callers, the engine that batches them, and the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias

from services.domain.errors import YardError

Wish: TypeAlias = bool | int | float | str
"""The value of a request's parameter, such as `max_tokens`."""

NO_WISHES: Mapping[str, Wish] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request, as the model has read it."""

    tokens: int
    """Tokens to be computed before the first one comes; at least 1."""
    most: int
    """Most tokens of the answer; at least 1."""
    content: object
    """The model's own."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one step computes, in this order. Sequences go by the slot that they have."""

    leaves: tuple[int, ...] = ()
    """Slots that are free from now on."""
    joins: tuple[tuple[int, Prompt], ...] = ()
    """Slots that are taken, and by what."""
    prefill: tuple[tuple[int, int], ...] = ()
    """Slots, and how many further tokens of their prompts to compute; with its last one a prompt gives a token."""
    decode: tuple[int, ...] = ()
    """Slots to compute one further token of."""


class Advance(NamedTuple):
    """What one step did for one sequence."""

    tokens: int
    """Tokens of the answer that it computed; 0 within a prompt."""
    outputs: Mapping[str, object] | None
    """A piece of the answer; None if there is none yet, such as of half a character."""
    finished: str
    """Why it ends with this: `end` (the model's own), `stop` (the text to stop at) or `length`; empty if it goes on."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one step did."""

    advances: Mapping[int, Advance]
    """By slot."""
    failures: Mapping[int, YardError]
    """Sequences that failed, by slot; what they hold is still to be freed."""
    compute_s: float


class Totals(NamedTuple):
    """How one answer came about."""

    prompt_tokens: int
    tokens: int
    """Of the answer."""
    finished: str
    """As in `Advance`."""
    queue_s: float
    """From the request to the step that it joined."""
    first_token_s: float
    """From the request to the first token."""
    compute_s: float
    """From the step that it joined to its last one."""
    beside: int
    """Most sequences in a step of it, itself included."""


class Pace(NamedTuple):
    """How fast a model was measured to be."""

    step_s: float
    """One pass that computes one token of one sequence."""
    prompt_token_s: float
    """What each token of a prompt adds to a pass."""


class Listener(Protocol):
    """Who takes an answer, piece by piece."""

    def piece(self, outputs: Mapping[str, object]) -> None:
        """A piece that is not the last one."""
        ...

    def ended(self, totals: Totals, outputs: Mapping[str, object] | None) -> None:
        """The answer is complete, with this piece if there is one."""
        ...

    def failed(self, error: YardError) -> None:
        """Nothing more comes."""
        ...


@dataclass(slots=True, eq=False)
class Request:
    """One sequence, from its arrival to its end."""

    prompt: Prompt
    deadline_at_s: float
    """When more of its answer is worth nothing, on the engine's clock."""
    listener: Listener
    band: int
    """Its priority band: those of an earlier one go first."""
    trace: object = None
    """Whose trace it belongs to; opaque here."""
    owner: object = None
    """Whom the device's time is charged to; opaque here."""
    arrived_s: float = 0.0
    joined_s: float = 0.0
    first_at_s: float = 0.0
    last_at_s: float = 0.0
    """When its first and its latest token came."""
    left: int = 0
    """Tokens of its prompt that are yet to be computed."""
    tokens: int = 0
    """Of its answer."""
    beside: int = 0
    over: bool = False
    """Nothing more is expected of it."""

    @property
    def turn(self) -> tuple[int, float]:
        """Its place among those that wait: earlier bands first, then earlier deadlines."""
        return self.band, self.deadline_at_s


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one engine holds."""

    sequences: int
    """Slots: sequences that are computed together."""
    chunk_tokens: int
    """Most tokens of prompts in one step."""
    max_waiting: int
    """Most sequences that wait for a slot."""
