"""One request on its way through the queue: the call, who takes what becomes of it, and what it gets."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from services.policy.fairness import TenantShare


class Reply(Protocol):
    """Who takes what became of a call; a Future is one."""

    def done(self) -> bool:
        """Whether nothing is expected any more."""
        ...

    def set_result(self, answer: "Answer", /) -> None:
        """The call was computed."""
        ...

    def set_exception(self, error: BaseException, /) -> None:
        """The call failed, was dropped or refused."""
        ...


@dataclass(slots=True, eq=False)
class Call:
    """One request, as far as its turn is concerned."""

    payload: object
    """What computes it; opaque here."""
    deadline_at_s: float
    """When its answer is worth nothing any more, on the queue's clock."""
    rows: int = 1
    """Rows it adds to a batch."""
    elements: int = 1
    """Elements of one row."""
    group: Hashable = ()
    """Calls of equal groups can compute together."""
    payload_bytes: int = 0
    """Memory that it holds while it waits."""
    trace: object = None
    """Whose trace it belongs to; opaque here."""
    share: TenantShare | None = None
    """Whom it is for; None: nobody in particular."""
    arrived_s: float = 0.0
    cost_s: float = 0.0
    """Device time that it is counted with while it waits."""
    abandoned: bool = False
    """Nobody waits for the answer any more. Read by the compute thread."""
    reply: Reply | None = None


class Answer(NamedTuple):
    """What a call got, and how."""

    value: object
    queue_s: float
    compute_s: float
    batch_size: int


class Detour(Protocol):
    """What takes the calls of a version that is not computed in batches."""

    def enter(self, call: Call, reply: Reply) -> None:
        """Take a call; as of `BatchQueue.enter`."""
        ...

    def abandon(self, call: Call) -> None:
        """Nobody waits for a call any more."""
        ...

    async def close(self) -> None:
        """Take no new calls, and return once those that came are answered."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """Calls that were computed together."""

    calls: Sequence[Call]
    outcomes: Sequence[object]
    """One per call: its value, or the YardError that it failed with."""
    started_s: float
    compute_s: float
