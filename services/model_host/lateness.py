"""What a caller is told whose deadline cannot be met: the prediction, and when to come again."""

from services.domain.errors import TAKES_S, BudgetExhausted, Overloaded, YardError
from services.domain.model import ModelKey
from services.model_host.calls import Call
from services.model_host.lane import Lane


def too_late(key: ModelKey, own_s: float, left_s: float) -> BudgetExhausted:
    """Its own compute time is more than what is left: no host of this speed could do it; a faster one might."""
    return BudgetExhausted(
        f"{key} takes about {own_s * 1e3:.1f} ms for this, and the deadline leaves {max(0.0, left_s) * 1e3:.1f} ms",
        metadata={TAKES_S: f"{own_s:.6f}"},
    )


def too_busy(key: ModelKey, wait_s: float, own_s: float, left_s: float) -> Overloaded:
    """What waits before it is too much; it may come again once that is done."""
    return Overloaded(
        f"{key} would answer in about {(wait_s + own_s) * 1e3:.1f} ms behind what waits here, and the deadline leaves "
        f"{max(0.0, left_s) * 1e3:.1f} ms",
        retry_after_s=wait_s,
    )


def late_now(lane: Lane, call: Call, now_s: float) -> YardError:
    """Why a call that waited is dropped."""
    own_s = lane.seconds_of(call)
    left_s = call.deadline_at_s - now_s
    if own_s > left_s:
        return too_late(lane.key, own_s, left_s)
    return too_busy(lane.key, lane.times.overall.predict(lane.cap) - own_s, own_s, left_s)
