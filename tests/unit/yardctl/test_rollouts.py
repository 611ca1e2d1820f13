from dataclasses import replace

import pytest

from services.chassis.object_codec import object_from, object_to
from services.domain.objects import Choose, Metadata, Route
from services.domain.strategies import HashKey, RouteTarget, Shadow, Single, Split, SplitTarget
from services.domain.validation import object_faults
from yardctl.errors import CommandError
from yardctl.rollouts import CANARY, aborted, parse_steps, promoted, rollout_of, started

OLD, NEW = RouteTarget("digits", "1.0.0"), RouteTarget("digits", "2.0.0")
ROUTE = Route(Metadata("read", {"team": "vision"}, {"note": "kept"}), Single(OLD), policy="house")


def begun(route: Route = ROUTE, *, steps: tuple[float, ...] = CANARY, shadow: bool = False) -> Route:
    return stored(started(route, NEW, old=None, steps=steps, shadow=shadow, hash_key=HashKey.SESSION))


def stored(route: Route) -> Route:
    """As it comes back from the registry, which takes it."""
    assert not object_faults(route)
    back = object_from(object_to(route))
    assert isinstance(back, Route)
    return back


def split(percent: float) -> Split:
    return Split((SplitTarget(OLD, 100.0 - percent), SplitTarget(NEW, percent)), HashKey.SESSION)


def test_a_canary_goes_step_by_step_and_ends_as_a_plain_route() -> None:
    route = begun()
    seen = [route.strategy]
    while rollout_of(route) is not None:
        route = stored(promoted(route))
        seen.append(route.strategy)
    assert seen == [*map(split, (1.0, 5.0, 25.0, 50.0)), Single(NEW), Single(NEW)]
    assert route == replace(ROUTE, strategy=Single(NEW))


def test_copies_come_first_where_that_is_asked_for() -> None:
    route = begun(steps=(10.0, 100.0), shadow=True)
    assert route.strategy == Shadow(OLD, NEW)
    told = rollout_of(route)
    assert told is not None
    assert told.said == "digits:2.0.0 gets copies (step 1 of 3)"
    assert promoted(route).strategy == split(10.0)


def test_blue_green_is_one_step_that_can_still_be_taken_back() -> None:
    route = begun(steps=(100.0,))
    assert route.strategy == Single(NEW)
    assert aborted(route) == ROUTE


@pytest.mark.parametrize("steps_taken", range(5))
def test_an_abort_returns_to_what_was_at_every_step(steps_taken: int) -> None:
    chosen = replace(ROUTE, strategy=Choose((RouteTarget("digits"),), 2.0))
    route = stored(started(chosen, NEW, old=OLD, steps=CANARY, shadow=False, hash_key=HashKey.TENANT))
    for _ in range(steps_taken):
        route = stored(promoted(route))
    assert aborted(route) == chosen


def test_what_is_changed_meanwhile_is_kept_by_an_abort() -> None:
    changed = replace(begun(), description="new text")
    assert aborted(changed) == replace(ROUTE, description="new text")


def test_odd_parts_are_one_hundred_per_cent_exactly() -> None:
    route = begun(steps=(0.1, 33.3333, 100.0))
    assert not object_faults(route)
    assert not object_faults(promoted(route))


@pytest.mark.parametrize(
    ("route", "old", "why"),
    [
        (begun(), None, "is in a rollout: digits:2.0.0 gets 1 %"),
        (replace(ROUTE, strategy=Single(NEW)), None, "goes to digits:2.0.0 already"),
        (replace(ROUTE, strategy=Single(RouteTarget("digits"))), None, "names no version"),
        (replace(ROUTE, strategy=Choose((OLD,))), None, "does not go to one version"),
    ],
)
def test_what_cannot_begin_says_why(route: Route, old: RouteTarget | None, why: str) -> None:
    with pytest.raises(CommandError, match=why):
        started(route, NEW, old=old, steps=CANARY, shadow=False, hash_key=HashKey.SESSION)


def test_a_route_in_no_rollout_is_neither_promoted_nor_aborted() -> None:
    for step in (promoted, aborted):
        with pytest.raises(CommandError, match="in no rollout"):
            step(ROUTE)


@pytest.mark.parametrize("text", ["", "5,1,100", "0,100", "1,50", "1,x,100", "1,101"])
def test_steps_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(CommandError, match="steps"):
        parse_steps(text)


def test_steps_are_read_as_people_write_them() -> None:
    assert parse_steps("1, 5%,100") == (1.0, 5.0, 100.0)


def test_an_annotation_of_somebody_else_is_named_and_left_alone() -> None:
    odd = replace(ROUTE, metadata=replace(ROUTE.metadata, annotations={"rollout": "mine"}))
    with pytest.raises(CommandError, match="is no rollout"):
        promoted(odd)
