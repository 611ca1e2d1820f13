"""Clients that apply all the time, and write down what they asked and were told.

Several of them, through all replicas, change names of their own and names they share; some expect a revision, some
take an older state over, some ask twice, and what nobody answered is asked again with the same id.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import grpc
import grpc.aio

from modelyard.registry.v1 import objects_pb2, registry_pb2_grpc
from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.channels import call
from services.chassis.object_codec import object_to
from services.domain.errors import (
    InvalidRequest,
    RevisionMoved,
    RevisionNotFound,
    StoreUnavailable,
    YardError,
)
from services.domain.objects import Metadata, Object
from tests.chaos.registry.asked import Asked, Attempt, Outcome, sha256
from tests.fakes.objects import a_model, a_version

Stub: TypeAlias = "registry_pb2_grpc.RegistryServiceAsyncStub"

OWN, SHARED = 5, 6
"""Names of each applier's own, and shared ones."""

TIMEOUTS_S = (0.4, 1.0, 2.5)
SETTLE_S = 4.0
PAUSE_S = 0.1
AWAY_S = 0.1
"""Wait after a replica was away."""

SMALL_BYTES, LARGE_BYTES, LARGE_SHARE = 5_000, 500_000, 0.01
"""Most bytes of a shared object's description, and of the few large ones: these take several transactions to write."""

_REFUSED = (InvalidRequest, RevisionMoved, RevisionNotFound)
"""What the registry answers only where nothing was done."""


@dataclass(slots=True)
class _Request:
    """What is sent, again and again the same."""

    facts: Asked
    message: pb.ApplyRequest | pb.RollbackRequest
    seen: int = 0
    """The newest revision known when it was first asked."""


@dataclass(slots=True)
class Ledger:
    """What all appliers asked."""

    asked: dict[str, Asked] = field(default_factory=dict)
    newest: int = 0
    """The highest revision acknowledged."""
    acknowledged: int = 0
    unknown: int = 0
    """Requests whose outcome was unknown at least once."""
    resolved: int = 0
    """Those of them that were settled by asking again."""
    done_unanswered: int = 0
    """Those of these that turned out to have been done by an attempt that nobody answered."""
    internal: list[str] = field(default_factory=list)
    """Answers that no fault of the surroundings explains."""


class Applier:
    """One client, with one request under way at a time."""

    def __init__(
        self, number: int, *, seed: int, stubs: Sequence[Stub], ledger: Ledger, kept: int, pause_s: float
    ) -> None:
        """Store the arguments.

        Args:
            number: Of this applier.
            seed: Of all that it chooses.
            stubs: One for each replica.
            ledger: Where it writes down.
            kept: Revisions that the registry keeps; an id is known for about as long.
            pause_s: Longest pause between two requests.
        """
        self._name = f"a{number}"
        self._rng = random.Random(f"{seed}/{number}")
        self._stubs = stubs
        self._ledger = ledger
        self._within = kept // 3
        self._pause_s = pause_s
        self._count = 0
        self._done: list[_Request] = []
        self._unsettled: list[_Request] = []

    async def run(self) -> None:
        """Ask until cancelled; what is under way then has an unknown outcome."""
        while True:
            await self._settle()
            request = self._again() or self._next()
            await self._ask(request, self._rng.choice(TIMEOUTS_S))
            await asyncio.sleep(self._rng.uniform(0.0, self._pause_s))

    async def settle_all(self, *, within_s: float) -> None:
        """Ask for everything unknown until it is known; what is not, then, stays in the ledger as unknown."""
        end_s = time.monotonic() + within_s
        while self._unsettled and time.monotonic() < end_s:
            for request in list(self._unsettled):
                await self._ask(request, SETTLE_S)
            await asyncio.sleep(PAUSE_S)

    async def _settle(self) -> None:
        """Ask again for some of what is unknown: at once, by chance later, but before its note may be collected."""
        for request in list(self._unsettled):
            late = self._ledger.newest - request.seen > self._within
            if late or self._rng.random() < 0.3:
                await self._ask(request, SETTLE_S)

    def _again(self) -> _Request | None:
        """By chance one that was answered already, and must be answered alike."""
        if self._rng.random() > 0.07:
            return None
        self._done = [each for each in self._done[-20:] if self._ledger.newest - each.seen < self._within]
        return self._rng.choice(self._done) if self._done else None

    def _next(self) -> _Request:
        self._count += 1
        request_id = f"{self._name}-{self._count}"
        facts = Asked(request_id)
        self._ledger.asked[request_id] = facts
        chance = self._rng.random()
        newest = self._ledger.newest
        if chance < 0.05 and newest > 30:
            facts.restores = self._rng.randint(newest - 20, newest)
            rollback = pb.RollbackRequest(revision=facts.restores, request_id=request_id, author=self._name)
            return _Request(facts, rollback, newest)
        message = pb.ApplyRequest(request_id=request_id, author=self._name, reason="chaos")
        if chance < 0.15:
            self._delete(facts, message)
        else:
            self._upsert(facts, message)
        if self._rng.random() < 0.25:
            message.expected_revision = facts.expected_revision = newest
        if self._rng.random() < 0.03:
            message.dry_run = facts.dry_run = True
        return _Request(facts, message, newest)

    def _delete(self, facts: Asked, message: pb.ApplyRequest) -> None:
        """Objects that go together: a version and its model, or something shared."""
        if self._rng.random() < 0.5:
            keys = [objects_pb2.ObjectKey(kind="Model", name=f"shared-{self._rng.randrange(SHARED)}")]
        else:
            name = f"{self._name}-{self._rng.randrange(OWN)}"
            keys = [
                objects_pb2.ObjectKey(kind="ModelVersion", name=name, version="1.0.0"),
                objects_pb2.ObjectKey(kind="Model", name=name),
            ]
        message.deletes.extend(keys)
        facts.deletes = frozenset(map(key_of, keys))

    def _upsert(self, facts: Asked, message: pb.ApplyRequest) -> None:
        """One or more objects that must change together; now and then nothing that differs."""
        items: list[Object] = []
        mark = "the same" if self._rng.random() < 0.04 else facts.request_id
        if self._rng.random() < 0.6:
            name = f"{self._name}-{self._rng.randrange(OWN)}"
            version = replace(a_version(name), metadata=Metadata(name, annotations={"by": mark}))
            items += [replace(a_model(name), owner=mark), version]
        if not items or self._rng.random() < 0.4:
            most = LARGE_BYTES if self._rng.random() < LARGE_SHARE else SMALL_BYTES
            filling = "x" * int(most * self._rng.random())
            numbers = self._rng.sample(range(SHARED), self._rng.randint(1, 3))
            items += [replace(a_model(f"shared-{n}"), owner=mark, description=filling) for n in numbers]
        message.objects.extend(object_to(item) for item in items)
        facts.upserts = digests_of(message.objects)

    async def _ask(self, request: _Request, timeout_s: float) -> None:
        """One attempt, written down."""
        facts, ledger = request.facts, self._ledger
        place = self._rng.randrange(len(self._stubs))
        known, newest = facts.acknowledged is not None, ledger.newest
        start_s = time.monotonic()
        try:
            outcome, revision, changed, what = await self._call(self._stubs[place], request.message, timeout_s)
        except asyncio.CancelledError:
            facts.attempts.append(Attempt(start_s, time.monotonic(), "unknown", what=f"r{place} cancelled"))
            if request not in self._unsettled and not known:
                self._unsettled.append(request)
                ledger.unknown += 1
            raise
        end_s = time.monotonic()
        facts.attempts.append(Attempt(start_s, end_s, outcome, revision, changed, f"r{place} {what}"))
        if outcome == "acknowledged":
            ledger.newest = max(ledger.newest, revision)
            ledger.acknowledged += not known
            if not known and not facts.dry_run:
                self._done.append(request)
        if known:
            return
        if request in self._unsettled:
            if outcome in ("acknowledged", "refused"):
                self._unsettled.remove(request)
                ledger.resolved += 1
                ledger.done_unanswered += outcome == "acknowledged" and revision <= newest and not facts.dry_run
        elif outcome == "unknown":
            self._unsettled.append(request)
            ledger.unknown += 1

    async def _call(
        self, stub: Stub, message: pb.ApplyRequest | pb.RollbackRequest, timeout_s: float
    ) -> tuple[Outcome, int, frozenset[str], str]:
        try:
            answer: pb.ApplyResponse | pb.RollbackResponse
            if isinstance(message, pb.ApplyRequest):
                answer = await call(stub.Apply, message, timeout_s=timeout_s)
            else:
                answer = await call(stub.Rollback, message, timeout_s=timeout_s)
        except YardError as error:
            what = f"{type(error).__name__}: {error.message}"
            cause = error.__cause__
            status = cause.code() if isinstance(cause, grpc.aio.AioRpcError) else None
            if status in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                self._ledger.internal.append(f"{message.request_id}: {status} {what}")
            await asyncio.sleep(AWAY_S if status is grpc.StatusCode.UNAVAILABLE else 0.0)
            undone = error.message.startswith("failed to connect") or (
                isinstance(error, StoreUnavailable) and error.metadata.get("outcome") == "none"
            )
            outcome: Outcome = "refused" if isinstance(error, _REFUSED) else "undone" if undone else "unknown"
            return outcome, 0, frozenset(), what
        changed = frozenset(key_of(change.key) for change in answer.changes)
        return "acknowledged", answer.revision, changed, "OK"


def key_of(key: objects_pb2.ObjectKey) -> str:
    """`kind/name` or `kind/name/version`, as in stored trees."""
    return "/".join(part for part in (key.kind, key.name, key.version) if part)


def digests_of(objects: Sequence[objects_pb2.Object]) -> Mapping[str, str]:
    """Key to digest of the stored form."""
    found = {}
    for item in objects:
        kind = {"model": "Model", "model_version": "ModelVersion"}[item.WhichOneof("spec") or ""]
        key = objects_pb2.ObjectKey(kind=kind, name=item.metadata.name, version=item.model_version.version)
        found[key_of(key)] = sha256(item.SerializeToString(deterministic=True))
    return found
