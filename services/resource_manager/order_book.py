"""What hosts were ordered to do, what became of it, and what rests after a failure.

A host answers an order at once and shows its effect in its record later, so the book decides
when an order counts as carried out, failed or lost. It sends nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.domain.host import DeviceKind, HostedModel, HostRecord
from services.domain.model import ModelKey, ModelState
from services.domain.objects import Metadata, ModelVersion
from services.policy.fitting import Failure, Site, Standing
from services.policy.restarting import LOAD_FIRST_S, LOAD_LONGEST_S, backoff_s

SHOWN_WITHIN_S = 15.0
"""An order whose effect no record shows by then is lost. A record travels in about a second; a
registry that restarts keeps it back for some more."""

SAME_FAILURE_S = 2.5
"""A record that still says FAILED this long after a repeated order speaks of that order. Until then
it may be the old one: a load that fails at once leaves no other trace in the record."""

Pair = tuple[ModelKey, str]
"""One version on one host."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an order ended."""

    decision_id: str
    outcome: str
    """`OK`, or the error in one line."""


@dataclass(slots=True)
class _Order:
    decision_id: str
    load: bool
    pid: int
    failed_before: bool
    since_s: float
    taken: bool = False
    moved: bool = False
    """The record has shown the version in another state than FAILED since."""


@dataclass(slots=True)
class _Failed:
    count: int
    message: str
    not_before_s: float


class OrderBook:
    """Orders under way, failures, and measured memory, for one term of leadership."""

    def __init__(self) -> None:
        """Start with nothing known."""
        self._orders: dict[Pair, _Order] = {}
        self._failed: dict[Pair, _Failed] = {}
        self._measured: dict[tuple[ModelKey, DeviceKind], int] = {}
        self._defined: dict[ModelKey, ModelVersion] = {}
        self._outdated: set[Pair] = set()

    @property
    def measured(self) -> Mapping[tuple[ModelKey, DeviceKind], int]:
        """Largest peak that any host measured, by version and device kind."""
        return self._measured

    def busy(self, key: ModelKey, host_id: str) -> bool:
        """Whether an order for this version is under way on this host."""
        return (key, host_id) in self._orders

    def open(self, key: ModelKey, host: HostRecord, *, load: bool, decision_id: str, now_s: float) -> None:
        """Note an order that is about to be sent; none for this version and host is under way."""
        hosted = host.hosted(key)
        failed = hosted is not None and hosted.state is ModelState.FAILED
        self._orders[key, host.host_id] = _Order(decision_id, load, host.pid, failed, now_s)

    def taken(self, key: ModelKey, host_id: str, now_s: float) -> None:
        """The host took the order."""
        if order := self._orders.get((key, host_id)):
            order.taken = True
            order.since_s = now_s

    def refused(self, key: ModelKey, host_id: str, message: str, now_s: float) -> Outcome | None:
        """The order did not reach the host, or was refused.

        Returns:
            How the order ended; None if it is not under way any more.
        """
        order = self._orders.pop((key, host_id), None)
        if order is None:
            return None
        if order.load:
            self._fail((key, host_id), message, now_s)
        return Outcome(order.decision_id, message)

    def settle(
        self, hosts: Mapping[str, HostRecord], versions: Mapping[ModelKey, ModelVersion], now_s: float
    ) -> list[Outcome]:
        """Read what became of the orders from the hosts' records.

        Args:
            hosts: Hosts by id, as known now.
            versions: Every version that should exist, by key; failures of others are forgotten.
            now_s: Now.

        Returns:
            Orders that ended.
        """
        ended = []
        for pair, order in list(self._orders.items()):
            if outcome := self._ending(pair, order, hosts.get(pair[1]), now_s):
                del self._orders[pair]
                ended.append(Outcome(order.decision_id, outcome))
        self._compare_definitions(hosts, versions)
        for pair in [pair for pair in self._failed if pair[0] not in versions or pair[1] not in hosts]:
            del self._failed[pair]
        for kind in [kind for kind in self._measured if kind[0] not in versions]:
            del self._measured[kind]
        for host in hosts.values():
            for hosted in host.models:
                self._learn(host, hosted, now_s)
        return ended

    def forget_orders(self, outcome: str) -> list[Outcome]:
        """End every order that is under way; what failed and what was measured stays known."""
        ended = [Outcome(order.decision_id, outcome) for order in self._orders.values()]
        self._orders.clear()
        return ended

    def site(self, host: HostRecord, standing: Standing, now_s: float) -> Site:
        """The host as placement should see it: orders under way count as carried out."""
        models = {hosted.key: hosted for hosted in host.models}
        for (key, host_id), order in self._orders.items():
            if host_id != host.host_id:
                continue
            hosted = models.get(key)
            if order.load and (hosted is None or hosted.state is ModelState.FAILED):
                models[key] = HostedModel(key, ModelState.LOADING)
            elif not order.load and hosted is not None:
                models[key] = replace(hosted, state=ModelState.UNLOADING)
        failures = {
            key: Failure(failed.count, failed.message, resting=now_s < failed.not_before_s)
            for (key, host_id), failed in self._failed.items()
            if host_id == host.host_id
        }
        outdated = frozenset(key for key, host_id in self._outdated if host_id == host.host_id)
        return Site(replace(host, models=tuple(models.values())), standing, failures, outdated)

    def next_retry_s(self, now_s: float) -> float | None:
        """Monotonic time at which the next failed load may be tried again; None if none rests."""
        return min(
            (failed.not_before_s for failed in self._failed.values() if failed.not_before_s > now_s), default=None
        )

    def _ending(self, pair: Pair, order: _Order, host: HostRecord | None, now_s: float) -> str:
        """How an order ended; empty while it is under way."""
        if host is None:
            return "the host went away"
        if host.pid != order.pid:
            # A version that takes its host down with it must rest like any other failure.
            if order.load:
                self._fail(pair, "the host ended while it loaded", now_s)
            return "the host was restarted"
        if not order.taken:
            return ""
        hosted = host.hosted(pair[0])
        waited_s = now_s - order.since_s
        if not order.load:
            if hosted is None:
                return "OK"
            late = waited_s > SHOWN_WITHIN_S and hosted.state is not ModelState.UNLOADING
            return "the host kept it" if late else ""
        if hosted is None:
            if waited_s <= SHOWN_WITHIN_S:
                return ""
            self._fail(pair, "the host took the order and never showed the version", now_s)
            return "the host never showed it"
        if hosted.state is ModelState.READY:
            return "OK"
        if hosted.state is not ModelState.FAILED:
            order.moved = True
            return ""
        if order.failed_before and not order.moved and waited_s <= SAME_FAILURE_S:
            return ""
        message = hosted.message or "no reason given"
        self._fail(pair, message, now_s)
        return message

    def _compare_definitions(self, hosts: Mapping[str, HostRecord], versions: Mapping[ModelKey, ModelVersion]) -> None:
        """Note hosts that have a version as it was before it was deleted and made anew with other contents."""
        held = {(hosted.key, host.host_id) for host in hosts.values() for hosted in host.models}
        self._outdated &= held
        for key, version in versions.items():
            definition = replace(version, metadata=Metadata(key.model), min_replicas=0)
            before = self._defined.setdefault(key, definition)
            if before != definition:
                self._outdated |= {pair for pair in held if pair[0] == key}
                self._defined[key] = definition
        gone = self._defined.keys() - versions.keys() - {key for key, _ in held}
        for key in gone:
            del self._defined[key]

    def _learn(self, host: HostRecord, hosted: HostedModel, now_s: float) -> None:
        pair = (hosted.key, host.host_id)
        if hosted.memory_bytes > 0:
            kind = (hosted.key, host.device.kind)
            self._measured[kind] = max(self._measured.get(kind, 0), hosted.memory_bytes)
        if hosted.state is ModelState.READY:
            self._failed.pop(pair, None)
        elif hosted.state is ModelState.FAILED and pair not in self._failed and pair not in self._orders:
            # Ordered by an earlier leader.
            self._fail(pair, hosted.message or "no reason given", now_s)

    def _fail(self, pair: Pair, message: str, now_s: float) -> None:
        before = self._failed.get(pair)
        count = 1 if before is None else before.count + 1
        rest_s = backoff_s(count, first_s=LOAD_FIRST_S, longest_s=LOAD_LONGEST_S)
        self._failed[pair] = _Failed(count, message, now_s + rest_s)
