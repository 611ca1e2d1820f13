"""The zoo's real weights in the registered architectures: are the answers right?

Direct calls, without a mesh. What the demo shows over the wire must already hold here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from examples.tensors import texts
from examples.zoo import inputs, quality, weights
from examples.zoo.weights import PackageFile
from services.model_host.backends.architectures import Architecture, build
from services.model_host.backends.text import TextEncoder, mean_pool

CPU = torch.device("cpu")
CATS = {"tabby cat", "tiger cat", "Egyptian cat", "Persian cat", "Siamese cat"}
CUPS = {"espresso", "cup", "coffee mug"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def minilm() -> Architecture:
    made = build("bert_encoder", {}, {"tokenizer.json": weights.MINILM_TOKENIZER.find()})
    made.module.load_state_dict(load_file(weights.MINILM.find()), strict=True)
    return made


def classifier(variant: str, file: PackageFile) -> Architecture:
    made = build("efficientnet_lite", {"variant": variant}, {})
    made.module.load_state_dict(torch.load(file.find(), weights_only=True), strict=True)
    return made


@pytest.fixture(scope="module")
def lite0() -> Architecture:
    return classifier("lite0", weights.EFFICIENTNET_LITE0)


@pytest.fixture(scope="module")
def lite2() -> Architecture:
    return classifier("lite2", weights.EFFICIENTNET_LITE2)


def predict(architecture: Architecture, **given: NDArray[Any]) -> dict[str, NDArray[Any]]:
    with torch.inference_mode():
        return architecture.predict({name: array.copy() for name, array in given.items()}, CPU)


def session(file: PackageFile) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file.find()), settings, providers=["CPUExecutionProvider"])


def embed(minilm: Architecture, *sentences: str) -> NDArray[np.float32]:
    return predict(minilm, text=texts(*sentences))["embedding"]


def test_a_paraphrase_is_nearer_than_an_unrelated_sentence(minilm: Architecture) -> None:
    said, again, other = embed(
        minilm,
        "The cat sleeps on the sofa.",
        "A cat is asleep on the couch.",
        "Quarterly profits exceeded expectations.",
    )

    assert said @ again > 0.8
    assert said @ other < 0.2


def test_32_bit_and_8_bit_embeddings_agree(minilm: Architecture) -> None:
    pairs = inputs.graded_pairs()
    sentences = [text.decode() for text in np.concatenate([pairs.first[:20], pairs.second[:20]])]
    encoder = TextEncoder(weights.MINILM_TOKENIZER.find(), 256)
    tokens = encoder.encode([sentence.encode() for sentence in sentences])

    (states,) = session(weights.MINILM_INT8).run(["last_hidden_state"], tokens)
    small = mean_pool(states, tokens["attention_mask"])

    assert (embed(minilm, *sentences) * small).sum(axis=1).min() > 0.99


async def test_embeddings_order_the_graded_pairs_as_people_do(minilm: Architecture) -> None:
    async def answer(given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return predict(minilm, **given)

    found = await quality.similarity(answer, inputs.graded_pairs(), rows=32)

    assert found.value > 0.8
    assert "61 sentence pairs" in found.metric


@pytest.mark.parametrize("variant", ["lite0", "lite2"])
def test_the_cat_is_a_cat_and_the_coffee_is_a_coffee(variant: str, request: pytest.FixtureRequest) -> None:
    network: Architecture = request.getfixturevalue(variant)
    names = inputs.image_labels()

    cat = predict(network, image=inputs.photo(weights.CAT_PHOTO))
    coffee = predict(network, image=inputs.photo(weights.COFFEE_PHOTO))

    assert names[int(cat["label"][0])] in CATS
    assert names[int(coffee["label"][0])] in CUPS
    assert coffee["probabilities"][0].max() > 0.5
    cat_share = sum(cat["probabilities"][0, number] for number, name in names.items() if name in CATS)
    assert cat_share > 0.7


def test_a_batch_of_photos_answers_as_each_alone(lite0: Architecture) -> None:
    cat = inputs.photo(weights.CAT_PHOTO)[:, :299, :299]
    coffee = inputs.photo(weights.COFFEE_PHOTO)[:, :299, :299]

    both = predict(lite0, image=np.concatenate([cat, coffee]))["probabilities"]

    np.testing.assert_allclose(both[0], predict(lite0, image=cat)["probabilities"][0], atol=1e-4)
    np.testing.assert_allclose(both[1], predict(lite0, image=coffee)["probabilities"][0], atol=1e-4)


def test_speech_is_found_where_someone_speaks_and_nowhere_else() -> None:
    detector = session(weights.SILERO_VAD)

    def speaks(samples: NDArray[np.float32]) -> bool:
        given = inputs.speech_frames(samples)
        (probabilities,) = detector.run(["speech_probs"], {"input": given["frames"], "h": given["h"], "c": given["c"]})
        return quality.is_speech(probabilities)

    assert [name for name, (samples, truth) in quality.labelled_clips().items() if speaks(samples) != truth] == []


def test_a_clip_in_two_parts_is_heard_as_the_whole_one() -> None:
    detector = session(weights.SILERO_VAD)
    whole = inputs.speech_frames(inputs.speech())

    (at_once,) = detector.run(["speech_probs"], {"input": whole["frames"], "h": whole["h"], "c": whole["c"]})
    first, hn, cn = detector.run(None, {"input": whole["frames"][:20], "h": whole["h"], "c": whole["c"]})
    second, _, _ = detector.run(None, {"input": whole["frames"][20:], "h": hn, "c": cn})

    np.testing.assert_allclose(np.concatenate([first, second]), at_once, atol=1e-5)


@pytest.mark.parametrize(("frequency_hz", "note"), [(440.0, 69), (261.63, 60), (55.0, 33)])
def test_a_tone_is_its_note(frequency_hz: float, note: int) -> None:
    finder = session(weights.BASIC_PITCH)

    (notes,) = finder.run(["StatefulPartitionedCall:1"], {"serving_default_input_2:0": inputs.tone(frequency_hz)})

    assert inputs.strongest_note(notes) == note
