"""What a tenant's calls may spend, and what a microdollar is worth to them: a budget as one process counts it.

Two that act together. A token bucket is hard: what it cannot pay for is not chosen, so that no burst of calls spends
more. The price of money is soft: it rises while more is spent than the budget yields, so that the dear answers go
where they are worth most, before the bucket has to say no.
"""

from services.domain.tenancy import Budget, PriceRules

BURST_SHARE = 0.05
"""Part of a budget that may be spent at once: over any one period at most 1.05 times the budget is spent."""

WANTED = 0.5
"""How full a purse should be, and is to begin with: there is room for what comes in bursts, and for what is saved
between them."""

ANY = 1 << 62
"""What there is in a purse that is so full. It pays for one call whatever that costs, if need be on credit: else a
small share of a budget, of one worker of many, could never buy a dear answer."""

PRICES = 64
"""Rules of prices that one purse keeps apart."""


class Price:
    """The price of a microdollar by one set of rules: dual ascent on the budget."""

    __slots__ = ("_rules", "_since_s", "_spent_before", "weight")

    def __init__(self, rules: PriceRules, spent_microusd: int, now_s: float) -> None:
        """Begin where the rules say; `spent_microusd` was spent before."""
        self._rules = rules
        self._since_s = now_s
        self._spent_before = spent_microusd
        self.weight = rules.cost_weight

    def follow(self, spent_microusd: int, refill_per_s: float, full: float, now_s: float) -> float:
        """The price now: once an interval, `step * (spent - budget) / budget` is added, within its bounds.

        Half a step more where the purse is empty, half less where it is full: what an empty purse cannot pay for is
        not spent, so that without this the price would stop to rise just where it is too low.

        Args:
            spent_microusd: All that was ever spent.
            refill_per_s: What the budget yields, in microdollars.
            full: How full the purse is, 1 for full, below 0 in debt.
            now_s: Monotonic seconds.
        """
        rules = self._rules
        intervals = int((now_s - self._since_s) / rules.interval_s)
        if intervals > 0:
            # Intervals without a call in them are as many in which nothing was spent.
            budget = refill_per_s * rules.interval_s
            over = (spent_microusd - self._spent_before) / budget - intervals + WANTED - min(1.0, max(0.0, full))
            self.weight = min(rules.max_cost_weight, max(0.0, self.weight + rules.step * over))
            self._since_s += intervals * rules.interval_s
            self._spent_before = spent_microusd
        return self.weight


class Purse:
    """What one tenant may spend here."""

    __slots__ = ("_at_s", "_left", "_most", "_prices", "_share", "budget", "refill_per_s", "spent_microusd")

    def __init__(self, budget: Budget, now_s: float, *, share: float) -> None:
        """Start as full as it should be.

        Args:
            budget: The whole.
            now_s: Monotonic seconds.
            share: Part of the whole that may be spent here, in (0, 1].
        """
        self._share = share
        self._at_s = now_s
        self._prices: dict[PriceRules, Price] = {}
        self.spent_microusd = 0
        """What was paid for answers, ever."""
        self._left = 0.0
        self.turn_to(budget)
        self._left = WANTED * self._most

    def turn_to(self, budget: Budget) -> None:
        """Go by another budget from now on; what was spent stays spent."""
        self.budget = budget
        amount = budget.amount_microusd * self._share
        self.refill_per_s = amount / budget.period_s
        """Microdollars that the budget yields here."""
        self._most = amount * BURST_SHARE
        self._left = min(self._left, self._most)

    def left_microusd(self, now_s: float) -> int:
        """What there is; `ANY` if it is as full as it should be, and below 0 if it is in debt."""
        self._fill(now_s)
        return ANY if self._left >= WANTED * self._most else int(self._left // 1.0)

    def cost_weight(self, rules: PriceRules, now_s: float) -> float:
        """The price of a microdollar by now."""
        price = self._prices.get(rules)
        if price is None:
            if len(self._prices) >= PRICES:
                self._prices.clear()
            price = self._prices[rules] = Price(rules, self.spent_microusd, now_s)
        self._fill(now_s)
        return price.follow(self.spent_microusd, self.refill_per_s, self._left / self._most, now_s)

    def _fill(self, now_s: float) -> None:
        self._left = min(self._most, self._left + self.refill_per_s * (now_s - self._at_s))
        self._at_s = now_s

    def take(self, cost_microusd: int) -> None:
        """Put the price of a call aside; a negative one puts it back."""
        self._left -= cost_microusd


class Hold:
    """What one call, or one leg of it, has put aside in a purse until it is answered.

    The price of money is the one of when the call began, for all of it.
    """

    __slots__ = ("_held", "_purse", "cost_weight")

    def __init__(self, purse: Purse, cost_weight: float | None) -> None:
        """Hold nothing yet."""
        self._purse = purse
        self._held = 0
        self.cost_weight = cost_weight

    def another(self) -> "Hold":
        """Of a further leg of the call."""
        return Hold(self._purse, self.cost_weight)

    def left_microusd(self, now_s: float) -> int:
        """What there is for the next choice: what is held by now would be put back for it."""
        left = self._purse.left_microusd(now_s)
        return left if left >= ANY else left + self._held

    @property
    def refill_per_s(self) -> float:
        """Microdollars by which more there is with each second."""
        return self._purse.refill_per_s

    def hold(self, cost_microusd: int) -> None:
        """Put this much aside, in place of what is held."""
        self._purse.take(cost_microusd - self._held)
        self._held = cost_microusd

    def pay(self) -> None:
        """There is the answer: what is held was spent."""
        self._purse.spent_microusd += self._held
        self._held = 0

    def end(self) -> None:
        """Nothing more is asked: what is held and was not paid is put back."""
        if self._held:
            self.hold(0)
