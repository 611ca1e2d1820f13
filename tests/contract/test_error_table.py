from pathlib import Path

import grpc
import pytest

from modelyard.type.v1 import error_pb2
from services.chassis.errors import STATUS_OF, status_of
from services.domain import errors as domain
from services.domain.errors import YardError

KINDS = [cls for cls in vars(domain).values() if isinstance(cls, type) and issubclass(cls, YardError)]
CLASSES = sorted((cls for cls in KINDS if cls is not YardError), key=lambda cls: cls.__name__)
PREFIX = "ERROR_REASON_"
REASONS = {value.name.removeprefix(PREFIX) for value in error_pb2.ErrorReason.DESCRIPTOR.values if value.number != 0}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_domain_error_has_a_status_and_a_reason_of_the_contract(cls: type[YardError]) -> None:
    assert cls in STATUS_OF
    assert STATUS_OF[cls] is not grpc.StatusCode.OK
    assert cls.reason in REASONS


def test_every_reason_of_the_contract_has_one_domain_error() -> None:
    assert sorted(cls.reason for cls in CLASSES) == sorted(REASONS)


def test_table_lists_nothing_else() -> None:
    assert set(STATUS_OF) == set(CLASSES)


def test_class_outside_the_table_takes_the_status_of_its_base() -> None:
    class Special(domain.ModelNotFound):
        """Of a service's own."""

    assert status_of(Special("x")) is grpc.StatusCode.NOT_FOUND
    assert status_of(YardError("x")) is grpc.StatusCode.INTERNAL


def statuses_in_the_contract() -> dict[str, str]:
    """Reason to the status that its comment in error.proto names first."""
    text = (Path(__file__).parents[2] / "protos/modelyard/type/v1/error.proto").read_text()
    found: dict[str, str] = {}
    comment = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("//"):
            comment += " " + line.removeprefix("//").strip()
        elif line.startswith(PREFIX):
            name = line.partition(" ")[0].removeprefix(PREFIX)
            found[name] = comment.rpartition("(")[2].partition(")")[0].partition(",")[0]
            comment = ""
        else:
            comment = ""
    return found


def test_table_agrees_with_the_comments_of_the_contract() -> None:
    documented = statuses_in_the_contract()

    assert {cls.reason: status.name for cls, status in STATUS_OF.items()} == {
        reason: documented[reason] for reason in REASONS
    }
