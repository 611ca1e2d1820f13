"""Keeps what was decided and how it went: in memory for callers, as log lines, and as counts."""

from collections import OrderedDict

from services.chassis.instruments import MANAGER_ACTIONS, MANAGER_RECONCILE_SECONDS, MANAGER_UNPLACED
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.model import ModelKey
from services.resource_manager.reconciler import Action, Decision, Plan

KEPT = 1_000
"""Decisions kept; older ones are in the log only."""


class DecisionJournal:
    """The decisions of this replica since it started."""

    def __init__(self, clock: Clock) -> None:
        """Keep none yet."""
        self._clock = clock
        self._kept: OrderedDict[str, tuple[Decision, str]] = OrderedDict()
        self._count = 0

    def open(
        self, action: Action, *, key: ModelKey | None, host_id: str, reason: str, revision: int, fencing_token: int
    ) -> str:
        """Keep a decision that is about to be carried out; its id is unique over all leaders."""
        self._count += 1
        decision = Decision(
            f"{fencing_token}-{self._count}", self._clock.wall_s(), action, key, host_id, reason, revision
        )
        self._kept[decision.decision_id] = (decision, "")
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        logger().info("decided", **_facts(decision), reason=reason, revision=revision)
        return decision.decision_id

    def close(self, decision_id: str, outcome: str) -> None:
        """Say how a decision went. One that is kept no more is ignored."""
        entry = self._kept.get(decision_id)
        if entry is None:
            return
        decision = entry[0]
        self._kept[decision_id] = (decision, outcome)
        well = outcome == "OK"
        MANAGER_ACTIONS.labels(decision.action.value.lower(), "ok" if well else "failed").inc()
        write = logger().info if well else logger().warning
        write("carried out" if well else "not carried out", **_facts(decision), outcome=outcome)

    def note(self, message: str, **facts: str | int | float) -> None:
        """Write down something for people."""
        logger().warning(message, **facts)

    def reconciled(self, plan: Plan, duration_s: float) -> None:
        """Count one reconciliation."""
        MANAGER_RECONCILE_SECONDS.observe(duration_s)
        MANAGER_UNPLACED.set(sum(unplaced.missing for unplaced in plan.unplaced))

    def recent(self, limit: int) -> list[tuple[Decision, str]]:
        """The last `limit` decisions with their outcomes, newest first."""
        return [entry for entry, _ in zip(reversed(self._kept.values()), range(limit), strict=False)]


def _facts(decision: Decision) -> dict[str, str]:
    facts = {"decision": decision.decision_id, "action": decision.action.value, "host": decision.host_id}
    return facts if decision.key is None else {**facts, "key": str(decision.key)}
