"""What an apply needs of the place where revisions are kept."""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from services.domain.objects import Object, ObjectKey
from services.policy.tree_diff import Change


class State(Protocol):
    """Everything at one revision."""

    @property
    def revision(self) -> int:
        """Its number; 0 before the first."""
        ...

    @property
    def objects(self) -> Mapping[ObjectKey, Object]:
        """Every object."""
        ...

    @property
    def knows_users(self) -> bool:
        """Whether `users_of` is at hand; else it takes a look at every object."""
        ...

    def users_of(self, key: ObjectKey) -> Iterable[ObjectKey]:
        """Keys of the objects that refer to an object."""
        ...

    def digest_of(self, key: ObjectKey) -> str | None:
        """Digest of an object's stored form; None if there is no such object."""
        ...

    def differing(self, other: Self) -> Iterable[ObjectKey]:
        """Keys of the objects that `other` has not, or not alike, and of those that it alone has."""
        ...


S = TypeVar("S", bound=State)
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Done:
    """How a request ended that was carried out before."""

    revision: int
    changed: bool
    """False if nothing had to change, at that revision."""


@dataclass(frozen=True, slots=True)
class Found(Generic[S]):
    """The head, and whether the request was carried out; both at the same moment."""

    state: S
    done: Done | None


class Encoded(Protocol):
    """The stored form of an object."""

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal."""
        ...

    @property
    def size_bytes(self) -> int:
        """Its length."""
        ...


E = TypeVar("E", bound=Encoded)


@dataclass(frozen=True, slots=True)
class Note:
    """What the history keeps of an apply."""

    author: str
    reason: str
    request_id: str
    time_s: float
    """Seconds since the Unix epoch."""
    restores: int = 0
    """The revision whose state is taken over; 0 if none is."""


class Outcome(enum.Enum):
    """How an attempt to move the head ended."""

    MOVED = "MOVED"
    """It names the new revision now."""
    CONFLICT = "CONFLICT"
    """Somebody else came first, or the same request did; surely not done."""
    UNKNOWN = "UNKNOWN"
    """No answer came; it may be done, or be done later."""


class Store(Protocol[S, E, D]):
    """Where revisions are kept.

    Every awaited method raises StoreUnavailable if the store leaves a step of it unanswered for `timeout_s`.
    `encode` and `draft` compute only, and may be called from a thread.
    """

    async def find(self, request_id: str, *, timeout_s: float) -> Found[S]:
        """Read the head, and how the request ended if it was carried out."""
        ...

    async def at(self, revision: int, *, timeout_s: float) -> S:
        """Read the state at a revision."""
        ...

    def encode(self, item: Object) -> E:
        """The stored form of an object."""
        ...

    def draft(self, base: S, upserts: Mapping[ObjectKey, E], changes: Sequence[Change], note: Note) -> D:
        """The revision that follows `base` by `changes`; without any, a mere note that the request is done."""
        ...

    async def write(self, draft: D, *, timeout_s: float) -> None:
        """Write everything the new head will name; it changes nothing by itself."""
        ...

    async def advance(self, draft: D, *, timeout_s: float) -> Outcome:
        """Move the head to the draft, if it is still where the draft was made from."""
        ...
