"""Circuits: how far a host, or a version on a host, is trusted after it failed, and how it comes back.

A circuit that opens adds time to what is predicted of the host, so that calls go elsewhere as long as there is an
elsewhere; it forbids nothing, and a fleet that is in trouble as a whole is served by the least bad. After a while one
call at a time may go there as if nothing had been: a probe. Its answer closes the circuit, its failure opens it again,
for longer. Nothing else closes it: were it any success, a host that fails every second call would keep its share.

The time that is added fades, so that of several hosts in trouble the one that failed longest ago is tried first, and
one that no probe ever went to is as good as any other in the end.
"""

import enum
import math

PENALTY_S = 5.0
"""Added to the prediction of a host that just failed, unless it asked for another time itself.
Longer than any sound queue, so that a host that fails fast cannot look attractive."""

NEGLIGIBLE_PENALTY_S = 0.05
"""A penalty below this is none."""

HOLD_S = 5.0
"""How long a circuit stays open before a probe, the first time; twice as long the second time, and so on."""

MOST_HOLDS = 10
"""Times that no further failure makes it longer: as many as gRFC A50 has of its own."""

FADE_HOLDS = 2.0
"""Time constant of a penalty, in holds: when a probe comes, 0.6 of it is left. A first one is as nothing after 46 s."""

CLEAN_S = 10.0
"""Each time this long without trouble takes one of the earlier times off: the interval of gRFC A50."""


class CircuitState(enum.Enum):
    """How far one is trusted."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"
    """The next call may be the probe."""
    PROBING = "PROBING"


class Circuit:
    """One circuit."""

    __slots__ = ("closed_at_s", "hold_s", "opened_at_s", "penalty_s", "probing", "times", "why")

    def __init__(self) -> None:
        """Closed, and never opened."""
        self.penalty_s = 0.0
        """What it adds, when it opened; 0 once it is closed."""
        self.opened_at_s = 0.0
        self.hold_s = 0.0
        """For how long it keeps calls away before a probe; 0 once it is closed."""
        self.probing = False
        """Whether the call that sees is there."""
        self.times = 0
        """How often it opened of late."""
        self.closed_at_s = -math.inf
        self.why = ""

    def cost_s(self, now_s: float) -> float:
        """What it adds to a prediction."""
        if not self.penalty_s:
            return 0.0
        cost_s = self.penalty_s * math.exp((self.opened_at_s - now_s) / (FADE_HOLDS * self.hold_s))
        return cost_s if cost_s >= NEGLIGIBLE_PENALTY_S else 0.0

    def awaits_probe(self, now_s: float) -> bool:
        """Whether one call may go as if it were closed; always, if it is."""
        return not self.penalty_s or (not self.probing and now_s - self.opened_at_s >= self.hold_s)

    def state(self, now_s: float) -> CircuitState:
        """In a word."""
        if not self.cost_s(now_s):
            return CircuitState.CLOSED
        if self.probing:
            return CircuitState.PROBING
        return CircuitState.HALF_OPEN if self.awaits_probe(now_s) else CircuitState.OPEN

    def open(self, now_s: float, *, why: str, hold_s: float = HOLD_S) -> bool:
        """It failed.

        Args:
            now_s: Monotonic seconds.
            why: What did.
            hold_s: Time to a probe, the first time.

        Returns:
            Whether it was closed, or its probe failed; what else fails while it is open belongs to the same time.
        """
        before = self.state(now_s)
        again = before is not CircuitState.OPEN
        if again:
            if before is CircuitState.CLOSED:
                clean_s = now_s - max(self.closed_at_s, self.opened_at_s)
                self.times = max(0, self.times - int(min(clean_s / CLEAN_S, MOST_HOLDS)))
            self.times = min(self.times + 1, MOST_HOLDS)
            self.hold_s = hold_s * self.times
        self.penalty_s, self.opened_at_s, self.probing, self.why = PENALTY_S, now_s, False, why
        return again

    def push_back(self, now_s: float, pushback_s: float) -> None:
        """It named a time to stay away, which is no failure; what speaks against it more than that stands."""
        if pushback_s >= max(NEGLIGIBLE_PENALTY_S, self.cost_s(now_s)):
            self.penalty_s, self.opened_at_s, self.hold_s = pushback_s, now_s, pushback_s
            self.probing, self.why = False, "busy"

    def close(self, now_s: float) -> None:
        """Its probe was answered."""
        self.penalty_s = self.hold_s = 0.0
        self.closed_at_s, self.probing, self.why = now_s, False, ""
