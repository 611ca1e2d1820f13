"""What is found by looking at a change's reach is what a look at the whole state would find."""

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from services.domain.errors import Fault
from services.domain.host import DeviceKind
from services.domain.model import TensorSpec
from services.domain.objects import (
    Choose,
    Metadata,
    Model,
    ModelVersion,
    Object,
    ObjectKey,
    Policy,
    Pool,
    Route,
    RouteTarget,
    Single,
    Tenant,
)
from services.domain.strategies import Fallback, RouteName, Strategy
from services.domain.tenancy import Quotas, Tier
from services.domain.validation import validate
from services.policy.change_reach import Reach
from tests.fakes.objects import a_model, a_pool, a_version
from tests.unit.policy.test_change_check import users_in

NAMES = [f"n{number}" for number in range(5)]
TENANTS = ["", "", "", "t0", "t1"]

State = Mapping[ObjectKey, Object]


def an_object(rng: random.Random) -> Object:
    name, tenant = rng.choice(NAMES), rng.choice(TENANTS)
    metadata = Metadata(name, {"l": str(rng.randrange(3))}, tenant=tenant)
    match rng.randrange(8):
        case 0:
            spec = TensorSpec("x", rng.choice(["FP32", "INT64"]), (-1, 4))
            return replace(a_model(name), metadata=metadata, inputs=(spec,))
        case 1 | 2:
            version = a_version(name, rng.choice(["1.0.0", "2.0.0"]), replicas=rng.randrange(3))
            return replace(
                version,
                metadata=metadata,
                pool=rng.choice(["", *NAMES[:2]]),
                device_kind=rng.choice([None, DeviceKind.CPU]),
            )
        case 3:
            kind = rng.choice([DeviceKind.CPU, DeviceKind.CUDA])
            return replace(a_pool(rng.choice(NAMES[:2])), device_kind=kind)
        case 4:
            return Policy(Metadata(rng.choice(["p0", "p1"])), (Tier(rng.choice(["gold", "silver"]), 1),))
        case 5:
            quotas = Quotas(max_models=rng.randrange(3), max_routes=rng.randrange(3), max_replicas=rng.randrange(6))
            return Tenant(Metadata(rng.choice(TENANTS[3:])), rng.choice(["p0", "p1"]), "gold", quotas=quotas)
        case _:
            return a_route(rng, metadata)


def a_change(rng: random.Random, before: State) -> Object:
    """An object, or a model that takes something else now."""
    models = [item for item in before.values() if isinstance(item, Model)]
    if not models or rng.random() < 0.5:
        return an_object(rng)
    model = rng.choice(models)
    (spec,) = model.inputs
    return replace(model, inputs=(replace(spec, datatype="INT64" if spec.datatype == "FP32" else "FP32"),))


def a_route(rng: random.Random, metadata: Metadata) -> Route:
    def target() -> RouteTarget:
        return RouteTarget(rng.choice(NAMES), rng.choice(["", "1.0.0"]))

    strategies: list[Strategy] = [
        Single(target()),
        Choose((target(), target())),
        Fallback((RouteName(rng.choice(NAMES)), target())),
        Fallback((RouteName(rng.choice(NAMES)), RouteName(rng.choice(NAMES)))),
    ]
    return Route(metadata, rng.choice(strategies), policy=rng.choice(["", "p0"]))


def without_circles(state: State) -> State:
    """No state that was ever let in has any, and what else is said of one depends on where it was found first."""
    circles = [
        key
        for key, faults in validate(state, ()).items()
        if any("lead back to themselves" in fault.message for fault in faults)
    ]
    return without_circles({k: item for k, item in state.items() if k not in circles}) if circles else state


def new_faults(before: State, after: State) -> set[tuple[ObjectKey, Fault]]:
    known = {(key, fault) for key, faults in validate(before, ()).items() for fault in faults}
    found = {(key, fault) for key, faults in validate(after, ()).items() for fault in faults}
    # A circle is told from where it was found first, and that is a matter of order.
    return {
        (key, Fault(fault.path, "a circle") if "lead back to themselves" in fault.message else fault)
        for key, fault in found - known
    }


@pytest.mark.parametrize("seed", range(200))
def test_any_change_is_judged_as_by_a_look_at_everything(seed: int) -> None:
    rng = random.Random(seed)
    before = without_circles({item.key: item for item in (an_object(rng) for _ in range(rng.choice([5, 20, 60])))})
    changes: dict[ObjectKey, Object | None] = {
        item.key: item for item in (a_change(rng, before) for _ in range(rng.randrange(4)))
    }
    changes.update((key, None) for key in rng.sample(sorted(before), min(len(before), rng.randrange(3))))
    after = {key: item for key, item in {**before, **changes}.items() if item is not None}

    reach = Reach(before, changes, users_in(before))

    assert dict(reach.after) == after
    part_before, part_after = reach.part(before), reach.part(reach.after)
    found = {each for each in new_faults(part_before, part_after) if each[0] in reach.judged}
    assert found == new_faults(before, after)


def test_a_change_that_nobody_sees_reaches_nobody() -> None:
    model, version = a_model("m"), a_version("m")
    route = Route(Metadata("r"), Single(RouteTarget("m", "1.0.0")))
    before: dict[ObjectKey, Object] = {item.key: item for item in (model, version, route)}
    unseen: tuple[Object, ...] = (replace(model, description="other"), replace(version, min_replicas=7))

    reach = Reach(before, {item.key: item for item in unseen}, users_in(before))

    assert list(reach.judged) == [model.key, version.key]


def test_a_change_among_many_looks_at_few() -> None:
    many: list[Object] = [a_model(f"m{number}") for number in range(500)]
    many += [a_version(f"m{number}", pool="cpu") for number in range(500)]
    before: dict[ObjectKey, Object] = {item.key: item for item in [a_pool(), *many]}
    new: tuple[Model | ModelVersion, ...] = (a_model("new"), a_version("new", pool="cpu"), a_version("m7", "2.0.0"))

    reach = Reach(before, {item.key: item for item in new}, users_in(before))

    assert sorted(map(str, reach.part(reach.after))) == [
        "Model/m7",
        "Model/new",
        "ModelVersion/m7/2.0.0",
        "ModelVersion/new/1.0.0",
        "Pool/cpu",
    ]


def test_a_pool_that_changes_its_devices_reaches_every_version_in_it() -> None:
    versions = [a_version("m", f"{number}.0.0", pool="cpu") for number in range(5)]
    objects: list[Object] = [a_pool(), a_model("m"), *versions]
    before = {item.key: item for item in objects}
    cuda = Pool(Metadata("cpu"), DeviceKind.CUDA, 1, 1, 1)

    reach = Reach(before, {cuda.key: cuda}, users_in(before))

    assert set(reach.judged) == {cuda.key, *(version.key for version in versions)}
