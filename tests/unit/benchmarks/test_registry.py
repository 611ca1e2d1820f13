"""What the registry's benchmark applies is valid, and what it writes stands beside what others wrote."""

import pytest

from benchmarks import registry_objects
from benchmarks.registry_figures import label
from benchmarks.registry_measuring import Times
from benchmarks.report import replaced_part
from services.chassis.object_codec import object_from
from services.domain.validation import validate


@pytest.mark.parametrize("count", [1, 4, 5, 137, 1000])
def test_every_beginning_of_the_sequence_is_a_valid_state(count: int) -> None:
    items = [object_from(message) for message in registry_objects.first(count)]
    state = {item.key: item for item in items}

    assert len(state) == count
    assert validate(state, state) == {}


def test_objects_take_what_is_said_of_them() -> None:
    sizes = sorted(message.ByteSize() for message in registry_objects.first(1000)[len(registry_objects.POOLS) :])

    assert sizes[0] > 250
    assert sizes[-1] < 900


def test_an_update_is_a_change_each_time() -> None:
    for message in registry_objects.first(20):
        forms = {registry_objects.updated(message, build).SerializeToString(deterministic=True) for build in range(5)}
        assert len(forms) == 5


def test_a_part_of_the_page_is_replaced_and_the_rest_is_left() -> None:
    page = replaced_part("# Page\n\ntext\n", "registry", "one")

    assert page == "# Page\n\ntext\n\n<!-- begin: registry -->\none\n<!-- end: registry -->\n"
    assert replaced_part(page, "registry", "two") == page.replace("one", "two")
    assert replaced_part(replaced_part(page, "other", "x"), "registry", "two").count("begin:") == 2


def test_percentiles_are_of_values_that_were_measured() -> None:
    times = Times([0.001 * number for number in range(1, 101)])

    assert times.ms(0.5) == pytest.approx(50)
    assert times.ms(0.99) == pytest.approx(99)
    assert Times([0.002]).ms(0.99) == pytest.approx(2)
    assert label(100_000) == "100k"
