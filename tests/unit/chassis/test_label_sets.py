"""How many series a metric may have."""

from hypothesis import given
from hypothesis import strategies as st

from services.chassis.label_sets import OTHER, ROOM, LabelSets

LABELS = ("route", "tenant", "outcome")


def sets(most: int) -> LabelSets:
    return LabelSets(LABELS, kept=("outcome",), first=("tenant",), most=most)


def test_sets_are_their_own_up_to_the_bound_and_stay_so() -> None:
    bounded = sets(2)
    first, second = ("a", "acme", "OK"), ("a", "beta", "OK")

    assert [bounded.admit(each) for each in (first, second, ("b", "acme", "OK"))][:2] == [first, second]
    assert bounded.admit(first) == first


def test_beyond_it_tenants_are_given_up_before_routes_and_outcomes_never() -> None:
    bounded = sets(ROOM)
    for at in range(ROOM):
        bounded.admit(("a", f"t{at}", "OK"))

    assert bounded.admit(("a", "late", "OK")) == ("a", OTHER, "OK")
    assert bounded.admit(("a", "later", "OK")) == ("a", OTHER, "OK")
    assert bounded.admit(("b", "late", "OK")) == (OTHER, OTHER, "OK")
    assert bounded.admit(("b", "late", "INTERNAL")) == (OTHER, OTHER, "INTERNAL")


def test_a_metric_without_labels_needs_no_bound() -> None:
    assert LabelSets((), most=0).admit(()) == ()


@given(
    st.lists(st.tuples(*(st.text("abcdefgh", min_size=1, max_size=2) for _ in range(2)), st.sampled_from("xyz"))),
    st.integers(0, 20),
)
def test_no_calls_make_more_series_than_the_bound_says(calls: list[tuple[str, str, str]], most: int) -> None:
    bounded = sets(most)

    made = {bounded.admit(values) for values in calls}

    assert len(made) <= most + most // ROOM + 3
    assert {values[2] for values in made} == {values[2] for values in calls}
