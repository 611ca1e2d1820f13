"""One apply, in order: read the head, check, compare, write objects, advance the head.

The only place that knows this order, and what to do when the store does not say how a write ended.
How things are stored is behind `ports.Store`; what is allowed is in `domain.validation` and `policy.change_check`.
"""

import asyncio
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic

from services.domain.clock import Clock
from services.domain.deadline import Deadline
from services.domain.errors import (
    BudgetExhausted,
    Fault,
    InvalidRequest,
    RevisionMoved,
    RevisionNotFound,
    StoreUnavailable,
)
from services.domain.objects import Object, ObjectKey
from services.policy.change_check import Submitted, check
from services.policy.gating import Finding, Review, digest_of
from services.policy.tree_diff import Change, diff, with_fields
from services.registry.gates import Gates
from services.registry.ports import D, Done, E, Note, Outcome, S, State, Store

MAX_OBJECT_BYTES = 1 << 20
"""Most bytes of a stored object; etcd takes 1.5 MiB in a request."""

MAX_REASON_BYTES = 4096
MAX_AUTHOR_BYTES = 256
MAX_REQUEST_ID_BYTES = 128

STORE_TIMEOUT_S = 3.0
"""How long the store may leave one step unanswered; covers the election of a new etcd leader."""

LARGE = 2000
"""What is more to plan than this is planned in a thread: about 20 ms of computing."""

ENCODING_COST = 10
"""Computing for an object of a command, in objects of the state that are only looked at."""

RESERVE_S = 0.05
"""Seconds kept back from the deadline to carry the answer home."""

REST_S = 0.1
"""Wait before the store is asked again how a write ended."""

RETRY_AFTER_S = 1.0
"""When a caller may try again after an outcome that could not be found out."""

NAMED_CHANGES = 5
"""Changes that a refusal for a moved head names; the rest is counted."""

_PLACE = re.compile(r"(?P<list>objects|deletes)\[(?P<index>\d+)\]")


@dataclass(frozen=True, slots=True)
class Command:
    """What a caller wants to be changed."""

    submitted: tuple[Submitted, ...]
    deletes: tuple[ObjectKey, ...]
    expected_revision: int = 0
    reason: str = ""
    author: str = ""
    request_id: str = ""
    dry_run: bool = False
    exact: bool = False
    """Whether everything goes that is not submitted."""
    by_name: bool = False
    """Whether faults are told by objects' names; else by their places, which the caller then must know."""
    restores: int = 0
    """Takes the state of this revision over, instead of what is submitted; 0 does not."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What was changed, or would be."""

    revision: int
    """The head after it."""
    changes: tuple[Change, ...]
    findings: tuple[Finding, ...] = ()
    """What its gates found."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A command on its way."""

    command: Command
    note: Note
    faults: Sequence[Fault]
    """Of the request itself."""
    deadline: Deadline
    cleared: dict[str, tuple[Finding, ...]] = field(default_factory=dict)
    """What was found of changes that have passed their gates, by digest."""


@dataclass(frozen=True, slots=True)
class _Ungated:
    """A change that has yet to pass its gates."""

    review: Review


class Applier(Generic[S, E, D]):
    """Applies one command after the other; any number of replicas may do so at once."""

    def __init__(self, *, store: Store[S, E, D], gates: Gates, clock: Clock, new_request_id: Callable[[], str]) -> None:
        """Store the arguments.

        Args:
            store: Where revisions are kept.
            gates: What stands before a change.
            clock: Time.
            new_request_id: Makes an id that nobody else makes, for requests without one.
        """
        self._store = store
        self._gates = gates
        self._clock = clock
        self._new_request_id = new_request_id
        self._turn = asyncio.Lock()

    async def apply(self, command: Command, deadline: Deadline) -> Applied:
        """Carry out a command, or say why not.

        Raises:
            InvalidRequest: With every fault.
            RevisionMoved: The head is not the one expected.
            RevisionNotFound: There is none to take over.
            GateFailed: A gate kept it out; the attempt is kept.
            StoreUnavailable: Not done; or not known, and then the message says so.
            BudgetExhausted: The deadline came first; nothing was done.
        """
        faults = _request_faults(command)
        # With faults nothing is written, and a faulty id must not be looked for either.
        request_id = command.request_id if command.request_id and not faults else self._new_request_id()
        note = Note(command.author, command.reason, request_id, self._clock.wall_s(), command.restores)
        if self._turn.locked():
            # Asked before queueing, so that callers learn of an outage at once and not one after the other.
            await self._store.find(request_id, timeout_s=_step_s(deadline))
        unsure = False
        case = _Case(command, note, faults, deadline)
        while True:
            try:
                async with _Turn(self._turn, deadline):
                    outcome = await self._attempt(case)
                if isinstance(outcome, _Ungated):
                    # Without the turn: a smoke test takes seconds. Should the head move meanwhile so that the change
                    # is another one, that one has to pass too.
                    case.cleared[outcome.review.digest] = await self._pass_gates(outcome.review, case)
                    continue
            except (StoreUnavailable, BudgetExhausted) as error:
                if not unsure:
                    raise
                outcome = Outcome.UNKNOWN
                if deadline.remaining_s() <= REST_S + RESERVE_S:
                    raise _unsure(command, request_id) from error
            if isinstance(outcome, Applied):
                return outcome
            if outcome is Outcome.UNKNOWN:
                # The next attempt reads back by request id. Should the lost write still arrive, then either it
                # or the next one finds the head moved: both compare the same mark.
                unsure = True
                if deadline.remaining_s() <= REST_S + RESERVE_S:
                    raise _unsure(command, request_id)
                await self._clock.sleep(REST_S)

    async def _pass_gates(self, review: Review, case: _Case) -> tuple[Finding, ...]:
        return await self._gates.pass_through(
            review,
            reason=case.note.reason,
            request_id=case.note.request_id,
            dry_run=case.command.dry_run,
            step_s=_step_s(case.deadline),
            left_s=case.deadline.for_hop(reserve_s=STORE_TIMEOUT_S),
        )

    async def _attempt(self, case: _Case) -> Applied | Outcome | _Ungated:
        """One pass through the order of events."""
        command, note, deadline = case.command, case.note, case.deadline
        store = self._store
        found = await store.find(note.request_id, timeout_s=_step_s(deadline))
        state = found.state
        if found.done is not None and not command.dry_run:
            return await self._first_result(found.done, deadline)
        if command.expected_revision not in (0, state.revision) and not case.faults:
            raise await self._moved(command.expected_revision, state, deadline)
        if not case.faults:
            command = await self._resolved(command, state, deadline)

        size = ENCODING_COST * (len(command.submitted) + len(command.deletes))
        size += 0 if state.knows_users else len(state.objects)
        plan = functools.partial(self._plan, state, command, note, case.faults)
        # What is large is planned in a thread, so that watches and reports go on meanwhile.
        draft, review = await asyncio.to_thread(plan) if size > LARGE else plan()
        changes = tuple(review.changes)
        findings = case.cleared.get(review.digest)
        if findings is None:
            findings = self._gates.at_once(review)
            if findings is None:
                return _Ungated(review)
        if command.dry_run or not (changes or command.request_id):
            return Applied(state.revision, changes, findings)
        await store.write(draft, timeout_s=_step_s(deadline))
        outcome = await store.advance(draft, timeout_s=_step_s(deadline))
        if outcome is Outcome.MOVED:
            return Applied(state.revision + 1 if changes else state.revision, changes, findings)
        return outcome

    def _plan(self, state: S, command: Command, note: Note, request_faults: Sequence[Fault]) -> tuple[D, Review]:
        """The revision that the command would make, and what it changes; touches nothing shared.

        Raises:
            InvalidRequest: With every fault.
        """
        objects = state.objects
        encoded = [None if entry.item is None else self._store.encode(entry.item) for entry in command.submitted]
        faults = [*request_faults, *check(objects, command.submitted, command.deletes, state.users_of)]
        faults += [
            Fault(
                f"objects[{index}]",
                f"takes {stored.size_bytes} bytes stored, at most {MAX_OBJECT_BYTES}: large data belongs in artifacts",
            )
            for index, stored in enumerate(encoded)
            if stored is not None and stored.size_bytes > MAX_OBJECT_BYTES
        ]
        if faults:
            by_name = command.restores or command.by_name
            raise InvalidRequest.of([_by_name(fault, command) for fault in faults] if by_name else faults)
        after: dict[ObjectKey, Object] = {}
        upserts: dict[ObjectKey, E] = {}
        for entry, stored in zip(command.submitted, encoded, strict=True):
            if entry.item is not None and stored is not None:
                after[entry.key], upserts[entry.key] = entry.item, stored
        touched = (*after, *command.deletes)
        before = {key: digest for key in touched if (digest := state.digest_of(key)) is not None}
        digests = {key: stored.digest for key, stored in upserts.items()}
        changes = diff(before, digests)
        draft = self._store.draft(state, upserts, changes, note)
        review = Review(
            before=objects,
            touched={change.key: after.get(change.key) for change in changes},
            changes=tuple(with_fields(change, objects, after) for change in changes),
            author=note.author,
            digest=digest_of(changes, before, digests),
        )
        return draft, review

    async def _resolved(self, command: Command, state: S, deadline: Deadline) -> Command:
        """What the command comes down to at `state`: objects and deletions."""
        if command.restores:
            target = await self._store.at(command.restores, timeout_s=_step_s(deadline))
            differs = tuple(target.differing(state))
            back = tuple(Submitted(key, target.objects[key]) for key in differs if key in target.objects)
            gone = tuple(key for key in differs if key not in target.objects)
            return replace(command, submitted=back, deletes=gone)
        if command.exact:
            named = {entry.key for entry in command.submitted}
            return replace(command, deletes=tuple(key for key in state.objects if key not in named))
        return command

    async def _first_result(self, done: Done, deadline: Deadline) -> Applied:
        """What the request answered when it was carried out; trees never change, so it is found again."""
        if not done.changed:
            return Applied(done.revision, ())
        try:
            after = await self._store.at(done.revision, timeout_s=_step_s(deadline))
            before = await self._store.at(done.revision - 1, timeout_s=_step_s(deadline))
        except RevisionNotFound:
            return Applied(done.revision, ())  # it was long ago: what it changed was collected
        return Applied(done.revision, changes_between(before, after))

    async def _moved(self, expected: int, head: S, deadline: Deadline) -> RevisionMoved:
        """The refusal, with what has changed since."""
        metadata = {"head": str(head.revision), "expected": str(expected)}
        what = ""
        try:
            before = await self._store.at(expected, timeout_s=_step_s(deadline))
        except RevisionNotFound:
            pass  # never there, or not kept any more
        else:
            changes = [f"{change.action.value.lower()} {change.key}" for change in changes_between(before, head)]
            more = len(changes) - NAMED_CHANGES
            metadata["moved"] = ", ".join(changes[:NAMED_CHANGES]) + (f" and {more} more" if more > 0 else "")
            what = f" ({metadata['moved']})" if changes else " (and the state is the same)"
        return RevisionMoved(
            f"the head is revision {head.revision}, not {expected}: look at what has changed{what} "
            f"and apply on top of {head.revision}",
            metadata=metadata,
        )


class _Turn:
    """A lock that is waited for no longer than a deadline allows."""

    def __init__(self, lock: asyncio.Lock, deadline: Deadline) -> None:
        self._lock = lock
        self._deadline = deadline

    async def __aenter__(self) -> None:
        try:
            async with asyncio.timeout(self._deadline.for_hop(reserve_s=RESERVE_S)):
                await self._lock.acquire()
        except TimeoutError:
            raise BudgetExhausted("other applies took all of the deadline; nothing was changed") from None

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


def _step_s(deadline: Deadline) -> float:
    return min(STORE_TIMEOUT_S, deadline.for_hop(reserve_s=RESERVE_S))


def changes_between(before: State, after: State) -> tuple[Change, ...]:
    """What leads from one state to another, with fields."""
    keys = after.differing(before)
    changes = diff(_digests(before, keys), _digests(after, keys))
    old, new = before.objects, after.objects
    return tuple(with_fields(change, old, new) for change in changes)


def _digests(state: State, keys: Iterable[ObjectKey]) -> dict[ObjectKey, str]:
    return {key: digest for key in keys if (digest := state.digest_of(key)) is not None}


def _by_name(fault: Fault, command: Command) -> Fault:
    """A fault of an object that the caller did not submit, with the object's name instead of its place."""
    found = _PLACE.match(fault.path)
    if found is None:
        return fault
    index = int(found["index"])
    key = command.submitted[index].key if found["list"] == "objects" else command.deletes[index]
    return Fault(f"{key}{fault.path[found.end() :]}", fault.message)


def _unsure(command: Command, request_id: str) -> StoreUnavailable:
    ask = (
        f"ask again with the same request id '{request_id}'"
        if command.request_id
        else f"see whether the history has request '{request_id}'"
    )
    return StoreUnavailable(
        f"the store took the change but did not say how it ended; to find out, {ask}",
        retry_after_s=RETRY_AFTER_S,
        metadata={"outcome": "unknown", "request_id": request_id},
    )


def _request_faults(command: Command) -> list[Fault]:
    """What is wrong with the request apart from its objects."""
    faults = []
    if command.restores < 0:
        faults.append(Fault("revision", f"{command.restores} must be positive"))
    if command.expected_revision < 0:
        faults.append(Fault("expected_revision", f"{command.expected_revision} must not be negative"))
    for path, text, most in (
        ("reason", command.reason, MAX_REASON_BYTES),
        ("author", command.author, MAX_AUTHOR_BYTES),
        ("request_id", command.request_id, MAX_REQUEST_ID_BYTES),
    ):
        if len(text.encode()) > most:
            faults.append(Fault(path, f"takes {len(text.encode())} bytes, at most {most}"))
    if not all("!" <= character <= "~" for character in command.request_id):
        faults.append(Fault("request_id", "must be printable ASCII without spaces"))
    return faults
