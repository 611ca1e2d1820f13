from hypothesis import given
from hypothesis import strategies as st

from services.policy.core_sharing import share_of


def test_neighbours_stay_together() -> None:
    assert [share_of(index, 2, range(8)) for index in range(2)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [share_of(index, 3, (2, 3, 5, 7)) for index in range(3)] == [(2,), (3,), (5, 7)]
    assert [share_of(index, 3, (0, 1)) for index in range(3)] == [(0,), (1,), (0,)]


@given(st.integers(1, 64), st.sets(st.integers(0, 300), min_size=1))
def test_every_host_has_one_and_no_processor_is_idle_or_shared_without_need(hosts: int, processors: set[int]) -> None:
    shares = [share_of(index, hosts, sorted(processors)) for index in range(hosts)]
    assert all(shares)
    if hosts <= len(processors):
        assert sorted(number for share in shares for number in share) == sorted(processors)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    else:
        assert set().union(*shares) == processors
