"""The demo's scenes: a right answer passes, a wrong one is remembered, so that the demo fails."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from examples import scenes
from examples.caller import Answer, PlainAnswer
from examples.scenes import Stage
from examples.tensors import Arrays
from examples.zoo import inputs
from examples.zoo.inputs import HeldOut
from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.openinference.v2 import grpc_service_pb2 as v2

Outputs = Mapping[str, NDArray[Any]]
HELD_OUT = HeldOut(np.eye(10, 64), np.arange(10))


class Oracle:
    """Answers every call with what it was given for that route."""

    def __init__(self, **answers: Outputs) -> None:
        self._answers = {name.replace("_", "-"): answer for name, answer in answers.items()}

    async def infer(
        self,
        name: str,
        inputs: Arrays,
        *,
        prefer: pb.Preference.ValueType = pb.PREFERENCE_BALANCED,
    ) -> Answer:
        decision = pb.Decision(route=name, model="oracle", version="1.0.0", host="delphi", trace_id="f" * 32)
        return Answer(dict(self._answers[name]), decision)

    async def infer_plain(self, request: v2.ModelInferRequest) -> PlainAnswer:
        response = v2.ModelInferResponse(id=request.id)
        labels = self._answers[request.model_name]["label"][:8]
        response.outputs.add(name="label", datatype="INT64", shape=[8]).contents.int64_contents.extend(labels.tolist())
        return PlainAnswer(response, "digits/oracle:1.0.0@delphi")


@pytest.fixture
def stage() -> Stage:
    return Stage(Console(quiet=True))


def image(number: int) -> Outputs:
    return {"label": np.array([number]), "probabilities": np.eye(1000, dtype=np.float32)[[number]]}


def vectors(*degrees: float) -> Outputs:
    radians = np.radians(degrees)
    return {"embedding": np.stack([np.cos(radians), np.sin(radians)], axis=1)}


async def test_a_near_paraphrase_and_agreeing_models_are_right(stage: Stage) -> None:
    await scenes.sentences(Oracle(embed=vectors(0, 20, 90), minilm=vectors(2)), stage)

    assert (stage.checks, stage.wrong) == (2, [])


async def test_a_paraphrase_that_is_no_nearer_is_wrong(stage: Stage) -> None:
    await scenes.sentences(Oracle(embed=vectors(0, 90, 90), minilm=vectors(0)), stage)

    assert len(stage.wrong) == 1


async def test_models_that_do_not_agree_are_wrong(stage: Stage) -> None:
    await scenes.sentences(Oracle(embed=vectors(0, 20, 90), minilm=vectors(30)), stage)

    assert len(stage.wrong) == 1


async def test_an_espresso_is_no_cat(stage: Stage) -> None:
    trace_id = await scenes.photos(Oracle(classify_image=image(967)), stage)

    assert (stage.checks, len(stage.wrong)) == (3, 2)
    assert trace_id == "f" * 32


async def test_a_class_without_a_name_is_wrong_and_shown_by_number(stage: Stage) -> None:
    await scenes.photos(Oracle(classify_image=image(0)), stage)

    assert len(stage.wrong) == 3
    assert "class 0" in stage.wrong[0]


@pytest.mark.parametrize(("heard", "note", "wrong"), [(1.0, 69, 1), (0.0, 69, 1), (0.0, 70, 2)])
async def test_sounds_are_checked_each_for_itself(stage: Stage, heard: float, note: int, wrong: int) -> None:
    notes = np.zeros((1, 172, 88), dtype=np.float32)
    notes[:, :, note - inputs.LOWEST_NOTE] = 1.0
    speech = np.full(50, heard, dtype=np.float32)

    await scenes.sounds(Oracle(detect_speech={"probabilities": speech}, find_notes={"notes": notes}), stage)

    # Speech and noise get the same answer here, so one of the two is wrong.
    assert (stage.checks, len(stage.wrong)) == (3, wrong)


@pytest.mark.parametrize(("mistakes", "wrong"), [(0, 0), (1, 1)])
async def test_accuracy_below_the_threshold_is_wrong(stage: Stage, mistakes: int, wrong: int) -> None:
    labels = HELD_OUT.labels.copy()
    labels[:mistakes] += 1

    await scenes.tumours(Oracle(breast_cancer={"label": labels}), stage, HELD_OUT)

    assert len(stage.wrong) == wrong


async def test_digits_are_read_by_both_models(stage: Stage) -> None:
    await scenes.digits(Oracle(digits={"label": HELD_OUT.labels[::-1]}), stage, HELD_OUT)

    assert (stage.checks, len(stage.wrong)) == (2, 2)


@pytest.mark.parametrize(("shift", "wrong"), [(0, 0), (1, 1)])
async def test_the_open_protocol_is_held_to_the_labels(stage: Stage, shift: int, wrong: int) -> None:
    await scenes.open_protocol(Oracle(digits={"label": HELD_OUT.labels + shift}), stage, HELD_OUT)

    assert (stage.checks, len(stage.wrong)) == (2, wrong)
