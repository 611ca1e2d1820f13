"""What one iteration computes of prompts, and when a newcomer's first token would come."""

import pytest

from services.policy.iterating import Crowd, IterationTimes, answer_left, chunks, first_token


def crowd(
    *, free: int = 4, ahead: tuple[int, ...] = (), prompts: tuple[int, ...] = (), answers: tuple[int, ...] = ()
) -> Crowd:
    return Crowd(free, ahead, prompts, answers)


def times(*, step_ms: float = 10.0, token_ms: float = 1.0, answer: float = 20.0) -> IterationTimes:
    return IterationTimes(step_ms / 1e3, token_ms / 1e3, answer)


class TestChunks:
    def test_the_first_in_turn_gets_its_chunk(self) -> None:
        assert chunks([100, 100], chunk_tokens=16) == (16, 0)

    def test_what_it_leaves_goes_to_others_who_can_use_it_whole(self) -> None:
        assert chunks([5, 3, 100, 8], chunk_tokens=16) == (5, 3, 0, 8)

    @pytest.mark.parametrize("beside", [[], [3], [20, 20], [15, 1, 7]])
    def test_a_prompt_is_cut_in_the_same_places_whoever_is_beside_it(self, beside: list[int]) -> None:
        left, cuts = [*beside, 40], []
        while left[-1]:
            shares = chunks(left, chunk_tokens=16)
            cuts.append(shares[-1])
            left = [tokens - share for tokens, share in zip(left, shares, strict=True)]

        assert [cut for cut in cuts if cut] == [16, 16, 8]

    def test_somebody_always_gets_on(self) -> None:
        assert any(chunks([17, 33], chunk_tokens=16))
        assert chunks([], chunk_tokens=16) == ()


class TestTimes:
    def test_steps_and_prompts_are_told_apart(self) -> None:
        learned = times(step_ms=30.0, token_ms=0.1)

        for _ in range(60):
            learned.observe(prompt_tokens=0, took_s=0.010)
            learned.observe(prompt_tokens=16, took_s=0.042)

        assert learned.step_s == pytest.approx(0.010, rel=0.01)
        assert learned.prompt_token_s == pytest.approx(0.002, rel=0.05)


class TestFirstToken:
    def test_alone_it_takes_its_own_prompt(self) -> None:
        forecast = first_token(times(), 40, crowd(), chunk_tokens=16)

        assert forecast.own_s == pytest.approx(3 * 0.010 + 40 * 0.001)
        assert forecast.wait_s == 0.0

    def test_others_answers_go_along_at_no_cost(self) -> None:
        forecast = first_token(times(), 40, crowd(free=3, answers=(9,)), chunk_tokens=16)

        assert forecast.wait_s == 0.0

    def test_prompts_beside_it_cost_it_no_more_than_its_own_length(self) -> None:
        short = first_token(times(), 10, crowd(free=3, prompts=(1000,), answers=(9,)), chunk_tokens=16)

        assert short.wait_s == pytest.approx(10 * 0.001 + 0.010)

    def test_without_a_free_slot_it_waits_for_the_first_that_ends(self) -> None:
        full = crowd(free=0, answers=(30, 5, 12))

        assert first_token(times(), 1, full, chunk_tokens=16).wait_s == pytest.approx(5 * 0.010)

    def test_those_who_wait_before_it_take_slots_first(self) -> None:
        full = crowd(free=0, ahead=(1, 1), answers=(30, 5, 12))

        assert first_token(times(), 1, full, chunk_tokens=16).wait_s == pytest.approx(30 * 0.010)

    def test_behind_more_than_there_are_slots_it_waits_for_whole_answers(self) -> None:
        full = crowd(free=0, ahead=(1, 1, 1), answers=(30, 5, 12))

        assert first_token(times(), 1, full, chunk_tokens=16).wait_s == pytest.approx((5 + 20) * 0.010)


@pytest.mark.parametrize(
    ("tokens", "most", "mean", "left"), [(0, 100, 20.0, 20), (15, 100, 20.0, 5), (15, 18, 20.0, 3), (50, 100, 20.0, 25)]
)
def test_an_answer_is_expected_to_be_as_long_as_others(tokens: int, most: int, mean: float, left: int) -> None:
    assert answer_left(tokens, most=most, mean=mean) == left
