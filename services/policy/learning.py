"""What answers and labels have taught of each version: quality, time and price of a kind of call, with shrinkage.

Three places hold what was seen: the cell of (version, domain, complexity), the version's domain, and for times the
whole version. A place with little of its own is pulled to the one above it, the topmost to what the registry says: of
`n` observations the own mean counts for `n / (n + 20)`. An old observation weighs 0.999 of the one after it.

Times are the host's compute times alone, never with the queue: that is `scoring`'s to add. They are kept as mean and
variance of their logarithm, from which mean and quantiles follow as of a lognormal distribution (Aitchison and Brown,
"The Lognormal Distribution", 1957).
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from services.domain.model import ModelKey
from services.domain.objects import ModelVersion
from services.policy.complexity import Kind

K = TypeVar("K")

SHRINKAGE = 20.0
"""Observations that the place above counts as."""

DISCOUNT = 0.999
"""Of each observation, at the next one in the same place: half of it is forgotten after 693, and no place ever counts
for more than 1,000."""

LATE_SPREAD = 0.5
"""Standard deviation of the logarithm of (time taken / time predicted) before anything was seen: one call in six takes
1.65 times the prediction or more. A wide guess; it decides only between candidates that are both close to the limit."""

P95 = 1.6448536269514722
"""The 95th percentile of the standard normal distribution."""

LEAST_S = 1e-6
"""Shorter times count as this."""

MOST_CELLS = 16384
MOST_DOMAINS = 4096
MOST_VERSIONS = 4096
"""Places that are kept; of more the one that learned nothing for longest goes. A place takes about 500 bytes."""

SETTLED = 64.0
"""A cell that counts for so many answers learns of further ones `TOGETHER` at a time: each changes it by little, and
what follows from it need not be worked out for each call."""

TOGETHER = 16

MOST_KEPT = 256
"""Expectations that are kept ready for each version."""


class Moments(NamedTuple):
    """Weighted mean and variance of what was seen."""

    weight: float = 0.0
    """How many observations it counts for."""
    mean: float = 0.0
    variance: float = 0.0


class Seen(NamedTuple):
    """What one place has seen."""

    quality: Moments = Moments()
    cost: Moments = Moments()
    """In microdollars."""
    time: Moments = Moments()
    """Of logarithms of seconds."""


class Evidence(NamedTuple):
    """All that an expectation is made from, besides what the registry says."""

    cell: Seen = Seen()
    domain: Seen = Seen()
    usual: Moments = Moments()
    """Times of the version, whatever it was asked; logarithms of seconds."""


NO_EVIDENCE = Evidence()


class Expected(NamedTuple):
    """What is expected of one version for one kind of call."""

    quality: float | None
    """In [0, 1]; None if neither the registry nor a label says anything."""
    labels: float
    """Labels that speak of it, discounted."""
    cost_microusd: float
    service_s: float
    """Mean compute time."""
    p95_s: float
    """Its 95th percentile."""
    answers: float
    """Answers of this kind that speak of the times, discounted."""
    ratio: float
    """Time of this kind of call over the version's usual time."""
    spread: float
    """Standard deviation of the logarithm of the time."""
    kind: Kind
    """Of calls that it is expected for."""
    evidence: Evidence
    """What this was made from."""

    @property
    def labelled(self) -> bool:
        """Whether labels had a say in quality or price."""
        cell, domain, _ = self.evidence
        return bool(domain.quality.weight or domain.cost.weight or cell.quality.weight or cell.cost.weight)


def observed(moments: Moments, value: float) -> Moments:
    """The moments after one more observation."""
    return observed_together(moments, (value,))


def observed_together(moments: Moments, values: Sequence[float]) -> Moments:
    """The moments after several more observations of equal age.

    T. Chan, G. Golub and R. LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """
    count = len(values)
    mean = sum(values) / count
    variance = sum([(value - mean) ** 2 for value in values]) / count
    weight = DISCOUNT**count * moments.weight + count
    share = count / weight
    delta = mean - moments.mean
    spread = (1.0 - share) * moments.variance + share * variance + share * (1.0 - share) * delta * delta
    return Moments(weight, moments.mean + share * delta, spread)


def shrunk(own: Moments, above: float) -> float:
    """The mean, pulled to that of the place above."""
    return above + own.weight / (own.weight + SHRINKAGE) * (own.mean - above)


def expectation(evidence: Evidence, version: ModelVersion, kind: Kind) -> Expected:
    """What is expected of `version` for calls of `kind`."""
    cell, domain, usual = evidence
    labels = max(cell.quality.weight, domain.quality.weight)
    quality = registered_quality(version, kind)
    if labels:
        # What nobody measured is worth nothing until labels say otherwise: it has to earn its place.
        quality = shrunk(cell.quality, shrunk(domain.quality, quality or 0.0))
    cost = shrunk(cell.cost, shrunk(domain.cost, float(version.cost_microusd)))
    variance = LATE_SPREAD * LATE_SPREAD
    registered = math.log(max(LEAST_S, version.service_time_s)) - 0.5 * variance  # of which it is the mean
    usual_log = usual.mean if usual.weight else registered
    own_log = shrunk(cell.time, shrunk(domain.time, usual_log))
    for place in (usual, domain.time, cell.time):
        variance += place.weight / (place.weight + SHRINKAGE) * (place.variance - variance)
    spread = math.sqrt(variance)
    log_s = shrunk(usual, registered) + own_log - usual_log
    return Expected(
        quality=quality,
        labels=labels,
        cost_microusd=cost,
        service_s=math.exp(log_s + 0.5 * variance),
        p95_s=math.exp(log_s + P95 * spread),
        answers=cell.time.weight,
        ratio=math.exp(own_log - usual_log),
        spread=spread,
        kind=kind,
        evidence=evidence,
    )


def registered_quality(version: ModelVersion, kind: Kind) -> float | None:
    """What the registry says of a version's quality for a kind of call; of several places the most specific.

    A place holds where its task is the call's domain or its label `task`, and its segment one of the call's labels, as
    `key=value`, or as the key alone if the value is empty.
    """
    best, found = -1, version.quality
    if not version.segment_qualities:
        return found
    segments = {f"{key}={value}" if value else key for key, value in kind.labels}
    tasks = {kind.domain, dict(kind.labels).get("task", "")}
    for place in version.segment_qualities:
        fits = (not place.task or place.task in tasks) and (not place.segment or place.segment in segments)
        specific = 2 * bool(place.segment) + bool(place.task)
        if fits and specific > best:
            best, found = specific, place.quality
    return found


class _Places(Generic[K]):
    """What places have seen, of which those that learned lately are kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: OrderedDict[K, Seen] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def get(self, place: K) -> Seen:
        return self._seen.get(place, _NOTHING)

    def put(self, place: K, seen: Seen) -> bool:
        """Whether another place had to go."""
        self._seen[place] = seen
        self._seen.move_to_end(place)
        if len(self._seen) <= self._most:
            return False
        self._seen.popitem(last=False)
        return True


_NOTHING = Seen()


class Tables:
    """What this router has learned, in bounded memory."""

    def __init__(
        self, *, most_cells: int = MOST_CELLS, most_domains: int = MOST_DOMAINS, most_versions: int = MOST_VERSIONS
    ) -> None:
        """Know nothing yet."""
        self._cells: _Places[tuple[ModelKey, str, str]] = _Places(most_cells)
        self._domains: _Places[tuple[ModelKey, str]] = _Places(most_domains)
        self._versions: _Places[ModelKey] = _Places(most_versions)
        self._errors: _Places[str] = _Places(most_versions)
        self._most_versions = most_versions
        self._ready: dict[ModelKey, tuple[ModelVersion, dict[Kind, Expected]]] = {}
        self._waiting: dict[tuple[ModelKey, str, str], list[float]] = {}
        self.labels = 0
        """Another number whenever what is expected of quality and price may have changed."""

    def __len__(self) -> int:
        """Places that are known."""
        return len(self._cells) + len(self._domains) + len(self._versions) + len(self._errors)

    def expected(self, key: ModelKey, version: ModelVersion, kind: Kind) -> Expected:
        """What is expected of `version`, whose key is `key`, for calls of `kind`."""
        ready = self._ready.get(key)
        if ready is not None and ready[0] is version:
            found = ready[1].get(kind)
            if found is not None:
                return found
        elif len(self._ready) >= self._most_versions:
            self._ready.clear()
        found = expectation(self.evidence(key, kind), version, kind)
        if ready is None or ready[0] is not version or len(ready[1]) >= MOST_KEPT:
            self._ready[key] = (version, {kind: found})
        else:
            ready[1][kind] = found
        return found

    def evidence(self, key: ModelKey, kind: Kind) -> Evidence:
        """What speaks of a version and a kind of call."""
        return Evidence(
            self._cells.get((key, kind.domain, kind.complexity)),
            self._domains.get((key, kind.domain)),
            self._versions.get(key).time,
        )

    def answered(self, key: ModelKey, kind: Kind, compute_s: float) -> None:
        """A host answered, and computed for so long."""
        value = math.log(max(LEAST_S, compute_s))
        cell = (key, kind.domain, kind.complexity)
        waiting = self._waiting.get(cell)
        if waiting is None:
            self._learn(cell, (value,))
        else:
            waiting.append(value)
            if len(waiting) >= TOGETHER:
                self._learn(cell, waiting)
                waiting.clear()

    def _learn(self, cell: tuple[ModelKey, str, str], values: Sequence[float]) -> None:
        """Learn logarithms of times."""
        key, domain = cell[0], cell[:2]
        seen, wider, whole = self._cells.get(cell), self._domains.get(domain), self._versions.get(key)
        time = observed_together(seen.time, values)
        went = self._cells.put(cell, Seen(seen.quality, seen.cost, time))
        went |= self._domains.put(domain, Seen(wider.quality, wider.cost, observed_together(wider.time, values)))
        self._versions.put(key, Seen(time=observed_together(whole.time, values)))
        self._ready.pop(key, None)
        self.labels += went  # what went may have had labels
        if time.weight >= SETTLED and cell not in self._waiting:
            if len(self._waiting) >= MOST_CELLS:
                self._waiting.clear()
            self._waiting[cell] = []

    def labelled(self, key: ModelKey, kind: Kind, *, quality: float | None, cost_microusd: float | None) -> None:
        """Somebody says how good an answer was, in [0, 1], or what it cost. A kind without complexity is of no cell."""
        domain = (key, kind.domain)
        self._domains.put(domain, _labelled(self._domains.get(domain), quality, cost_microusd))
        if kind.complexity:
            cell = (key, kind.domain, kind.complexity)
            self._cells.put(cell, _labelled(self._cells.get(cell), quality, cost_microusd))
        self._ready.pop(key, None)
        self.labels += 1

    def ended(self, route: str, *, failed: bool) -> None:
        """A call of a route that may try candidates was answered, or failed."""
        seen = self._errors.get(route)
        self._errors.put(route, Seen(quality=observed(seen.quality, 1.0 if failed else 0.0)))

    def error_budget_left(self, route: str, objective: float) -> float:
        """What is left of the errors that the last 1,000 calls of the route may have, of 1; below 0: too many.

        Args:
            route: Its name.
            objective: Share of calls that is to be answered, in (0, 1].
        """
        seen = self._errors.get(route).quality
        allowed = (1.0 - objective) / (1.0 - DISCOUNT)
        failed = seen.mean * seen.weight
        return 1.0 - failed / allowed if allowed > 0.0 else 1.0 - failed


def _labelled(seen: Seen, quality: float | None, cost_microusd: float | None) -> Seen:
    return Seen(
        seen.quality if quality is None else observed(seen.quality, quality),
        seen.cost if cost_microusd is None else observed(seen.cost, cost_microusd),
        seen.time,
    )
