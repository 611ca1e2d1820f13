"""Prompts, wishes, pieces of text and the taking of tokens, without any decoder's arithmetic."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from services.domain.errors import ArtifactRejected, InvalidRequest
from services.domain.objects import Generation
from services.model_host.backends.architectures.generated_text import (
    NotANumber,
    Part,
    TextGenerator,
    TextPieces,
    TextRules,
)
from services.model_host.backends.architectures.sampling import Sampling, take
from services.model_host.sequences import Advance, Prompt
from tests.support.llama import END, write_tokenizer

VOCABULARY = 257
ROOM = 64


class Dictation:
    """A decoder that wants certain tokens next, one after the other, whatever it is given."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.vocabulary = VOCABULARY
        self.tokens = list(tokens)
        self.said: dict[int, int] = {}
        self.forgotten: list[int] = []
        self.taken_in: list[tuple[int, list[int], int]] = []
        self.nan = False

    def scores(self, slot: int) -> torch.Tensor:
        wanted = torch.zeros(VOCABULARY)
        wanted[self.tokens[self.said.get(slot, 0) % len(self.tokens)]] = float("nan") if self.nan else 9.0
        if not self.nan:
            self.said[slot] = self.said.get(slot, 0) + 1
        return wanted

    def run(self, parts: Sequence[Part]) -> torch.Tensor:
        self.taken_in += [(part.slot, list(part.ids), part.start) for part in parts]
        return torch.stack([self.scores(part.slot) for part in parts if part.wanted])

    def forget(self, slot: int) -> None:
        self.forgotten.append(slot)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"tokenizer.json": write_tokenizer(tmp_path_factory.mktemp("text") / "tokenizer.json")}


@pytest.fixture(scope="module")
def tokenizer(files: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_file(str(files["tokenizer.json"]))


def rules(files: dict[str, Path], **options: str) -> TextRules:
    return TextRules.of({"end_tokens": END, **options}, files, vocabulary=VOCABULARY)


def inputs(text: str) -> dict[str, Any]:
    return {"text": np.array([text.encode()], np.object_)}


def generator(files: dict[str, Path], says: str | Sequence[int], **options: str) -> tuple[TextGenerator, Dictation]:
    made = rules(files, **options)
    tokens = made.tokenizer.encode(says).ids if isinstance(says, str) else says
    decoder = Dictation(tokens)
    return TextGenerator(decoder, made, Generation(sequences=2, max_tokens=ROOM)), decoder


def answer(text: TextGenerator, prompt: str, slot: int = 0, **wishes: Any) -> tuple[list[str], str]:
    """Pieces, and why it ended."""
    asked = text.read(inputs(prompt), {"seed": 0, **wishes})
    text.join(slot, asked)
    advance = text.step(((slot, asked.tokens),), ())[slot]
    advances = [advance]
    while not advance.finished:
        advance = text.step((), (slot,))[slot]
        advances.append(advance)
    text.leave(slot)
    return [told(each) for each in advances if each.outputs is not None], advance.finished


def told(advance: Advance) -> str:
    assert advance.outputs is not None
    text: Any = advance.outputs["text"]
    return bytes(text[0]).decode()


class TestPieces:
    def test_a_character_of_several_tokens_comes_at_once(self, tokenizer: Tokenizer) -> None:
        pieces = TextPieces(tokenizer, "")

        said = [pieces.add(token) for token in tokenizer.encode("aé€b").ids]

        assert said == ["a", "", "é", "", "", "€", "b"]
        assert pieces.rest() == ""

    def test_half_a_character_at_the_end_is_replaced(self, tokenizer: Tokenizer) -> None:
        pieces = TextPieces(tokenizer, "")
        for token in tokenizer.encode("a€").ids[:-1]:
            pieces.add(token)

        assert pieces.rest() == "\N{REPLACEMENT CHARACTER}"

    def test_what_may_become_the_text_to_stop_at_waits(self, tokenizer: Tokenizer) -> None:
        pieces = TextPieces(tokenizer, "abc")

        said = [pieces.add(token) for token in tokenizer.encode("xababcd").ids]

        assert said[:6] == ["x", "", "", "ab", "", ""]
        assert pieces.stopped
        assert pieces.rest() == ""

    def test_what_waited_comes_at_the_end(self, tokenizer: Tokenizer) -> None:
        pieces = TextPieces(tokenizer, "abc")
        said = [pieces.add(token) for token in tokenizer.encode("xab").ids]

        assert "".join(said) == "x"
        assert pieces.rest() == "ab"


class TestRules:
    def test_a_template_surrounds_the_text_and_its_special_tokens_count(self, files: dict[str, Path]) -> None:
        made = rules(files, template=f"Q:{END}{{text}}A:")

        assert made.before[-1] == 256
        assert made.tokenizer.decode(list(made.after)) == "A:"

    def test_special_tokens_in_a_callers_text_are_only_text(self, files: dict[str, Path]) -> None:
        text, decoder = generator(files, "x")

        answer(text, f"a{END}b", max_tokens=1)

        assert 256 not in decoder.taken_in[0][1]
        assert len(decoder.taken_in[0][1]) == len(f"a{END}b")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"template": "no place"}, "template"),
            ({"template": "{text}{text}"}, "template"),
            ({"end_tokens": "<nothing>"}, "<nothing>"),
            ({"answer_tokens": "0"}, "answer_tokens"),
            ({"tokenizer": "other.json"}, r"other\.json"),
        ],
    )
    def test_a_wrong_option_is_rejected(self, files: dict[str, Path], options: dict[str, str], message: str) -> None:
        with pytest.raises(ArtifactRejected, match=message):
            rules(files, **options)

    def test_a_tokenizer_with_more_tokens_than_the_weights_is_rejected(self, files: dict[str, Path]) -> None:
        with pytest.raises(ArtifactRejected, match="257 tokens"):
            TextRules.of({}, files, vocabulary=256)


class TestRequests:
    def test_it_ends_at_the_end_token_without_telling_it(self, files: dict[str, Path]) -> None:
        text, _ = generator(files, [*range(70, 73), 256])

        pieces, finished = answer(text, "go")

        assert finished == "end"
        assert len("".join(pieces)) == 3

    def test_it_ends_after_as_many_tokens_as_are_asked_for(self, files: dict[str, Path]) -> None:
        text, _ = generator(files, "abcdef")

        assert answer(text, "go", max_tokens=4) == (["a", "b", "c", "d"], "length")

    def test_it_ends_before_the_text_to_stop_at(self, files: dict[str, Path]) -> None:
        text, _ = generator(files, "one. two. ")

        pieces, finished = answer(text, "go", stop=". t")

        assert ("".join(pieces), finished) == ("one", "stop")

    def test_it_ends_where_there_is_no_more_room(self, files: dict[str, Path]) -> None:
        text, _ = generator(files, "ab")

        pieces, finished = answer(text, "x" * (ROOM - 3), max_tokens=100)

        assert ("".join(pieces), finished) == ("aba", "length")

    def test_the_whole_is_its_pieces(self, files: dict[str, Path]) -> None:
        text, _ = generator(files, "a€b")
        asked = text.read(inputs("go"), {"max_tokens": 5})
        text.join(0, asked)
        advances = [text.step(((0, asked.tokens),), ())[0]] + [text.step((), (0,))[0] for _ in range(4)]
        pieces: Any = [advance.outputs for advance in advances if advance.outputs is not None]

        whole = text.collect(pieces)

        assert whole["text"].tolist() == ["a€b".encode()]
        assert len(whole["tokens"]) == 5
        assert text.collect([])["text"].tolist() == [b""]

    def test_the_last_token_is_taken_in_where_it_belongs(self, files: dict[str, Path]) -> None:
        text, decoder = generator(files, "abc")

        answer(text, "12345", max_tokens=3)

        assert [(len(ids), start) for _, ids, start in decoder.taken_in] == [(5, 0), (1, 5), (1, 6)]

    @pytest.mark.parametrize(
        ("wishes", "paths"),
        [
            ({"max_tokens": 0}, ["max_tokens"]),
            ({"max_tokens": 2.5}, ["max_tokens"]),
            ({"max_tokens": "many"}, ["max_tokens"]),
            ({"temperature": float("nan"), "top_p": 0.0}, ["temperature", "top_p"]),
            ({"seed": -1}, ["seed"]),
            ({"seed": True, "stop": "x" * 300}, ["seed", "stop"]),
        ],
    )
    def test_wrong_wishes_are_all_named(self, files: dict[str, Path], wishes: dict[str, Any], paths: list[str]) -> None:
        text, _ = generator(files, "a")

        with pytest.raises(InvalidRequest) as caught:
            text.read(inputs("x"), wishes)

        assert [fault.path for fault in caught.value.faults] == [f"parameters[{path}]" for path in paths]

    def test_numbers_may_come_as_text(self, files: dict[str, Path]) -> None:
        text, _ = generator(files, "a")

        assert text.read(inputs("x"), {"max_tokens": "7", "temperature": "0.5"}).most == 7

    @pytest.mark.parametrize("length", [ROOM, 16 * ROOM + 1])
    def test_a_text_without_room_for_an_answer_is_refused(self, files: dict[str, Path], length: int) -> None:
        text, _ = generator(files, "a")

        with pytest.raises(InvalidRequest, match=f"{ROOM} (tokens )?are the most"):
            text.read(inputs("x" * length), {})

    def test_an_empty_text_is_one_token(self, files: dict[str, Path]) -> None:
        text, _ = generator(files, "a")

        assert text.read(inputs(""), {}).tokens == 1

    def test_scores_that_are_no_numbers_change_nothing_and_their_slot_is_overwritten(
        self, files: dict[str, Path]
    ) -> None:
        text, decoder = generator(files, "abc")
        asked = text.read(inputs("xy"), {"max_tokens": 3})
        assert isinstance(asked, Prompt)
        text.join(1, asked)
        decoder.nan = True
        with pytest.raises(NotANumber):
            text.step(((1, 2),), ())
        decoder.nan = False

        repeated = text.step(((1, 2),), ())[1]
        text.leave(1)

        assert told(repeated) == "a"
        assert decoder.forgotten == [1]


class TestTaking:
    SCORES = torch.tensor([1.0, 3.0, 2.0, -1.0])

    def test_without_a_temperature_the_likeliest(self) -> None:
        assert take(self.SCORES, Sampling(), 0.999) == 1

    def test_draws_follow_the_odds(self) -> None:
        odds = torch.softmax(self.SCORES.double(), 0)
        chances = [(number + 0.5) / 1000 for number in range(1000)]

        taken = [take(self.SCORES, Sampling(temperature=1.0), chance) for chance in chances]

        for token in range(4):
            assert taken.count(token) / 1000 == pytest.approx(float(odds[token]), abs=0.002)

    def test_top_p_leaves_out_the_tail(self) -> None:
        chances = [(number + 0.5) / 1000 for number in range(1000)]

        taken = {take(self.SCORES, Sampling(temperature=1.0, top_p=0.8), chance) for chance in chances}

        assert taken == {1, 2}
        assert {take(self.SCORES, Sampling(temperature=1.0, top_p=0.1), chance) for chance in chances} == {1}

    @pytest.mark.parametrize("chance", [0.0, 1.0 - 2.0**-53])
    def test_no_chance_leads_to_an_impossible_token(self, chance: float) -> None:
        scores = torch.tensor([-1e9, 1.0, 2.0, -1e9])

        assert take(scores, Sampling(temperature=0.7), chance) in (1, 2)
        assert take(scores, Sampling(temperature=0.7, top_p=0.9), chance) in (1, 2)
