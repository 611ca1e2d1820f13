"""Persistent collections behave as a dict and a list that are copied for each change, and are not copied."""

import random

import pytest

from services.domain import persistent
from services.domain.persistent import Sorted, Trie


class Clumsy:
    """A key whose hash is that of many others."""

    def __init__(self, name: int) -> None:
        self.name = name

    def __hash__(self) -> int:
        return self.name % 2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Clumsy) and other.name == self.name


@pytest.mark.parametrize("seed", range(5))
def test_any_changes_leave_what_they_leave_in_a_dict(seed: int) -> None:
    rng = random.Random(seed)
    trie, plain = Trie[str, int](), dict[str, int]()
    for step in range(200):
        puts = {f"k{rng.randrange(500)}": step for _ in range(rng.randrange(30))}
        drops = [f"k{rng.randrange(500)}" for _ in range(rng.randrange(30))]
        before, kept = trie, dict(plain)

        trie = trie.changed(puts, drops)
        plain = {key: value for key, value in plain.items() if key not in drops} | puts

        assert (dict(trie), len(trie)) == (plain, len(plain))
        assert dict(before) == kept
        came, went = trie.differing(before)
        assert came == {key: value for key, value in plain.items() if kept.get(key) != value}
        assert sorted(went) == sorted(set(kept) - set(plain))


def test_what_is_not_there_is_missed() -> None:
    trie = Trie({f"k{number}": number for number in range(1000)})

    assert trie["k7"] == 7
    assert "k1000" not in trie
    assert trie.get("k1000") is None
    with pytest.raises(KeyError):
        trie["k1000"]
    assert "k7" not in trie.changed({}, ["k7"])


def test_keys_with_equal_hashes_are_told_apart() -> None:
    trie = Trie({Clumsy(number): number for number in range(100)})

    fewer = trie.changed({Clumsy(0): -1}, [Clumsy(number) for number in range(1, 100, 2)])

    assert {key.name: value for key, value in fewer.items()} == {n: n or -1 for n in range(0, 100, 2)}


def test_a_change_of_nothing_is_the_same_mapping() -> None:
    trie = Trie({"a": 1})

    assert trie.changed({}, ["b"]) is trie


def test_one_change_among_many_copies_a_small_part(monkeypatch: pytest.MonkeyPatch) -> None:
    trie = Trie({f"k{number}": number for number in range(50_000)})
    made = 0
    changed = persistent._changed

    def counting(node: object, *rest: object) -> object:
        nonlocal made
        made += len(node)  # type: ignore[arg-type]
        return changed(node, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(persistent, "_changed", counting)
    trie.changed({"one-more": 1}, ["k1"])

    assert made < 400


def test_what_differs_is_found_without_a_look_at_what_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    trie = Trie({f"k{number}": [number] for number in range(50_000)})
    after = trie.changed({"k7": [-7], "k8": [8]}, ["k9"])
    compared = []
    same = persistent._same
    monkeypatch.setattr(persistent, "_same", lambda *pair: compared.append(pair) or same(*pair))  # type: ignore[func-returns-value]

    assert after.differing(trie) == ({"k7": [-7]}, ["k9"])
    assert len(compared) < 100


@pytest.mark.parametrize("seed", range(5))
def test_any_changes_leave_what_sorting_anew_would(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistent, "_BLOCK", 8)
    rng = random.Random(seed)
    order, items = Sorted[int](rank=lambda item: -item), set[int]()
    for _ in range(150):
        came = {rng.randrange(300) for _ in range(rng.randrange(20))} - items
        gone = set(rng.sample(sorted(items), min(len(items), rng.randrange(20))))
        before, kept = order, sorted(items, reverse=True)

        order = order.changed(came, gone)
        items = (items | came) - gone

        assert (list(order), len(order)) == (sorted(items, reverse=True), len(items))
        assert list(before) == kept
        probe = rng.randrange(300)
        assert list(order.following(probe)) == [item for item in order if item < probe]
        upto, after = [item for item in order if item >= probe], list(order.following(probe))
        assert order.around(probe, 20) == [*upto[-20:], *after[:20]]
        assert max(map(len, order._blocks), default=0) <= 16


def test_a_change_of_one_item_keeps_the_other_blocks() -> None:
    order = Sorted(range(0, 20_000, 2), rank=lambda item: item)

    after = order.changed([777])

    assert len({id(block) for block in after._blocks} - {id(block) for block in order._blocks}) == 1
