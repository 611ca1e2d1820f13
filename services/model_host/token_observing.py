"""Metrics and spans of what engines of versions that generate did."""

from collections.abc import Callable
from dataclasses import dataclass

from services.chassis import instruments
from services.chassis.hot_metrics import CounterChild, HistogramChild
from services.chassis.telemetry import Telemetry, TraceContext, logger
from services.domain.clock import Clock
from services.domain.model import ModelKey
from services.model_host.sequences import Request


@dataclass(frozen=True, slots=True)
class _Kept:
    """Children of one version: looking them up costs more than counting."""

    first_s: HistogramChild
    next_s: HistogramChild
    tokens: CounterChild


class TokenObserving:
    """Watches the engines of one host."""

    def __init__(
        self,
        *,
        telemetry: Telemetry,
        dropped: Callable[[ModelKey, int, str], None],
        wasted: Callable[[ModelKey, float], None],
        device_broken: Callable[[], None],
        clock: Clock,
    ) -> None:
        """Send spans to `telemetry`; hand on to the others what concerns all versions alike."""
        self._telemetry = telemetry
        self._dropped = dropped
        self._wasted = wasted
        self._device_broken = device_broken
        self._clock = clock
        self._kept: dict[ModelKey, _Kept] = {}

    def token_came(self, key: ModelKey, after_s: float, *, first: bool) -> None:
        """A token of an answer came."""
        kept = self._kept.get(key) or self._keep(key)
        kept.tokens.inc()
        (kept.first_s if first else kept.next_s).observe(after_s)

    def sequences(self, key: ModelKey, *, waiting: int, active: int) -> None:
        """So many wait now, and so many have a slot."""
        instruments.HOST_SEQUENCES.labels(key.model, key.version, "waiting").set(waiting)
        instruments.HOST_SEQUENCES.labels(key.model, key.version, "active").set(active)

    def sequence_ended(self, key: ModelKey, request: Request, *, ended_s: float) -> None:
        """A sequence gave its slot up: spans of its wait, its prompt and its answer, if it is sampled."""
        trace = request.trace
        if not isinstance(trace, TraceContext) or not trace.sampled:
            return
        to_wall_s = self._clock.wall_s() - self._clock.now_s()
        attributes: dict[str, str | int] = {"modelyard.model": key.model, "modelyard.version": key.version}
        parts = [
            ("queue", request.arrived_s, request.joined_s, {}),
            (
                "prefill",
                request.joined_s,
                request.first_at_s or ended_s,
                {"modelyard.tokens": request.prompt.tokens - request.left},
            ),
        ]
        if request.first_at_s:
            counts = {"modelyard.tokens": request.tokens, "modelyard.beside": request.beside}
            parts.append(("decode", request.first_at_s, ended_s, counts))
        for name, start_s, end_s, counts in parts:
            self._telemetry.record(
                name,
                parent=trace,
                start_wall_s=start_s + to_wall_s,
                end_wall_s=end_s + to_wall_s,
                attributes={**attributes, **counts},
            )

    def call_dropped(self, key: ModelKey, band: int, cause: str) -> None:
        """A sequence ended before its first token."""
        self._dropped(key, band, cause)

    def device_wasted(self, key: ModelKey, device_s: float) -> None:
        """The device computed for so long what nobody waited for."""
        self._wasted(key, device_s)

    def answer_failed(self, key: ModelKey, error: Exception) -> None:
        """A model made no whole answer of its own pieces."""
        logger().error("model failed", model=str(key), exc_info=error)

    def device_broken(self) -> None:
        """The device will not compute again."""
        self._device_broken()

    def _keep(self, key: ModelKey) -> _Kept:
        kept = self._kept[key] = _Kept(
            first_s=instruments.HOST_FIRST_TOKEN_SECONDS.labels(key.model, key.version),
            next_s=instruments.HOST_NEXT_TOKEN_SECONDS.labels(key.model, key.version),
            tokens=instruments.HOST_TOKENS.labels(key.model, key.version),
        )
        return kept
