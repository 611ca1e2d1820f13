"""Parts of a split: how large they are, and who moves when they change."""

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from services.domain.rng import KeyedRng
from services.domain.strategies import HashKey, RouteTarget, Split, SplitTarget
from services.policy.splitting import arm_of, hash_key

RNG = KeyedRng(7)
KEYS = 20_000


def a_split(**percent: float) -> Split:
    return Split(tuple(SplitTarget(RouteTarget(name), part) for name, part in percent.items()))


def arms(split: Split, count: int = KEYS, *, route: str = "r") -> list[str]:
    return [
        arm_of(split, lambda name, key=key: RNG.unit(f"session/s{key}", f"split/{route}/{name}")).name  # type: ignore[misc]
        for key in range(count)
    ]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=5).filter(any))
def test_parts_are_as_large_as_their_weights(weights: list[int]) -> None:
    total = sum(weights)
    split = a_split(**{f"m{index}": 100.0 * weight / total for index, weight in enumerate(weights)})

    counts = Counter(arms(split, 4000))

    # Chi-square over the parts that have a weight: 6 deviations, by Wilson and Hilferty's cube root, are no chance.
    expected = {f"m{index}": 4000 * weight / total for index, weight in enumerate(weights)}
    assert all(counts[name] == 0 for name, share in expected.items() if share == 0)
    parts = [(counts[name], share) for name, share in expected.items() if share > 0]
    square = sum((count - share) ** 2 / share for count, share in parts)
    freedom = max(1, len(parts) - 1)
    ninth = 2.0 / (9.0 * freedom)
    assert square <= freedom * (1.0 - ninth + 6.0 * math.sqrt(ninth)) ** 3


def test_a_canary_of_one_per_cent_gets_no_more_than_that_but_for_chance() -> None:
    counts = Counter(arms(a_split(stable=99.0, canary=1.0)))

    deviation = math.sqrt(KEYS * 0.01 * 0.99)
    assert abs(counts["canary"] - 0.01 * KEYS) < 4 * deviation


def test_a_part_of_nothing_gets_nothing() -> None:
    assert set(arms(a_split(stable=100.0, canary=0.0))) == {"stable"}


def test_a_canary_that_grows_takes_keys_over_and_gives_none_back() -> None:
    before, after = arms(a_split(stable=90.0, canary=10.0)), arms(a_split(stable=75.0, canary=25.0))

    moved = [(was, now) for was, now in zip(before, after, strict=True) if was != now]
    assert {*moved} == {("stable", "canary")}
    assert abs(len(moved) - 0.15 * KEYS) < 5 * math.sqrt(KEYS * 0.15 * 0.85)


def test_a_new_part_takes_its_share_of_each_and_moves_nobody_else() -> None:
    before = arms(a_split(a=50.0, b=30.0, c=20.0))
    after = arms(a_split(a=45.0, b=27.0, c=18.0, new=10.0))

    assert {now for was, now in zip(before, after, strict=True) if was != now} == {"new"}


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=3, max_size=3), st.lists(st.integers(1, 50), min_size=3, max_size=3))
def test_keys_only_move_to_what_grew_against_what_they_had(old: list[int], new: list[int]) -> None:
    names = ("a", "b", "c")
    was = a_split(**{name: 100.0 * weight / sum(old) for name, weight in zip(names, old, strict=True)})
    now = a_split(**{name: 100.0 * weight / sum(new) for name, weight in zip(names, new, strict=True)})
    growth = {name: after / before for name, before, after in zip(names, old, new, strict=True)}

    for one, other in zip(arms(was, 1000), arms(now, 1000), strict=True):
        assert one == other or growth[other] > growth[one]


def test_order_does_not_matter() -> None:
    assert arms(a_split(a=30.0, b=70.0), 500) == arms(a_split(b=70.0, a=30.0), 500)


def test_routes_split_the_same_sessions_otherwise() -> None:
    split = a_split(a=50.0, b=50.0)

    same = sum(one == other for one, other in zip(arms(split, 2000), arms(split, 2000, route="s"), strict=True))

    assert 850 < same < 1150


def test_what_is_hashed() -> None:
    def key(by: HashKey, session: str = "s", tenant: str = "t") -> str:
        return hash_key(Split((), by), session=session, tenant=tenant, request_id="r")

    assert key(HashKey.SESSION) == "session/s"
    assert key(HashKey.SESSION, session="") == "request/r"
    assert key(HashKey.TENANT) == "tenant/t"
    assert key(HashKey.TENANT, tenant="") == "request/r"
    assert key(HashKey.REQUEST) == "request/r"
