"""Choosing on a real ladder: a calibrated cascade against its own models and against chance, and a budget that is held.

    python -m benchmarks.router_ladder

Three classifiers of digits on a host of a mesh, asked one row at a time. `yardctl cascade fit` calibrates the cascade
from rows that neither the fits nor the questions have. Then two tenants spend a budget each, at an even pace, one by
the cascade and one by a route that chooses. Ends with one line of JSON.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import numpy as np

from benchmarks.ladder_models import PRICES, Rows, fitted
from benchmarks.places import ROOT
from benchmarks.servers import free_base_ports
from benchmarks.subjects import apply, start_mesh
from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from modelyard.registry.v1 import objects_pb2, registry_pb2, registry_pb2_grpc
from services.chassis.channels import open_channel
from services.chassis.errors import from_rpc_error
from services.domain.clock import SystemClock
from services.domain.errors import SpendingExhausted
from yardctl.errors import CommandError

EXPLAINED: Mapping[str, str] = {
    "ladder_small_accuracy": "accuracy where the small model answers every call (1 µUSD a call)",
    "ladder_large_accuracy": "where the large one does (40 µUSD)",
    "ladder_cascade_accuracy": "of the calibrated cascade, at λ = 0.001",
    "ladder_cascade_cost": "µUSD a call that it takes",
    "ladder_cascade_saved": "share of the large model's price that it saves",
    "ladder_cascade_lost": "accuracy that it loses against the large model",
    "ladder_random_accuracy": "small first, the large one by chance, at the cascade's cost",
    "ladder_cascade_over_random": "accuracy of the cascade above that",
    "ladder_calibration_error": "expected calibration error of p on the rows asked about, the worse of two steps",
    "ladder_budget_off": "how far spent ÷ budget is from 1, of a tenant's 10,000 calls by the cascade",
    "ladder_budget_cost": "µUSD an answer took of it",
    "ladder_budget_refused": "share of those calls that were refused for want of money",
    "ladder_budget_accuracy": "accuracy of the cascade under that budget",
    "ladder_budget_over_random": "the same above small first and the large one by chance, at the same cost",
    "ladder_failed": "share of all calls that failed for another reason than money",
    "ladder_choose_off": "how far spent ÷ budget is from 1, of 2,000 calls of a tenant by `choose` (what its purse "
    "held to begin with is up to 0.04)",
    "ladder_choose_accuracy": "accuracy of `choose` under its budget",
    "ladder_choose_over_mixed": "the same above the best mix of single models by chance, at the same cost",
}
"""Figures by name."""

GOALS: Mapping[str, tuple[str, float]] = {
    "ladder_cascade_saved": (">=", 0.4),
    "ladder_cascade_lost": ("<=", 0.02),
    "ladder_cascade_over_random": (">=", 0.01),
    "ladder_calibration_error": ("<=", 0.05),
    "ladder_budget_off": ("<=", 0.02),
    "ladder_budget_refused": ("<=", 0.01),
    "ladder_budget_over_random": (">=", 0.01),
    "ladder_failed": ("<=", 0.001),
}

CALLS = 10_000
PER_S = 400.0
CHOSEN_SHARE = 0.2
"""Calls of the tenant whose route chooses, beside each of those."""
BUDGET_A_CALL = 7.0
"""Microdollars; the cascade would take more and the small model takes less."""
PERIOD_S = 40.0
"""Of the budgets: two seconds' money can be spent at once, so that the price of money leads the bucket by two steps."""
IN_FLIGHT = 128
PER_REQUEST = 64
READY_WITHIN_S = 60.0
ANSWER_S = 10.0
STEPS = ("small", "medium")
_CLOCK = SystemClock()

_ROUTES = """\
kind: Route
metadata: {{ name: ladder }}
spec:
  cascade:
    steps:
      - {{ target: {{ model: small }}, escalate: {{ output: probabilities, threshold: 0.9 }} }}
      - {{ target: {{ model: medium }}, escalate: {{ output: probabilities, threshold: 0.9 }} }}
      - {{ target: {{ model: large }} }}
---
kind: Route
metadata: {{ name: pick }}
spec:
  choose: {{ candidates: [{{ model: small }}, {{ model: medium }}, {{ model: large }}] }}
---
kind: Policy
metadata: {{ name: bounded }}
spec:
  tiers: [{{ name: all, priority_band: 4 }}]
  price: {{ cost_weight: 0.001, max_cost_weight: 0.02, step: 0.004, interval: 1s }}
---
kind: Tenant
metadata: {{ name: careful }}
spec: {{ policy: bounded, tier: all, budget: {{ amount_microusd: {careful}, period: {period}s }} }}
---
kind: Tenant
metadata: {{ name: choosing }}
spec: {{ policy: bounded, tier: all, budget: {{ amount_microusd: {choosing}, period: {period}s }} }}
"""


@dataclass(slots=True)
class Asked:
    """What came of calls."""

    right: int = 0
    answered: int = 0
    refused: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    cost: int = 0
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """Share of the answers that are right."""
        return self.right / max(1, self.answered)

    @property
    def cost_each(self) -> float:
        """Microdollars of an answer."""
        return self.cost / max(1, self.answered)


@dataclass(slots=True)
class _Router:
    """Calls of one router."""

    stub: "inference_pb2_grpc.InferenceServiceAsyncStub"
    rows: Rows
    _number: int = field(default=0)

    def request(self, name: str, rows: slice, tenant: str = "") -> inference_pb2.InferRequest:
        """Rows for a name."""
        self._number += 1
        pixels = self.rows.pixels[rows]
        request = inference_pb2.InferRequest(model_name=name, id=f"ladder-{self._number}")
        request.inputs.add(name="pixels", datatype="FP32", shape=pixels.shape)
        request.raw_input_contents.append(pixels.tobytes())
        request.route.tenant = tenant
        return request

    async def ask(self, name: str, at: int, to: Asked, tenant: str = "") -> None:
        """Ask about one row; count what comes of it."""
        request = self.request(name, slice(at, at + 1), tenant)
        request.outputs.add(name="label")
        try:
            answer = await self.stub.Infer(request, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            why = from_rpc_error(error)
            if isinstance(why, SpendingExhausted):
                to.refused += 1
            else:
                to.failed[f"{why.reason}: {why.message[:80]}"] += 1
            return
        label = int.from_bytes(answer.raw_output_contents[0], "little")
        to.answered += 1
        to.right += label == int(self.rows.labels[at])
        to.cost += answer.decision.cost_microusd

    async def all_of(self, name: str) -> tuple["np.ndarray[tuple[int], np.dtype[np.float64]]", Asked]:
        """Every row by one model, many in a request: how sure it is of each that it gets right (below 0 where not)."""
        found, to = [], Asked()
        for start in range(0, len(self.rows.labels), PER_REQUEST):
            rows = slice(start, start + PER_REQUEST)
            answer = await self.stub.Infer(self.request(name, rows), timeout=ANSWER_S)
            outputs = {each.name: at for at, each in enumerate(answer.outputs)}
            said = np.frombuffer(answer.raw_output_contents[outputs["probabilities"]], "<f4").reshape(-1, 10)
            right = said.argmax(axis=1) == self.rows.labels[rows]
            to.right, to.answered = to.right + int(right.sum()), to.answered + len(right)
            found.append(np.where(right, said.max(axis=1), -said.max(axis=1)).astype(np.float64))
        return np.concatenate(found), to

    async def paced(self, name: str, tenant: str, *, count: int, per_s: float) -> Asked:
        """Ask at an even pace, whatever the answers take; rows in turn."""
        to, room, began_s = Asked(), asyncio.Semaphore(IN_FLIGHT), _CLOCK.now_s()
        under_way: set[asyncio.Task[None]] = set()

        async def one(at: int) -> None:
            try:
                await self.ask(name, at, to, tenant)
            finally:
                room.release()

        for number in range(count):
            early_s = began_s + number / per_s - _CLOCK.now_s()
            if early_s > 0.0:
                await _CLOCK.sleep(early_s)
            await room.acquire()
            task = asyncio.ensure_future(one(number % len(self.rows.labels)))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
        to.seconds = _CLOCK.now_s() - began_s
        return to


async def figures(*, seed: int, per_s: float = PER_S, calls: int = CALLS) -> dict[str, float]:
    """Measure every figure of `EXPLAINED`; takes less than a minute.

    Args:
        seed: Of the fits.
        per_s: Calls a second of the tenant whose budget is to be held.
        calls: How many it makes.

    Raises:
        CommandError: The mesh does not come up, or refuses what it is told.
    """
    with tempfile.TemporaryDirectory(prefix="modelyard-ladder-") as held:
        folder = Path(held)
        ladder = await asyncio.to_thread(fitted, folder, seed=seed)
        routes = _ROUTES.format(
            careful=round(BUDGET_A_CALL * per_s * PERIOD_S),
            choosing=round(BUDGET_A_CALL * CHOSEN_SHARE * per_s * PERIOD_S),
            period=PERIOD_S,
        )
        (folder / "ladder.yaml").write_text(ladder.manifests + routes)
        (base_port,) = free_base_ports(1)
        mesh = await start_mesh(folder / "mesh", base_port, engine="aio", trace_ratio=0.0)
        try:
            await apply(mesh, folder / "ladder.yaml")
            for step, name in enumerate(STEPS):
                await _fit(folder, ladder.samples[name], step)
            tables = await _tables(mesh.addresses.registry)
            async with open_channel(mesh.addresses.router) as channel:
                router = _Router(inference_pb2_grpc.InferenceServiceStub(channel), ladder.asked)
                await _ready(router)
                return await _measured(router, tables, per_s=per_s, calls=calls)
        finally:
            await mesh.stop()


async def _measured(
    router: _Router, tables: Sequence[objects_pb2.Calibration], *, per_s: float, calls: int
) -> dict[str, float]:
    alone: dict[str, Asked] = {}
    errors = []
    for at, name in enumerate(PRICES):
        sure, alone[name] = await router.all_of(name)
        if at < len(tables):
            errors.append(calibration_error(tables[at], sure))
    cascade = Asked()
    for at in range(len(router.rows.labels)):
        await router.ask("ladder", at, cascade)
    count = round(calls * CHOSEN_SHARE)
    careful, choosing = await asyncio.gather(
        router.paced("ladder", "careful", count=calls, per_s=per_s),
        router.paced("pick", "choosing", count=count, per_s=per_s * CHOSEN_SHARE),
    )
    failed = cascade.failed + careful.failed + choosing.failed
    for why, times in failed.most_common(3):
        sys.stderr.write(f"{times} calls failed: {why}\n")
    accuracy = {name: each.accuracy for name, each in alone.items()}
    budgets = {"careful": BUDGET_A_CALL * per_s, "choosing": BUDGET_A_CALL * CHOSEN_SHARE * per_s}
    large = PRICES["large"]
    return {
        "ladder_small_accuracy": accuracy["small"],
        "ladder_large_accuracy": accuracy["large"],
        "ladder_cascade_accuracy": cascade.accuracy,
        "ladder_cascade_cost": cascade.cost_each,
        "ladder_cascade_saved": 1.0 - cascade.cost_each / large,
        "ladder_cascade_lost": accuracy["large"] - cascade.accuracy,
        "ladder_random_accuracy": random_escalation(accuracy, cascade.cost_each),
        "ladder_cascade_over_random": cascade.accuracy - random_escalation(accuracy, cascade.cost_each),
        "ladder_calibration_error": max(errors),
        "ladder_budget_off": abs(careful.cost / (budgets["careful"] * careful.seconds) - 1.0),
        "ladder_budget_cost": careful.cost_each,
        "ladder_budget_refused": careful.refused / calls,
        "ladder_budget_accuracy": careful.accuracy,
        "ladder_budget_over_random": careful.accuracy - random_escalation(accuracy, careful.cost_each),
        "ladder_failed": failed.total() / (calls + count),
        "ladder_choose_off": abs(choosing.cost / (budgets["choosing"] * choosing.seconds) - 1.0),
        "ladder_choose_accuracy": choosing.accuracy,
        "ladder_choose_over_mixed": choosing.accuracy - mixed(accuracy, choosing.cost_each),
    }


def random_escalation(accuracy: Mapping[str, float], cost_each: float) -> float:
    """Accuracy where the small model is always asked and the large one by chance, so often that it costs as much."""
    share = min(1.0, max(0.0, (cost_each - PRICES["small"]) / PRICES["large"]))
    return (1.0 - share) * accuracy["small"] + share * accuracy["large"]


def mixed(accuracy: Mapping[str, float], cost_each: float) -> float:
    """Accuracy of the best mix of two single models by chance that costs as much."""
    best = 0.0
    for one in PRICES:
        for other in PRICES:
            low, high = PRICES[one], PRICES[other]
            if low <= cost_each < high:
                share = (cost_each - low) / (high - low)
                best = max(best, (1.0 - share) * accuracy[one] + share * accuracy[other])
    return best


def calibration_error(
    table: objects_pb2.Calibration, signed: "np.ndarray[tuple[int], np.dtype[np.float64]]", *, bins: int = 10
) -> float:
    """Expected calibration error (Guo et al., 2017) of a table, in bins of equal width; wrong answers are below 0."""
    points = table.points
    claimed = np.interp(np.abs(signed), [each.confidence for each in points], [each.right for each in points])
    at = np.minimum(bins - 1, (claimed * bins).astype(int))
    off = [abs(float(claimed[at == one].sum()) - float((signed[at == one] > 0.0).sum())) for one in range(bins)]
    return sum(off) / len(signed)


async def _ready(router: _Router) -> None:
    """Wait until every model answers."""
    end_s = _CLOCK.now_s() + READY_WITHIN_S
    for name in PRICES:
        while True:
            try:
                await router.stub.Infer(router.request(name, slice(0, 1)), timeout=ANSWER_S)
                break
            except grpc.aio.AioRpcError as error:
                if _CLOCK.now_s() > end_s:
                    raise CommandError(f"'{name}' does not answer: {error.details()}") from None
                await _CLOCK.sleep(0.1)


async def _fit(folder: Path, samples: Sequence[tuple[float, bool]], step: int) -> None:
    """Calibrate a step of the cascade, as an operator would."""
    path = folder / f"step-{step}.csv"
    path.write_text("".join(f"{sure!r},{right:d}\n" for sure, right in samples))
    command = ("cascade", "fit", "ladder", "--step", str(step), "--samples", str(path), "--dir", str(folder / "mesh"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "yardctl", *command),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise CommandError(f"yardctl cascade fit failed: {output.decode(errors='replace').strip()}")


async def _tables(registry: str) -> list[objects_pb2.Calibration]:
    """What the route has for each step that escalates."""
    async with open_channel(registry) as channel:
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        key = objects_pb2.ObjectKey(kind="Route", name="ladder")
        answer = await stub.Get(registry_pb2.GetRequest(key=key), timeout=ANSWER_S)
    return [step.escalate.calibration for step in answer.object.route.cascade.steps[:-1]]


def main() -> None:
    """Measure, and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--per-s", type=float, default=PER_S, help="calls a second under a budget")
    parser.add_argument("--calls", type=int, default=CALLS, help="how many")
    given = parser.parse_args()
    found = asyncio.run(figures(seed=given.seed, per_s=given.per_s, calls=given.calls))
    for name, value in found.items():
        sys.stderr.write(f"{name:28} {value:8.4f}  {EXPLAINED[name]}\n")
    sys.stdout.write(json.dumps({name: round(value, 4) for name, value in found.items()}) + "\n")


if __name__ == "__main__":
    main()
