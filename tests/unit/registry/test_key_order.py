"""Keys stand in order after any changes, in blocks of a bounded size."""

import random

import pytest

from services.domain.objects import ObjectKey
from services.registry import key_order
from services.registry.key_order import KeyOrder, first_of, order_of


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_order, "_BLOCK", 8)


def some_key(rng: random.Random) -> ObjectKey:
    name = f"m-{rng.randrange(40)}"
    if rng.random() < 0.5:
        return ObjectKey("ModelVersion", name, f"{rng.randrange(3)}.{rng.randrange(12)}.0{rng.choice(['', '-rc.1'])}")
    return ObjectKey(rng.choice(["Model", "Route", "Pool"]), name)


@pytest.mark.parametrize("seed", range(5))
def test_any_changes_leave_what_sorting_anew_would(seed: int) -> None:
    rng = random.Random(seed)
    order, keys = KeyOrder(), set[ObjectKey]()
    for _ in range(150):
        came = {some_key(rng) for _ in range(rng.randrange(20))} - keys
        gone = set(rng.sample(sorted(keys), min(len(keys), rng.randrange(20))))
        before, kept = order, sorted(keys, key=order_of)

        order = order.changed(came, gone)
        keys = (keys | came) - gone

        assert list(order) == sorted(keys, key=order_of)
        assert list(before) == kept
        probe = some_key(rng)
        assert list(order.following(probe)) == [key for key in order if order_of(key) > order_of(probe)]
        assert max(map(len, order._blocks), default=0) <= 16


def test_a_kind_begins_where_the_one_before_ends() -> None:
    order = KeyOrder([ObjectKey("Model", "z"), ObjectKey("ModelVersion", "a", "1.0.0"), ObjectKey("Pool", "a")])

    assert next(order.following(first_of("ModelVersion"))).kind == "ModelVersion"
    assert next(order.following(first_of("Pool"))).kind == "Pool"
    assert list(order.following(first_of("Route"))) == []


def test_what_is_around_a_key_is_near_it() -> None:
    order = KeyOrder(ObjectKey("Model", f"m-{number:03}") for number in range(200))

    found = order.around(ObjectKey("Model", "m-100x"), 10)

    assert {f"m-{number:03}" for number in range(95, 106)} <= {key.name for key in found}
    assert len(found) <= 50
    assert order.around(ObjectKey("Pool", "z"), 10)[-1].name == "m-199"
    assert KeyOrder().around(ObjectKey("Pool", "z"), 10) == []


def test_a_change_of_one_key_keeps_the_other_blocks() -> None:
    order = KeyOrder(ObjectKey("Model", f"m-{number:03}") for number in range(200))

    after = order.changed([ObjectKey("Model", "m-100x")], [])

    assert len({id(block) for block in after._blocks} - {id(block) for block in order._blocks}) == 1
