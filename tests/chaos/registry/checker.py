"""Whether a history can be trusted: what was asked and heard, held against what etcd saw.

Pure: facts in, verdict out. The same rules judge the product and the bugs that the tests plant.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.registry.asked import Asked, Attempt, Content, Followed, Heard
from tests.chaos.registry.fencing import Fences, StaleWrite
from tests.chaos.registry.truth import Move, Truth


@dataclass(frozen=True, slots=True)
class Verdict:
    """Every violation, a line each."""

    lost: tuple[str, ...] = ()
    """Acknowledged, and not in the history as it was acknowledged; or neither known in the end."""
    torn: tuple[str, ...] = ()
    """What is stored contradicts itself, or is not the whole of what was asked."""
    phantom: tuple[str, ...] = ()
    """In the history without being asked for, twice, or although it was refused."""
    order: tuple[str, ...] = ()
    """Acknowledged before another began, and after it in the history."""
    readers: tuple[str, ...] = ()
    """What a reader of the registries heard is not the history."""
    watches: tuple[str, ...] = ()
    """What a watch of etcd by the product's client gave is not what happened."""
    stale: tuple[StaleWrite, ...] = ()
    """Writes accepted from leaders that had lost their place."""

    @property
    def clean(self) -> bool:
        """Whether there is none."""
        return not any((self.lost, self.torn, self.phantom, self.order, self.readers, self.watches, self.stale))

    def lines(self, most: int = 5) -> list[str]:
        """The first few of each kind."""
        kinds: list[tuple[str, Sequence[object]]] = [
            ("lost", self.lost),
            ("torn", self.torn),
            ("phantom", self.phantom),
            ("order", self.order),
            ("readers", self.readers),
            ("watches", self.watches),
            ("stale", self.stale),
        ]
        return [f"{kind}: {each}" for kind, found in kinds for each in found[:most]]


@dataclass(slots=True)
class _Found:
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    phantom: list[str] = field(default_factory=list)


def judge(
    *,
    asked: Mapping[str, Asked],
    truth: Truth,
    fences: Fences,
    readers: Sequence[Heard] = (),
    followed: Sequence[Followed] = (),
    happened: Sequence[tuple[int, str]] = (),
) -> Verdict:
    """Judge a whole run.

    Args:
        asked: Every request, by its id.
        truth: The replay of everything that etcd saw.
        fences: The same, for leaders.
        readers: What the readers heard, up to the end.
        followed: What the product's own watches of etcd gave, up to the end.
        happened: What these should have given.
    """
    found = _Found(torn=list(truth.faults))
    made = _made(truth.moves, asked, found)
    for each in asked.values():
        _check_answers(each, made.get(each.request_id), truth, found)
    found.lost += _written_over(truth.moves, asked)
    return Verdict(
        lost=tuple(found.lost),
        torn=tuple(found.torn),
        phantom=tuple(found.phantom),
        order=tuple(order_violations(asked.values(), made, truth.notes)),
        readers=tuple(line for reader in readers for line in _reader_faults(reader, truth.moves)),
        watches=tuple(line for each in followed for line in _watch_faults(each, happened)),
        stale=tuple(fences.stale),
    )


def _made(moves: Sequence[Move], asked: Mapping[str, Asked], found: _Found) -> dict[str, Move]:
    """Which move each request made; every move must be the whole of what one request asked for."""
    made: dict[str, Move] = {}
    content = Content()
    restored = {each.restores: dict[str, str]() for each in asked.values() if each.restores}
    for move in moves:
        before = dict(content.digests)
        for key, digest in move.delta.items():
            if digest is None:
                content.drop(key)
            else:
                content.put(key, digest)
        if move.number in restored:
            restored[move.number] = dict(content.digests)
        name = f"revision {move.number} by {move.request_id}"
        each = asked.get(move.request_id)
        if each is None:
            found.phantom.append(f"{name} was asked for by nobody")
            continue
        if move.request_id in made:
            found.phantom.append(f"{name} was made at {made[move.request_id].number} already")
        made.setdefault(move.request_id, move)
        if each.dry_run or each.surely_refused:
            found.phantom.append(f"{name} was {'a dry run' if each.dry_run else 'refused'}: {_told(each)}")
        if each.expected_revision not in (0, move.number - 1):
            found.torn.append(f"{name} expected revision {each.expected_revision}")
        wanted = {**before, **each.upserts} if not each.restores else dict(restored[each.restores])
        for key in each.deletes:
            wanted.pop(key, None)
        if wanted != content.digests or not move.delta or move.restores != each.restores:
            found.torn.append(f"{name} is not what was asked for: {_difference(wanted, content.digests)}")
        if any(key not in before for key in each.deletes):
            found.torn.append(f"{name} deletes what was not there")
    return made


def _written_over(moves: Sequence[Move], asked: Mapping[str, Asked]) -> list[str]:
    """Acknowledged revisions in whose place another came later."""
    kept = {move.number: move.request_id for move in moves}
    last = moves[-1].number if moves else 0
    return [
        f"{move.request_id} was acknowledged at {move.number}, which is now {kept[move.number]}'s, or gone"
        for move in moves
        if (each := asked.get(move.request_id)) is not None
        and each.acknowledged is not None
        and (kept[move.number] != move.request_id or move.number > last)
    ]


def _difference(wanted: Mapping[str, str], got: Mapping[str, str]) -> str:
    keys = sorted(key for key in {*wanted, *got} if wanted.get(key) != got.get(key))
    return ", ".join(f"{key} {got.get(key, 'none')[:8]} for {wanted.get(key, 'none')[:8]}" for key in keys[:3]) or "-"


def _told(each: Asked) -> str:
    return "; ".join(f"{attempt.outcome} {attempt.what}" for attempt in each.attempts)


def _check_answers(each: Asked, move: Move | None, truth: Truth, found: _Found) -> None:
    """Hold every answer of one request against the history."""
    name = each.request_id
    noted = truth.notes.get(name)
    if (each.dry_run or each.surely_refused) and noted is not None:
        found.phantom.append(f"{name} is noted as done at {noted}: {_told(each)}")
    if each.outcome == "unknown":
        found.lost.append(f"nobody says how {name} ended: {_told(each)}")
    done = each.acknowledged
    for attempt in each.attempts:
        if attempt.outcome == "refused" and done is not None and done.end_s < attempt.start_s and not each.dry_run:
            found.lost.append(f"{name} was acknowledged, and refused when it was asked again: {attempt.what}")
        if attempt.outcome != "acknowledged" or each.dry_run:
            continue
        told = f"{name} was acknowledged at {attempt.revision} ({attempt.what})"
        if noted is None or noted != attempt.revision:
            found.lost.append(f"{told}, is noted at {noted}")
        elif move is None:
            # Nothing had to change: so it must have been at that revision already.
            if attempt.changed:
                found.lost.append(f"{told} with changes, and no revision is its own")
        elif move.number != attempt.revision:
            found.lost.append(f"{told}, and is revision {move.number}")
        elif attempt.changed and attempt.changed != set(move.delta):
            found.torn.append(f"{told} with changes of {sorted(attempt.changed)}, not {sorted(move.delta)}")


def order_violations(asked: Iterable[Asked], made: Mapping[str, Move], notes: Mapping[str, int]) -> list[str]:
    """Where the history is not in the order of real time: A acknowledged before B began, and B not after A.

    A request that had nothing to change came between two revisions: not before its revision, and before the next.
    """
    places: list[tuple[float, Asked, Attempt | None]] = []
    for each in asked:
        if each.request_id in made:
            places.append((made[each.request_id].number, each, each.acknowledged))
        elif each.acknowledged is not None and each.request_id in notes and not each.dry_run:
            places.append((notes[each.request_id] + 0.5, each, each.acknowledged))
    places.sort(key=lambda entry: entry[0])
    found = []
    first_end_s = float("inf")
    first: Asked | None = None
    index = len(places)
    while index > 0:
        # All of one place at once: those that had nothing to change are in no order among themselves.
        start = index - 1
        while start > 0 and places[start - 1][0] == places[start][0]:
            start -= 1
        for _, each, _ in places[start:index]:
            if first is not None and first_end_s < each.start_s:
                found.append(f"{each.request_id} began after {first.request_id} was acknowledged, and comes before it")
        for _, each, done in places[start:index]:
            if done is not None and done.end_s < first_end_s:
                first_end_s, first = done.end_s, each
        index = start
    return found


def _reader_faults(reader: Heard, moves: Sequence[Move]) -> Iterable[str]:
    """A reader's own faults, states that never were, and an end that is not the head."""
    yield from (f"{reader.name}: {fault}" for fault in reader.faults)
    sums = {move.number: move.sum for move in moves}
    sums[0] = 0
    for revision, content in reader.states:
        if sums.get(revision) != content:
            yield f"{reader.name}: another state at revision {revision} than the history has"
    last = moves[-1].number if moves else 0
    if reader.revision != last:
        yield f"{reader.name}: came to {reader.revision}, the head is {last}"


def _watch_faults(followed: Followed, happened: Sequence[tuple[int, str]]) -> Iterable[str]:
    """Batches left out, repeated, or changed."""
    wanted = dict(happened)
    last = max(wanted, default=0)
    got = {revision: what for revision, what in followed.batches if revision <= last}
    missed = [revision for revision in wanted if revision not in got]
    if missed:
        yield f"{followed.name}: missed {len(missed)} transactions, first etcd's revision {missed[0]}"
    for revision, what in got.items():
        if wanted.get(revision) != what:
            yield f"{followed.name}: other changes at etcd's revision {revision} than happened"
    revisions = [revision for revision, _ in followed.batches]
    if revisions != sorted(set(revisions)):
        yield f"{followed.name}: transactions came out of order, or twice"
