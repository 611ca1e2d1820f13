"""Answers that are kept, and identical calls computed once: what stands before one candidate set is asked.

It stands there, and not before a whole route, so that a split still draws its parts, a cascade its steps and a fallback
its order, and no part is ever answered with what another gave. An answer is known by the route that keeps it, the
candidate set, the versions of it that are ready, the tenant, the caller's wishes, and the request itself; who could not
be told apart by these may have each other's. The tenant is left out where every model says that its answers may be
shared; else no caller learns anything of another tenant's calls, not even by how soon an answer comes.
"""

import asyncio
import copy
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from services.domain.caching import Cache, CachePolicy, CacheStatus
from services.domain.clock import Clock
from services.domain.deadline import Deadline
from services.domain.errors import BudgetExhausted, Draining, YardError
from services.domain.host import HostRecord
from services.domain.objects import ModelVersion, Route
from services.domain.request import InferCall
from services.domain.service_class import ServiceClass
from services.domain.strategies import Fallback
from services.policy.falling_back import passes_on
from services.policy.keeping import Kept
from services.router.answer_scope import about_of, framed, stem_of
from services.router.decision import Cached, Decision
from services.router.destination import Destination
from services.router.strategies.course import Legs

LARGE_BYTES = 256 * 1024
"""A request from this size on is hashed beside the event loop, which its 250 µs or more would hold up."""

ENOUGH_SHARE = 0.5
"""Who has at least this part left of the time that a call had in vain may ask anew, once."""

WHY_LONGEST = 200
"""Most characters of what failed in the degraded reason."""

MISS, BYPASS = Cached(CacheStatus.MISS), Cached(CacheStatus.BYPASS)
COALESCED = Cached(CacheStatus.COALESCED)


class Messages(Protocol):
    """Who looks into requests and answers."""

    def size_bytes(self, call: InferCall) -> int:
        """Bytes that have to be hashed for its key, about."""
        ...

    def key(self, call: InferCall, scope: bytes) -> bytes | None:
        """Of the answer; None if it is none to be kept."""
        ...

    def kept(self, payload: object) -> bytes:
        """An answer without what is its caller's own."""
        ...

    def given(self, call: InferCall, kept: bytes, *, raw: bool) -> object:
        """A kept answer as a caller gets it; `raw` if its elements are."""
        ...


class CacheFeedback(Protocol):
    """Who is told how often answers were kept."""

    def looked_up(self, route: str, status: CacheStatus) -> None:
        """One candidate set of a route that keeps answers was to be asked."""
        ...


class Entry(NamedTuple):
    """An answer that is kept."""

    response: bytes
    raw: bool
    """Whether its elements are raw."""
    version: ModelVersion
    host: HostRecord
    made_s: float


class _Keys(NamedTuple):
    fresh: bytes
    stale: bytes | None


class _Look(NamedTuple):
    """What an answer is looked for and kept by."""

    under: Route
    cache: Cache
    keys: _Keys
    call: InferCall
    destination: Destination


class _Asked(NamedTuple):
    """How it is asked for."""

    look: _Look
    legs: Legs
    deadline: Deadline
    most: int


@dataclass(slots=True, eq=False)
class _Flight:
    """A call that others wait for."""

    task: "asyncio.Task[object]"
    leg: Decision
    raw: bool
    start_s: float
    deadline: Deadline
    waiting: int = 0


class AnswerCache:
    """Answers of one process."""

    def __init__(
        self,
        *,
        kept: Kept[bytes, Entry],
        messages: Messages,
        feedback: CacheFeedback,
        clock: Clock,
    ) -> None:
        """Keep answers in `kept`."""
        self._kept = kept
        self._messages = messages
        self._feedback = feedback
        self._clock = clock
        self._flights: dict[tuple[bytes, ServiceClass], _Flight] = {}

    async def run_one(
        self,
        call: InferCall,
        destination: Destination,
        decision: Decision,
        deadline: Deadline,
        start_s: float,
        *,
        legs: Legs,
        under: Route,
        most: int = 0,
    ) -> object:
        """As `Asking.run_one`, if there is no answer yet.

        Args:
            call: The call.
            destination: The candidates.
            decision: Told how the answer came about.
            deadline: Of the call.
            start_s: When it began.
            legs: Who asks.
            under: The route that keeps answers.
            most: As of `Asking.run_one`.

        Raises:
            YardError: It cannot be answered.
        """
        look = await self._look(under, call, destination, decision)
        if look is None:
            self._note(under, decision, BYPASS)
            return await legs.run_one(call, destination, decision, deadline, start_s, most=most)
        refresh = call.options.cache is CachePolicy.REFRESH
        now_s = self._clock.now_s()
        entry = None if refresh else self._kept.get(look.keys.fresh, now_s)
        if entry is not None and now_s - entry.made_s < look.cache.ttl_s:
            decision.stages.choose_s = now_s - start_s
            return self._hit(look, entry, decision, now_s)
        # The world may become another one before it is asked: as a later attempt, it is looked at anew.
        asked = _Asked(look, legs, deadline, most or destination.route.max_attempts)
        try:
            if look.cache.coalesce and not refresh:
                return await self._together(asked, decision, start_s)
            self._note(under, decision, MISS)
            return await self._ask(asked, decision, start_s)
        except YardError as error:
            if isinstance(under.strategy, Fallback):
                raise  # it asks the others first
            answer = self._old(look, decision, error)
            if answer is None:
                raise
            return answer

    async def stand_in(
        self, call: InferCall, destination: Destination, decision: Decision, *, under: Route, error: YardError
    ) -> object | None:
        """An answer that is too old, for a candidate set that failed with `error`; None if there is none."""
        if under.cache is None or not under.cache.stale_s:
            return None
        look = await self._look(under, call, destination, decision)
        return None if look is None else self._old(look, decision, error)

    async def close(self) -> None:
        """End what is under way."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, under: Route, call: InferCall, destination: Destination, decision: Decision) -> _Look | None:
        """None if the answer is not to be looked for or kept."""
        options, cache = call.options, under.cache
        if cache is None or not options.idempotent or options.explain or options.cache is CachePolicy.BYPASS:
            return None
        stem = stem_of(destination)
        if stem is None:
            return None
        about = about_of(under, stem, call, decision.service_class)
        fresh = framed(stem.of_ready, about)
        stale = framed(stem.of_all, about) if cache.stale_s else None
        if self._messages.size_bytes(call) < LARGE_BYTES:
            keys = self._keys(call, fresh, stale)
        else:
            keys = await asyncio.to_thread(self._keys, call, fresh, stale)
        return None if keys is None else _Look(under, cache, keys, call, destination)

    def _keys(self, call: InferCall, fresh: bytes, stale: bytes | None) -> _Keys | None:
        key = self._messages.key(call, fresh)
        if key is None:
            return None
        return _Keys(key, None if stale is None else self._messages.key(call, stale))

    def _hit(self, look: _Look, entry: Entry, decision: Decision, now_s: float) -> object:
        age_s = now_s - entry.made_s
        decision.version, decision.host = entry.version, entry.host
        decision.reason = f"an answer that {entry.version.model_key} gave {age_s:.3g} s ago"
        self._note(look.under, decision, Cached(CacheStatus.HIT, age_s))
        return self._messages.given(look.call, entry.response, raw=entry.raw)

    def _old(self, look: _Look, decision: Decision, error: YardError) -> object | None:
        """An answer that may stand in for one that failed with `error`."""
        begun = decision.told is not None and decision.told.begun
        refresh = look.call.options.cache is CachePolicy.REFRESH
        if look.keys.stale is None or refresh or begun or not passes_on(error, (), idempotent=True):
            return None
        now_s = self._clock.now_s()
        entry = self._kept.get(look.keys.stale, now_s)
        if entry is None or now_s - entry.made_s >= look.cache.ttl_s + look.cache.stale_s:
            return None
        if all(option.key != entry.version.model_key for option in look.destination.options):
            return None  # it was taken away
        decision.telling.degraded_reason = f"an older answer stands in: {error.message[:WHY_LONGEST]}"
        return self._hit(look, entry, decision, now_s)

    def _keep(self, look: _Look, decision: Decision, payload: object) -> None:
        """Keep an answer, if it is as good as any that could be had now."""
        version, host, told = decision.version, decision.host, decision.told
        stem = stem_of(look.destination)
        if version is None or host is None or stem is None or version.model_key not in stem.kept_of:
            return
        # What was tried by chance, to learn of it, is no answer for everybody else.
        if told is not None and (told.degraded_reason or told.begun or told.explored):
            return
        response, now_s, cache = self._messages.kept(payload), self._clock.now_s(), look.cache
        entry = Entry(response, _is_raw(look.call), version, host, now_s)
        for key, long_s in ((look.keys.fresh, cache.ttl_s), (look.keys.stale, cache.ttl_s + cache.stale_s)):
            if key is not None:
                self._kept.put(key, entry, size_bytes=len(response), dead_s=now_s + long_s, now_s=now_s)

    async def _together(self, asked: _Asked, decision: Decision, start_s: float) -> object:
        """Ask, or wait for an identical call of the same class that is asked already.

        Of the same class, since hosts queue and refuse calls by it: nobody waits on one that stands further behind.
        """
        look, again = asked.look, False
        place = (look.keys.fresh, decision.service_class)
        while True:
            flight = self._flights.get(place)
            leads = flight is None
            if flight is None:
                self._note(look.under, decision, MISS)
                flight = self._flights[place] = self._begin(asked, decision, start_s)
            try:
                await self._wait(place, flight, asked.deadline)
            finally:
                if leads:
                    _adopt_all(decision, flight.leg)
            if flight.task.cancelled():
                raise Draining("the router is stopping")
            error = flight.task.exception()
            if error is None:
                break
            if leads or again or not _may_ask_again(error, flight, asked.deadline):
                raise error if leads else _copied(error)
            again, start_s = True, self._clock.now_s()
        if leads:
            return flight.task.result()
        leg = flight.leg
        decision.version, decision.host, decision.reason = leg.version, leg.host, "the answer to an identical call"
        self._note(look.under, decision, COALESCED)
        return self._messages.given(look.call, self._messages.kept(flight.task.result()), raw=flight.raw)

    def _begin(self, asked: _Asked, decision: Decision, start_s: float) -> _Flight:
        # A task and a decision of its own: who began it may leave, and the others still get the answer.
        leg = decision.leg()
        task = asyncio.get_running_loop().create_task(self._ask(asked, leg, start_s))
        task.add_done_callback(_seen)
        return _Flight(task, leg, _is_raw(asked.look.call), start_s, asked.deadline)

    async def _ask(self, asked: _Asked, decision: Decision, start_s: float) -> object:
        call, destination = asked.look.call, asked.look.destination
        try:
            payload = await asked.legs.run_one(call, destination, decision, asked.deadline, start_s, most=asked.most)
        finally:
            if decision.hold is not None:
                decision.hold.end()
        self._keep(asked.look, decision, payload)
        return payload

    async def _wait(self, place: tuple[bytes, ServiceClass], flight: _Flight, deadline: Deadline) -> None:
        """Until it has ended. The last one who leaves takes it along.

        Raises:
            BudgetExhausted: The deadline passed before that.
        """
        waits: set[asyncio.Task[object]] = {flight.task}
        timer: asyncio.Task[None] | None = None
        if deadline.at_s < flight.deadline.at_s:  # else it ends in time by itself
            timer = asyncio.get_running_loop().create_task(self._clock.sleep(deadline.remaining_s()))
            waits.add(timer)
        flight.waiting += 1
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            flight.waiting -= 1
            if timer is not None:
                timer.cancel()
            if flight.task.done() or not flight.waiting:
                flight.task.cancel()
                if self._flights.get(place) is flight:
                    del self._flights[place]
        if not flight.task.done():
            raise BudgetExhausted("the answer to an identical call that is under way does not come in time")

    def _note(self, under: Route, decision: Decision, cached: Cached) -> None:
        decision.cached = cached
        self._feedback.looked_up(under.metadata.name, cached.status)


def _is_raw(call: InferCall) -> bool:
    return bool(call.inputs) and call.inputs[0].raw_bytes is not None


def _may_ask_again(error: BaseException, flight: _Flight, deadline: Deadline) -> bool:
    """Whether it failed for want of time alone, which the waiting one has."""
    if not isinstance(error, BudgetExhausted) or deadline.at_s <= flight.deadline.at_s:
        return False
    return deadline.remaining_s() >= ENOUGH_SHARE * (flight.deadline.at_s - flight.start_s)


def _seen(task: "asyncio.Task[object]") -> None:
    """What a task failed with that nobody waits for any more is nobody's."""
    if not task.cancelled():
        task.exception()


def _copied(error: BaseException) -> BaseException:
    """One that may be raised by several."""
    copied = copy.copy(error)
    if isinstance(copied, YardError):
        copied.metadata = dict(copied.metadata)
    return copied


def _adopt_all(decision: Decision, leg: Decision) -> None:
    """Let how it was asked be how the one who began it was answered."""
    cached = decision.cached
    decision.adopt(leg)
    decision.cached = cached
    decision.attempts += leg.attempts
    decision.candidates = decision.candidates or leg.candidates
    decision.stages.choose_s = leg.stages.choose_s
