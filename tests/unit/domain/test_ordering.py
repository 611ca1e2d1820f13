"""Names come after what they need, and circles are found however they are entered."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.domain.ordering import ordered

GRAPHS = st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefg"), max_size=3), max_size=6)


def test_a_name_comes_after_what_it_needs() -> None:
    order = ordered({"a": ["b", "c"], "b": ["c"], "c": [], "d": ["nobody"]})

    assert order.names == ("c", "b", "a", "d")
    assert order.circles == {}


def test_a_circle_is_told_to_each_that_stands_in_it() -> None:
    order = ordered({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["d"]})

    assert order.circles == {"b": ("b", "c", "b"), "c": ("b", "c", "b"), "d": ("d", "d")}


def test_a_chain_as_long_as_a_state_is_no_burden() -> None:
    links = 100_000
    chain = {str(number): [str(number + 1)] for number in range(links)}

    assert len(ordered(chain).names) == links
    assert len(ordered({**chain, str(links): ["0"]}).circles) == links + 1


@given(GRAPHS)
def test_an_order_has_every_name_once_and_is_right_or_has_a_circle(graph: dict[str, list[str]]) -> None:
    order = ordered(graph)

    assert sorted(order.names) == sorted(graph)
    place = {name: index for index, name in enumerate(order.names)}
    wrong = any(place[need] >= place[name] for name in graph for need in graph[name] if need in graph)
    assert wrong == bool(order.circles)
    for circle in order.circles.values():
        assert all(following in graph[name] for name, following in pairwise(circle))
        assert circle[0] == circle[-1]
