"""The error table: which gRPC status each domain error becomes, and back again.

Owns the mapping, the rich status (`google.rpc.ErrorInfo`, `BadRequest`, `RetryInfo`) that travels with it,
and the `Failure` that stands for both where many calls share a stream. Decides nothing about retries: that
is `policy/retrying.py`.
"""

from collections.abc import Iterable, Iterator
from typing import NoReturn, Protocol, TypeAlias, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from modelyard.type.v1 import error_pb2
from services.domain import errors as domain
from services.domain.errors import Fault, YardError

STATUS_OF: dict[type[YardError], grpc.StatusCode] = {
    domain.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    domain.MalformedMessage: grpc.StatusCode.INVALID_ARGUMENT,
    domain.DeadlineRequired: grpc.StatusCode.INVALID_ARGUMENT,
    domain.BudgetExhausted: grpc.StatusCode.DEADLINE_EXCEEDED,
    domain.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    domain.VersionNotFound: grpc.StatusCode.NOT_FOUND,
    domain.CallNotFound: grpc.StatusCode.NOT_FOUND,
    domain.ObjectNotFound: grpc.StatusCode.NOT_FOUND,
    domain.RevisionNotFound: grpc.StatusCode.NOT_FOUND,
    domain.RevisionMoved: grpc.StatusCode.ABORTED,
    domain.NoCandidate: grpc.StatusCode.FAILED_PRECONDITION,
    domain.NoReadyHost: grpc.StatusCode.UNAVAILABLE,
    domain.ModelNotReady: grpc.StatusCode.UNAVAILABLE,
    domain.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    domain.TooManyInFlight: grpc.StatusCode.RESOURCE_EXHAUSTED,
    domain.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    domain.SpendingExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    domain.HostUnavailable: grpc.StatusCode.UNAVAILABLE,
    domain.Draining: grpc.StatusCode.UNAVAILABLE,
    domain.StaleFencingToken: grpc.StatusCode.FAILED_PRECONDITION,
    domain.ArtifactRejected: grpc.StatusCode.FAILED_PRECONDITION,
    domain.InsufficientMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
    domain.ModelFailed: grpc.StatusCode.INTERNAL,
    domain.StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    domain.NotSupported: grpc.StatusCode.UNIMPLEMENTED,
    domain.NotLeader: grpc.StatusCode.UNAVAILABLE,
    domain.GateFailed: grpc.StatusCode.FAILED_PRECONDITION,
    domain.Internal: grpc.StatusCode.INTERNAL,
}
"""The one table. A contract test fails when a class is missing from it."""

DOMAIN = "modelyard"
"""`ErrorInfo.domain` of every error that a modelyard service gives."""

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that carries the serialized `google.rpc.Status`, by gRPC's convention."""

INTERNAL_TEXT = "internal"
"""All that a caller is told of an unexpected error: its own text may hold a payload."""

MESSAGE_BYTES = 1024
"""Longest message sent. It travels twice, once percent-encoded (up to three times as long)."""

DETAILS_BYTES = 3072
"""Longest serialized status sent; 4 KiB in base64. With the message it stays below the 8 KiB of
metadata that both sides accept, and leaves room for what a servicer adds."""

_CLASS_OF_REASON: dict[str, type[YardError]] = {cls.reason: cls for cls in STATUS_OF}

_REASON_PREFIX = "ERROR_REASON_"

_STATUS_OF_NUMBER: dict[int, grpc.StatusCode] = {status.value[0]: status for status in grpc.StatusCode}

_CLASS_OF_STATUS: dict[grpc.StatusCode, type[YardError]] = {
    grpc.StatusCode.UNAVAILABLE: domain.HostUnavailable,
    # An own cancel surfaces as CancelledError, so this one was the peer breaking off.
    grpc.StatusCode.CANCELLED: domain.HostUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: domain.BudgetExhausted,
    grpc.StatusCode.RESOURCE_EXHAUSTED: domain.Overloaded,
    grpc.StatusCode.UNIMPLEMENTED: domain.NotSupported,
}
"""What an error without our ErrorInfo is taken for: it comes from gRPC itself, or from a stranger."""

_REQUEST_TOO_LARGE = ("CLIENT: Sent message larger than max", "SERVER: Received message larger than max")
_ANSWER_TOO_LARGE = ("SERVER: Sent message larger than max", "CLIENT: Received message larger than max")
"""gRPC's own words for a message over the limit; its status is RESOURCE_EXHAUSTED, which a retry
elsewhere would not heal."""

_Value: TypeAlias = str | bytes


class _Aborts(Protocol):
    """What `abort` needs of a servicer context."""

    def trailing_metadata(self) -> Iterable[tuple[str, _Value]]: ...

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, _Value], ...] = ()
    ) -> NoReturn: ...


class _Call(Protocol):
    """What `from_rpc_error` needs of an RpcError; sync and aio errors both have it."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> Iterable[tuple[str, _Value]] | None: ...


def status_of(error: YardError) -> grpc.StatusCode:
    """The status of `error`; of a class that is not in the table, that of its nearest base, else INTERNAL."""
    for cls in type(error).__mro__:
        status = STATUS_OF.get(cls)
        if status is not None:
            return status
    return grpc.StatusCode.INTERNAL


def rich_status(error: YardError) -> status_pb2.Status:
    """The status with its details, cut to what fits into metadata.

    Faults that do not fit are dropped, and the last violation says how many.
    """
    text = INTERNAL_TEXT if error.reason == domain.Internal.reason else _cut(error.message, MESSAGE_BYTES)
    status = status_pb2.Status(code=status_of(error).value[0], message=text)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    _pack(status, info)
    info.metadata.update(_fitting(error.metadata, DETAILS_BYTES - status.ByteSize()))
    status.details[0].Pack(info)
    if error.retry_after_s is not None:
        _pack(status, error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after_s)))
    if error.faults:
        _pack(status, _violations(error.faults, DETAILS_BYTES - status.ByteSize() - 64))
    return status


async def abort(context: _Aborts, error: YardError) -> NoReturn:
    """End the call with the status of `error`; trailing metadata already set on `context` is kept.

    Raises:
        grpc.aio.AbortError: Always; gRPC expects it.
    """
    status = rich_status(error)
    details = (DETAILS_KEY, status.SerializeToString())
    await context.abort(status_of(error), status.message, (*(context.trailing_metadata() or ()), details))


def from_rpc_error(error: grpc.aio.AioRpcError | grpc.RpcError) -> YardError:
    """The domain error that `error` was sent as.

    Without a reason of ours (gRPC itself failed, or the peer is newer than this list), the
    nearest class for its status. Raise the result `from error`: trailing metadata of a servicer's
    own stays readable on `__cause__`.
    """
    call = cast("_Call", error)
    message = call.details() or ""
    info, faults, retry_after_s = _details(call.trailing_metadata() or ())
    metadata = dict(info.metadata) if info is not None else {}
    cls = _CLASS_OF_REASON.get(info.reason) if info is not None else None
    if cls is None:
        cls, message = _by_status(call.code(), message)
    return cls(message, retry_after_s=retry_after_s, faults=faults, metadata=metadata)


def failure_to(error: YardError) -> error_pb2.Failure:
    """What a call of a stream is told of `error`: what a status would say, metadata and faults each within a bound."""
    internal = error.reason == domain.Internal.reason
    failure = error_pb2.Failure(
        code=status_of(error).value[0],
        message=INTERNAL_TEXT if internal else _cut(error.message, MESSAGE_BYTES),
        reason=error_pb2.ErrorReason.Value(_REASON_PREFIX + error.reason),
        metadata=_fitting(error.metadata, DETAILS_BYTES),
    )
    if error.retry_after_s is not None:
        failure.retry_after.CopyFrom(_duration(error.retry_after_s))
    for violation in _violations(error.faults, DETAILS_BYTES).field_violations:
        failure.field_violations.add(field=violation.field, description=violation.description)
    return failure


def failure_from(failure: error_pb2.Failure) -> YardError:
    """The domain error that `failure` was sent as; one of a later contract becomes the nearest class for its code."""
    retry = failure.retry_after
    retry_after_s = retry.seconds + retry.nanos * 1e-9 if failure.HasField("retry_after") else None
    faults = tuple(Fault(violation.field, violation.description) for violation in failure.field_violations)
    known = failure.reason in error_pb2.ErrorReason.values()
    name = error_pb2.ErrorReason.Name(failure.reason).removeprefix(_REASON_PREFIX) if known else ""
    cls, message = _CLASS_OF_REASON.get(name), failure.message
    if cls is None:
        cls, message = _by_status(_STATUS_OF_NUMBER.get(failure.code, grpc.StatusCode.UNKNOWN), message)
    return cls(message, retry_after_s=retry_after_s, faults=faults, metadata=dict(failure.metadata))


def _by_status(code: grpc.StatusCode, message: str) -> tuple[type[YardError], str]:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if any(words in message for words in _REQUEST_TOO_LARGE):
            return domain.InvalidRequest, message
        if any(words in message for words in _ANSWER_TOO_LARGE):
            return domain.Internal, message
    cls = _CLASS_OF_STATUS.get(code, domain.Internal)
    return cls, message if cls is not domain.Internal else f"{code.name}: {message}"


def _details(
    metadata: Iterable[tuple[str, _Value]],
) -> tuple[error_details_pb2.ErrorInfo | None, tuple[Fault, ...], float | None]:
    info: error_details_pb2.ErrorInfo | None = None
    faults: tuple[Fault, ...] = ()
    retry_after_s: float | None = None
    for detail in _packed(metadata):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            found = error_details_pb2.ErrorInfo()
            detail.Unpack(found)
            info = found if found.domain == DOMAIN else info
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            faults = tuple(Fault(v.field, v.description) for v in bad.field_violations)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos * 1e-9
    return info, faults, retry_after_s


def _packed(metadata: Iterable[tuple[str, _Value]]) -> Iterator[AnyMessage]:
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                yield from status_pb2.Status.FromString(value).details
            except DecodeError:
                return  # a stranger's; the status alone must do


def _pack(
    status: status_pb2.Status,
    detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> None:
    status.details.add().Pack(detail)


def _fitting(metadata: dict[str, str], room: int) -> dict[str, str]:
    """The first entries that fit into `room` bytes."""
    kept = {}
    for key, value in metadata.items():
        room -= len(key.encode()) + len(value.encode()) + 8
        if room < 0:
            break
        kept[key] = value
    return kept


def _violations(faults: tuple[Fault, ...], room: int) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for index, fault in enumerate(faults):
        path, message = _cut(fault.path, 256), _cut(fault.message, 512)
        cost = len(path.encode()) + len(message.encode()) + 12
        left = len(faults) - index
        if cost > room - (64 if left > 1 else 0):
            bad.field_violations.add(field="", description=f"and {left} more faults, left out for their length")
            break
        bad.field_violations.add(field=path, description=message)
        room -= cost
    return bad


def _duration(seconds: float) -> Duration:
    nanos = round(max(0.0, seconds) * 1e9)
    return Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def _cut(text: str, longest_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= longest_bytes:
        return encoded.decode()
    return encoded[: longest_bytes - 3].decode("utf-8", "ignore") + "..."
