"""The registered torch architectures, by properties that hold for any weights.

What they answer with the zoo's real weights is tested in tests/unit/zoo.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.domain.errors import ArtifactRejected
from services.model_host.backends import architectures
from services.model_host.backends.architectures import Architecture, build, efficientnet_lite
from tests.unit.model_host.test_text import WORDS, write_tokenizer

CPU = torch.device("cpu")
SMALL_BERT = {
    "layers": "2",
    "heads": "2",
    "hidden": "8",
    "intermediate": "16",
    "vocabulary": str(len(WORDS)),
    "positions": "12",
    "max_length": "12",
}


@dataclass(frozen=True)
class Doubling:
    """The architecture of an installed package."""

    module: torch.nn.Module

    def predict(self, inputs: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, NDArray[Any]]:
        return {"doubled": inputs["rows"] * 2}


def make_doubling(options: Mapping[str, str], files: Mapping[str, Path]) -> Doubling:
    return Doubling(torch.nn.Identity())


def predict(architecture: Architecture, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    with torch.inference_mode():
        return architecture.predict(inputs, CPU)


def bert(tmp_path: Path, **options: str) -> Architecture:
    torch.manual_seed(7)
    return build("bert_encoder", {**SMALL_BERT, **options}, {"tokenizer.json": write_tokenizer(tmp_path)})


def texts(*items: bytes) -> NDArray[Any]:
    return np.array(items, dtype=object)


def install(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    point = EntryPoint(name, value, architectures.ENTRY_POINT_GROUP)
    monkeypatch.setattr(architectures, "entry_points", lambda group: EntryPoints([point]).select(group=group))


class TestRegistry:
    def test_an_unknown_name_is_rejected_with_the_known_ones(self) -> None:
        with pytest.raises(
            ArtifactRejected, match=r"'resnet'.*bert_encoder, efficientnet_lite, llama_decoder, mlp, small_cnn"
        ):
            build("resnet", {}, {})

    def test_an_installed_package_adds_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, "doubling", f"{__name__}:make_doubling")

        answer = predict(build("doubling", {}, {}), rows=np.ones((1, 2)))

        assert answer["doubled"].tolist() == [[2.0, 2.0]]

    def test_an_installed_package_cannot_take_a_builtin_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, "mlp", f"{__name__}:make_doubling")

        assert not isinstance(build("mlp", {"sizes": "2,2"}, {}), Doubling)

    def test_an_entry_that_cannot_be_imported_is_rejected_with_its_target(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install(monkeypatch, "gone", "no_such_package_here:make")

        with pytest.raises(ArtifactRejected, match="no_such_package_here:make"):
            build("gone", {}, {})

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("mlp", {}, "'sizes'"),
            ("mlp", {"sizes": "30"}, "features and the outputs"),
            ("mlp", {"sizes": "30,x"}, "'30,x'"),
            ("mlp", {"sizes": "30,0,2"}, "positive"),
            ("mlp", {"sizes": "3,2", "task": "guess"}, "classify, regress"),
            ("small_cnn", {"width": "8", "classes": "2"}, "'height' is missing"),
            ("small_cnn", {"height": "eight", "width": "8", "classes": "2"}, "'eight'"),
            ("efficientnet_lite", {}, "lite0, lite1, lite2"),
            ("efficientnet_lite", {"variant": "lite9"}, "'lite9'"),
            ("bert_encoder", {}, r"tokenizer\.json.*none"),
            ("bert_encoder", {"hidden": "10", "heads": "3"}, "multiple"),
            ("bert_encoder", {"max_length": "600"}, "'positions'"),
        ],
    )
    def test_a_wrong_option_is_rejected_with_its_name(self, name: str, options: dict[str, str], message: str) -> None:
        with pytest.raises(ArtifactRejected, match=message):
            build(name, options, {})


class TestMlp:
    def test_it_computes_relu_layers_and_classifies(self) -> None:
        made = build("mlp", {"sizes": "2,2,2"}, {})
        made.module.load_state_dict(
            {
                "layers.0.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
                "layers.0.bias": torch.zeros(2),
                "layers.1.weight": torch.tensor([[1.0, -1.0], [0.0, 2.0]]),
                "layers.1.bias": torch.tensor([0.5, 0.0]),
            },
            strict=True,
        )

        answer = predict(made, features=np.array([[2.0, -3.0], [0.0, 1.0]], dtype=np.float32))

        assert answer["logits"].tolist() == [[2.5, 0.0], [-0.5, 2.0]]
        assert answer["label"].tolist() == [0, 1]
        assert answer["label"].dtype == np.int64
        np.testing.assert_allclose(answer["probabilities"].sum(axis=1), 1.0, rtol=1e-6)

    def test_a_regressor_gives_its_values(self) -> None:
        answer = predict(build("mlp", {"sizes": "3,1", "task": "regress"}, {}), features=np.ones((4, 3), np.float32))

        assert list(answer) == ["values"]
        assert answer["values"].shape == (4, 1)


class TestSmallCnn:
    OPTIONS = {"height": "8", "width": "8", "classes": "10", "scale": "16"}  # noqa: RUF012

    def test_flat_and_shaped_pixels_give_the_same_answer(self) -> None:
        made = build("small_cnn", self.OPTIONS, {})
        pixels = np.random.default_rng(1).uniform(0, 16, (3, 64)).astype(np.float32)

        flat = predict(made, pixels=pixels)
        shaped = predict(made, pixels=pixels.reshape(3, 1, 8, 8))

        np.testing.assert_array_equal(flat["logits"], shaped["logits"])
        assert flat["logits"].shape == (3, 10)

    def test_a_batch_answers_as_its_items_do(self) -> None:
        made = build("small_cnn", self.OPTIONS, {})
        pixels = np.random.default_rng(2).uniform(0, 16, (4, 64)).astype(np.float32)

        batch = predict(made, pixels=pixels)["probabilities"]
        single = np.concatenate([predict(made, pixels=row[None])["probabilities"] for row in pixels])

        np.testing.assert_allclose(batch, single, atol=1e-6)


class TestBertEncoder:
    def test_embeddings_have_length_one(self, tmp_path: Path) -> None:
        embedding = predict(bert(tmp_path), text=texts(b"the yard", b"", b"open"))["embedding"]

        assert embedding.shape == (3, 8)
        assert embedding.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1.0, rtol=1e-5)

    def test_padding_by_a_longer_text_changes_nothing(self, tmp_path: Path) -> None:
        made = bert(tmp_path)

        alone = predict(made, text=texts(b"yard"))["embedding"]
        beside = predict(made, text=texts(b"yard", b"the yard is open the yard"))["embedding"]

        np.testing.assert_allclose(alone[0], beside[0], atol=1e-6)

    def test_word_order_counts(self, tmp_path: Path) -> None:
        embedding = predict(bert(tmp_path), text=texts(b"yard open", b"open yard"))["embedding"]

        assert np.abs(embedding[0] - embedding[1]).max() > 1e-4

    def test_it_agrees_with_attention_written_out(self, tmp_path: Path) -> None:
        made = bert(tmp_path, layers="1", heads="1")
        weights = {name: value.numpy().astype(np.float64) for name, value in made.module.state_dict().items()}
        ids = [2, 5, 7, 3]

        def linear(rows: NDArray[Any], name: str) -> NDArray[Any]:
            return np.asarray(rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])

        def norm(rows: NDArray[Any], name: str) -> NDArray[Any]:
            centred = rows - rows.mean(axis=1, keepdims=True)
            scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12)
            return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])

        states = norm(
            weights["embeddings.word_embeddings.weight"][ids]
            + weights["embeddings.position_embeddings.weight"][: len(ids)]
            + weights["embeddings.token_type_embeddings.weight"][0],
            "embeddings.LayerNorm",
        )
        at = "encoder.layer.0"
        scores = linear(states, f"{at}.attention.self.query") @ linear(states, f"{at}.attention.self.key").T / 8**0.5
        shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        mixed = linear(shares @ linear(states, f"{at}.attention.self.value"), f"{at}.attention.output.dense")
        states = norm(mixed + states, f"{at}.attention.output.LayerNorm")
        wide = linear(states, f"{at}.intermediate.dense")
        wide = wide * 0.5 * (1.0 + torch.erf(torch.from_numpy(wide / 2**0.5)).numpy())
        states = norm(linear(wide, f"{at}.output.dense") + states, f"{at}.output.LayerNorm")
        mean = states.mean(axis=0)

        embedding = predict(made, text=texts(b"yard open"))["embedding"][0]

        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), atol=1e-5)

    def test_a_tokenizer_that_knows_more_than_the_weights_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactRejected, match="vocabulary"):
            bert(tmp_path, vocabulary="5")


class TestEfficientNetLite:
    @pytest.mark.parametrize(("variant", "parameters"), [("lite0", 4.7e6), ("lite1", 5.4e6), ("lite2", 6.1e6)])
    def test_a_variant_has_as_many_parameters_as_published(self, variant: str, parameters: float) -> None:
        with torch.device("meta"):
            module = build("efficientnet_lite", {"variant": variant}, {}).module

        assert sum(weight.numel() for weight in module.parameters()) == pytest.approx(parameters, rel=0.02)

    def test_pictures_of_any_size_become_the_square_that_the_network_takes(self) -> None:
        for height, width in ((224, 224), (451, 300), (1, 1), (37, 900)):
            ready = efficientnet_lite.prepared(torch.full((2, height, width, 3), 127, dtype=torch.uint8), 224)

            assert ready.shape == (2, 3, 224, 224)
            assert ready.abs().max() < 1e-3

    def test_the_middle_is_taken_and_channels_keep_their_order(self) -> None:
        picture = torch.zeros((1, 256, 512, 3), dtype=torch.uint8)
        picture[:, :, 128:384, 0] = 255

        ready = efficientnet_lite.prepared(picture, 224)

        np.testing.assert_allclose(ready[0, 0].numpy(), 1.0, atol=1e-6)
        np.testing.assert_allclose(ready[0, 1:].numpy(), -127.0 / 128.0, atol=1e-6)

    def test_odd_padding_goes_right_and_below(self) -> None:
        conv = efficientnet_lite.SameConv(1, 1, 3, stride=2, bias=False)
        conv.load_state_dict({"weight": torch.ones(1, 1, 3, 3)})

        with torch.inference_mode():
            sums = conv(torch.arange(16.0).reshape(1, 1, 4, 4))

        # Windows start at rows and columns 0 and 2; what lies beyond the edge is zero.
        assert sums.flatten().tolist() == [45.0, 39.0, 66.0, 50.0]

    @pytest.mark.parametrize(
        ("channels", "width", "scaled"), [(32, 1.1, 32), (16, 1.1, 16), (24, 1.1, 24), (40, 1.1, 48), (320, 1.1, 352)]
    )
    def test_channels_scale_to_multiples_of_eight_that_lose_at_most_a_tenth(
        self, channels: int, width: float, scaled: int
    ) -> None:
        # 40 * 1.1 = 44 is as near to 40 as to 48, and is rounded up.
        assert efficientnet_lite.scaled_channels(channels, width) == scaled
