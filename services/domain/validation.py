"""What makes a set of objects valid.

Returns every fault, not the first. Fault paths follow the protobuf message, such as `model_version.artifact.sha256`.
Here stand the whole and the kinds Model, ModelVersion and Pool; Routes are in `route_validation`, Policies and Tenants
in `tenancy_validation`, Templates in `template_validation`, and what objects refer to in `cross_references`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from services.domain.artifact_uri import BadUri, parse_uri
from services.domain.cross_references import reference_faults
from services.domain.errors import Fault
from services.domain.model import MAX_RANK
from services.domain.objects import (
    Artifact,
    Backend,
    Generation,
    Lineage,
    Metadata,
    Model,
    ModelVersion,
    Object,
    ObjectKey,
    Policy,
    Pool,
    Route,
    SegmentQuality,
    SmokeTest,
    Template,
    Tenant,
)
from services.domain.route_validation import route_faults
from services.domain.schemas import tensor_spec_faults
from services.domain.semver import is_semver
from services.domain.template_validation import template_faults
from services.domain.tenancy_validation import policy_faults, tenant_faults
from services.domain.texts import (
    MAX_NAME_LENGTH,
    annotation_faults,
    label_faults,
    line_faults,
    name_faults,
    note_faults,
    shown,
    too_many,
)

BACKENDS = ("identity", "onnxruntime", "plugin", "remote", "sklearn", "torch")

MAX_FILES = 64
"""Most further files of one version."""

MAX_OPTIONS = 256
"""Most settings of a backend."""

MAX_URI_LENGTH = 4096
MAX_DEPENDENCIES = 256
MAX_SEGMENTS = 256
MAX_FAILURE_MODES = 64
MAX_FAILURE_LENGTH = 1024
MAX_PADDINGS = 16
MAX_SEQUENCES = 1024
MAX_TOKENS = 1 << 24
MAX_WAITING = 1 << 16

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def validate(objects: Mapping[ObjectKey, Object], changed: Iterable[ObjectKey]) -> dict[ObjectKey, list[Fault]]:
    """Check a whole state.

    Args:
        objects: Every object of the state, after the change.
        changed: The keys whose own fields are checked. References are checked for all
            objects, since a deletion can break one that did not change.

    Returns:
        Faults by the object they are in; empty if the state is valid.
    """
    faults: dict[ObjectKey, list[Fault]] = {}
    for key in changed:
        item = objects.get(key)
        if item is not None and (own := object_faults(item)):
            faults.setdefault(key, []).extend(own)
    for key, broken in reference_faults(objects).items():
        faults.setdefault(key, []).extend(broken)
    return faults


def object_faults(item: Object) -> list[Fault]:
    """Everything wrong with one object by itself."""
    faults = metadata_faults(item.metadata)
    match item:
        case Model():
            faults += _model_faults(item)
        case ModelVersion():
            faults += _version_faults(item)
        case Route():
            faults += route_faults(item)
        case Pool():
            faults += _pool_faults(item)
        case Policy():
            faults += policy_faults(item)
        case Tenant():
            faults += tenant_faults(item)
        case Template():
            faults += template_faults(item)
    return faults


def metadata_faults(metadata: Metadata) -> list[Fault]:
    """Everything wrong with what every object has."""
    return [
        *name_faults(metadata.name, "metadata.name"),
        *label_faults(metadata.labels, "metadata.labels"),
        *annotation_faults(metadata.annotations, "metadata.annotations"),
        *(name_faults(metadata.tenant, "metadata.tenant") if metadata.tenant else ()),
    ]


def _model_faults(model: Model) -> list[Fault]:
    faults = tensor_spec_faults(model.inputs, "model.inputs") + tensor_spec_faults(model.outputs, "model.outputs")
    faults += note_faults(model.description, "model.description")
    for field, text in (("task", model.task), ("modality", model.modality), ("owner", model.owner)):
        faults += line_faults(text, f"model.{field}")
    if model.latency_slo_s is not None and model.latency_slo_s <= 0:
        faults.append(Fault("model.latency_slo", f"{model.latency_slo_s} s must be positive"))
    if model.availability_slo is not None and not 0.0 < model.availability_slo < 1.0:
        faults.append(Fault("model.availability_slo", f"{model.availability_slo} must be in (0, 1), such as 0.999"))
    return faults


def _artifact_faults(artifact: Artifact, path: str) -> list[Fault]:
    faults = line_faults(artifact.uri, f"{path}.uri", most=MAX_URI_LENGTH)
    if not faults:
        try:
            parse_uri(artifact.uri)
        except BadUri as error:
            faults.append(Fault(f"{path}.uri", str(error)))
    if not _SHA256.fullmatch(artifact.sha256):
        faults.append(Fault(f"{path}.sha256", "must be 64 lower-case hexadecimal digits"))
    return faults


def _version_faults(version: ModelVersion) -> list[Fault]:
    at = "model_version"
    faults = []
    if not is_semver(version.version):
        faults.append(Fault(f"{at}.version", f"{shown(version.version)} is no semantic version such as 1.0.0"))
    else:
        faults += line_faults(version.version, f"{at}.version", most=MAX_NAME_LENGTH)
    if version.backend.name not in BACKENDS:
        faults.append(Fault(f"{at}.backend.name", f"{shown(version.backend.name)} is none of {', '.join(BACKENDS)}"))
    if version.backend.name == "torch" and not version.backend.architecture:
        faults.append(Fault(f"{at}.backend.architecture", "torch needs the name of a registered architecture"))
    if version.backend.name == "plugin":
        faults += _plugin_faults(version.backend, at)
    if version.backend.name == "remote" and not version.backend.options.get("address"):
        faults.append(Fault(f"{at}.backend.options", "remote needs the option 'address': HOST:PORT of a V2 server"))
    if version.artifact is not None:
        faults += _artifact_faults(version.artifact, f"{at}.artifact")
    elif version.backend.name in ("onnxruntime", "sklearn", "torch"):
        faults.append(Fault(f"{at}.artifact", f"{version.backend.name} needs an artifact"))
    if len(version.backend.options) > MAX_OPTIONS:
        faults.append(too_many(len(version.backend.options), MAX_OPTIONS, f"{at}.backend.options"))
    if len(version.files) > MAX_FILES:
        faults.append(too_many(len(version.files), MAX_FILES, f"{at}.files"))
    else:
        for name, artifact in version.files.items():
            if not _FILE_NAME.fullmatch(name):
                faults.append(Fault(f"{at}.files", f"{shown(name)} must be a plain file name"))
            faults += _artifact_faults(artifact, f"{at}.files[{shown(name)[1:-1]}]")
    for path, value in (
        ("resources.memory_bytes", version.memory_bytes),
        ("batching.max_batch_size", version.max_batch_size),
        ("batching.max_wait", version.max_wait_s),
        ("min_replicas", version.min_replicas),
        ("cost_microusd", version.cost_microusd),
    ):
        if value < 0:
            faults.append(Fault(f"{at}.{path}", f"{value} must not be negative"))
    if version.service_time_s <= 0:
        faults.append(Fault(f"{at}.service_time", f"{version.service_time_s} s must be positive"))
    if version.quality is not None and not 0.0 <= version.quality <= 1.0:
        faults.append(Fault(f"{at}.quality", f"{version.quality} must be in [0, 1]"))
    faults += line_faults(version.quality_metric, f"{at}.quality_metric") + line_faults(version.owner, f"{at}.owner")
    faults += _segment_faults(version.segment_qualities, f"{at}.segment_qualities")
    if len(version.failure_modes) > MAX_FAILURE_MODES:
        faults.append(too_many(len(version.failure_modes), MAX_FAILURE_MODES, f"{at}.failure_modes"))
    else:
        for index, text in enumerate(version.failure_modes):
            faults += line_faults(text, f"{at}.failure_modes[{index}]", most=MAX_FAILURE_LENGTH, needed=True)
    if version.smoke is not None:
        faults += _smoke_faults(version.smoke)
    faults += _padding_faults(version)
    if version.generation is not None:
        faults += _generation_faults(version, version.generation)
        if version.on_demand:
            text = "a version that generates stays in memory: its sequences are kept there"
            faults.append(Fault("model_version.on_demand", text))
    return faults + _lineage_faults(version, version.lineage, f"{at}.lineage")


def _plugin_faults(backend: Backend, at: str) -> list[Fault]:
    faults = []
    if not backend.architecture:
        faults.append(Fault(f"{at}.backend.architecture", "plugin needs the name of an entry point"))
    if not backend.executes_code:
        faults.append(Fault(f"{at}.backend.executes_code", "a plugin is code: it must be true"))
    return faults


def _segment_faults(places: Sequence[SegmentQuality], path: str) -> list[Fault]:
    if len(places) > MAX_SEGMENTS:
        return [too_many(len(places), MAX_SEGMENTS, path)]
    faults = []
    seen: set[tuple[str, str]] = set()
    for index, place in enumerate(places):
        at = f"{path}[{index}]"
        faults += line_faults(place.task, f"{at}.task") + line_faults(place.segment, f"{at}.segment")
        faults += line_faults(place.metric, f"{at}.metric")
        if not (place.task or place.segment):
            faults.append(Fault(at, "names neither a task nor a segment; what holds everywhere is 'quality'"))
        if (place.task, place.segment) in seen:
            faults.append(Fault(at, f"task {shown(place.task)}, segment {shown(place.segment)} stands twice"))
        seen.add((place.task, place.segment))
        if not 0.0 <= place.quality <= 1.0:
            faults.append(Fault(f"{at}.quality", f"{place.quality} must be in [0, 1]"))
    return faults


def _lineage_faults(version: ModelVersion, lineage: Lineage, at: str) -> list[Fault]:
    faults = []
    for field, text in (
        ("code_commit", lineage.code_commit),
        ("parent", lineage.parent),
        ("license", lineage.license),
        ("training_run", lineage.training_run),
    ):
        faults += line_faults(text, f"{at}.{field}")
    faults += note_faults(lineage.data, f"{at}.data")
    if lineage.parent in (version.version, str(version.model_key)):
        faults.append(Fault(f"{at}.parent", f"{shown(lineage.parent)} is the version itself"))
    if len(lineage.dependencies) > MAX_DEPENDENCIES:
        return [*faults, too_many(len(lineage.dependencies), MAX_DEPENDENCIES, f"{at}.dependencies")]
    for name, needed in sorted(lineage.dependencies.items()):
        path = f"{at}.dependencies[{shown(name)[1:-1]}]"
        faults += line_faults(name, path, most=MAX_NAME_LENGTH, needed=True)
        faults += line_faults(needed, path, needed=True)
    return faults


def _pool_faults(pool: Pool) -> list[Fault]:
    faults = note_faults(pool.description, "pool.description") + line_faults(pool.zone, "pool.zone")
    if pool.memory_bytes <= 0:
        faults.append(Fault("pool.memory_bytes", f"{pool.memory_bytes} must be positive"))
    if pool.min_hosts < 0:
        faults.append(Fault("pool.min_hosts", f"{pool.min_hosts} must not be negative"))
    if pool.max_hosts < pool.min_hosts:
        faults.append(Fault("pool.max_hosts", f"{pool.max_hosts} must not be below min_hosts, {pool.min_hosts}"))
    if pool.max_version_bytes < 0:
        faults.append(Fault("pool.max_version_bytes", f"{pool.max_version_bytes} must not be negative"))
    if pool.min_latency_slo_s < 0.0:
        faults.append(Fault("pool.min_latency_slo", f"{pool.min_latency_slo_s:g} s must not be negative"))
    return faults


def _padding_faults(version: ModelVersion) -> list[Fault]:
    at = "model_version.batching.padding"
    if len(version.padding) > MAX_PADDINGS:
        return [too_many(len(version.padding), MAX_PADDINGS, at)]
    faults = []
    seen: set[tuple[str, int]] = set()
    for index, padding in enumerate(version.padding):
        path = f"{at}[{index}]"
        if not padding.input:
            faults.append(Fault(f"{path}.input", "must name an input"))
        outputs = ((f"outputs[{shown(name)[1:-1]}]", dimension) for name, dimension in padding.outputs.items())
        for where, dimension in (("dimension", padding.dimension), *outputs):
            if not 1 <= dimension <= MAX_RANK:
                text = f"{dimension} must be in 1 to {MAX_RANK}: dimension 0 is the batch's own"
                faults.append(Fault(f"{path}.{where}", text))
        if not math.isfinite(padding.value):
            faults.append(Fault(f"{path}.value", f"{padding.value} must be finite"))
        if (padding.input, padding.dimension) in seen:
            text = f"dimension {padding.dimension} of {shown(padding.input)} stands twice"
            faults.append(Fault(path, text))
        seen.add((padding.input, padding.dimension))
    if version.padding and version.max_batch_size < 2:
        faults.append(Fault(at, "a version that does not batch needs none: set max_batch_size"))
    return faults


def _generation_faults(version: ModelVersion, generation: Generation) -> list[Fault]:
    at = "model_version.generation"
    faults = []
    for field, value, most in (
        ("sequences", generation.sequences, MAX_SEQUENCES),
        ("max_tokens", generation.max_tokens, MAX_TOKENS),
        ("prefill_tokens", generation.prefill_tokens, MAX_TOKENS),
        ("max_waiting", generation.max_waiting, MAX_WAITING),
    ):
        if not 1 <= value <= most:
            faults.append(Fault(f"{at}.{field}", f"{value} must be in 1 to {most}"))
    if version.max_batch_size > 1:
        text = f"{version.max_batch_size} must be 1: a version that generates puts sequences together, not batches"
        faults.append(Fault("model_version.batching.max_batch_size", text))
    return faults


def _smoke_faults(test: SmokeTest) -> list[Fault]:
    at = "model_version.smoke"
    faults = []
    if not test.outputs:
        faults.append(Fault(f"{at}.outputs", "at least one expected output is needed: else any answer would do"))
    for side, tensors in (("inputs", test.inputs), ("outputs", test.outputs)):
        faults += [
            Fault(f"{at}.{side}[{name}].shape", f"{list(tensor.shape)}: a dimension must not be negative")
            for name, tensor in tensors.items()
            if any(size < 0 for size in tensor.shape)
        ]
    if not 0.0 <= test.tolerance < math.inf:
        faults.append(Fault(f"{at}.tolerance", f"{test.tolerance} must be finite and not negative"))
    if test.max_latency_s is not None and not test.max_latency_s > 0.0:
        faults.append(Fault(f"{at}.max_latency", f"{test.max_latency_s:g} s must be positive"))
    return faults
