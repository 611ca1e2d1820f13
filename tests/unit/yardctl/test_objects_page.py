"""The examples of docs/objects.md are one valid state with every kind and strategy in it."""

import re
from pathlib import Path

import pytest

from services.domain.strategies import STRATEGIES
from services.policy.change_check import check
from services.registry.wire import submitted
from yardctl.manifest_text import to_yaml
from yardctl.manifests import KIND_FIELDS, Document, kind_of, load

PAGE = Path(__file__).parents[3] / "docs" / "objects.md"


@pytest.fixture
def documents(tmp_path: Path) -> list[Document]:
    """Every object of the page."""
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)):
        (tmp_path / f"{number:02}.yaml").write_text(block)
    return load([tmp_path])


def test_all_examples_together_are_a_valid_state(documents: list[Document]) -> None:
    everything = [submitted(document.object) for document in documents]

    assert check({}, everything, (), lambda _: ()) == []


def test_every_kind_and_every_strategy_has_an_example(documents: list[Document]) -> None:
    items = [document.object for document in documents]

    assert {kind_of(item) for item in items} == set(KIND_FIELDS)
    assert {item.route.WhichOneof("strategy") for item in items if item.HasField("route")} == set(STRATEGIES)


def test_the_examples_are_printed_as_manifests_that_read_back(documents: list[Document], tmp_path: Path) -> None:
    items = [document.object for document in documents]
    path = tmp_path / "again" / "all.yaml"
    path.parent.mkdir()

    path.write_text(to_yaml(items))

    assert [document.object for document in load([path])] == items
