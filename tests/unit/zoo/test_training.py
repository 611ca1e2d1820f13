"""The small models that the zoo trains: good enough, the same each time, and of a form that the host takes."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import skops.io
import torch
from safetensors.torch import load_file

from examples.zoo import inputs, training
from services.model_host.backends.architectures import build

BOOSTED = ["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cnn") / "digits-cnn.safetensors"
    training.fit_cnn(training.digits(), path)
    return path


def test_the_network_loads_strictly_into_the_registered_architecture_and_reads_digits(cnn: Path) -> None:
    widths = ",".join(str(width) for width in training.CNN_WIDTHS)
    made = build("small_cnn", {"height": "8", "width": "8", "classes": "10", "widths": widths, "scale": "16"}, {})
    split = training.digits()

    made.module.load_state_dict(load_file(cnn), strict=True)
    with torch.inference_mode():
        answer = made.predict({"pixels": split.held_out_rows.astype(np.float32)}, torch.device("cpu"))

    assert (answer["label"] == split.held_out_labels).mean() > 0.98


def test_the_architecture_computes_what_was_trained(cnn: Path) -> None:
    widths = ",".join(str(width) for width in training.CNN_WIDTHS)
    made = build("small_cnn", {"height": "8", "width": "8", "classes": "10", "widths": widths, "scale": "16"}, {})
    trained = training.digit_network().eval()
    pixels = training.digits().held_out_rows[:16].astype(np.float32)

    made.module.load_state_dict(load_file(cnn), strict=True)
    trained.load_state_dict(load_file(cnn), strict=True)

    with torch.inference_mode():
        wanted = trained(torch.from_numpy(pixels).reshape(-1, 1, 8, 8) / training.PIXEL_SCALE)
        answer = made.predict({"pixels": pixels}, torch.device("cpu"))
    np.testing.assert_allclose(answer["logits"], wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_training_again_gives_the_same_bytes(cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CNN_EPOCHS", 1)
    torch.manual_seed(99)  # whatever the generator's state was

    digests = set()
    for name in ("first", "second"):
        training.fit_cnn(training.digits(), tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())

    assert len(digests) == 1


def test_no_row_is_both_learned_from_and_held_out() -> None:
    for split in (training.digits(), training.breast_cancer()):
        kept = {row.tobytes() for row in split.rows}

        assert not any(row.tobytes() in kept for row in split.held_out_rows)
        assert len(split.held_out_labels) / (len(split.labels) + len(split.held_out_labels)) == pytest.approx(
            training.HELD_OUT_SHARE, abs=0.01
        )


def test_held_out_rows_come_back_as_they_were_kept(tmp_path: Path) -> None:
    split = training.breast_cancer()

    split.save_held_out(tmp_path / "rows.npz")
    kept = inputs.held_out(tmp_path / "rows.npz")

    np.testing.assert_array_equal(kept.rows, split.held_out_rows)
    np.testing.assert_array_equal(kept.labels, split.held_out_labels)


def test_the_linear_and_the_boosted_model_tell_tumours_apart(tmp_path: Path) -> None:
    split = training.breast_cancer()

    for fit in (training.fit_linear, training.fit_boosted):
        fit(split, tmp_path / "model.skops")
        model = skops.io.load(tmp_path / "model.skops", trusted=BOOSTED)

        assert model.score(split.held_out_rows, split.held_out_labels) > 0.95
