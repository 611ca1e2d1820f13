"""A loaded version that generates, as something that steps: its pieces are held to the schema, its pace measured."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from services.domain.clock import Clock
from services.domain.errors import ArtifactRejected
from services.domain.model import ModelKey
from services.domain.objects import Generation, Model, ModelVersion
from services.model_host.backends.base import GenerativeModel
from services.model_host.predictor import WrongOutput, fits
from services.model_host.sequences import Advance, Pace, Prompt, Wish
from services.model_host.tensors import NUMPY, NDArray

WARM_STEPS = 4
"""Steps of one sequence and of all that are measured; the least time counts."""


class Generator:
    """One version, loaded."""

    def __init__(self, loaded: GenerativeModel, model: Model, version: ModelVersion) -> None:
        """Hold pieces of `loaded` to the outputs of `model`.

        Raises:
            ArtifactRejected: The version does not say how it generates.
        """
        if version.generation is None:
            raise ArtifactRejected(f"{version.model_key} generates, and its version has no 'generation'")
        self.key: ModelKey = version.model_key
        self.settings: Generation = version.generation
        self.pace = Pace(version.service_time_s, 0.0)
        """As declared, until it is measured."""
        self._loaded = loaded
        self._outputs = model.outputs

    def read(self, inputs: Mapping[str, NDArray], wishes: Mapping[str, Wish]) -> Prompt:
        """Read one request; from any thread.

        Raises:
            InvalidRequest: The inputs or the wishes cannot be followed.
        """
        return self._loaded.read(inputs, wishes)

    def leave(self, slot: int) -> None:
        """Free a slot."""
        self._loaded.leave(slot)

    def join(self, slot: int, prompt: Prompt) -> None:
        """Take a sequence in."""
        self._loaded.join(slot, prompt)

    def step(self, prefill: Sequence[tuple[int, int]], decode: Sequence[int]) -> dict[int, Advance]:
        """Compute one step; its pieces are yet to be checked.

        Raises:
            Exception: Whatever the model raises; nothing has changed then, and the step can be repeated.
        """
        return self._loaded.step(prefill, decode)

    def check(self, advance: Advance) -> None:
        """Hold a piece to the schema.

        Raises:
            WrongOutput: It breaks it.
        """
        outputs = advance.outputs
        if outputs is None:
            return
        for spec in self._outputs:
            array = outputs.get(spec.name)
            if not isinstance(array, np.ndarray):
                given = ", ".join(sorted(outputs)) or "none"
                raise WrongOutput(f"output '{spec.name}' is declared and not in a piece; there are: {given}")
            if array.dtype != NUMPY[spec.datatype] or not fits(array.shape, spec, None):
                text = f"{array.dtype} {list(array.shape)} came in a piece"
                raise WrongOutput(f"output '{spec.name}' is declared {spec.datatype} {list(spec.shape)}, {text}")

    def collect(self, pieces: Sequence[Mapping[str, NDArray]]) -> dict[str, NDArray]:
        """The whole answer of its pieces."""
        return self._loaded.collect(pieces)

    def predict(self, inputs: Mapping[str, NDArray], rows: int) -> dict[str, NDArray]:
        """The whole answer to one request, with nobody beside it; `rows` says nothing here.

        Raises:
            InvalidRequest: It cannot be read.
            WrongOutput: A piece breaks the schema.
            Exception: Whatever the model raises.
        """
        del rows
        prompt = self.read(inputs, {"seed": 0})
        self.join(0, prompt)
        try:
            advance = self._take_in(0, prompt)
            advances = [advance]
            while not advance.finished:
                advance = self.step((), (0,))[0]
                self.check(advance)
                advances.append(advance)
        finally:
            self.leave(0)
        pieces = [advance.outputs for advance in advances if advance.outputs is not None]
        return self.collect(pieces)  # type: ignore[arg-type]  # its own, which were checked

    def warm_up(self, samples: Iterable[Mapping[str, NDArray]], *, clock: Clock) -> float:
        """Measure the pace: run the samples, alone and then in every slot.

        Args:
            samples: Inputs; the longest one says how long prompts take.
            clock: Measures.

        Returns:
            Seconds from the longest sample to its first token.

        Raises:
            InvalidRequest: A sample cannot be read.
            WrongOutput: A piece breaks the schema.
            Exception: Whatever the model raises.
        """
        prompts = [self.read(inputs, {"max_tokens": WARM_STEPS + 2}) for inputs in samples]
        longest = max(prompts, key=lambda prompt: prompt.tokens)
        step_s, prefill_s = float("inf"), float("inf")
        everyone = range(self.settings.sequences)
        for slots in (everyone[:1], everyone):
            for slot in slots:
                prompt = longest if slot == 0 else prompts[slot % len(prompts)]
                self.join(slot, prompt)
                began_s = clock.now_s()
                self._take_in(slot, prompt)
                if prompt is longest:
                    prefill_s = min(prefill_s, clock.now_s() - began_s)
            for _ in range(WARM_STEPS):
                began_s = clock.now_s()
                advances = self.step((), slots)
                step_s = min(step_s, clock.now_s() - began_s)
                for advance in advances.values():
                    self.check(advance)
            for slot in slots:
                self.leave(slot)
        passes = -(-longest.tokens // self.settings.prefill_tokens)
        self.pace = Pace(step_s, max(0.0, prefill_s - passes * step_s) / longest.tokens)
        return prefill_s

    def _take_in(self, slot: int, prompt: Prompt) -> Advance:
        """Compute a prompt; what its last chunk gives."""
        advance = Advance(0, None, "")
        for start in range(0, prompt.tokens, self.settings.prefill_tokens):
            advance = self.step(((slot, min(self.settings.prefill_tokens, prompt.tokens - start)),), ())[slot]
        self.check(advance)
        return advance
