"""Labels: how good an answer was, or what it cost, said after the call. Finds the version that answered, and teaches.

The last answers are kept by their ids. What keeps them is on the way of every call, so it only appends; they are put in
order when the first label asks for one.
"""

from collections import OrderedDict, deque
from typing import NamedTuple, Protocol

from services.domain.clock import Clock
from services.domain.errors import CallNotFound, Fault, InvalidRequest, ModelNotFound, NoReadyHost, VersionNotFound
from services.domain.model import ModelKey
from services.domain.objects import ModelVersion
from services.domain.request import InferCall
from services.policy.complexity import Kind
from services.policy.learning import Tables
from services.router.decision import Decision
from services.router.snapshot import Snapshot
from services.router.unanswerable import NO_HOST_RETRY_S

KEPT = 65536
"""Answers that are known by their ids. One takes about 300 bytes, with the longest ids 1.5 KB."""

KEPT_AT_FIRST = 4096
"""As long as no label has come: where nobody sends any, nobody pays for more."""

MOST_LABELS = 32
"""Labels of one call that are told apart; more are refused."""


class Label(NamedTuple):
    """What somebody says of a call."""

    request_id: str
    quality: float | None = None
    metric: str = ""
    segment: str = ""
    cost_microusd: float | None = None
    model: str = ""
    version: str = ""
    domain: str = ""
    complexity: str = ""


class Labelled(NamedTuple):
    """What became of a label."""

    label: Label
    route: str
    """Empty if the call is not known here."""
    key: ModelKey
    kind: Kind
    reason: str
    """Why it was not learned; empty if it was."""
    quality: float | None
    """Expected of the version from now on."""


class Views(Protocol):
    """Where the view of the world comes from."""

    def snapshot(self) -> Snapshot | None:
        """The current one; None before there is any."""
        ...


class LabelFeedback(Protocol):
    """Who is told of labels."""

    def labelled(self, outcome: str) -> None:
        """One came: it was `learned`, `kept` (for the log alone), `repeated`, or its call is `unknown`."""
        ...


class LabelLog(Protocol):
    """Who writes labels down."""

    def label(self, labelled: Labelled, now_s: float) -> None:
        """One came."""
        ...


class _Call:
    __slots__ = ("key", "kind", "labels", "route", "version")

    def __init__(self, route: str, version: ModelVersion, kind: Kind) -> None:
        self.route = route
        self.version = version
        self.key = version.model_key
        self.kind = kind
        self.labels: set[tuple[str, bool]] = set()
        """What was said of it: metrics, and whether of its price."""


class Labelling:
    """Takes labels; one per router process."""

    def __init__(
        self,
        *,
        tables: Tables,
        views: Views,
        feedback: LabelFeedback,
        clock: Clock,
        log: LabelLog | None,
        kept: int = KEPT,
    ) -> None:
        """Teach `tables`; know the last `kept` answers."""
        self._tables = tables
        self._views = views
        self._feedback = feedback
        self._clock = clock
        self._log = log
        self._kept = kept
        self._recent: deque[tuple[str, str, ModelVersion, Kind | str]] = deque(maxlen=min(kept, KEPT_AT_FIRST))
        """Request id, route, version and kind; of the kind the domain alone, where versions were not compared."""
        self._calls: OrderedDict[str, _Call] = OrderedDict()

    def answered(self, call: InferCall, decision: Decision) -> None:
        """Keep in mind what answered a call. An answer that is of no single version can have no label."""
        if (version := decision.version) is not None:
            expected = decision.expected
            kind = call.options.domain if expected is None else expected.kind
            self._recent.append((call.request_id, decision.route, version, kind))

    def take(self, label: Label) -> Labelled:
        """Take a label.

        Raises:
            CallNotFound: The call is not known here, and the label names no version.
            InvalidRequest: It names another version than the one that answered.
            ModelNotFound: There is no such model.
            VersionNotFound: There is no such version.
            NoReadyHost: There is no view of the registry yet, to look the version up in.
        """
        try:
            call = self._find(label)
        except (CallNotFound, ModelNotFound, VersionNotFound):
            self._feedback.labelled("unknown")
            raise
        given = [(label.metric, False)] * (label.quality is not None) + [("", True)] * (label.cost_microusd is not None)
        new = [each for each in given if each not in call.labels]
        if len(call.labels) + len(new) > MOST_LABELS:
            raise InvalidRequest.of([Fault("metric", f"the call has {MOST_LABELS} labels already")])
        call.labels.update(new)
        counts = ("", call.version.quality_metric)
        quality = label.quality if (label.metric, False) in new and label.metric in counts else None
        cost = label.cost_microusd if ("", True) in new else None
        if quality is not None or cost is not None:
            reason = ""
            self._tables.labelled(call.key, call.kind, quality=quality, cost_microusd=cost)
            self._feedback.labelled("learned")
        elif new:
            of = f"'{call.version.quality_metric}'" if call.version.quality_metric else "of no named metric"
            reason = f"'{label.metric}' is not what the version's quality is measured by, which is {of}"
            self._feedback.labelled("kept")
        else:
            reason = "this was said of the call before; the first label holds"
            self._feedback.labelled("repeated")
        expected = self._tables.expected(call.key, call.version, call.kind).quality
        labelled = Labelled(label, call.route, call.key, call.kind, reason, expected)
        if new and self._log is not None:
            self._log.label(labelled, self._clock.now_s())
        return labelled

    def _find(self, label: Label) -> _Call:
        self._put_in_order()
        known = self._recent.maxlen
        if known != self._kept:
            self._recent = deque(maxlen=self._kept)
        call = self._calls.get(label.request_id)
        if call is None:
            call = self._named(label, known)
            self._put(label.request_id, call)
        elif label.model and (label.model, label.version) != call.key:
            raise InvalidRequest.of([Fault("model", f"the call was answered by {call.key}")])
        return call

    def _named(self, label: Label, known: int | None) -> _Call:
        """A call of another process, of which the label says what has to be known."""
        if not label.model:
            raise CallNotFound(
                f"no call '{label.request_id}' is among the last {known} that one version answered in this "
                "process; another router or worker may have answered it: name model, version, domain and complexity, "
                "as its Decision did",
                metadata={"request_id": label.request_id},
            )
        snapshot = self._views.snapshot()
        if snapshot is None:
            raise NoReadyHost("this router has not heard from the registry yet", retry_after_s=NO_HOST_RETRY_S)
        versions = snapshot.objects.versions.get(label.model)
        if versions is None:
            raise ModelNotFound(f"there is no model '{label.model}' with versions", metadata={"name": label.model})
        version = versions.get(label.version)
        if version is None:
            raise VersionNotFound(
                f"'{label.model}' has no version '{label.version}'",
                metadata={"name": label.model, "version": label.version},
            )
        return _Call("", version, Kind(label.domain, label.complexity))

    def _put_in_order(self) -> None:
        recent = self._recent
        while recent:
            request_id, route, version, kind = recent.popleft()
            self._put(request_id, _Call(route, version, kind if isinstance(kind, Kind) else Kind(kind)))

    def _put(self, request_id: str, call: _Call) -> None:
        self._calls[request_id] = call
        self._calls.move_to_end(request_id)
        if len(self._calls) > self._kept:
            self._calls.popitem(last=False)
