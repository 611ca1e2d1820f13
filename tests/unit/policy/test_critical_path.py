"""What comes after each step of a graph."""

from services.policy.critical_path import behind_s


def test_the_longest_way_to_the_end_counts() -> None:
    needs = {"end": ["quick", "slow"], "quick": ["start"], "slow": ["start"], "start": []}
    takes_s = {"end": 1.0, "quick": 0.1, "slow": 5.0, "start": 0.5}

    assert behind_s(needs, takes_s) == {"end": 0.0, "quick": 1.0, "slow": 1.0, "start": 6.0}


def test_steps_that_nobody_waits_for_have_nothing_behind() -> None:
    assert behind_s({"a": [], "b": []}, {"a": 1.0, "b": 2.0}) == {"a": 0.0, "b": 0.0}
