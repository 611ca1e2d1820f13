"""What the demo asks the mesh, and what it takes for a right answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from examples.caller import Answer, PlainAnswer
from examples.tensors import Arrays, texts
from examples.zoo import inputs, quality, weights
from examples.zoo.inputs import HeldOut
from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.openinference.v2 import grpc_service_pb2 as v2
from yardctl import render_decision

CATS = frozenset({"tabby cat", "tiger cat", "Egyptian cat", "Persian cat", "Siamese cat"})
CUPS = frozenset({"espresso", "cup", "coffee mug"})
DIGITS_A_CALL = 64


class Asks(Protocol):
    """What the mesh is asked with."""

    async def infer(
        self,
        name: str,
        inputs: Arrays,
        *,
        prefer: pb.Preference.ValueType = pb.PREFERENCE_BALANCED,
    ) -> Answer:
        """One inference by the native service."""
        ...

    async def infer_plain(self, request: v2.ModelInferRequest) -> PlainAnswer:
        """One inference by the Open Inference Protocol V2."""
        ...


@dataclass
class Stage:
    """Where scenes are shown, and what was wrong in them."""

    console: Console
    wrong: list[str] = field(default_factory=list)
    checks: int = 0

    def title(self, text: str) -> None:
        """Begin a scene."""
        self.console.print()
        self.console.rule(f"[bold]{escape(text)}", align="left", style="dim")

    def check(self, right: bool, text: str) -> None:
        """Show one answer, and remember it if it is wrong."""
        self.checks += 1
        if not right:
            self.wrong.append(text)
        self.console.print(f"{'[green]✓[/green]' if right else '[red]✗ WRONG:[/red]'} {escape(text)}")

    def decision(self, decision: pb.Decision) -> None:
        """Show how an answer came about."""
        self.console.print(Padding(render_decision.decision(decision), (0, 0, 0, 2)))


async def sentences(caller: Asks, stage: Stage) -> None:
    """A paraphrase is nearer than an unrelated sentence; both sizes of the model agree."""
    stage.title("Text: what do sentences mean?")
    said, again, other = (
        "The cat sleeps on the sofa.",
        "A cat is asleep on the couch.",
        "Quarterly profits exceeded expectations.",
    )
    answer = await caller.infer("embed", {"text": texts(said, again, other)})
    first, second, third = answer.outputs["embedding"]
    near, far = float(first @ second), float(first @ third)
    stage.check(near > far + 0.5, f"'{said}': cosine {near:.2f} to a paraphrase, {far:.2f} to another sentence")
    stage.decision(answer.decision)
    large = await caller.infer("minilm", {"text": texts(said)})
    agree = float(large.outputs["embedding"][0] @ first)
    stage.check(agree > 0.99, f"the model of 32-bit floats, asked for by name, agrees: cosine {agree:.4f}")
    stage.decision(large.decision)


async def photos(caller: Asks, stage: Stage) -> str:
    """A cat is a cat, a cup of coffee is one. Returns the trace id of the first call."""
    stage.title("Images: what do photos show?")
    names = inputs.image_labels()
    traced = ""
    for what, file, wanted, prefer, why in (
        ("cat", weights.CAT_PHOTO, CATS, pb.PREFERENCE_BALANCED, ""),
        ("cat", weights.CAT_PHOTO, CATS, pb.PREFERENCE_COST, ", cheapest"),
        ("coffee", weights.COFFEE_PHOTO, CUPS, pb.PREFERENCE_QUALITY, ", best"),
    ):
        answer = await caller.infer("classify-image", {"image": inputs.photo(file)}, prefer=prefer)
        traced = traced or answer.decision.trace_id
        number = int(answer.outputs["label"][0])
        name = names.get(number, f"class {number}")
        share = float(answer.outputs["probabilities"][0, number])
        stage.check(name in wanted, f"photo of a {what}{why}: {name}, {share:.0%} sure")
        stage.decision(answer.decision)
    return traced


async def sounds(caller: Asks, stage: Stage) -> None:
    """Speech is found in speech and not in noise; 440 Hz is the note 69."""
    stage.title("Audio: does someone speak, which note is played?")
    speech = await caller.infer("detect-speech", inputs.speech_frames(inputs.speech()))
    heard = speech.outputs["probabilities"]
    share = float((heard > quality.SPEECH_PROBABILITY).mean())
    stage.check(quality.is_speech(heard), f"'Every model is in its place.', spoken: speech in {share:.0%} of the clip")
    stage.decision(speech.decision)
    hiss = await caller.infer("detect-speech", inputs.speech_frames(inputs.noise(2.0, seed=3)))
    most = float(hiss.outputs["probabilities"].max())
    stage.check(
        not quality.is_speech(hiss.outputs["probabilities"]), f"two seconds of noise: none (at most {most:.0%})"
    )
    tone = await caller.infer("find-notes", {"audio": inputs.tone(440.0)})
    note = inputs.strongest_note(tone.outputs["notes"])
    stage.check(note == 69, f"a tone of 440 Hz: MIDI note {note}")
    stage.decision(tone.decision)


async def tumours(caller: Asks, stage: Stage, held_out: HeldOut) -> None:
    """Rows that no fit saw are classified, by the better bargain of two versions."""
    stage.title("Tables: is a tumour benign?")
    answer = await caller.infer("breast-cancer", {"features": held_out.rows})
    right = float((answer.outputs["label"] == held_out.labels).mean())
    stage.check(right >= 0.95, f"{len(held_out.labels)} held-out rows in one call: {right:.1%} right")
    stage.decision(answer.decision)


async def digits(caller: Asks, stage: Stage, held_out: HeldOut) -> None:
    """Digits that no fit saw, by the best and by the cheapest model."""
    stage.title("Digits: what was written?")
    pixels = held_out.rows.astype(np.float32)
    for prefer, least, why in (
        (pb.PREFERENCE_BALANCED, 0.97, "the best bargain"),
        (pb.PREFERENCE_COST, 0.93, "the cheapest"),
    ):
        answers = await asyncio.gather(
            *(
                caller.infer("digits", {"pixels": pixels[at : at + DIGITS_A_CALL]}, prefer=prefer)
                for at in range(0, len(pixels), DIGITS_A_CALL)
            )
        )
        labels = np.concatenate([answer.outputs["label"] for answer in answers])
        right = float((labels == held_out.labels).mean())
        stage.check(
            right >= least, f"{len(labels)} held-out digits in {len(answers)} calls at once, {why}: {right:.1%} right"
        )
        stage.decision(answers[-1].decision)


async def open_protocol(caller: Asks, stage: Stage, held_out: HeldOut) -> None:
    """The same route by the protocol that other servers' clients speak, typed in and typed out."""
    stage.title("Open Inference Protocol V2: inference.GRPCInferenceService/ModelInfer")
    pixels = held_out.rows[:8].astype(np.float32)
    answer = await caller.infer_plain(_typed_request("digits", "pixels", pixels))
    named = {output.name: output for output in answer.response.outputs}
    labels = list(named["label"].contents.int64_contents)
    right = labels == held_out.labels[:8].tolist()
    stage.check(right, f"typed tensors in, typed tensors out; eight digits read: {' '.join(map(str, labels))}")
    stage.check(answer.response.id == "demo-v2", "the request's id came back")
    stage.console.print(Padding(escape(answer.decision), (0, 0, 0, 2)), style="dim")


def _typed_request(name: str, input_name: str, rows: NDArray[np.float32]) -> v2.ModelInferRequest:
    request = v2.ModelInferRequest(model_name=name, id="demo-v2")
    tensor = request.inputs.add(name=input_name, datatype="FP32", shape=_shape(rows))
    tensor.contents.fp32_contents.extend(rows.ravel().tolist())
    return request


def _shape(array: NDArray[np.float32]) -> Sequence[int]:
    return [int(size) for size in array.shape]
