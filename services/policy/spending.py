"""A budget of money by time, as counted by one process."""

from services.domain.tenancy import Budget


class Spending:
    """What is spent of a budget; begins anew with each period."""

    __slots__ = ("_most", "_period_s", "_since_s", "_spent")

    def __init__(self, budget: Budget, now_s: float, *, share: float) -> None:
        """Nothing is spent.

        Args:
            budget: The whole.
            now_s: Monotonic seconds.
            share: Part of the whole that may be spent here, in (0, 1].
        """
        self._most = budget.amount_microusd * share
        self._period_s = budget.period_s
        self._since_s = now_s
        self._spent = 0

    def spend(self, cost_microusd: int, now_s: float) -> bool:
        """Take a price, if there is that much left."""
        if now_s - self._since_s >= self._period_s:
            self._since_s = now_s
            self._spent = 0
        if self._spent + cost_microusd > self._most:
            return False
        self._spent += cost_microusd
        return True
