"""What objects are, in a few words each."""

import pytest
from rich.console import Console

from modelyard.registry.v1 import objects_pb2
from services.chassis.object_codec import object_to
from services.domain.objects import Metadata, Object, Policy, Tenant
from services.domain.strategies import (
    Cascade,
    CascadeStep,
    Choose,
    Combine,
    Ensemble,
    EnsembleMember,
    Fallback,
    Pipeline,
    PipelineStep,
    RouteName,
    RouteTarget,
    Shadow,
    Single,
    Split,
    SplitTarget,
    StaticTensor,
    Strategy,
)
from services.domain.tenancy import Budget, RateLimit, Tier
from tests.fakes.objects import a_model, a_pool, a_route, a_version
from yardctl import object_table
from yardctl.errors import CommandError
from yardctl.manifests import KIND_FIELDS
from yardctl.registry_commands import kind_named

A, B = RouteTarget("a"), RouteTarget("b", "1.0.0")


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        (Single(B), "single b:1.0.0"),
        (Choose((A, B)), "choose of a, b:1.0.0"),
        (Split((SplitTarget(A, 99.5), SplitTarget(B, 0.5))), "split a 99.5 %, b:1.0.0 0.5 %"),
        (Shadow(A, B, 10.0), "a, shadow b:1.0.0 10 %"),
        (Fallback((A, RouteName("r")), {"y": StaticTensor((1,))}), "fallback a, route r, a static answer"),
        (Cascade((CascadeStep(A), CascadeStep(B))), "cascade a, b:1.0.0"),
        (Ensemble((EnsembleMember(A), EnsembleMember(B)), Combine.VOTE, 1), "ensemble, vote of a, b:1.0.0"),
        (
            Pipeline((PipelineStep("one", A, {}), PipelineStep("two", RouteName("r"), {})), {}),
            "pipeline one (a), two (route r)",
        ),
    ],
)
def test_a_route_is_told_by_its_strategy(strategy: Strategy, text: str) -> None:
    message = object_to(a_route("x", strategy))

    assert object_table.summary(message) == text
    message.route.protected = True
    assert object_table.summary(message) == f"{text}, protected"


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (Policy(Metadata("p"), (Tier("late", 8), Tier("gold", 1))), "tiers gold (band 1), late (band 8)"),
        (Tenant(Metadata("t"), "standard", "gold"), "gold of standard"),
        (
            Tenant(
                Metadata("t"), "standard", "gold", rate_limit=RateLimit(2.5, 5), max_in_flight=9, budget=Budget(7, 60.0)
            ),
            "gold of standard, 2.5 calls/s, 9 at once, 7 µ$ per 60s",
        ),
        (a_pool(hosts=2), "2 hosts, CPU, 100 MiB each"),
        (a_version("m"), "identity, at least 1 ready, 0 µ$"),
    ],
)
def test_other_kinds_are_told_by_what_matters(item: Object, text: str) -> None:
    assert object_table.summary(object_to(item)) == text


def test_tenants_have_a_column_only_where_there_are_any() -> None:
    def lines(*items: objects_pb2.Object) -> list[list[str]]:
        console = Console(width=200, no_color=True)
        with console.capture() as capture:
            console.print(object_table.objects(items))
        return [line.split() for line in capture.get().splitlines()]

    shared, owned = object_to(a_model("m")), object_to(a_model("n"))
    owned.metadata.tenant = "acme"

    assert lines(shared) == [["KIND", "NAME", "VERSION", "WHAT"], ["Model", "m"]]
    assert lines(shared, owned)[0] == ["KIND", "NAME", "VERSION", "TENANT", "WHAT"]
    assert lines(shared, owned)[2] == ["Model", "n", "acme"]


def test_kinds_are_named_as_people_do() -> None:
    for text, kind in (
        ("policies", "Policy"),
        ("policy", "Policy"),
        ("Tenants", "Tenant"),
        ("model-versions", "ModelVersion"),
        ("routes", "Route"),
    ):
        assert kind_named(text) == kind
    with pytest.raises(CommandError, match=f"'pods' is no kind: use one of {', '.join(KIND_FIELDS)}"):
        kind_named("pods")
