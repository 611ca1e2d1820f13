import random

from hypothesis import given
from hypothesis import strategies as st

from services.policy.eviction import LOAD_TIMES, Ages, Residence, victims


def used(ages: Ages, count: int, now_s: float = 0.0, *, size: int = 100, load_s: float = 1.0) -> Residence:
    residence = Residence(size, load_s)
    ages.used(residence, count, now_s)
    return residence


def test_the_least_used_goes() -> None:
    ages = Ages()
    seldom, often = used(ages, 1), used(ages, 10)
    assert victims([often, seldom], need_bytes=50, now_s=100.0) == [seldom]


def test_of_two_used_alike_the_one_that_is_quicker_to_bring_back_goes_and_the_larger_one() -> None:
    ages = Ages()
    quick, slow = used(ages, 5, load_s=0.1), used(ages, 5, load_s=10.0)
    assert victims([slow, quick], need_bytes=50, now_s=100.0) == [quick]
    small, large = used(ages, 5, size=100), used(ages, 5, size=1000)
    assert victims([small, large], need_bytes=50, now_s=100.0) == [large]


def test_what_was_popular_once_goes_before_what_is_called_now() -> None:
    ages = Ages()
    once = used(ages, 40)
    for round_number in range(100):
        lately = used(ages, 5, 10.0 * round_number)
        chosen = victims([once, lately], need_bytes=50, now_s=1e9)
        assert chosen
        if chosen == [once]:
            return
        ages.evicted(lately)
    raise AssertionError("it stays for good")


def test_a_version_stays_for_three_of_its_load_times() -> None:
    ages = Ages()
    fresh, other = used(ages, 1, load_s=2.0), used(ages, 9)
    fresh.loaded_at_s = 100.0
    assert victims([fresh, other], need_bytes=50, now_s=105.9) == [other]
    assert victims([fresh, other], need_bytes=50, now_s=100.0 + LOAD_TIMES * 2.0) == [fresh]
    assert victims([fresh], need_bytes=50, now_s=101.0) is None


def test_nobody_goes_where_that_would_not_be_enough() -> None:
    ages = Ages()
    assert victims([used(ages, 1), used(ages, 2)], need_bytes=201, now_s=100.0) is None


def test_who_need_not_go_stays() -> None:
    ages = Ages()
    small, large = used(ages, 1, size=10), used(ages, 2, size=100)
    assert victims([small, large], need_bytes=100, now_s=100.0) == [large]


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 20)), max_size=12), st.integers(0, 400))
def test_what_goes_frees_enough_and_none_of_it_in_vain(sizes: list[tuple[int, int]], need: int) -> None:
    ages = Ages()
    idle = [used(ages, count, size=size) for size, count in sizes]
    chosen = victims(idle, need_bytes=need, now_s=100.0)
    if chosen is None:
        assert sum(each.memory_bytes for each in idle) < need
    else:
        freed = sum(each.memory_bytes for each in chosen)
        assert freed >= need
        assert all(freed - each.memory_bytes < need for each in chosen)


def test_on_a_skewed_trace_it_misses_less_than_the_least_recently_used() -> None:
    rng = random.Random(7)
    calls = [min(29, int(rng.paretovariate(0.7)) - 1) for _ in range(6000)]
    own, lru = misses(calls, by_age=False), misses(calls, by_age=True)
    assert own < 0.9 * lru


def misses(calls: list[int], *, by_age: bool) -> int:
    """Misses of 8 places; `by_age` evicts the least recently used."""
    ages = Ages()
    known = {model: Residence(1, 0.0) for model in range(30)}
    inside: dict[int, float] = {}
    count = 0
    for number, model in enumerate(calls):
        now_s = float(number) / 10.0
        ages.used(known[model], 1, now_s)
        if model not in inside:
            count += 1
            if len(inside) == 8:
                if by_age:
                    gone = min(inside, key=lambda each: inside[each])
                else:
                    chosen = victims([known[each] for each in inside], need_bytes=1, now_s=now_s)
                    assert chosen
                    gone = next(each for each in inside if known[each] is chosen[0])
                    ages.evicted(known[gone])
                del inside[gone]
        inside[model] = now_s
    return count
