"""Whether the next one is asked where one did not answer: where time alone would not heal what it failed with."""

from collections.abc import Iterable

from services.domain.errors import (
    BudgetExhausted,
    Draining,
    HostUnavailable,
    InsufficientMemory,
    Internal,
    ModelFailed,
    ModelNotFound,
    ModelNotReady,
    NoCandidate,
    NoReadyHost,
    NotSupported,
    Overloaded,
    SpendingExhausted,
    VersionNotFound,
    YardError,
)
from services.policy.retrying import Fate, fate_of

_ITS_OWN = (
    BudgetExhausted,
    Draining,
    HostUnavailable,
    InsufficientMemory,
    Internal,
    ModelFailed,
    ModelNotFound,
    ModelNotReady,
    NoCandidate,
    NoReadyHost,
    NotSupported,
    Overloaded,
    SpendingExhausted,
    VersionNotFound,
)
"""What says something of the one that was asked. The rest says something of the call: the next would say the same."""


def passes_on(error: YardError, tried: Iterable[YardError], *, idempotent: bool) -> bool:
    """Whether another model may be asked.

    Args:
        error: What the first one failed with, its retries included.
        tried: Errors of its attempts on hosts.
        idempotent: Whether doing it twice is as good as once.
    """
    if not isinstance(error, _ITS_OWN):
        return False
    return idempotent or all(isinstance(each, Overloaded) or fate_of(each) is Fate.NEVER_RAN for each in tried)
