"""The sequences of one version that generates: which join, which leave, and what each step computes.

Iteration-level batching: between two steps sequences join a free slot and leave at their end, their deadline or
when nobody waits for them any more. A step is one job of the device's compute thread, so that batches of
other versions get their turn between two. What a step takes in is `policy.iterating`; computing it is behind the
port `Steps`. Everything here runs on the event loop.
"""

import asyncio
import heapq
from bisect import insort
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Protocol, TypeAlias

from services.domain import errors
from services.domain.clock import Clock
from services.domain.errors import BudgetExhausted, Overloaded, YardError
from services.domain.model import ModelKey
from services.model_host.sequence_entrance import SequenceEntrance
from services.model_host.sequences import Advance, Bounds, Prompt, Request, Stepped, Totals, Work
from services.model_host.statistics import LaneStatistics
from services.policy.iterating import IterationTimes, chunks

_BY_TURN = attrgetter("turn")

Done: TypeAlias = Callable[[Stepped | None, BaseException | None], None]
"""Takes what a step did, or else what went wrong."""


class Steps(Protocol):
    """The device."""

    def start(self, model: object, work: Work, *, done: Done) -> None:
        """Begin a step; another one of the same model comes only after `done`.

        Args:
            model: The version, as the engine was made with.
            work: What to compute.
            done: Called on the event loop, later. An error is one after which nothing computes any more.
        """
        ...


class Observer(Protocol):
    """Who wants to know what was done."""

    def token_came(self, key: ModelKey, after_s: float, *, first: bool) -> None:
        """A token of an answer: `after_s` the request if it is the first one, else the one before."""
        ...

    def sequence_ended(self, key: ModelKey, request: Request, *, ended_s: float) -> None:
        """A sequence that had a slot gave it up."""
        ...

    def call_dropped(self, key: ModelKey, band: int, cause: str) -> None:
        """A sequence ended before its first token; the cause is one of `statistics.CAUSES`."""
        ...

    def device_used(self, request: Request, device_s: float) -> None:
        """The device computed for a sequence."""
        ...

    def load_changed(self, waiting: int, active: int) -> None:
        """So many sequences wait now, and so many have a slot."""
        ...

    def device_broken(self) -> None:
        """The device will not compute again in this process."""
        ...


class Generation:
    """The engine of one version."""

    def __init__(
        self,
        key: ModelKey,
        model: object,
        *,
        steps: Steps,
        observer: Observer,
        clock: Clock,
        bounds: Bounds,
        times: IterationTimes,
        statistics: LaneStatistics,
    ) -> None:
        """Compute `model`, of which `times` are known, by `steps`; count into `statistics`."""
        self.key = key
        self.bounds = bounds
        self.times = times
        self._statistics = statistics
        self._model = model
        self._steps = steps
        self._observer = observer
        self._clock = clock
        self._waiting: list[Request] = []
        self._active: dict[int, Request] = {}
        self._free = list(range(bounds.sequences))
        self._left: list[int] = []
        """Slots that the model is yet to be told are free."""
        self._turns: deque[int] = deque()
        """Slots with prompts that are not computed yet, in the order of their turns."""
        self._running: Work | None = None
        self._scheduled = False
        self._closed = False
        self._stopped: YardError | None = None
        self._empty: asyncio.Future[None] | None = None
        self._entrance = SequenceEntrance(key, bounds=bounds, times=times, dropped=self._dropped)

    # --- questions ------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Sequences that have one."""
        return len(self._active)

    @property
    def quiet(self) -> bool:
        """Whether nothing waits, or has a slot, or is being computed."""
        return not self._waiting and not self._active and self._running is None and not self._left

    # --- in and out -----------------------------------------------------------------------------

    def enter(self, request: Request) -> None:
        """Let a sequence wait for its slot; its listener is told what becomes of it.

        Raises:
            BudgetExhausted: Its deadline does not cover its own prompt.
            Overloaded: Too many wait, or its first token would come too late behind them.
            ModelNotReady: The engine is closed.
            HostUnavailable: The device broke.
        """
        request.arrived_s = now_s = self._clock.now_s()
        if self._closed:
            raise errors.ModelNotReady(f"{self.key} is being unloaded here")
        if self._stopped is not None:
            raise type(self._stopped)(self._stopped.message)
        active = [other for other in self._active.values() if not other.over]
        self._entrance.admit(request, now_s, waiting=self._waiting, active=active)
        request.left = request.prompt.tokens
        insort(self._waiting, request, key=_BY_TURN)
        self._tell_load()
        self._schedule()

    def leave(self, request: Request) -> None:
        """Nobody waits for the sequence any more: its slot is free from the next step on."""
        if request.over:
            return
        request.over = True
        if request in self._waiting:
            self._waiting.remove(request)
            self._settle()
        if not request.tokens:
            self._count_drop(request, "cancelled")
        self._tell_load()
        self._schedule()

    async def close(self) -> None:
        """Take no new sequences, and return once the last one has ended."""
        self._closed = True
        if not self.quiet:
            if self._empty is None:
                self._empty = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._empty)

    def stop(self, error: YardError) -> None:
        """Fail every sequence with `error`, and all that come."""
        self._stopped = self._stopped or error
        for request in (*self._waiting, *self._active.values()):
            self._fail(request, error)
        self._waiting.clear()
        self._active.clear()
        self._turns.clear()
        self._left.clear()
        self._settle()

    def _dropped(self, request: Request, cause: str, error: YardError) -> YardError:
        self._count_drop(request, cause)
        return error

    def _count_drop(self, request: Request, cause: str) -> None:
        drops = self._statistics.of(request.band).drops
        drops[cause] = drops.get(cause, 0) + 1
        self._observer.call_dropped(self.key, request.band, cause)

    # --- steps ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Begin the next step soon: not at once, so that what came meanwhile is seen."""
        if not self._scheduled and self._running is None and self._stopped is None:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._guarded, self._advance)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a callback; if it fails, nobody must wait for what never comes."""
        try:
            step()
        except Exception:
            self.stop(errors.Internal("internal"))
            raise

    def _advance(self) -> None:
        self._scheduled = False
        if self._running is not None or self._stopped is not None:
            return
        now_s = self._clock.now_s()
        self._let_go(now_s)
        joins = self._let_in(now_s)
        shares = chunks([self._active[slot].left for slot in self._turns], chunk_tokens=self.bounds.chunk_tokens)
        prefill = tuple((slot, share) for slot, share in zip(self._turns, shares, strict=True) if share)
        decode = tuple(slot for slot, request in self._active.items() if not request.left)
        leaves, self._left = tuple(self._left), []
        self._tell_load()
        if not (leaves or joins or prefill or decode):
            self._settle()
            return
        work = self._running = Work(leaves, joins, prefill, decode)
        for slot, _ in prefill:
            self._turns.remove(slot)
            self._turns.append(slot)

        def done(stepped: Stepped | None, error: BaseException | None) -> None:
            del error  # of whatever kind: nothing computes any more
            self._guarded(lambda: self._done(work, stepped, began_s=now_s))

        self._steps.start(self._model, work, done=done)

    def _let_go(self, now_s: float) -> None:
        """Free the slots of those that nobody waits for, or that the next token would come too late for."""
        for slot, request in list(self._active.items()):
            if not request.over and now_s + self.times.step_s > request.deadline_at_s:
                text = f"the deadline passed after {request.tokens} tokens of {self.key}"
                if not request.tokens:
                    self._count_drop(request, "deadline")
                self._fail(request, BudgetExhausted(text, metadata={"tokens": str(request.tokens)}))
            if request.over:
                self._release(slot, now_s)

    def _let_in(self, now_s: float) -> tuple[tuple[int, Prompt], ...]:
        """Give free slots to those that wait, earlier bands and deadlines first; some may be too late by now."""
        for request in list(self._waiting):
            own_s = self.times.prefill_s(request.prompt.tokens, self.bounds.chunk_tokens)
            if now_s + own_s > request.deadline_at_s:
                self._waiting.remove(request)
                left_s = request.deadline_at_s - now_s
                self._fail(request, self._dropped(request, "deadline", self._entrance.too_late(own_s, left_s)))
        joins = []
        while self._free and self._waiting:
            request = self._waiting.pop(0)
            slot = heapq.heappop(self._free)
            request.joined_s = now_s
            self._active[slot] = request
            self._turns.append(slot)
            joins.append((slot, request.prompt))
        return tuple(joins)

    def _done(self, work: Work, stepped: Stepped | None, *, began_s: float) -> None:
        self._running = None
        if self._stopped is not None:
            return
        if stepped is None:
            self.stop(errors.HostUnavailable("the device of this host is broken"))
            self._observer.device_broken()
            return
        now_s = self._clock.now_s()
        self._learn(work, stepped, took_s=now_s - began_s)
        for slot, share in work.prefill:
            request = self._active.get(slot)
            if request is not None and slot not in stepped.failures:
                request.left -= share
                if not request.left:
                    self._turns.remove(slot)
        self._charge(work, stepped)
        size = len(work.prefill) + len(work.decode)
        for slot, failure in stepped.failures.items():
            self._fail(self._active[slot], failure)
            self._release(slot, now_s)
        for slot, advance in stepped.advances.items():
            request = self._active[slot]
            request.beside = max(request.beside, size)
            if not request.over:
                self._take(slot, request, advance, now_s)
        self._advance()  # at once: what came during the step is here, and pieces go out beside the next one

    def _learn(self, work: Work, stepped: Stepped, *, took_s: float) -> None:
        size = len(work.prefill) + len(work.decode)
        if not size:
            return
        self._statistics.executions += 1
        self._statistics.batches[size] = self._statistics.batches.get(size, 0) + 1
        if not stepped.failures:
            self.times.observe(prompt_tokens=sum(share for _, share in work.prefill), took_s=took_s)

    def _charge(self, work: Work, stepped: Stepped) -> None:
        """Count the device's time to those that it computed for: a prompt with each of its tokens, others with one."""
        tokens = {**dict(work.prefill), **dict.fromkeys(work.decode, 1)}
        total = sum(tokens.values())
        for slot, count in tokens.items():
            request = self._active[slot]
            device_s = stepped.compute_s * count / total
            done = self._statistics.of(request.band)
            done.device_s += device_s
            if request.over:
                done.wasted_s += device_s
            self._observer.device_used(request, device_s)

    def _take(self, slot: int, request: Request, advance: Advance, now_s: float) -> None:
        """Hand on what a step gave a sequence."""
        first = not request.first_at_s
        if first and (advance.tokens or advance.finished):
            request.first_at_s = now_s
        if advance.tokens:
            since_s = request.arrived_s if first else request.last_at_s
            self._observer.token_came(self.key, now_s - since_s, first=first)
            request.last_at_s = now_s
            request.tokens += advance.tokens
        if not advance.finished:
            if advance.outputs is not None:
                request.listener.piece(advance.outputs)
            return
        queue_s, compute_s = request.joined_s - request.arrived_s, now_s - request.joined_s
        done = self._statistics.of(request.band)
        done.success += 1
        done.queue_s += queue_s
        done.compute_s += compute_s
        self.times.answered(request.tokens)
        request.over = True
        totals = Totals(
            prompt_tokens=request.prompt.tokens,
            tokens=request.tokens,
            finished=advance.finished,
            queue_s=queue_s,
            first_token_s=request.first_at_s - request.arrived_s,
            compute_s=compute_s,
            beside=request.beside,
        )
        request.listener.ended(totals, advance.outputs)
        self._release(slot, now_s)

    def _release(self, slot: int, now_s: float) -> None:
        request = self._active.pop(slot)
        if slot in self._turns:
            self._turns.remove(slot)
        heapq.heappush(self._free, slot)
        self._left.append(slot)
        self._observer.sequence_ended(self.key, request, ended_s=now_s)

    def _fail(self, request: Request, error: YardError) -> None:
        if not request.over:
            request.over = True
            if request.tokens or not isinstance(error, Overloaded | BudgetExhausted):
                self._statistics.of(request.band).failure += 1
            request.listener.failed(error)

    def _tell_load(self) -> None:
        self._observer.load_changed(len(self._waiting), len(self._active))

    def _settle(self) -> None:
        if self._closed and self.quiet and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)
