"""Watches hosts beside the calls: who has fallen silent, who is slow, who fails more often than the others.

What is an outlier is the policies' to say. This module goes by the clock, carries out what they say, and sends the
calls that wait for a silent host elsewhere.
"""

from typing import Protocol

from services.domain.clock import Clock
from services.domain.host import HostLoad, HostRecord
from services.policy import ejection, silence
from services.policy.ejection import Ejected, Reason
from services.router.host_book import HostBook

STEP_S = 0.025
"""How often silence is looked for: a quarter of the least that is too much."""

HEARD_SHARE = 2.0
"""A step that was longer than this many of them was one in which this process was held up: it counts as so long."""


class WatchFeedback(Protocol):
    """Who is told of ejections."""

    def ejected(self, host_id: str, reason: Reason, why: str) -> None:
        """A host was ejected."""
        ...


class Watch:
    """Watches the hosts of one book."""

    def __init__(self, book: HostBook, feedback: WatchFeedback, clock: Clock) -> None:
        """Tell `feedback` of ejections."""
        self._book = book
        self._feedback = feedback
        self._clock = clock
        self._at_s = self._timed_at_s = self._rated_at_s = clock.now_s()

    async def run(self) -> None:
        """Go on until it is cancelled."""
        while True:
            await self._clock.sleep(STEP_S)
            self.step()

    def heard(self, host: HostRecord, load: HostLoad) -> None:
        """A host says that it lives."""
        self._book.heard(host, load, self._clock.now_s())

    def step(self) -> None:
        """Look once."""
        now_s = self._clock.now_s()
        heard_s, self._at_s = min(now_s - self._at_s, HEARD_SHARE * STEP_S), now_s
        hosts = list(self._book.hosts())
        for silent in silence.listen(hosts, for_s=heard_s, now_s=now_s):
            silent.host.suspect = True
            self._eject(silent, now_s)
            for owed in silent.host.owed:
                owed.leave()
        if now_s - self._timed_at_s >= ejection.SLOW_INTERVAL_S:
            self._timed_at_s = now_s
            for slow in ejection.by_time(hosts, now_s):
                self._eject(slow, now_s)
        if now_s - self._rated_at_s >= ejection.INTERVAL_S:
            self._rated_at_s = now_s
            for failing in ejection.by_rates(hosts, now_s):
                self._eject(failing, now_s)

    def _eject(self, ejected: Ejected, now_s: float) -> None:
        ejection.eject(ejected, now_s)
        self._feedback.ejected(ejected.host.host_id, ejected.reason, ejected.why)
