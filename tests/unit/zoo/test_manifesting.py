"""The zoo's manifests: every place is filled, and what comes out is a valid state of the registry."""

from pathlib import Path

import pytest
import yaml

from examples.zoo import making, manifesting
from examples.zoo.manifesting import TemplateError, Value, render
from examples.zoo.measuring import Footprint
from examples.zoo.quality import Quality
from examples.zoo.recipes import Recipe, recipes
from examples.zoo.training import breast_cancer, digits
from services.chassis import object_codec as codec
from services.domain.objects import ModelVersion, Route
from services.domain.validation import validate

NAMES = (
    *("minilm", "minilm-tokenizer", "minilm-int8", "efficientnet-lite0", "efficientnet-lite2", "silero-vad"),
    *("basic-pitch", "breast-cancer-linear", "breast-cancer-boosted", "digits-linear", "digits-cnn"),
)


def all_facts() -> dict[str, Value]:
    facts: dict[str, Value] = {}
    for name in NAMES:
        facts |= {f"{name}.uri": f"file:/zoo/{name}", f"{name}.sha256": "0" * 64}
        facts |= making.places(name, Footprint(100 << 20, 0.0123), Quality(0.97, "accuracy: on 7 rows"))
    return facts


@pytest.fixture
def measured(tmp_path: Path) -> list[Recipe]:
    breast_cancer().save_held_out(tmp_path / "breast_cancer.npz")
    digits().save_held_out(tmp_path / "digits.npz")
    return recipes(tmp_path)


def test_every_manifest_becomes_a_valid_object(tmp_path: Path) -> None:
    manifesting.render_all(all_facts(), tmp_path)

    objects = {item.key: item for item in map(codec.object_from, manifesting.objects_in(tmp_path))}

    assert validate(objects, objects) == {}
    assert {key.name for key in objects if key.kind == "Route"} == {
        "breast-cancer",
        "classify-image",
        "detect-speech",
        "digits",
        "embed",
        "find-notes",
    }


def test_what_was_measured_reaches_the_version(tmp_path: Path) -> None:
    manifesting.render_all(all_facts(), tmp_path)

    versions = {
        item.model_key.model: item
        for item in map(codec.object_from, manifesting.objects_in(tmp_path))
        if isinstance(item, ModelVersion)
    }

    minilm = versions["minilm"]
    assert minilm.memory_bytes == 125 << 20
    assert minilm.service_time_s == pytest.approx(0.0123)
    assert (minilm.quality, minilm.quality_metric) == (0.97, "accuracy: on 7 rows")


def test_every_version_is_measured_with_inputs_that_its_model_takes(tmp_path: Path, measured: list[Recipe]) -> None:
    manifesting.render_all(all_facts(), tmp_path / "manifests")
    objects = manifesting.objects_in(tmp_path / "manifests")
    versions = {(item.metadata.name, item.model_version.version) for item in objects if item.HasField("model_version")}
    inputs = {
        item.metadata.name: {spec.name for spec in item.model.inputs} for item in objects if item.HasField("model")
    }

    assert {(recipe.model, recipe.version) for recipe in measured} == versions
    assert all(set(recipe.sample) == inputs[recipe.model] for recipe in measured)


def test_the_models_that_are_served_while_a_host_dies_are_on_two_hosts(tmp_path: Path) -> None:
    manifesting.render_all(all_facts(), tmp_path)
    objects = [codec.object_from(item) for item in manifesting.objects_in(tmp_path)]
    replicas = {item.metadata.name: item.min_replicas for item in objects if isinstance(item, ModelVersion)}
    routes = {item.metadata.name: item for item in objects if isinstance(item, Route)}

    for name in ("embed", "digits"):
        assert all(replicas[target.model] >= 2 for target in routes[name].targets)


def test_a_place_without_a_fact_is_named() -> None:
    with pytest.raises(TemplateError, match=r"vase\.quality"):
        render("quality: ${vase.quality}", {})


@pytest.mark.parametrize("text", ["accuracy: on 7 rows", "100 # rows", "'quoted'", "- item", "{}", "true", "1.5", "ä"])
def test_text_stays_the_text_it_was(text: str) -> None:
    assert yaml.safe_load(render("is: ${a.b}", {"a.b": text})) == {"is": text}


def test_a_new_run_takes_away_what_is_no_longer_made(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("kind: Model")

    written = manifesting.render_all(all_facts(), tmp_path)

    assert sorted(tmp_path.glob("*.yaml")) == sorted(written)
