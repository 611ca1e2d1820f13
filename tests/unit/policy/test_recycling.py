from services.policy.recycling import FLOOR_BYTES, recycles, unreturned_bytes

MIB = 1 << 20


def test_what_allocators_keep_is_not_lost() -> None:
    assert unreturned_bytes(took_bytes=100 * MIB, freed_bytes=100 * MIB) == 0
    assert unreturned_bytes(took_bytes=100 * MIB, freed_bytes=100 * MIB - FLOOR_BYTES) == 0
    assert unreturned_bytes(took_bytes=1000 * MIB, freed_bytes=750 * MIB) == 0
    assert unreturned_bytes(took_bytes=10 * MIB, freed_bytes=0) == 0
    assert unreturned_bytes(took_bytes=10 * MIB, freed_bytes=500 * MIB) == 0


def test_more_than_that_is_lost() -> None:
    assert unreturned_bytes(took_bytes=100 * MIB, freed_bytes=35 * MIB) == 65 * MIB
    assert unreturned_bytes(took_bytes=1000 * MIB, freed_bytes=749 * MIB) == 251 * MIB
    assert unreturned_bytes(took_bytes=100 * MIB, freed_bytes=-50 * MIB) == 100 * MIB


def test_a_host_that_lost_memory_waits_until_it_is_empty_unless_it_lost_much() -> None:
    assert not recycles(lost_bytes=0, budget_bytes=1000, versions=0)
    assert not recycles(lost_bytes=250, budget_bytes=1000, versions=1)
    assert recycles(lost_bytes=251, budget_bytes=1000, versions=1)
    assert recycles(lost_bytes=1, budget_bytes=1000, versions=0)
