"""The objects that a registry is filled with: models, their versions and the routes to them, in twenty shapes.

One endless sequence, the same on every run. Each object stands after those that it needs, so that every beginning of
the sequence is a state that a registry takes. Stored, an object takes 300 to 800 bytes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from modelyard.registry.v1 import objects_pb2 as pb
from modelyard.type.v1 import model_pb2, resources_pb2

TEAMS = ("search", "vision", "speech", "risk", "growth")
POOLS = ("cpu-a", "cpu-b", "cpu-large", "cpu-edge")

Spec = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one shape: what they take and give, and what runs them."""

    name: str
    task: str
    modality: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    backend: str
    architecture: str = ""
    files: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    warms_up: bool = False


FAMILIES = (
    Family("tabular", "classification", "tabular", (("x", "FP32", (-1, 30)),), (("p", "FP32", (-1, 2)),), "sklearn"),
    Family(
        "embed",
        "embedding",
        "text",
        (("input_ids", "INT64", (-1, -1)), ("attention_mask", "INT64", (-1, -1)), ("type_ids", "INT64", (-1, -1))),
        (("embedding", "FP32", (-1, 384)),),
        "onnxruntime",
        files=("tokenizer.json", "vocab.txt"),
        options=(("pooling", "mean"), ("normalize", "true"), ("threads", "2")),
    ),
    Family(
        "image",
        "classification",
        "image",
        (("pixels", "UINT8", (-1, 3, 224, 224)),),
        (("logits", "FP32", (-1, 1000)), ("label", "INT64", (-1,))),
        "torch",
        architecture="convnet",
        options=(("width", "64"), ("depth", "18")),
        warms_up=True,
    ),
    Family(
        "detect",
        "detection",
        "image",
        (("pixels", "UINT8", (1, 3, -1, -1)), ("threshold", "FP32", (1,))),
        (("boxes", "FP32", (-1, 4)), ("scores", "FP32", (-1,)), ("classes", "INT64", (-1,)), ("count", "INT64", (1,))),
        "onnxruntime",
        warms_up=True,
    ),
    Family(
        "audio",
        "transcription",
        "audio",
        (("samples", "FP32", (-1, -1)), ("rate", "INT64", (-1,))),
        (("text", "BYTES", (-1,)), ("confidence", "FP32", (-1,))),
        "torch",
        architecture="transducer",
        files=("lexicon.txt",),
        options=(("beam", "8"),),
    ),
    Family("echo", "identity", "tabular", (("x", "UINT8", (-1, -1)),), (("x", "UINT8", (-1, -1)),), "identity"),
)

VERSIONS = (1, 2, 3)
"""Versions of a model, in turn."""


def first(count: int) -> list[pb.Object]:
    """The first `count` objects: pools, then models with what belongs to them."""
    return list(islice(sequence(), count))


def sequence() -> Iterator[pb.Object]:
    """Every object, without end."""
    for index, name in enumerate(POOLS):
        yield _pool(name, index)
    number = 0
    while True:
        family = FAMILIES[number % len(FAMILIES)]
        versions = [f"{1 + minor // 2}.{minor}.0" for minor in range(VERSIONS[number % len(VERSIONS)])]
        yield _model(family, number)
        for version in versions:
            yield _version(family, number, version)
        yield from _routes(number, versions)
        number += 1


def updated(item: pb.Object, build: int) -> pb.Object:
    """The object as it is changed in the life of a mesh: a text, a time, or an annotation; another one each time."""
    changed = pb.Object()
    changed.CopyFrom(item)
    match item.WhichOneof("spec"):
        case "model":
            changed.model.description += f", build {build}"
        case "route":
            changed.route.default_timeout.FromMilliseconds(500 + build)
        case _:
            changed.metadata.annotations["build"] = f"build-{build}"
    return changed


def key_of(item: pb.Object) -> pb.ObjectKey:
    """The object's key."""
    kind = {"model": "Model", "model_version": "ModelVersion", "route": "Route", "pool": "Pool"}[
        item.WhichOneof("spec") or "pool"
    ]
    return pb.ObjectKey(kind=kind, name=item.metadata.name, version=item.model_version.version)


def a_route(name: str, model: str) -> pb.Object:
    """A small route to any version of a model."""
    single = pb.Single(target=pb.RouteTarget(model=model))
    return pb.Object(metadata=pb.Metadata(name=name), route=pb.RouteSpec(single=single, max_attempts=3))


def name_of(number: int) -> str:
    """The name of the model with this number."""
    return f"{FAMILIES[number % len(FAMILIES)].name}-{TEAMS[number % len(TEAMS)]}-{number:06}"


def _metadata(name: str, number: int) -> pb.Metadata:
    team = TEAMS[number % len(TEAMS)]
    return pb.Metadata(
        name=name,
        labels={"team": team, "stage": ("dev", "staging", "production")[number % 3]},
        annotations={
            "owner": f"{team}-models@example.org",
            "cost-centre": f"cc-{4000 + number % 97}",
            "runbook": f"https://wiki.example.org/{team}/runbooks/{name}",
        },
    )


def _pool(name: str, index: int) -> pb.Object:
    spec = pb.PoolSpec(
        description=f"Hosts of the kind {name}",
        device_kind=resources_pb2.DEVICE_KIND_CPU,
        zone=f"zone-{index % 2}",
        memory_bytes=(8 << index) << 30,
        min_hosts=0,
        max_hosts=4,
        trusts_artifacts=True,
    )
    return pb.Object(metadata=_metadata(name, index), pool=spec)


def _specs(specs: tuple[Spec, ...]) -> list[model_pb2.TensorSpec]:
    return [model_pb2.TensorSpec(name=name, datatype=datatype, shape=shape) for name, datatype, shape in specs]


def _model(family: Family, number: int) -> pb.Object:
    spec = pb.ModelSpec(
        description=f"{family.task.capitalize()} on {family.modality} for the {TEAMS[number % len(TEAMS)]} team, "
        f"trained on what came in up to week {number % 52}",
        task=family.task,
        modality=family.modality,
        inputs=_specs(family.inputs),
        outputs=_specs(family.outputs),
        owner=f"{TEAMS[number % len(TEAMS)]}-models",
    )
    spec.latency_slo.FromMilliseconds(50 + number % 200)
    return pb.Object(metadata=_metadata(name_of(number), number), model=spec)


def _artifact(number: int, file: str) -> pb.Artifact:
    digest = hashlib.sha256(f"{number}/{file}".encode()).hexdigest()
    return pb.Artifact(uri=f"file:/srv/models/{name_of(number)}/{file}", sha256=digest)


def _version(family: Family, number: int, version: str) -> pb.Object:
    spec = pb.ModelVersionSpec(
        version=version,
        backend=pb.Backend(name=family.backend, architecture=family.architecture, options=dict(family.options)),
        files={file: _artifact(number, f"{version}/{file}") for file in family.files},
        resources=resources_pb2.ResourceNeed(memory_bytes=(64 + number % 512) << 20),
        batching=pb.Batching(max_batch_size=1 << number % 6),
        pool=POOLS[number % len(POOLS)] if number % 2 else "",
        cost_microusd=10 + number % 90,
        quality=0.5 + number % 50 / 100,
        quality_metric="accuracy on the held-out set",
        lineage=pb.Lineage(
            code_commit=hashlib.sha256(f"commit {number}".encode()).hexdigest()[:40],
            data=f"warehouse/{family.modality}/2026-{1 + number % 12:02}",
            license="proprietary",
        ),
    )
    spec.service_time.FromMilliseconds(2 + number % 40)
    if family.backend != "identity":
        spec.artifact.CopyFrom(_artifact(number, f"{version}/weights"))
    if family.warms_up:
        for batch in (1, 8):
            sample = spec.warmup.add()
            for name, _, shape in family.inputs:
                sample.inputs[name].shape.extend(batch if size < 0 else size for size in shape)
    return pb.Object(metadata=_metadata(name_of(number), number), model_version=spec)


def _routes(number: int, versions: list[str]) -> Iterator[pb.Object]:
    """Two routes to every second model: pinned, any version, a choice of two or of four models of one family."""
    if number % 2:
        return
    model = name_of(number)
    family = len(FAMILIES)
    peers = [name_of(number - family * back) for back in range(4) if number >= family * back]
    pinned = pb.Single(target=pb.RouteTarget(model=model, version=versions[-1]))
    anyone = pb.Single(target=pb.RouteTarget(model=model))
    choice = pb.Choose(
        candidates=[pb.RouteTarget(model=peer) for peer in peers[: 2 + 2 * (number % 4 == 0)]],
        quality_weight=2.0,
        cost_weight=0.01,
        latency_weight=1.0,
    )
    specs = (
        ("stable", pb.RouteSpec(single=pinned, max_attempts=2)),
        ("any", pb.RouteSpec(single=anyone)) if number % 4 else ("best", pb.RouteSpec(choose=choice)),
    )
    for suffix, spec in specs:
        spec.description = f"What the {TEAMS[number % len(TEAMS)]} team's services call for {model}, {suffix}"
        spec.default_timeout.FromMilliseconds(500 + number % 1500)
        yield pb.Object(metadata=_metadata(f"{model}-{suffix}", number), route=spec)
