"""What the clients of a run asked for and were told, and what its readers heard. Facts only; `checker` judges them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["acknowledged", "refused", "undone", "unknown"]
"""`refused` is an answer to what was asked, and `undone` an outage; both say that this attempt surely changed nothing.
After `unknown` it may be done, or be done yet."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call, on this process's monotonic clock."""

    start_s: float
    end_s: float
    outcome: Outcome
    revision: int = 0
    changed: frozenset[str] = frozenset()
    """Keys of the changes that an acknowledgement named."""
    what: str = ""
    """Where it went and what came back, for a report."""


@dataclass(slots=True)
class Asked:
    """One request id: what is asked with it is always the same."""

    request_id: str
    upserts: Mapping[str, str] = field(default_factory=dict)
    """Key to the digest of the object's stored form."""
    deletes: frozenset[str] = frozenset()
    expected_revision: int = 0
    restores: int = 0
    """The revision whose state is asked for; then there are neither upserts nor deletes."""
    dry_run: bool = False
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def start_s(self) -> float:
        """Before this it cannot have been done."""
        return self.attempts[0].start_s if self.attempts else float("inf")

    @property
    def acknowledged(self) -> Attempt | None:
        """The first acknowledgement: from its end on it is done."""
        return next((each for each in self.attempts if each.outcome == "acknowledged"), None)

    @property
    def outcome(self) -> Outcome:
        """What is known of it in the end."""
        if self.acknowledged is not None:
            return "acknowledged"
        # A refusal after an unknown outcome does not say that the lost attempt will not be done yet; an outage says
        # nothing of it at all.
        answered = [each.outcome for each in self.attempts if each.outcome != "undone" or self.surely_refused]
        return answered[-1] if answered else "unknown"

    @property
    def surely_refused(self) -> bool:
        """Whether no attempt of it can have been done, or be done yet."""
        return bool(self.attempts) and all(each.outcome in ("refused", "undone") for each in self.attempts)


class Content:
    """Objects by key, each as its digest, with a sum over them that is quick to keep up."""

    def __init__(self, digests: Mapping[str, str] | None = None) -> None:
        """Begin with `digests`."""
        self.digests: dict[str, str] = {}
        self.sum = 0
        for key, digest in (digests or {}).items():
            self.put(key, digest)

    def put(self, key: str, digest: str) -> None:
        """Create or update."""
        self.drop(key)
        self.digests[key] = digest
        self.sum = (self.sum + _weight(key, digest)) % _SPACE

    def drop(self, key: str) -> None:
        """Delete, if it is there."""
        digest = self.digests.pop(key, None)
        if digest is not None:
            self.sum = (self.sum - _weight(key, digest)) % _SPACE


_SPACE = 1 << 256


def _weight(key: str, digest: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{key}={digest}".encode()).digest(), "big")


def sha256(raw: bytes) -> str:
    """Hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


@dataclass(slots=True)
class Heard:
    """What one reader of the registries' `Watch` heard, over all its streams."""

    name: str
    states: list[tuple[int, int]] = field(default_factory=list)
    """Each revision it came to, with the sum of its content then."""
    faults: list[str] = field(default_factory=list)
    """Revisions that went back or were left out."""
    resumes: int = 0

    @property
    def revision(self) -> int:
        """The last one; 0 before the first."""
        return self.states[-1][0] if self.states else 0


@dataclass(slots=True)
class Followed:
    """What one watch of etcd by the product's client gave, over all its streams."""

    name: str
    batches: list[tuple[int, str]] = field(default_factory=list)
    """Each of etcd's revisions, with a digest over its events, in the order they came."""
    cuts: int = 0
    """How often its connection was cut on purpose."""
