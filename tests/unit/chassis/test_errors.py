import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from services.chassis.errors import DETAILS_BYTES, DETAILS_KEY, DOMAIN, STATUS_OF, from_rpc_error, rich_status
from services.domain import errors as domain
from services.domain.errors import Fault, YardError


def rpc_error(
    code: grpc.StatusCode, details: str = "", status: status_pb2.Status | None = None
) -> grpc.aio.AioRpcError:
    """The error that a caller of gRPC catches."""
    trailing = () if status is None else ((DETAILS_KEY, status.SerializeToString()),)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


def sent(error: YardError) -> YardError:
    """What the other side makes of `error`."""
    status = rich_status(error)
    return from_rpc_error(rpc_error(STATUS_OF[type(error)], status.message, status))


@pytest.mark.parametrize("cls", [cls for cls in STATUS_OF if cls is not domain.Internal])
def test_every_error_arrives_as_what_it_was_sent(cls: type[YardError]) -> None:
    error = cls("why", retry_after_s=1.25, faults=[Fault("inputs[0]", "bad")], metadata={"model": "m"})

    arrived = sent(error)

    assert type(arrived) is cls
    assert arrived.message == "why"
    assert arrived.retry_after_s == 1.25
    assert arrived.faults == (Fault("inputs[0]", "bad"),)
    assert arrived.metadata == {"model": "m"}


def test_error_without_details_arrives_without_any() -> None:
    arrived = sent(domain.Overloaded("full"))

    assert (arrived.retry_after_s, arrived.faults, arrived.metadata) == (None, (), {})


def test_internal_error_keeps_its_text_to_itself() -> None:
    assert sent(domain.Internal("password is hunter2")).message == "internal"


def test_retry_at_once_is_not_the_same_as_no_telling() -> None:
    assert sent(domain.Draining("stopping", retry_after_s=0.0)).retry_after_s == 0.0


def test_faults_that_do_not_fit_into_metadata_are_counted() -> None:
    faults = [Fault(f"objects[{n}].spec.inputs[0].shape", f"fault {n}: " + "ä" * 60) for n in range(500)]

    status = rich_status(domain.InvalidRequest.of(faults))
    arrived = from_rpc_error(rpc_error(grpc.StatusCode.INVALID_ARGUMENT, status.message, status))

    assert status.ByteSize() <= DETAILS_BYTES
    kept = len(arrived.faults) - 1
    assert kept >= 5
    assert arrived.faults[:kept] == tuple(faults[:kept])
    assert arrived.faults[-1].message == f"and {500 - kept} more faults, left out for their length"
    assert len(status.message.encode()) <= 1024


def test_one_huge_fault_is_cut_and_not_lost() -> None:
    arrived = sent(domain.InvalidRequest("bad", faults=[Fault("x" * 9000, "y" * 9000)]))

    assert arrived.faults[0].path.startswith("xxx")
    assert arrived.faults[0].message.endswith("...")


def test_huge_metadata_is_left_out() -> None:
    arrived = sent(domain.ModelNotFound("no", metadata={"near": "n" * 9000}))

    assert type(arrived) is domain.ModelNotFound
    assert arrived.metadata == {}


def test_text_that_is_not_unicode_is_sent_all_the_same() -> None:
    assert sent(domain.ModelNotFound("no \udcff")).message == "no ?"


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, domain.HostUnavailable),
        (grpc.StatusCode.CANCELLED, domain.HostUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, domain.BudgetExhausted),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, domain.Overloaded),
        (grpc.StatusCode.UNIMPLEMENTED, domain.NotSupported),
        (grpc.StatusCode.UNKNOWN, domain.Internal),
        (grpc.StatusCode.PERMISSION_DENIED, domain.Internal),
    ],
)
def test_error_of_grpc_itself_is_taken_for_the_nearest_of_ours(code: grpc.StatusCode, cls: type[YardError]) -> None:
    assert type(from_rpc_error(rpc_error(code, "so said gRPC"))) is cls


def test_reason_of_a_stranger_or_of_a_newer_peer_falls_back_to_the_status() -> None:
    for reason, owner in (("OVERLOADED", "stranger.example"), ("OF_TOMORROW", DOMAIN)):
        status = status_pb2.Status(code=14, message="m")
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=owner))

        assert type(from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "m", status))) is domain.HostUnavailable


def test_details_that_are_not_a_status_are_ignored() -> None:
    trailing = grpc.aio.Metadata((DETAILS_KEY, b"\xff\xff\xff"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), trailing, "m")

    assert type(from_rpc_error(error)) is domain.HostUnavailable
