"""Measuring on a real model host: what comes out is the host's own, and the host is gone afterwards."""

from pathlib import Path

import numpy as np
import pytest

from examples.zoo import manifesting, quality, training
from examples.zoo.inputs import HeldOut
from examples.zoo.manifesting import Value, render
from examples.zoo.measuring import HOST_ID, MeasuringError, measuring_host
from examples.zoo.weights import sha256_of
from modelyard.registry.v1 import objects_pb2
from yardctl.layout import Layout
from yardctl.processes import live_records, read_records

pytestmark = pytest.mark.alone  # it measures times


@pytest.fixture
def split() -> training.Split:
    return training.digits()


def linear_digits(folder: Path, artifact: Path) -> tuple[objects_pb2.Object, objects_pb2.Object]:
    """The zoo's own manifest of the linear digits, for this artifact."""
    facts: dict[str, Value] = {
        "digits-linear.uri": f"file:{artifact}",
        "digits-linear.sha256": sha256_of(artifact),
        "digits-linear.memory_bytes": "8MiB",
        "digits-linear.service_time": "1ms",
        "digits-linear.quality": 0.5,
        "digits-linear.quality_metric": "guessed",
    }
    model, version, _ = (manifesting.TEMPLATES / "digits.yaml").read_text().split("\n---\n", maxsplit=2)
    folder.mkdir()
    (folder / "digits.yaml").write_text(render(f"{model}\n---\n{version}", facts))
    first, second = manifesting.objects_in(folder)
    return first, second


async def test_quality_and_footprint_are_measured_where_the_version_will_run(
    tmp_path: Path, split: training.Split
) -> None:
    artifact = tmp_path / "digits-linear.skops"
    training.fit_linear(split, artifact)
    model, version = linear_digits(tmp_path / "manifests", artifact)
    held_out = HeldOut(split.held_out_rows.astype(np.float32), split.held_out_labels)

    async with measuring_host(tmp_path / "measuring") as host:
        async with host.loaded(model, version) as loaded:
            found = await quality.accuracy(loaded.predict, held_out, name="pixels", rows=64)
            footprint = await loaded.footprint({"pixels": held_out.rows[:1]})
        running = live_records(Layout.of(tmp_path / "measuring"))

    assert found.value > 0.95
    assert footprint.compute_s > 0.0
    assert list(running) == [HOST_ID]
    assert read_records(Layout.of(tmp_path / "measuring")) == {}


async def test_an_artifact_that_the_host_refuses_is_said_with_its_reason(tmp_path: Path) -> None:
    artifact = tmp_path / "digits-linear.skops"
    artifact.write_bytes(b"this is no model")
    model, version = linear_digits(tmp_path / "manifests", artifact)

    with pytest.raises(MeasuringError, match=r"digits-linear:1\.0\.0 did not load: sklearn takes skops files"):
        async with measuring_host(tmp_path / "measuring") as host, host.loaded(model, version):
            pass

    assert read_records(Layout.of(tmp_path / "measuring")) == {}
