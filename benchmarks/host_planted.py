"""A model host with its defence taken out, to see what the defence is worth; for this benchmark alone.

    python -m benchmarks.host_planted FAULT[=VALUE] [flags of a model host]

The product has no such switches: parts of it are replaced here, in this process, before it starts.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TextIO

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # as services.model_host does
    os.environ.setdefault(name, "1")

from services.chassis.process import main as process_main  # noqa: E402
from services.domain.service_class import ORDINARY, ServiceClass  # noqa: E402
from services.model_host import lane as lanes  # noqa: E402
from services.model_host.app import start  # noqa: E402
from services.model_host.calls import Call, Step  # noqa: E402
from services.model_host.config import Config  # noqa: E402
from services.model_host.entrance import Entrance  # noqa: E402
from services.model_host.flow import Flow  # noqa: E402
from services.model_host.lane import Lane  # noqa: E402
from services.policy.batch_times import BatchTimes  # noqa: E402
from services.policy.batching import BatchPlan, Waiting  # noqa: E402
from services.policy.fairness import Shares, TenantShare  # noqa: E402


def unguarded(_: str = "") -> None:
    """Keep the order, but let everything in and drop nothing, however late it is."""
    setattr(Entrance, "admit", _let_in)  # noqa: B010 - mypy refuses an assignment to a method
    setattr(lanes, "form_batch", _take_first)  # noqa: B010
    setattr(Lane, "take_expired", lambda lane, now_s: [])  # noqa: B010


def fifo(_: str = "") -> None:
    """First come, first served: as `unguarded`, and all calls are of one tenant, in the order in which they came."""
    unguarded()
    of = Shares.of
    setattr(Shares, "of", lambda shares, service_class: _same(of, shares, service_class))  # noqa: B010
    setattr(Flow, "add", _append)  # noqa: B010


def predictions(file: str) -> None:
    """Change nothing, but write into a file what was predicted of every batch beside what it took."""
    log = Path(file).open("w", buffering=1)  # noqa: SIM115 - for as long as the process lasts
    learn = Lane.learn

    def noted(lane: Lane, step: Step) -> None:
        _note(log, lane, step)
        learn(lane, step)

    setattr(Lane, "learn", noted)  # noqa: B010


FAULTS: dict[str, Callable[[str], None]] = {"fifo": fifo, "unguarded": unguarded, "predictions": predictions}


def _let_in(
    entrance: Entrance,
    lane: Lane,
    call: Call,
    *,
    now_s: float,
    running_s: float,
    busy: Iterable[Lane],
    queued_bytes: int,
) -> None:
    """In place of `Entrance.admit`: the batch cap still follows the tightest deadlines."""
    del entrance, running_s, busy, queued_bytes
    lane.note_budget(call.deadline_at_s - now_s)


def _take_first(waiting: Sequence[Waiting], *, now_s: float, cap: int, times: BatchTimes) -> BatchPlan:
    """In place of `form_batch`: the first calls that fit, late or not."""
    del now_s
    rows, take = 0, 0
    for call in waiting:
        if take and rows + call.rows > cap:
            break
        rows += call.rows
        take += 1
    return BatchPlan(tuple(range(take)), (), times.predict(rows))


def _same(
    of: Callable[[Shares, ServiceClass], TenantShare], shares: Shares, service_class: ServiceClass
) -> TenantShare:
    del service_class
    return of(shares, ORDINARY)


def _append(flow: Flow, call: Call) -> None:
    flow.waiting.append(call)
    flow.rows += call.rows


def _note(log: TextIO, lane: Lane, step: Step) -> None:
    """What the host knew before the batch: a batch runs alone, so that nothing was learned since it began."""
    first = step.calls[0]
    rows = sum(call.rows for call in step.calls)
    base_s, per_item_s = lane.times.overall.line()
    predicted_s = lane.times.of_size(first.elements).predict(rows)
    log.write(json.dumps([str(lane.key.model), rows, predicted_s, base_s + per_item_s * rows, step.compute_s]) + "\n")


def main() -> int:
    """Take out what is asked, and be a model host."""
    fault, _, value = sys.argv.pop(1).partition("=")
    FAULTS[fault](value)
    return process_main("model_host", Config, start)


if __name__ == "__main__":
    sys.exit(main())
