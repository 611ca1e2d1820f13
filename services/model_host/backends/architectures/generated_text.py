"""Text in, text out, token by token: what decoders of all architectures share around their arithmetic.

Owns prompts, the wishes of requests, end and stop, and turning tokens into pieces of text: a piece never ends within a
character, nor within what may become the text to stop at. How scores come about is behind `Decoder`.

Options: `tokenizer` (name among the version's files, `tokenizer.json`), `text_input` (`text`), `template` (what is made
of a text, with `{text}` in it; its special tokens count, those in the text itself are only text), `end_tokens` (between
commas), `answer_tokens` (most of an answer where a request says nothing, 128).
Parameters of requests: `max_tokens`, `temperature`, `top_p`, `seed`, `stop`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from services.domain.errors import ArtifactRejected, Fault, InvalidRequest
from services.domain.objects import Generation
from services.domain.rng import KeyedRng
from services.model_host.backends.architectures import options
from services.model_host.backends.architectures.sampling import Sampling, take
from services.model_host.sequences import Advance, Prompt, Wish

LONGEST_TOKEN_BYTES = 16
"""A text with more bytes than this for each token of room is refused before it is taken apart."""

LONGEST_STOP = 256
"""Most characters of a text to stop at."""

_PLACE = "{text}"
_HALF = "\N{REPLACEMENT CHARACTER}"


class Part(NamedTuple):
    """Tokens of one sequence to take in."""

    slot: int
    ids: Sequence[int]
    start: int
    """Position of the first one."""
    wanted: bool
    """Whether the scores after the last one are."""


class Decoder(Protocol):
    """Scores next tokens, of sequences that each have a slot."""

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        ...

    def run(self, parts: Sequence[Part]) -> torch.Tensor:
        """Take parts of different sequences in; scores of those that are wanted, [wanted, vocabulary].

        What is computed for one does not depend on the others, and taking the same in again changes nothing.
        """
        ...

    def forget(self, slot: int) -> None:
        """The slot may hold what is not a number: overwrite it."""
        ...


class NotANumber(ArithmeticError):
    """Scores are not finite."""


@dataclass(frozen=True, slots=True)
class TextRules:
    """How texts become tokens and back."""

    tokenizer: Tokenizer
    input_name: str
    before: tuple[int, ...]
    """Tokens of the template before the text, and after it."""
    after: tuple[int, ...]
    ends: frozenset[int]
    answer_tokens: int

    @classmethod
    def of(cls, settings: Mapping[str, str], files: Mapping[str, Path], *, vocabulary: int) -> "TextRules":
        """The rules that a version's options and files say.

        Raises:
            ArtifactRejected: They do not fit together.
        """
        path = options.file(files, settings.get("tokenizer", "tokenizer.json"))
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ArtifactRejected(f"'{path.name}' is no tokenizer.json: {error}") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if tokenizer.get_vocab_size() > vocabulary:
            raise ArtifactRejected(
                f"the tokenizer knows {tokenizer.get_vocab_size()} tokens, option 'vocabulary' says {vocabulary}"
            )
        template = settings.get("template", _PLACE)
        if template.count(_PLACE) != 1:
            raise ArtifactRejected(f"option 'template' must have {_PLACE} in it, once")
        before, after = (tuple(tokenizer.encode(part).ids) if part else () for part in template.split(_PLACE))
        ends = set()
        for name in filter(None, settings.get("end_tokens", "").split(",")):
            token = tokenizer.token_to_id(name)
            if token is None:
                raise ArtifactRejected(f"option 'end_tokens': the tokenizer has no token '{name}'")
            ends.add(token)
        tokenizer.encode_special_tokens = True  # from here on: a caller's text cannot end its own turn
        answer_tokens = options.integer(settings, "answer_tokens", 128)
        return cls(tokenizer, settings.get("text_input", "text"), before, after, frozenset(ends), answer_tokens)


class TextPieces:
    """Turns the tokens of one answer into text as soon as it is certain."""

    def __init__(self, tokenizer: Tokenizer, stop: str) -> None:
        """Stop at `stop`, unless that is empty."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._told: list[int] = []
        """The last tokens whose text is known: the text of the next ones can depend on them."""
        self._new: list[int] = []
        self._held = ""
        self.stopped = False
        """Whether the text to stop at has come."""

    def add(self, token: int) -> str:
        """The text that one more token makes certain; may be empty."""
        self._new.append(token)
        text = self._text()
        if text.endswith(_HALF):
            return ""
        self._told, self._new = self._new, []
        return self._until_stop(text)

    def rest(self) -> str:
        """What is left at the end."""
        text = self._held
        self._held = ""
        if self._new and not self.stopped:
            text = self._until_stop(self._text()) + self._held
        return text

    def _text(self) -> str:
        decode = self._tokenizer.decode
        known = decode(self._told) if self._told else ""
        return decode(self._told + self._new)[len(known) :]

    def _until_stop(self, text: str) -> str:
        if not self._stop:
            return text
        text = self._held + text
        at = text.find(self._stop)
        if at >= 0:
            self.stopped, self._held = True, ""
            return text[:at]
        # What may be the beginning of the text to stop at waits for the next token.
        most = min(len(text), len(self._stop) - 1)
        kept = next((size for size in range(most, 0, -1) if self._stop.startswith(text[-size:])), 0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one request asks for."""

    ids: tuple[int, ...]
    most: int
    sampling: Sampling
    stop: str


@dataclass(slots=True)
class _Sequence:
    asked: _Asked
    pieces: TextPieces
    rng: KeyedRng
    at: int = 0
    """Tokens that are taken in."""
    last: int = 0
    """The newest token of the answer, yet to be taken in."""
    tokens: int = 0
    pending: list[int] = field(default_factory=list)
    """Tokens whose text has not been told yet."""
    poisoned: bool = False


class TextGenerator:
    """Continues texts; a `base.GenerativeModel`."""

    def __init__(self, decoder: Decoder, rules: TextRules, settings: Generation) -> None:
        """Compute with `decoder`, which has the room that `settings` say."""
        self._decoder = decoder
        self._rules = rules
        self._room = settings.max_tokens
        self._sequences: dict[int, _Sequence] = {}

    def read(self, inputs: Mapping[str, NDArray[Any]], wishes: Mapping[str, Wish]) -> Prompt:
        """Read one request.

        Raises:
            InvalidRequest: The text is too long, or a parameter is not what it should be.
        """
        rules = self._rules
        texts = inputs[rules.input_name].ravel()
        if len(texts) != 1:
            raise InvalidRequest.of([Fault("inputs", f"input '{rules.input_name}' must be one text")])
        asked = _wishes(wishes, rules.answer_tokens)
        raw = bytes(texts[0])
        if len(raw) > LONGEST_TOKEN_BYTES * self._room:
            raise InvalidRequest.of(
                [Fault("inputs", f"the text has {len(raw)} bytes; {self._room} tokens are the most")]
            )
        text = raw.decode("utf-8", errors="replace")
        ids = (*rules.before, *(rules.tokenizer.encode(text).ids if text else ()), *rules.after)
        if not ids:  # nothing to go on from: as after an end
            ids = (min(rules.ends, default=0),)
        if len(ids) >= self._room:
            text = f"the text has {len(ids)} tokens; {self._room} are the most, with the answer"
            raise InvalidRequest.of([Fault("inputs", text)])
        most = min(asked.most, self._room - len(ids))
        return Prompt(len(ids), most, _Asked(ids, most, asked.sampling, asked.stop))

    def join(self, slot: int, prompt: Prompt) -> None:
        """Take a sequence in."""
        asked = prompt.content
        assert isinstance(asked, _Asked)
        pieces = TextPieces(self._rules.tokenizer, asked.stop)
        self._sequences[slot] = _Sequence(asked, pieces, KeyedRng(asked.sampling.seed))

    def leave(self, slot: int) -> None:
        """Let a sequence go."""
        sequence = self._sequences.pop(slot, None)
        if sequence is not None and sequence.poisoned:
            self._decoder.forget(slot)

    def step(self, prefill: Sequence[tuple[int, int]], decode: Sequence[int]) -> dict[int, Advance]:
        """Compute one step: everything first, and only then is anything changed, so that it can be repeated.

        Raises:
            NotANumber: The scores of a sequence are not finite.
        """
        parts = []
        for slot, count in prefill:
            sequence = self._sequences[slot]
            ids, end = sequence.asked.ids, sequence.at + count
            parts.append(Part(slot, ids[sequence.at : end], sequence.at, end == len(ids)))
        for slot in decode:
            sequence = self._sequences[slot]
            parts.append(Part(slot, (sequence.last,), sequence.at, True))
        rows = self._decoder.run(parts)
        scores = dict(zip((part.slot for part in parts if part.wanted), rows, strict=True))
        self._check(scores)
        for part in parts:
            self._sequences[part.slot].at += len(part.ids)
        advances = {part.slot: Advance(0, None, "") for part in parts}
        return advances | {slot: self._advance(self._sequences[slot], row) for slot, row in scores.items()}

    def collect(self, pieces: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """The whole answer of its pieces."""
        text = b"".join(bytes(piece["text"][0]) for piece in pieces)
        return _outputs(text, [int(token) for piece in pieces for token in piece["tokens"]])

    def _check(self, scores: Mapping[int, torch.Tensor]) -> None:
        bad = [slot for slot, row in scores.items() if not bool(torch.isfinite(row).all())]
        for slot in bad:
            self._sequences[slot].poisoned = True
        if bad:
            raise NotANumber(f"the scores of {len(bad)} sequences are not finite")

    def _advance(self, sequence: _Sequence, scores: torch.Tensor) -> Advance:
        asked, pieces = sequence.asked, sequence.pieces
        token = take(scores, asked.sampling, sequence.rng.unit("", f"token/{sequence.tokens}"))
        if token in self._rules.ends:
            text = pieces.rest()
            return Advance(0, _piece(sequence, text), "end")
        sequence.last = token
        sequence.tokens += 1
        sequence.pending.append(token)
        text = pieces.add(token)
        finished = "stop" if pieces.stopped else "length" if sequence.tokens >= asked.most else ""
        if finished:
            text += pieces.rest()
            if pieces.stopped:
                finished = "stop"
        if not text and not finished:
            return Advance(1, None, "")
        return Advance(1, _piece(sequence, text), finished)


def _piece(sequence: _Sequence, text: str) -> dict[str, NDArray[Any]] | None:
    tokens, sequence.pending = sequence.pending, []
    return _outputs(text.encode(), tokens) if text or tokens else None


def _outputs(text: bytes, tokens: Sequence[int]) -> dict[str, NDArray[Any]]:
    return {"text": np.array([text], np.object_), "tokens": np.array(tokens, np.int64)}


def _wishes(wishes: Mapping[str, Wish], answer_tokens: int) -> _Asked:
    """What the parameters of a request wish; unknown ones are ignored.

    Raises:
        InvalidRequest: One is not what it should be; every fault is named.
    """
    faults: list[Fault] = []

    def number(name: str, default: float, *, least: float, most: float, what: str) -> float:
        value = wishes.get(name, default)
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except ValueError:
            found = math.nan
        if not least <= found <= most:
            faults.append(Fault(f"parameters[{name}]", f"must be {what}"))
            return default
        return found

    most = number("max_tokens", answer_tokens, least=1, most=1 << 31, what="a whole number, 1 or more")
    temperature = number("temperature", 0.0, least=0.0, most=1e3, what="a number, 0 or more")
    top_p = number("top_p", 1.0, least=1e-6, most=1.0, what="a number above 0, at most 1")
    seed = wishes.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        faults.append(Fault("parameters[seed]", "must be a whole number, 0 or more"))
        seed = 0
    stop = wishes.get("stop", "")
    if not isinstance(stop, str) or len(stop) > LONGEST_STOP:
        faults.append(Fault("parameters[stop]", f"must be a text of at most {LONGEST_STOP} characters"))
        stop = ""
    if most != int(most):
        faults.append(Fault("parameters[max_tokens]", "must be a whole number, 1 or more"))
    if faults:
        raise InvalidRequest.of(faults)
    return _Asked((), int(most), Sampling(temperature, top_p, seed), stop)
