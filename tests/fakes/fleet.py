"""A fleet for the resource manager's reconciler: hosts that obey, refuse or hang, in memory."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from services.domain.errors import StaleFencingToken, YardError
from services.domain.host import HostedModel, HostRecord
from services.domain.model import ModelKey, ModelState
from services.domain.objects import Model, ModelVersion, Pool
from services.resource_manager.reconciler import Action, Decision, Fleet, Plan


@dataclass
class FakeAuthority:
    """A term of leadership that a test ends."""

    fencing_token: int = 7
    key: str = "/elections/resource-manager/1"
    held: bool = True

    def holds(self) -> bool:
        """As the test says."""
        return self.held


@dataclass
class FakeFleet:
    """Source of the fleet, and what takes the orders."""

    revision: int = 1
    versions: list[ModelVersion] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)
    pools: list[Pool] = field(default_factory=list)
    hosts: dict[str, HostRecord] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    trusted: bool = True
    heard: bool = True

    load_state: ModelState = ModelState.READY
    """What a load becomes."""
    load_message: str = ""
    shows: bool = True
    """Whether records follow what is ordered."""
    refusal: Callable[[str, ModelKey], YardError | None] = lambda host_id, key: None
    hang: asyncio.Event | None = None
    """Orders wait for it, if it is there."""
    highest_token: int = 0

    sent: list[tuple[str, str, str]] = field(default_factory=list)
    """Orders as they came: what, version, host."""
    ids: list[str] = field(default_factory=list)
    published: list[Plan] = field(default_factory=list)
    publish_error: YardError | None = None

    def fleet(self, now_s: float) -> Fleet | None:
        """What the registry would say."""
        if not self.heard:
            return None
        return Fleet(
            revision=self.revision,
            hosts=dict(self.hosts),
            absent=frozenset(self.absent),
            models={model.metadata.name: model for model in self.models},
            versions={version.model_key: version for version in self.versions},
            pools={pool.metadata.name: pool for pool in self.pools},
            trusted=self.trusted,
        )

    async def load(
        self, host: HostRecord, version: ModelVersion, model: Model, *, decision_id: str, fencing_token: int
    ) -> None:
        """Take a load."""
        assert model.metadata.name == version.metadata.name
        await self._take("load", version.model_key, host.host_id, decision_id, fencing_token)
        if self.shows:
            memory = version.memory_bytes if self.load_state is ModelState.READY else 0
            self.show(host.host_id, HostedModel(version.model_key, self.load_state, self.load_message, memory))

    async def unload(self, host: HostRecord, key: ModelKey, *, decision_id: str, fencing_token: int) -> None:
        """Take an unload."""
        await self._take("unload", key, host.host_id, decision_id, fencing_token)
        if self.shows:
            self.hide(host.host_id, key)

    async def publish(self, plan: Plan, *, election_key: str, fencing_token: int) -> None:
        """Take a plan."""
        if self.publish_error is not None:
            raise self.publish_error
        self.published.append(plan)

    def show(self, host_id: str, entry: HostedModel) -> None:
        """Let a host's record say this of a version."""
        self.hide(host_id, entry.key)
        record = self.hosts[host_id]
        self.hosts[host_id] = replace(record, models=(*record.models, entry))

    def hide(self, host_id: str, key: ModelKey) -> None:
        """Let a host's record say nothing of a version."""
        record = self.hosts[host_id]
        self.hosts[host_id] = replace(record, models=tuple(one for one in record.models if one.key != key))

    async def _take(self, what: str, key: ModelKey, host_id: str, decision_id: str, fencing_token: int) -> None:
        self.sent.append((what, str(key), host_id))
        self.ids.append(decision_id)
        if self.hang is not None:
            await self.hang.wait()
        if fencing_token < self.highest_token:
            raise StaleFencingToken(f"token {fencing_token} is below {self.highest_token}")
        if error := self.refusal(host_id, key):
            raise error


@dataclass
class FakeLauncher:
    """Says which hosts are too many, and notes what it is told to keep."""

    extra: set[str] = field(default_factory=set)
    released: frozenset[str] = frozenset()
    pools: Mapping[str, Pool] = field(default_factory=dict)

    def surplus(self, pools: Mapping[str, Pool]) -> frozenset[str]:
        """As the test says."""
        return frozenset(self.extra)

    def keep(self, pools: Mapping[str, Pool], *, release: frozenset[str], revision: int) -> None:
        """Note it."""
        self.pools, self.released = pools, release


@dataclass
class FakeJournal:
    """Decisions in order, with how they went."""

    decisions: list[Decision] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    reconciliations: int = 0

    def open(
        self, action: Action, *, key: ModelKey | None, host_id: str, reason: str, revision: int, fencing_token: int
    ) -> str:
        """Keep it."""
        decision_id = f"{fencing_token}-{len(self.decisions) + 1}"
        self.decisions.append(Decision(decision_id, 0.0, action, key, host_id, reason, revision))
        self.outcomes[decision_id] = ""
        return decision_id

    def close(self, decision_id: str, outcome: str) -> None:
        """Keep it; each decision ends once."""
        assert self.outcomes[decision_id] == ""
        self.outcomes[decision_id] = outcome

    def note(self, message: str, **facts: str | int | float) -> None:
        """Keep it."""
        self.notes.append(f"{message} {facts}")

    def reconciled(self, plan: Plan, duration_s: float) -> None:
        """Count it."""
        self.reconciliations += 1

    def ended(self) -> list[str]:
        """Outcomes in the order of the decisions."""
        return [self.outcomes[decision.decision_id] for decision in self.decisions]
