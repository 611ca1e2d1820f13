from services.domain.service_class import OPEN, TENANTS, ServiceClass
from services.policy.cutoff import WINDOW_S, Cutoff, moved

GOLD, BRONZE = 0, 7 * TENANTS


def test_sheddable_classes_are_less_important_than_all_others() -> None:
    last = ServiceClass("t", "bronze", band=8).level
    assert ServiceClass("t", "batch", band=1, sheddable=True).level > last
    assert ServiceClass("t", "gold", band=1).level < ServiceClass("t", "silver", band=2).level
    assert ServiceClass("t", "batch", band=8, sheddable=True).level < OPEN


def test_overload_cuts_about_a_twentieth_of_the_calls_the_least_important_ones() -> None:
    came = {GOLD: 500} | {BRONZE + level: 5 for level in range(100)}
    value = moved(OPEN, came, overloaded=True, computed=0)
    assert sum(count for level, count in came.items() if level < value) == 950


def test_under_lasting_overload_only_the_most_important_band_is_left() -> None:
    came = {GOLD + 1: 900, GOLD + 5: 100, BRONZE: 50, BRONZE + 3: 50}
    value = OPEN
    for _ in range(100):
        value = moved(value, came, overloaded=True, computed=0)
    assert [level for level in came if level < value] == [GOLD + 1, GOLD + 5]


def test_without_overload_more_come_in_step_by_step_until_all_do() -> None:
    came = {GOLD: 500} | {BRONZE + level: 5 for level in range(100)}
    value, admitted = TENANTS, []
    while value != OPEN:
        value = moved(value, came, overloaded=False, computed=0)
        admitted.append(sum(count for level, count in came.items() if level < value))
    assert admitted[0] == 510
    assert admitted == sorted(admitted)
    assert len(admitted) >= 40


def test_nothing_is_refused_when_nothing_comes() -> None:
    assert moved(TENANTS, {}, overloaded=True, computed=0) == OPEN


def overload(*, refused: int, waited_s: float, batch_s: float = 0.001) -> int:
    cutoff = Cutoff(0.0)
    for level in [GOLD] * 50 + [BRONZE] * 50:
        cutoff.came(level)
    cutoff.waited(40, 40 * waited_s)
    for _ in range(refused):
        cutoff.refused()
    assert cutoff.due(WINDOW_S)
    cutoff.move(WINDOW_S, batch_s=batch_s)
    return cutoff.value


def test_overload_is_a_long_wait_and_calls_refused_for_it() -> None:
    assert overload(refused=10, waited_s=0.030) == BRONZE
    assert overload(refused=0, waited_s=10.0) == OPEN
    assert overload(refused=10, waited_s=0.010) == OPEN


def test_waiting_for_two_slow_batches_is_no_overload() -> None:
    assert overload(refused=10, waited_s=0.9, batch_s=0.5) == OPEN


def test_levels_from_the_cutoff_on_are_refused() -> None:
    cutoff = Cutoff(0.0)
    cutoff.value = BRONZE
    assert not cutoff.came(GOLD)
    assert cutoff.came(BRONZE)


def test_what_was_computed_is_let_in_however_much_one_tenant_brings() -> None:
    came = {GOLD: 60, BRONZE: 290}
    assert moved(OPEN, came, overloaded=True, computed=290) == OPEN
    assert moved(OPEN, {**came, BRONZE + 5: 50}, overloaded=True, computed=290) == BRONZE + 5


def test_a_loop_that_does_not_keep_up_is_overload_although_no_queue_shows_it() -> None:
    cutoff = Cutoff(0.0)
    for level in [GOLD] * 50 + [BRONZE] * 50:
        cutoff.came(level)
    for _ in range(10):
        cutoff.lagged(0.050)
    cutoff.move(WINDOW_S, batch_s=0.001)
    assert cutoff.value == BRONZE
