"""Who needs an object and in which order they stand is carried on as it would be found anew."""

import random
from dataclasses import replace

import pytest

from services.domain.objects import Metadata, Object, ObjectKey, Route, RouteTarget, Single, references
from services.policy.tree_diff import Action, Change
from services.registry import layout
from services.registry.index import Index
from services.registry.key_order import order_of
from services.registry.layout import Entry, State
from services.registry.ports import Note
from tests.fakes.objects import a_model, a_pool, a_version


def followed(state: State, upserts: list[Object], deletes: list[ObjectKey]) -> State:
    entries: dict[ObjectKey, Entry] = {item.key: layout.entry_to(item) for item in upserts}
    changes = [Change(Action.UPDATE, key) for key in entries] + [Change(Action.DELETE, key) for key in deletes]
    return layout.draft(state, entries, changes, Note("", "", "r", 0.0)).state


def an_object(rng: random.Random) -> Object:
    name = f"m{rng.randrange(8)}"
    match rng.randrange(4):
        case 0:
            return a_model(name)
        case 1:
            return a_pool(f"p{rng.randrange(3)}")
        case 2:
            return a_version(name, f"{rng.randrange(4)}.0.0", pool=rng.choice(["", "p0", "p1"]))
        case _:
            return Route(Metadata(f"r{rng.randrange(8)}"), Single(RouteTarget(name, rng.choice(["", "1.0.0"]))))


@pytest.mark.parametrize("seed", range(5))
def test_any_changes_leave_the_index_that_would_be_made_anew(seed: int) -> None:
    rng = random.Random(seed)
    state = State()
    assert not state.knows_users
    state.users_of(ObjectKey("Model", "m0"))
    assert state.knows_users
    for _ in range(60):
        upserts = list({item.key: item for item in (an_object(rng) for _ in range(rng.randrange(8)))}.values())
        known = [key for key in state.entries if key not in {item.key for item in upserts}]

        state = followed(state, upserts, rng.sample(sorted(known), min(len(known), rng.randrange(4))))

        assert state.knows_users
        anew = Index(state.entries)
        needed = {need for item in state.objects.values() for need in references(item)}
        for key in {*needed, *state.entries, ObjectKey("Model", "nobody")}:
            users = {user for user, item in state.objects.items() if key in references(item)}
            assert set(state.users_of(key)) == set(anew.users_of(key)) == users
        assert list(state.ordered) == list(anew.order) == sorted(state.entries, key=order_of)


def test_what_nobody_asked_for_is_not_worked_out() -> None:
    state = followed(State(), [a_model("m"), a_version("m")], [])

    assert not state.knows_users
    assert not followed(state, [a_model("n")], []).knows_users


def test_copies_of_a_state_share_what_one_of_them_found() -> None:
    state = followed(State(), [a_model("m"), a_version("m")], [])
    copy = replace(state, mark=7)

    copy.users_of(ObjectKey("Model", "m"))

    assert state.knows_users
    assert copy.ordered is state.ordered
