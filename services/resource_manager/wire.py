"""Plans and decisions to and from protobuf. Objects, hosts and keys are `chassis.codec`'s."""

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from modelyard.registry.v1 import registry_pb2
from modelyard.resource.v1 import resource_pb2
from services.chassis.codec import key_to
from services.domain.errors import Fault, InvalidRequest
from services.resource_manager.decisions import KEPT
from services.resource_manager.reconciler import Action, Decision, Plan

DEFAULT_LIMIT = 100
"""Decisions in an answer whose request sets no limit."""

_ACTIONS = {
    Action.LOAD: resource_pb2.PLACEMENT_ACTION_LOAD,
    Action.UNLOAD: resource_pb2.PLACEMENT_ACTION_UNLOAD,
    Action.START_HOST: resource_pb2.PLACEMENT_ACTION_START_HOST,
    Action.STOP_HOST: resource_pb2.PLACEMENT_ACTION_STOP_HOST,
}


def plan_to(plan: Plan) -> registry_pb2.Plan:
    """A plan as the registry publishes it."""
    return registry_pb2.Plan(
        revision=plan.revision,
        leader_id=plan.leader_id,
        time=_timestamp(plan.wall_s),
        placements=[
            registry_pb2.Placement(key=key_to(placed.key), host_id=placed.host_id) for placed in plan.placements
        ],
        unplaced=[
            registry_pb2.Unplaced(key=key_to(lacking.key), missing=lacking.missing, reason=lacking.reason)
            for lacking in plan.unplaced
        ],
    )


def decisions_to(entries: Iterable[tuple[Decision, str]]) -> resource_pb2.ListDecisionsResponse:
    """Decisions with their outcomes, in the order given."""
    return resource_pb2.ListDecisionsResponse(
        decisions=[
            resource_pb2.PlacementDecision(
                decision_id=decision.decision_id,
                time=_timestamp(decision.wall_s),
                action=_ACTIONS[decision.action],
                key=None if decision.key is None else key_to(decision.key),
                host_id=decision.host_id,
                reason=decision.reason,
                revision=decision.revision,
                outcome=outcome,
            )
            for decision, outcome in entries
        ]
    )


def limit_from(request: resource_pb2.ListDecisionsRequest) -> int:
    """How many decisions are asked for.

    Raises:
        InvalidRequest: A negative number.
    """
    if request.limit < 0:
        raise InvalidRequest.of([Fault("limit", f"{request.limit} must not be negative")])
    return min(request.limit or DEFAULT_LIMIT, KEPT)


def _timestamp(wall_s: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(wall_s * 1e9))
    return stamp
