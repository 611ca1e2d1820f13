"""Which classes of calls an overloaded host takes no more, so that what it takes is answered in time.

DAGOR (Zhou et al., "Overload Control for Scaling WeChat Microservices", SoCC 2018, sections 4.2 and 4.3): classes are
levels, most important first; under overload the cutoff moves so that 5 % fewer calls come in than did, else so
that 1 % more do. The calls at each level are counted, so that the step is right whatever the levels hold.

Two things are other than there. Overload is a long wait *and* calls that were refused for it: a caller who gave a
batch job half a minute is not turned away because it waits for a second. And the most important band that calls
come in is never cut: there the fair shares of `fairness` and each call's own deadline say who is refused, and a
cutoff by tenant would take from some what they are entitled to.
"""

from collections.abc import Mapping

from services.domain.service_class import OPEN, TENANTS

WINDOW_S = 1.0
"""Time between two moves of the cutoff."""

QUEUEING_S = 0.020
"""A mean wait beyond this is overload; beyond two batches where those take longer, for a call always may have to
wait for one."""

BATCHES = 2.0
FEWER = 0.05
MORE = 0.01

LAG_S = 0.020
"""An event loop that is later than this on average does not keep up with the messages: overload that no queue shows."""

REFUSED_SHARE = 0.01
"""With no more than this part of the calls refused or dropped there is no overload."""


class Cutoff:
    """Moves with the load; levels from `value` on are refused."""

    __slots__ = ("_came", "_lag_s", "_lags", "_refused", "_since_s", "_waited", "_waited_s", "value")

    def __init__(self, now_s: float) -> None:
        """Refuse nothing."""
        self.value = OPEN
        self._since_s = now_s
        self._came: dict[int, int] = {}
        self._lags = self._refused = self._waited = 0
        self._lag_s = self._waited_s = 0.0

    def came(self, level: int) -> bool:
        """A call came; returns whether it is refused."""
        came = self._came
        came[level] = came.get(level, 0) + 1
        return level >= self.value

    def waited(self, calls: int, queue_s: float) -> None:
        """Calls were computed that had waited for `queue_s` in all."""
        self._waited += calls
        self._waited_s += queue_s

    def refused(self) -> None:
        """A call was refused or dropped for lack of time or room."""
        self._refused += 1

    def lagged(self, lag_s: float) -> None:
        """The event loop came to the queue `lag_s` after it should have."""
        self._lags += 1
        self._lag_s += lag_s

    def due(self, now_s: float) -> bool:
        """Whether it is time to move."""
        return now_s - self._since_s >= WINDOW_S

    def move(self, now_s: float, *, batch_s: float) -> None:
        """Move by what was seen since the last time.

        Args:
            now_s: Time now.
            batch_s: What a batch takes of late.
        """
        waited_s = self._waited_s / self._waited if self._waited else 0.0
        refusing = self._refused > REFUSED_SHARE * sum(self._came.values())
        overloaded = refusing and waited_s > max(QUEUEING_S, BATCHES * batch_s)
        overloaded = overloaded or self._lag_s > LAG_S * max(1, self._lags)
        self.value = moved(self.value, self._came, overloaded=overloaded, computed=self._waited)
        self._since_s = now_s
        self._came.clear()
        self._lags = self._refused = self._waited = 0
        self._lag_s = self._waited_s = 0.0


def moved(value: int, came: Mapping[int, int], *, overloaded: bool, computed: int) -> int:
    """Where the cutoff goes.

    Args:
        value: Where it is.
        came: Calls that came, by level.
        overloaded: Whether those that were taken waited too long.
        computed: Calls that the device computed meanwhile: fewer are never let in, or it would be idle. A level can
            hold most of them.

    Returns:
        The new cutoff; past the most important band that calls come in.
    """
    levels = sorted(came)
    total = sum(came.values())
    if not total:
        return OPEN
    admitted = sum(count for level, count in came.items() if level < value)
    if not overloaded and admitted == total:
        return OPEN
    least = (levels[0] // TENANTS + 1) * TENANTS
    wanted = (1.0 - FEWER) * admitted if overloaded else admitted + MORE * total
    taken = 0
    for level in levels:
        before, taken = taken, taken + came[level]
        # As many levels as stay below what is wanted when fewer may come; as few as reach it when more may.
        if overloaded and taken > wanted and before >= computed:
            return max(level, least)
        if not overloaded and taken >= wanted:
            return OPEN if level == levels[-1] else max(level + 1, least)
    return value if overloaded else OPEN
