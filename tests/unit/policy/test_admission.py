"""How long a call may take, and whether it may enter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.domain.service_class import LAST_BAND, ServiceClass
from services.policy.admission import (
    ADMIT,
    Allowance,
    DeadlineSource,
    Reject,
    RejectReason,
    admit_to_host,
    admit_to_router,
    allowance,
    room_of,
)


@pytest.mark.parametrize(
    ("caller_s", "parameter_s", "expected"),
    [
        (None, None, Allowance(30.0, DeadlineSource.ROUTE_DEFAULT)),
        (5.0, None, Allowance(5.0, DeadlineSource.CALLER)),
        (900.0, None, Allowance(300.0, DeadlineSource.ROUTE_MAXIMUM)),
        (5.0, 1.0, Allowance(1.0, DeadlineSource.TIMEOUT_PARAMETER)),
        (5.0, 7.0, Allowance(5.0, DeadlineSource.CALLER)),
        (None, 1.0, Allowance(1.0, DeadlineSource.TIMEOUT_PARAMETER)),
        (None, 900.0, Allowance(300.0, DeadlineSource.ROUTE_MAXIMUM)),
    ],
)
def test_the_least_time_asked_for_applies_and_is_named(
    caller_s: float | None, parameter_s: float | None, expected: Allowance
) -> None:
    assert allowance(caller_s=caller_s, parameter_s=parameter_s, default_s=30.0, longest_s=300.0) == expected


def test_a_call_that_a_queue_makes_late_is_told_when_to_come_back() -> None:
    verdict = admit_to_host(predicted_s=0.5, idle_s=0.01, remaining_s=0.1, measured=True)

    assert isinstance(verdict, Reject)
    assert verdict.reason is RejectReason.QUEUE_TOO_LONG
    assert verdict.retry_after_s == pytest.approx(0.4)


def test_a_call_that_not_even_an_idle_host_could_answer_is_told_so() -> None:
    verdict = admit_to_host(predicted_s=0.5, idle_s=0.2, remaining_s=0.1, measured=True)

    assert isinstance(verdict, Reject)
    assert verdict.reason is RejectReason.NEVER_IN_TIME


def test_a_time_that_the_host_has_not_measured_refuses_nobody() -> None:
    assert admit_to_host(predicted_s=9.0, idle_s=9.0, remaining_s=0.1, measured=False) is ADMIT


def test_a_full_router_refuses() -> None:
    first = ServiceClass(band=1)

    assert admit_to_router(first, in_flight=7, most=8) is ADMIT
    assert isinstance(admit_to_router(first, in_flight=8, most=8), Reject)


CLASSES = st.builds(ServiceClass, band=st.integers(1, LAST_BAND), sheddable=st.booleans())


@given(CLASSES, CLASSES, st.integers(1, 10_000), st.integers(0, 10_000))
def test_no_class_is_refused_while_a_later_one_is_let_in(
    one: ServiceClass, other: ServiceClass, most: int, in_flight: int
) -> None:
    earlier, later = sorted((one, other), key=lambda each: (each.sheddable, each.band))

    if admit_to_router(later, in_flight=in_flight, most=most) is ADMIT:
        assert admit_to_router(earlier, in_flight=in_flight, most=most) is ADMIT


@given(CLASSES, st.integers(1, 10_000))
def test_every_class_has_four_fifths_of_a_router_to_itself(service_class: ServiceClass, most: int) -> None:
    assert 0.8 * most <= room_of(service_class, most=most) <= most


def test_a_router_that_is_nearly_full_takes_earlier_bands_only() -> None:
    classes = [ServiceClass(band=1), ServiceClass(band=4), ServiceClass(band=8), ServiceClass(band=1, sheddable=True)]

    rooms = [room_of(each, most=1000) for each in (*classes, ServiceClass(band=8, sheddable=True))]

    assert rooms == [1000, 960, 907, 894, 800]
