"""Carries orders to hosts and the plan to the registry, each with a deadline and the fencing token."""

import grpc.aio

from modelyard.host.v1 import host_pb2, host_pb2_grpc
from modelyard.registry.v1 import registry_pb2, registry_pb2_grpc
from services.chassis.channels import call, open_channel
from services.chassis.codec import key_to
from services.chassis.object_codec import object_to
from services.chassis.telemetry import Telemetry
from services.domain.host import HostRecord
from services.domain.model import ModelKey
from services.domain.objects import Model, ModelVersion
from services.resource_manager import wire
from services.resource_manager.reconciler import Plan

ORDER_TIMEOUT_S = 5.0
"""A host answers an order at once; only one that hangs takes longer."""

DRAIN_TIMEOUT_S = 2.0
"""A host that does not take a drain by then is ended by signal."""

PUBLISH_TIMEOUT_S = 2.0
"""Covers one attempt of the registry at its store, and one more after that has moved its leader."""


class Actuator:
    """Speaks to hosts and the registry.

    A channel is opened for each order: orders are seldom, and nothing is left over for a host
    that went away.
    """

    def __init__(self, *, registry: grpc.aio.Channel, telemetry: Telemetry) -> None:
        """Publish over `registry`, which the caller closes."""
        self._registry = registry
        self._telemetry = telemetry

    async def load(
        self, host: HostRecord, version: ModelVersion, model: Model, *, decision_id: str, fencing_token: int
    ) -> None:
        """Order a version onto a host.

        Raises:
            YardError: The host refused, or could not be reached in time.
        """
        request = host_pb2.LoadModelRequest(
            model=object_to(model), version=object_to(version), decision_id=decision_id, fencing_token=fencing_token
        )
        facts = {"host": host.host_id, "model": str(version.model_key), "decision": decision_id}
        with self._telemetry.span("manager.LoadModel", kind="client", attributes=facts):
            async with open_channel(host.address) as channel:
                await call(host_pb2_grpc.ModelHostServiceStub(channel).LoadModel, request, timeout_s=ORDER_TIMEOUT_S)

    async def unload(self, host: HostRecord, key: ModelKey, *, decision_id: str, fencing_token: int) -> None:
        """Order a version off a host.

        Raises:
            YardError: The host refused, or could not be reached in time.
        """
        request = host_pb2.UnloadModelRequest(key=key_to(key), decision_id=decision_id, fencing_token=fencing_token)
        facts = {"host": host.host_id, "model": str(key), "decision": decision_id}
        with self._telemetry.span("manager.UnloadModel", kind="client", attributes=facts):
            async with open_channel(host.address) as channel:
                await call(host_pb2_grpc.ModelHostServiceStub(channel).UnloadModel, request, timeout_s=ORDER_TIMEOUT_S)

    async def drain(self, address: str, *, fencing_token: int) -> None:
        """Order a host to finish what it has and end.

        Raises:
            YardError: The host refused, or could not be reached in time.
        """
        request = host_pb2.DrainRequest(fencing_token=fencing_token)
        with self._telemetry.span("manager.Drain", kind="client", attributes={"address": address}):
            async with open_channel(address) as channel:
                await call(host_pb2_grpc.ModelHostServiceStub(channel).Drain, request, timeout_s=DRAIN_TIMEOUT_S)

    async def publish(self, plan: Plan, *, election_key: str, fencing_token: int) -> None:
        """Let the registry show the plan.

        Raises:
            YardError: The registry refused, or could not be reached in time.
        """
        request = registry_pb2.PublishPlanRequest(
            plan=wire.plan_to(plan), election_key=election_key, fencing_token=fencing_token
        )
        stub = registry_pb2_grpc.RegistryServiceStub(self._registry)
        with self._telemetry.span("manager.PublishPlan", kind="client", attributes={"revision": plan.revision}):
            await call(stub.PublishPlan, request, timeout_s=PUBLISH_TIMEOUT_S)
