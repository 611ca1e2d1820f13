"""How busy the event loop's thread is, for those who may do with fewer, larger pieces of work while it is."""

from services.domain.clock import Clock

WINDOW_S = 0.004
"""Time over which the load is taken: a few hundred calls at most."""

SATURATED = 0.6
"""Share of a processor from which the thread counts as saturated. The rest goes to the threads that feed it, which
share its interpreter lock and, on a small machine, its processor."""


class ThreadLoad:
    """The load of the thread that asks; one for each."""

    __slots__ = ("_clock", "_cpu_s", "_share", "_wall_s")

    def __init__(self, clock: Clock) -> None:
        """Measure from now on."""
        self._clock = clock
        self._wall_s = clock.now_s()
        self._cpu_s = clock.thread_s()
        self._share = 0.0

    @property
    def saturated(self) -> bool:
        """Whether the thread computed for most of the last window."""
        now_s = self._clock.now_s()
        passed_s = now_s - self._wall_s
        if passed_s >= WINDOW_S:
            cpu_s = self._clock.thread_s()
            self._share = (cpu_s - self._cpu_s) / passed_s
            self._wall_s, self._cpu_s = now_s, cpu_s
        return self._share > SATURATED
