"""A trie behaves as a dict that is copied for each change, and is not copied."""

import random

import pytest

from services.domain import persistent
from services.domain.persistent import Trie


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
