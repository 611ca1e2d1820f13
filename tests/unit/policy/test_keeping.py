"""What stays of what was kept: within its bytes, and what is asked for rather than what is not."""

import random

from services.policy.keeping import LARGEST_SHARE, OVERHEAD_BYTES, Kept

ONE = OVERHEAD_BYTES + 400


def filled(most: int, *keys: str) -> Kept[str, str]:
    kept: Kept[str, str] = Kept(most * ONE)
    for key in keys:
        put(kept, key)
    return kept


def put(kept: Kept[str, str], key: str, *, size_bytes: int = 400, dead_s: float = 100.0, now_s: float = 0.0) -> bool:
    return kept.put(key, key.upper(), size_bytes=size_bytes, dead_s=dead_s, now_s=now_s)


def test_what_is_kept_is_found_until_nobody_can_want_it() -> None:
    kept = filled(9, "a")

    assert kept.get("a", 99.9) == "A"
    assert kept.get("b", 0.0) is None
    assert kept.get("a", 100.0) is None
    assert (len(kept), kept.size_bytes) == (0, 0)


def test_the_oldest_that_nobody_asked_for_leaves_first() -> None:
    kept = filled(9, *"abcdefghi")
    assert kept.get("a", 0.0)
    assert kept.get("c", 0.0)

    for key in "xyz":
        put(kept, key)

    assert [key for key in "abcdefghixyz" if kept.get(key, 0.0)] == [*"acfghixyz"]


def test_a_scan_does_not_drive_out_what_is_in_use() -> None:
    kept = filled(20)
    for number in range(1000):
        for key in "abcde":
            if kept.get(key, 0.0) is None:
                put(kept, key)
        put(kept, f"scan-{number}")

    assert all(kept.get(key, 0.0) for key in "abcde")


def test_what_is_dead_leaves_though_it_was_asked_for() -> None:
    kept = filled(9)
    put(kept, "old", dead_s=5.0)
    kept.get("old", 0.0)
    for key in "abcdefgh":
        put(kept, key)

    put(kept, "new", now_s=6.0)

    assert all(kept.get(key, 6.0) for key in [*"abcdefgh", "new"])


def test_one_that_is_too_large_is_not_kept_and_takes_its_older_value_along() -> None:
    kept = filled(16, "a", "b")

    assert not put(kept, "a", size_bytes=16 * ONE // LARGEST_SHARE)

    assert kept.get("a", 0.0) is None
    assert kept.get("b", 0.0)


def test_all_being_in_use_lets_one_leave_all_the_same() -> None:
    kept = filled(300)
    for number in range(300):
        put(kept, str(number))
        kept.get(str(number), 0.0)

    put(kept, "new")

    assert kept.get("new", 0.0)
    assert len(kept) == 300


def test_bytes_are_never_more_than_there_may_be_and_always_those_of_what_is_there() -> None:
    chance = random.Random(7)
    kept: Kept[int, int] = Kept(100_000)
    sizes: dict[int, int] = {}
    for now in range(20_000):
        key = chance.randrange(400)
        if chance.random() < 0.5:
            assert kept.get(key, float(now)) in (None, key)
        else:
            sizes[key] = chance.randrange(14_000)
            kept.put(key, key, size_bytes=sizes[key], dead_s=now + chance.randrange(1, 500), now_s=float(now))
        assert kept.size_bytes <= 100_000
    there = [key for key in range(400) if kept.get(key, 20_000.0) is not None]
    assert kept.size_bytes == sum(sizes[key] + OVERHEAD_BYTES for key in there)
    assert len(kept) == len(there) > 5
