"""How late the event loop is, as a metric."""

from services.chassis.instruments import EVENT_LOOP_LAG, EVENT_LOOP_STALLS
from services.domain.clock import Clock

LAG_EVERY_S = 0.1
"""How often the event loop is asked how late it is; half of all 50 ms stalls are caught, and all of 100 ms."""

LAG_WINDOW_S = 15.0
"""The gauge shows the worst of this time, so that a scrape every 15 s misses none."""

STALL_S = 0.05
"""A loop later than this stalls its calls visibly."""


async def watch_loop_lag(clock: Clock) -> None:
    """Keep `EVENT_LOOP_LAG` and `EVENT_LOOP_STALLS` until cancelled; one task per process."""
    worst_s, before_worst_s = 0.0, 0.0
    window_end_s = clock.now_s() + LAG_WINDOW_S
    while True:
        start_s = clock.now_s()
        await clock.sleep(LAG_EVERY_S)
        now_s = clock.now_s()
        lag_s = max(0.0, now_s - start_s - LAG_EVERY_S)
        if lag_s >= STALL_S:
            EVENT_LOOP_STALLS.inc()
        if now_s >= window_end_s:
            worst_s, before_worst_s = 0.0, worst_s
            window_end_s = now_s + LAG_WINDOW_S
        worst_s = max(worst_s, lag_s)
        EVENT_LOOP_LAG.set(max(worst_s, before_worst_s))
