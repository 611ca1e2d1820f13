"""What one may take of a deadline when others come after it."""

import pytest

from services.domain.errors import HostUnavailable, InvalidRequest, ModelFailed, ModelNotReady, NoReadyHost, Overloaded
from services.policy.falling_back import passes_on
from services.policy.sharing import share_s


@pytest.mark.parametrize(
    ("remaining_s", "behind_s", "share"),
    [(1.0, 0.0, 1.0), (1.0, 0.010, 0.98), (1.0, 0.4, 0.5), (0.01, 1.0, 0.005), (0.0, 1.0, 0.0)],
)
def test_those_behind_are_left_twice_what_they_take_and_half_at_most(
    remaining_s: float, behind_s: float, share: float
) -> None:
    assert share_s(remaining_s, behind_s) == pytest.approx(share)


def test_what_is_wrong_with_the_call_is_not_asked_again() -> None:
    assert not passes_on(InvalidRequest("no"), [], idempotent=True)


@pytest.mark.parametrize("error", [NoReadyHost("n"), Overloaded("o"), ModelFailed("f"), HostUnavailable("h")])
def test_what_is_wrong_with_the_one_asked_is(error: Exception) -> None:
    assert isinstance(error, NoReadyHost | Overloaded | ModelFailed | HostUnavailable)
    assert passes_on(error, [], idempotent=True)


def test_what_may_have_run_is_not_run_again_unless_it_may_be() -> None:
    failed, refused = ModelFailed("f"), ModelNotReady("r")

    assert passes_on(failed, [failed], idempotent=True)
    assert not passes_on(failed, [failed], idempotent=False)
    assert passes_on(refused, [refused, Overloaded("full")], idempotent=False)
    assert not passes_on(refused, [failed, refused], idempotent=False)
    assert passes_on(NoReadyHost("none"), [], idempotent=False)
