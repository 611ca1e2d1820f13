"""How long a call may take, and whether it may enter."""

import pytest

from services.policy.admission import (
    ADMIT,
    Allowance,
    DeadlineSource,
    Reject,
    RejectReason,
    admit_to_host,
    admit_to_router,
    allowance,
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
    assert admit_to_router(in_flight=7, most=8) is ADMIT
    assert isinstance(admit_to_router(in_flight=8, most=8), Reject)
