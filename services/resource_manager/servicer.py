"""The RPCs of `modelyard.resource.v1.ResourceManagerService`; every replica answers them."""

from typing import Protocol

import grpc.aio

from modelyard.resource.v1 import resource_pb2 as pb
from services.resource_manager import wire
from services.resource_manager.decisions import DecisionJournal
from services.resource_manager.reconciler import Authority, Plan

PlanContext = grpc.aio.ServicerContext[pb.GetPlanRequest, pb.GetPlanResponse]
DecisionsContext = grpc.aio.ServicerContext[pb.ListDecisionsRequest, pb.ListDecisionsResponse]


class Standpoint(Protocol):
    """What this replica is working from, and as what."""

    @property
    def authority(self) -> Authority | None:
        """Its term of leadership, if it leads."""
        ...

    @property
    def leader_id(self) -> str:
        """Who leads, as far as it knows."""
        ...

    @property
    def plan(self) -> Plan | None:
        """Its plan; None before the first reconciliation."""
        ...


class ResourceManagerServicer:
    """Answers from memory."""

    def __init__(self, *, standpoint: Standpoint, journal: DecisionJournal) -> None:
        """Answer from these."""
        self._standpoint = standpoint
        self._journal = journal

    async def GetPlan(self, request: pb.GetPlanRequest, context: PlanContext) -> pb.GetPlanResponse:
        """The plan, and who leads."""
        del request, context
        authority, plan = self._standpoint.authority, self._standpoint.plan
        return pb.GetPlanResponse(
            plan=None if plan is None else wire.plan_to(plan),
            leading=authority is not None,
            fencing_token=0 if authority is None else authority.fencing_token,
            leader_id=self._standpoint.leader_id,
        )

    async def ListDecisions(
        self, request: pb.ListDecisionsRequest, context: DecisionsContext
    ) -> pb.ListDecisionsResponse:
        """What this replica has done, newest first."""
        del context
        return wire.decisions_to(self._journal.recent(wire.limit_from(request)))
