"""Everything that can be refused or fail, named for its cause. None of it knows gRPC.

Each class has one reason, the name of a value of `modelyard.type.v1.ErrorReason`; which
status it becomes is in `chassis/errors.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with what a caller sent."""

    path: str
    """Field path from the message the caller sent, such as `inputs[0].shape`."""
    message: str
    """What is wrong with it and what to do, in one line."""

    def __str__(self) -> str:
        """`path: message`."""
        return f"{self.path}: {self.message}" if self.path else self.message


TAKES_S = "takes_s"
"""Key of the metadata of a refusal: the seconds that the work would take on the host that refused it."""


class YardError(Exception):
    """A failure with a cause that its caller may know."""

    reason = "INTERNAL"
    """Name of the ErrorReason, without its prefix."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        faults: Sequence[Fault] = (),
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Say what is wrong.

        Args:
            message: One line that says what, where and what to do. Its caller sees it.
            retry_after_s: Seconds after which a new try may succeed; None if there is no telling.
            faults: What is wrong with the request, one by one.
            metadata: Facts for programs, such as the name that was not found.
        """
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.faults = tuple(faults)
        self.metadata = dict(metadata or {})


class InvalidRequest(YardError):
    """What the caller sent is not allowed; `faults` says where."""

    reason = "INVALID_REQUEST"

    @classmethod
    def of(cls, faults: Sequence[Fault]) -> "InvalidRequest":
        """One error for all of `faults`, which is not empty."""
        return cls("; ".join(str(fault) for fault in faults), faults=faults)


class MalformedMessage(YardError):
    """The bytes are not a message of the expected type."""

    reason = "MALFORMED_MESSAGE"

    @classmethod
    def of(cls, raw: bytes, name: str) -> "MalformedMessage":
        """`raw` is not a message of the type `name`."""
        return cls(f"the {len(raw)} bytes received are not a {name}")


class DeadlineRequired(YardError):
    """An internal call came without a deadline."""

    reason = "DEADLINE_REQUIRED"


class BudgetExhausted(YardError):
    """What was left of the deadline could not cover the work."""

    reason = "BUDGET_EXHAUSTED"

    @property
    def refused(self) -> bool:
        """Whether a host refused it for its own pace, before it ran: a faster one might do it."""
        return TAKES_S in self.metadata


class ModelNotFound(YardError):
    """No route or model has that name."""

    reason = "MODEL_NOT_FOUND"


class VersionNotFound(YardError):
    """The model has no such version."""

    reason = "VERSION_NOT_FOUND"


class CallNotFound(YardError):
    """No such call is known to this process."""

    reason = "CALL_NOT_FOUND"


class ObjectNotFound(YardError):
    """The registry holds no such object."""

    reason = "OBJECT_NOT_FOUND"


class RevisionNotFound(YardError):
    """The registry holds no such revision."""

    reason = "REVISION_NOT_FOUND"


class RevisionMoved(YardError):
    """The head is not the revision the caller built on."""

    reason = "REVISION_MOVED"


class NoCandidate(YardError):
    """Versions exist, none meets the caller's constraints."""

    reason = "NO_CANDIDATE"


class NoReadyHost(YardError):
    """The version exists, no host has it ready."""

    reason = "NO_READY_HOST"


class ModelNotReady(YardError):
    """The version is not loaded, or not ready, on this host."""

    reason = "MODEL_NOT_READY"


class Overloaded(YardError):
    """Queues are full, or the deadline cannot be met behind what already waits."""

    reason = "OVERLOADED"


class TooManyInFlight(Overloaded):
    """Its route, its tier or its tenant has as many calls in flight as it may have."""

    reason = "TOO_MANY_IN_FLIGHT"


class RateLimited(Overloaded):
    """Its tenant calls faster than it may."""

    reason = "RATE_LIMITED"


class SpendingExhausted(YardError):
    """What is left of a tenant's budget of money does not pay for any candidate."""

    reason = "SPENDING_EXHAUSTED"


class HostUnavailable(YardError):
    """The host went away or broke off."""

    reason = "HOST_UNAVAILABLE"


class Draining(YardError):
    """The service is stopping and takes no new work."""

    reason = "DRAINING"


class StaleFencingToken(YardError):
    """A leader that has lost its place tried to act."""

    reason = "STALE_FENCING_TOKEN"


class ArtifactRejected(YardError):
    """The artifact's digest, format or size is not acceptable."""

    reason = "ARTIFACT_REJECTED"


class InsufficientMemory(YardError):
    """The device has no room for the model."""

    reason = "INSUFFICIENT_MEMORY"


class ModelFailed(YardError):
    """The model itself failed on this input."""

    reason = "MODEL_FAILED"


class StoreUnavailable(YardError):
    """The state store cannot be reached or has no quorum."""

    reason = "STORE_UNAVAILABLE"


class NotSupported(YardError):
    """The service does not offer this."""

    reason = "NOT_SUPPORTED"


class NotLeader(YardError):
    """This replica does not lead and cannot act."""

    reason = "NOT_LEADER"


class GateFailed(YardError):
    """A check that stands before the change did not pass; nothing was changed."""

    reason = "GATE_FAILED"


class Internal(YardError):
    """Something unexpected; its text stays in the logs."""

    reason = "INTERNAL"
