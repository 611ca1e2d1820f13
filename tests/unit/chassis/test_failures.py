"""Errors of calls that share a stream: a Failure says what a status of its own would have said."""

import pytest

from modelyard.type.v1 import error_pb2
from services.chassis.errors import DETAILS_BYTES, MESSAGE_BYTES, STATUS_OF, failure_from, failure_to, rich_status
from services.domain import errors as domain
from services.domain.errors import Fault, YardError

KNOWN = [cls for cls in STATUS_OF if cls is not domain.Internal]


def sent(error: YardError) -> YardError:
    """What the other side makes of `error`, over bytes."""
    return failure_from(error_pb2.Failure.FromString(failure_to(error).SerializeToString()))


@pytest.mark.parametrize("cls", KNOWN)
def test_every_error_arrives_as_what_it_was_sent(cls: type[YardError]) -> None:
    faults = [Fault("inputs[0]", "bad"), Fault("", "as a whole")]
    error = cls("why", retry_after_s=1.25, faults=faults, metadata={"model": "m", "hosts": "a,b"})

    arrived = sent(error)

    assert type(arrived) is cls
    assert arrived.message == "why"
    assert arrived.retry_after_s == 1.25
    assert arrived.faults == tuple(faults)
    assert arrived.metadata == {"model": "m", "hosts": "a,b"}


@pytest.mark.parametrize("cls", STATUS_OF)
def test_code_and_message_are_those_of_the_status(cls: type[YardError]) -> None:
    error = cls("why")

    failure, status = failure_to(error), rich_status(error)

    assert (failure.code, failure.message) == (status.code, status.message)
    assert failure.code == STATUS_OF[cls].value[0]


@pytest.mark.parametrize("cls", STATUS_OF)
def test_every_class_has_a_reason_of_its_own(cls: type[YardError]) -> None:
    assert error_pb2.ErrorReason.Name(failure_to(cls("why")).reason) == f"ERROR_REASON_{cls.reason}"


def test_error_without_details_arrives_without_any() -> None:
    arrived = sent(domain.Overloaded("full"))

    assert (arrived.retry_after_s, arrived.faults, arrived.metadata) == (None, (), {})


def test_retry_at_once_is_not_the_same_as_no_telling() -> None:
    assert sent(domain.Draining("stopping", retry_after_s=0.0)).retry_after_s == 0.0


@pytest.mark.parametrize("retry_after_s", [0.000_001, 0.010, 0.999_999_999, 59.5, 86_400.0])
def test_time_to_come_again_arrives_to_the_nanosecond(retry_after_s: float) -> None:
    arrived = sent(domain.Overloaded("full", retry_after_s=retry_after_s)).retry_after_s

    assert arrived == pytest.approx(retry_after_s, abs=1e-9)


class Unforeseen(YardError):
    """Without a reason of its own."""


@pytest.mark.parametrize("cls", [domain.Internal, YardError, Unforeseen])
def test_the_text_of_what_nobody_foresaw_never_leaves(cls: type[YardError]) -> None:
    failure = failure_to(cls("password is hunter2"))

    assert b"hunter2" not in failure.SerializeToString()
    assert failure.message == "internal"
    assert type(failure_from(failure)) is domain.Internal


def test_faults_that_do_not_fit_are_counted() -> None:
    faults = [Fault(f"inputs[{n}].shape", f"fault {n}: " + "ä" * 60) for n in range(500)]

    arrived = sent(domain.InvalidRequest.of(faults))

    kept = len(arrived.faults) - 1
    assert kept >= 5
    assert arrived.faults[:kept] == tuple(faults[:kept])
    assert arrived.faults[-1].message == f"and {500 - kept} more faults, left out for their length"
    assert len(arrived.message.encode()) <= 1024


def test_one_huge_fault_is_cut_and_not_lost() -> None:
    arrived = sent(domain.InvalidRequest("bad", faults=[Fault("x" * 9000, "y" * 9000)]))

    assert arrived.faults[0].path.startswith("xxx")
    assert arrived.faults[0].message.endswith("...")


def test_huge_metadata_is_left_out() -> None:
    arrived = sent(domain.ModelNotFound("no", metadata={"name": "digits", "near": "n" * 9000}))

    assert type(arrived) is domain.ModelNotFound
    assert arrived.metadata == {"name": "digits"}


def test_a_failure_is_bounded_whatever_the_error_holds() -> None:
    metadata = {f"key-{n}": "ä" * 50 for n in range(1000)}
    faults = [Fault(f"inputs[{n}]", "ä" * 300) for n in range(1000)]

    failure = failure_to(domain.InvalidRequest("ä" * 9000, faults=faults, metadata=metadata))

    assert failure.metadata
    assert failure.field_violations
    assert failure.ByteSize() < MESSAGE_BYTES + 2 * DETAILS_BYTES + 64


def test_text_that_is_not_unicode_is_sent_all_the_same() -> None:
    assert sent(domain.ModelNotFound("no \udcff")).message == "no ?"


@pytest.mark.parametrize("reason", [0, 9999])
@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (14, domain.HostUnavailable),
        (1, domain.HostUnavailable),
        (4, domain.BudgetExhausted),
        (8, domain.Overloaded),
        (12, domain.NotSupported),
        (2, domain.Internal),
        (7, domain.Internal),
        (99, domain.Internal),
        (-1, domain.Internal),
        (0, domain.Internal),
    ],
)
def test_reason_of_a_later_contract_becomes_the_nearest_class_for_its_code(
    reason: int, code: int, cls: type[YardError]
) -> None:
    later = error_pb2.Failure(code=code, message="m", metadata={"k": "v"})
    later.reason = reason  # type: ignore[assignment]  # a value that this contract does not have
    later.retry_after.FromMilliseconds(1500)

    arrived = failure_from(error_pb2.Failure.FromString(later.SerializeToString()))

    assert type(arrived) is cls
    assert "m" in arrived.message
    assert (arrived.metadata, arrived.retry_after_s) == ({"k": "v"}, 1.5)


@pytest.mark.parametrize("code", [5, 99, 0])
def test_a_known_reason_counts_more_than_a_code_that_is_not(code: int) -> None:
    failure = failure_to(domain.ModelNotReady("loading"))
    failure.code = code

    assert type(failure_from(failure)) is domain.ModelNotReady
