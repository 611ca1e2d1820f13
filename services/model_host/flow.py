"""The calls of one tenant for one version, in order of their deadlines."""

from bisect import bisect_right, insort
from collections.abc import Sequence
from operator import attrgetter, is_

from services.model_host.calls import Call
from services.policy.fairness import TenantShare

_BY_DEADLINE = attrgetter("deadline_at_s")


class Flow:
    """Calls that wait; the earliest deadline goes first."""

    __slots__ = ("rows", "share", "waiting")

    def __init__(self, share: TenantShare) -> None:
        """Nothing waits."""
        self.share = share
        self.waiting: list[Call] = []
        self.rows = 0

    def add(self, call: Call) -> None:
        """Put `call` where its deadline belongs."""
        waiting = self.waiting
        if not waiting or waiting[-1].deadline_at_s <= call.deadline_at_s:
            waiting.append(call)
        else:
            insort(waiting, call, key=_BY_DEADLINE)
        self.rows += call.rows

    def discard(self, call: Call) -> bool:
        """Take `call` out; False if it does not wait."""
        for index, waiting in enumerate(self.waiting):
            if waiting is call:
                del self.waiting[index]
                self.rows -= call.rows
                return True
        return False

    def remove(self, gone: Sequence[Call]) -> None:
        """Take calls out that all wait here; mostly the first ones."""
        waiting = self.waiting
        count = len(gone)
        if not count:
            return
        if count == len(waiting):
            waiting.clear()
            self.rows = 0
            return
        self.rows -= sum(call.rows for call in gone)
        if gone[0] is waiting[0] and all(map(is_, gone, waiting)):
            del waiting[:count]
            return
        ids = {id(call) for call in gone}
        if all(id(call) in ids for call in waiting[:count]):
            del waiting[:count]
        else:
            waiting[:] = [call for call in waiting if id(call) not in ids]

    def expired(self, now_s: float) -> list[Call]:
        """Calls whose deadline has passed."""
        waiting = self.waiting
        return waiting[: bisect_right(waiting, now_s, key=_BY_DEADLINE)]

    def rows_before(self, deadline_at_s: float) -> int:
        """About how many rows are due no later than `deadline_at_s`."""
        waiting = self.waiting
        if not waiting or waiting[-1].deadline_at_s <= deadline_at_s:
            return self.rows
        return self.rows * bisect_right(waiting, deadline_at_s, key=_BY_DEADLINE) // len(waiting)
