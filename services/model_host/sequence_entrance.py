"""Whether a sequence may wait for a slot: its first token must be able to come in time, and there must be room."""

from collections.abc import Callable, Sequence

from services.domain.errors import BudgetExhausted, Overloaded, YardError
from services.domain.model import ModelKey
from services.model_host.sequences import Bounds, Request
from services.policy.iterating import Crowd, IterationTimes, answer_left, first_token

PROBE_EVERY = 8
"""An idle engine runs every so-many-th sequence that looks hopeless, so that one slow spell is unlearned."""


class SequenceEntrance:
    """Lets sequences in, one by one."""

    def __init__(
        self,
        key: ModelKey,
        *,
        bounds: Bounds,
        times: IterationTimes,
        dropped: Callable[[Request, str, YardError], YardError],
    ) -> None:
        """Forecast by `times`; tell `dropped` of each refusal, which returns the error."""
        self._key = key
        self._bounds = bounds
        self._times = times
        self._dropped = dropped
        self._hopeless = 0

    def admit(self, request: Request, now_s: float, *, waiting: Sequence[Request], active: Sequence[Request]) -> None:
        """Refuse a sequence whose first token cannot come in time.

        Args:
            request: The sequence.
            now_s: Time now.
            waiting: Those that wait, in order.
            active: Those that have a slot and want it still.

        Raises:
            BudgetExhausted: Its deadline does not cover its own prompt.
            Overloaded: Too many wait, or its first token would come too late behind others.
        """
        left_s = request.deadline_at_s - now_s
        crowd = self._crowd(request, waiting, active)
        forecast = first_token(self._times, request.prompt.tokens, crowd, chunk_tokens=self._bounds.chunk_tokens)
        if forecast.own_s > left_s:
            if waiting or active or not self._probes(left_s):
                raise self._dropped(request, "deadline", self.too_late(forecast.own_s, left_s))
            request.deadline_at_s += 4.0 * forecast.own_s  # its caller's real deadline still cancels it
            return
        if len(waiting) >= self._bounds.max_waiting:
            text = f"{len(waiting)} sequences wait for {self._key} here, and no more are taken"
            raise self._dropped(request, "full", Overloaded(text, retry_after_s=forecast.wait_s))
        if forecast.own_s + forecast.wait_s > left_s:
            raise self._dropped(request, "deadline", self._too_busy(forecast.wait_s, forecast.own_s, left_s))

    def too_late(self, own_s: float, left_s: float) -> BudgetExhausted:
        """Its own prompt takes more than what is left."""
        return BudgetExhausted(
            f"{self._key} takes about {own_s * 1e3:.1f} ms to the first token of this, and the deadline leaves "
            f"{max(0.0, left_s) * 1e3:.1f} ms"
        )

    def _too_busy(self, wait_s: float, own_s: float, left_s: float) -> Overloaded:
        return Overloaded(
            f"the first token of {self._key} would come in about {(wait_s + own_s) * 1e3:.1f} ms behind what is here, "
            f"and the deadline leaves {max(0.0, left_s) * 1e3:.1f} ms",
            retry_after_s=wait_s,
        )

    def _crowd(self, request: Request, waiting: Sequence[Request], active: Sequence[Request]) -> Crowd:
        mean = self._times.answer_tokens
        return Crowd(
            free=self._bounds.sequences - len(active),
            ahead=[other.prompt.tokens for other in waiting if other.turn <= request.turn],
            prompts_left=[other.left for other in active if other.left],
            answers_left=[answer_left(other.tokens, most=other.prompt.most, mean=mean) for other in active],
        )

    def _probes(self, left_s: float) -> bool:
        """Whether a sequence that looks hopeless is run nevertheless, to see whether the forecast still holds."""
        if left_s <= 0.0:
            return False
        self._hopeless += 1
        return self._hopeless % PROBE_EVERY == 0
