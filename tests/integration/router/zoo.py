"""What the router's integration tests apply, and requests for it."""

import struct
from dataclasses import replace

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.model import TensorSpec
from services.domain.objects import (
    Backend,
    Cache,
    Choose,
    Metadata,
    Model,
    ModelVersion,
    Object,
    Route,
    RouteTarget,
    Single,
)
from services.domain.strategies import (
    Cascade,
    CascadeStep,
    Combine,
    Ensemble,
    EnsembleMember,
    Escalation,
    Fallback,
    Pipeline,
    PipelineStep,
    RouteName,
    Shadow,
    Split,
    SplitTarget,
    StaticTensor,
    TensorSource,
)
from tests.support.services import Bench, eventually

FLOAT = struct.Struct("<f")


def a_model(name: str, datatype: str = "FP32", width: int = 4) -> Model:
    """A model that answers its input `x` as `y`."""
    return Model(Metadata(name), (TensorSpec("x", datatype, (-1, width)),), (TensorSpec("y", datatype, (-1, width)),))


def a_version(
    model: str,
    version: str = "1.0.0",
    *,
    quality: float | None = None,
    cost: int = 0,
    batch: int = 8,
    base_ms: float = 0.0,
) -> ModelVersion:
    """A version that takes `base_ms` for a batch."""
    return ModelVersion(
        Metadata(model),
        version,
        Backend("identity", options={"base_ms": str(base_ms)}),
        max_batch_size=batch,
        min_replicas=1,
        memory_bytes=1 << 20,
        quality=quality,
        cost_microusd=cost,
        service_time_s=0.001,
    )


ECHO, TEXT, SLOW, HELD, LATE, BUSY, SMALL, LARGE, WIDE, NOWHERE, SURE = (
    a_model("echo"),
    a_model("text", "BYTES", 2),
    a_model("slow"),
    a_model("held"),
    a_model("late"),
    a_model("busy"),
    a_model("small"),
    a_model("large"),
    replace(a_model("wide"), inputs=(TensorSpec("x", "FP32", (-1, -1)),), outputs=(TensorSpec("y", "FP32", (-1, -1)),)),
    a_model("nowhere"),
    replace(a_model("sure"), deterministic=True),
)
VERSIONS = {
    "echo": (a_version("echo", "1.0.0"), a_version("echo", "1.1.0")),
    "text": (a_version("text"),),
    "slow": (a_version("slow", base_ms=200.0, batch=1),),
    "held": (a_version("held", base_ms=200.0, batch=1),),
    "late": (a_version("late", base_ms=1000.0, batch=1),),
    "busy": (a_version("busy", base_ms=5.0),),
    "small": (a_version("small", quality=0.80, cost=10),),
    "large": (a_version("large", quality=0.92, cost=60),),
    "wide": (a_version("wide"),),
    "nowhere": (a_version("nowhere"),),
    "sure": (a_version("sure", base_ms=100.0, batch=1, cost=5),),
}
MODELS = (ECHO, TEXT, SLOW, HELD, LATE, BUSY, SMALL, LARGE, WIDE, NOWHERE, SURE)
ROUTES: tuple[Object, ...] = (
    Route(Metadata("embed"), Choose((RouteTarget("small"), RouteTarget("large")))),
    Route(Metadata("kept"), Single(RouteTarget("sure")), cache=Cache(ttl_s=600.0)),
    Route(Metadata("quick"), Single(RouteTarget("echo")), default_timeout_s=2.0, max_timeout_s=4.0),
    Route(
        Metadata("canary"),
        Split((SplitTarget(RouteTarget("echo", "1.0.0"), 90.0), SplitTarget(RouteTarget("echo", "1.1.0"), 10.0))),
    ),
    Route(Metadata("always"), Fallback((RouteTarget("nowhere"), RouteName("quick")))),
    Route(
        Metadata("zeros"),
        Fallback((RouteTarget("nowhere"),), {"y": StaticTensor((1, 4), FLOAT.pack(0.5) * 4)}),
    ),
    Route(Metadata("shadowed"), Shadow(RouteTarget("echo"), RouteTarget("small"))),
    Route(Metadata("shaded"), Shadow(RouteTarget("echo"), RouteTarget("held"), max_in_flight=2)),
    Route(
        Metadata("graph"),
        Pipeline(
            (
                PipelineStep("one", RouteName("quick"), {"x": TensorSource("x")}),
                PipelineStep("two", RouteName("canary"), {"x": TensorSource("y", "one")}),
                PipelineStep("beside", RouteName("always"), {"x": TensorSource("x")}),
            ),
            {"y": TensorSource("y", "two"), "z": TensorSource("y", "beside")},
        ),
        inputs=ECHO.inputs,
        outputs=(*ECHO.outputs, replace(ECHO.outputs[0], name="z")),
    ),
    Route(
        Metadata("deep"),
        Pipeline(
            (
                PipelineStep("one", RouteTarget("wide"), {"x": TensorSource("x")}),
                PipelineStep("two", RouteTarget("wide"), {"x": TensorSource("y", "one")}),
            ),
            {"y": TensorSource("y", "two")},
        ),
        inputs=WIDE.inputs,
        outputs=WIDE.outputs,
    ),
    Route(
        Metadata("council"),
        Ensemble((EnsembleMember(RouteTarget("small")), EnsembleMember(RouteTarget("large"))), Combine.MEAN, 2),
    ),
    *(
        Route(
            Metadata(route),
            Ensemble(
                tuple(EnsembleMember(RouteTarget(name), weight) for name, weight in (("echo", 1.0), (slow, 3.0))),
                Combine.WEIGHTED,
                1,
            ),
        )
        for route, slow in (("hasty", "held"), ("rash", "late"))
    ),
    Route(
        Metadata("frugal"),
        Cascade((CascadeStep(RouteTarget("small"), Escalation("y", 2.5)), CascadeStep(RouteTarget("large")))),
    ),
    Route(
        Metadata("unsure"),
        Cascade((CascadeStep(RouteTarget("small"), Escalation("y", 9.0)), CascadeStep(RouteTarget("nowhere")))),
    ),
)


async def fill(bench: Bench) -> None:
    """Apply everything, and load everything but `nowhere` on every host."""
    await bench.apply(*MODELS, *(version for versions in VERSIONS.values() for version in versions), *ROUTES)
    loaded = [model for model in MODELS if model is not NOWHERE]
    for host_id in bench.hosts:
        for model in loaded:
            for version in VERSIONS[model.metadata.name]:
                await bench.load(host_id, model, version)
    wanted = sum(len(VERSIONS[model.metadata.name]) for model in loaded)

    async def ready() -> bool:
        hosts = await bench.listed()
        return len(hosts) == len(bench.hosts) and all(
            sum(hosted.state == 2 for hosted in host.models) == wanted for host in hosts
        )

    await eventually(ready, "every version on every host")


def typed(name: str = "echo", *, rows: int = 1) -> pb.InferRequest:
    """A request with typed contents."""
    request = pb.InferRequest(model_name=name, id="mine")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    tensor.contents.fp32_contents.extend(float(number) for number in range(4 * rows))
    return request


def raw(name: str = "echo", *, rows: int = 1) -> pb.InferRequest:
    """The same with raw contents."""
    request = typed(name, rows=rows)
    contents = request.inputs[0].contents.fp32_contents
    request.raw_input_contents.append(b"".join(FLOAT.pack(value) for value in contents))
    request.inputs[0].ClearField("contents")
    return request
