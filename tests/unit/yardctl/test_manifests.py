import hashlib
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.domain.errors import Fault, InvalidRequest
from tests.unit.yardctl.manifest_files import faults_of, only, write
from yardctl.errors import CommandError
from yardctl.manifest_text import to_yaml
from yardctl.manifests import load, located

DIGEST = "a" * 64
VERSION = f"""\
kind: ModelVersion
metadata:
  name: digits
  labels: {{team: vision}}
spec:
  version: 1.0.0
  artifact:
    uri: file:/models/digits.safetensors
    sha256: {DIGEST}
  backend: {{name: torch, architecture: digits-cnn, options: {{width: "32"}}}}
  resources: {{device_kind: CPU, memory_bytes: 512MiB}}
  batching: {{max_batch_size: 16, max_wait: 250us}}
  min_replicas: 2
  quality: 0.98
  service_time: 5ms
  warmup:
    - inputs:
        image: {{shape: [1, 8, 8], raw: AAAA}}
"""


def test_a_manifest_is_read_into_the_object_it_describes(tmp_path: Path) -> None:
    item = only(write(tmp_path, VERSION)).object

    assert item == objects_pb2.Object(
        metadata=objects_pb2.Metadata(name="digits", labels={"team": "vision"}),
        model_version=objects_pb2.ModelVersionSpec(
            version="1.0.0",
            artifact=objects_pb2.Artifact(uri="file:/models/digits.safetensors", sha256=DIGEST),
            backend=objects_pb2.Backend(name="torch", architecture="digits-cnn", options={"width": "32"}),
            resources=resources_pb2.ResourceNeed(
                device_kind=resources_pb2.DEVICE_KIND_CPU, memory_bytes=512 * 1024 * 1024
            ),
            batching=objects_pb2.Batching(max_batch_size=16, max_wait=Duration(nanos=250_000)),
            min_replicas=2,
            quality=0.98,
            service_time=Duration(nanos=5_000_000),
            warmup=[
                objects_pb2.WarmupSample(
                    inputs={"image": objects_pb2.WarmupTensor(shape=[1, 8, 8], raw=b"\x00\x00\x00")}
                )
            ],
        ),
    )


def test_five_faults_are_named_with_their_five_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
kind: Modell
metadata: {name: a}
spec: {}
---
kind: Model
metadata: {name: digits}
spec:
  descriptoin: what it is
  latency_slo: 30
  task: a
  task: b
---
kind: Model
metadata: {name: digits}
spec: {}
""",
    )

    assert faults_of(path) == [
        "a.yaml:1:7: unknown kind 'Modell'; did you mean 'Model'?",
        "a.yaml:8:3: unknown field of the spec of a Model 'descriptoin'; did you mean 'description'?",
        "a.yaml:9:16: 'latency_slo' must be a duration such as 30s or 250ms: the number 30 has no unit",
        "a.yaml:11:3: 'task' stands twice in the spec of a Model; first at line 10",
        "a.yaml:13:1: Model/digits is already at " + f"{path}:5:1",
    ]


def test_faults_of_every_file_come_together(tmp_path: Path) -> None:
    write(tmp_path, "kind: Pool\nmetadata: {name: a}\nspec: {zone: [b]}\n", "1.yaml")
    write(tmp_path, "kind: [", "2.yml")
    (tmp_path / "3.yaml").write_bytes(b"kind: \xff")
    write(tmp_path, "not looked at", "4.txt")

    lines = faults_of(tmp_path)

    assert lines[0] == "1.yaml:3:14: 'zone' must be text, not a list"
    assert lines[1].startswith("2.yml:1:8: not YAML: ")
    assert lines[2].startswith("3.yaml:1:1: not UTF-8 text: ")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("pool: 3", "'pool' must be text: the number 3 needs quotes to be text"),
        ("version: 1.0", "'version' must be text: the number 1.0 needs quotes to be text"),
        ("version:", "'version' must be text, not empty"),
        ("min_replicas: two", "'min_replicas' must be a whole number, not the text 'two'"),
        ("min_replicas: 3000000000", "'min_replicas' must be a whole number: 3000000000 is out of range"),
        ("min_replicas: 1.5", "'min_replicas' must be a whole number, not the number 1.5"),
        ("quality: good", "'quality' must be a number, not the text 'good'"),
        ("quality: '1.0'", "'quality' must be a number, not the text '1.0'"),
        ("service_time: 5 ms", "'service_time' must be a duration such as 30s or 250ms: '5 ms' is no duration"),
        ("artifact: weights.bin", "'artifact' must be a mapping of fields, not the text 'weights.bin'"),
        ("warmup: {}", "'warmup' must be a list, not a mapping"),
        ("files: []", "'files' must be a mapping of fields, not a list"),
        ("backend: {executes_code: 1}", "'executes_code' must be true or false, not the number 1"),
        ("backend: {options: {a: 1}}", "'options[a]' must be text: the number 1 needs quotes to be text"),
        ("backend: {options: {1: a}}", "a name in 'options' must be text, not the number 1: quote it"),
        ("backend: {nmae: torch}", "unknown field of 'backend' 'nmae'; did you mean 'name'?"),
        ("resources: {device_kind: TPU}", "'device_kind' must be one of CPU, CUDA, not the text 'TPU'"),
        ("resources: {device_kind: 1}", "'device_kind' must be one of CPU, CUDA, not the number 1"),
        ("resources: {memory_bytes: 1XB}", "'memory_bytes' must be a whole number or a size such as 512MiB: '1XB'"),
        ("cost_microusd: 5MiB", "'cost_microusd' must be a whole number, not the text '5MiB'"),
        ("warmup: [{inputs: {a: {raw: '?'}}}]", "'raw' must be bytes in base64: "),
        ("warmup: [{inputs: {a: {shape: [1, x]}}}]", "'shape' must be a whole number, not the text 'x'"),
        ("? [a]\n  : b", "a name in the spec of a ModelVersion must be text, not a list: quote it"),
        ("<<: {pool: a}", "a name in the spec of a ModelVersion must be text, not '<<' (merge): quote it"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_at_its_line(tmp_path: Path, spec: str, fault: str) -> None:
    path = write(tmp_path, f"kind: ModelVersion\nmetadata: {{name: a}}\nspec:\n  {spec}\n")

    (line,) = faults_of(path)

    where, _, message = line.partition(": ")
    assert where.startswith("a.yaml:4:")
    assert message.startswith(fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("metadata: {name: a}\nspec: {}", "a.yaml:1:1: 'kind' is missing: one of Model, ModelVersion, Route, Pool"),
        ("kind: Pool\nspec: {}", "a.yaml:1:1: metadata.name is missing"),
        ("kind: Pool\nmetadata: {labels: {}}\nspec: {}", "a.yaml:2:1: metadata.name is missing"),
        ("kind: Pool\nmetadata: {name: a}", "a.yaml:1:1: 'spec' is missing"),
        (
            "kind: Pool\nmetadata: {name: a}\nspec:",
            "a.yaml:3:6: the spec of a Pool must be a mapping of fields, not empty",
        ),
        ("- kind: Pool", "a.yaml:1:1: the object must be a mapping of fields, not a list"),
        ("kind: Pool\nmetadata: {name: a}\nspec: {}\nstatus: {}", "a.yaml:4:1: unknown field of the object 'status'; "),
    ],
)
def test_a_document_that_is_no_object_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    (line,) = faults_of(write(tmp_path, text))

    assert line.startswith(fault)


def test_two_strategies_on_one_route_are_refused(tmp_path: Path) -> None:
    text = "kind: Route\nmetadata: {name: a}\nspec:\n  single: {target: {model: a}}\n  choose: {candidates: []}\n"

    assert faults_of(write(tmp_path, text)) == [
        "a.yaml:5:3: only one of 'single' and 'choose' may be set in the spec of a Route"
    ]


BOMB = """\
kind: Pool
metadata:
  name: a
  labels: &a {a: b}
spec: {zone: z}
---
kind: Pool
metadata: {name: b, labels: *a}
spec: {}
"""


def test_anchors_and_aliases_are_refused_at_their_line(tmp_path: Path) -> None:
    alias = BOMB.replace("&a ", "").replace("*a", "\n  *a")
    laughs = "a: &a [x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
    )

    for text, place in ((BOMB, "4:11: '&a'"), (alias, "9:3: '*a'"), (laughs, "1:4: '&a'"), ("&a", "1:1: '&a'")):
        assert faults_of(write(tmp_path, text)) == [f"a.yaml:{place}: anchors and aliases are not taken, write it out"]


def test_a_file_too_large_to_be_read_in_time_is_refused_unread(tmp_path: Path) -> None:
    crowd = "".join(f"    key-{number}: value\n" for number in range(300_000))
    path = write(tmp_path, f"kind: Pool\nmetadata:\n  name: a\n  labels:\n{crowd}spec: {{}}\n")

    assert faults_of(path) == ["a.yaml:1:1: larger than 4 MiB: split it; large data belongs in artifacts"]


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "kind: Pool\nmetadata: {name: a}\nspec: " + "[" * 20_000)

    assert faults_of(path) == ["a.yaml:1:1: nested too deeply"]


def test_a_folder_is_read_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    pool = "kind: Pool\nmetadata: {{name: {}}}\nspec: {{}}\n"
    (tmp_path / "sub").mkdir()
    (tmp_path / ".venv").mkdir()
    write(tmp_path, pool.format("c"), "c.yaml")
    write(tmp_path, pool.format("a") + "---\n# nothing here\n---\n" + pool.format("b"), "a.yml")
    write(tmp_path / "sub", pool.format("d"), "d.yaml")
    write(tmp_path / ".venv", "kind: [", "x.yaml")

    assert [document.key.name for document in load([tmp_path])] == ["a", "b", "c", "d"]


def test_a_missing_path_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="there is no file or folder"):
        load([tmp_path / "absent"])
    with pytest.raises(CommandError, match=r"no \.yaml or \.yml file"):
        load([tmp_path])
    with pytest.raises(CommandError, match="no object in"):
        load([write(tmp_path, "# only a comment\n")])


def test_a_relative_artifact_is_resolved_beside_its_manifest_and_its_digest_worked_out(tmp_path: Path) -> None:
    weights = tmp_path / "weights" / "w.bin"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    (tmp_path / "manifests").mkdir()
    text = """\
kind: ModelVersion
metadata: {name: a}
spec:
  artifact: {uri: ../weights/w.bin}
  files:
    again: {uri: "file:../weights/w.bin"}
    absolute: {uri: "file://%s"}
    kept: {uri: ../weights/w.bin, sha256: "0000"}
    elsewhere: {uri: "s3://bucket/w.bin"}
"""

    spec = only(write(tmp_path / "manifests", text % weights)).object.model_version

    found = objects_pb2.Artifact(uri=f"file:{weights}", sha256=hashlib.sha256(b"weights").hexdigest())
    assert spec.artifact == found
    assert spec.files["again"] == found
    assert spec.files["absolute"] == found
    assert spec.files["kept"] == objects_pb2.Artifact(uri=f"file:{weights}", sha256="0000")
    assert spec.files["elsewhere"] == objects_pb2.Artifact(uri="s3://bucket/w.bin")


def test_an_artifact_without_digest_that_cannot_be_read_is_refused_at_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "kind: ModelVersion\nmetadata: {name: a}\nspec:\n  artifact:\n    uri: absent.bin\n")

    assert faults_of(path) == [
        f"a.yaml:5:10: no sha256 is given, and '{tmp_path}/absent.bin' cannot be read: No such file or directory"
    ]


def test_faults_of_the_registry_come_back_with_file_and_line(tmp_path: Path) -> None:
    other = write(tmp_path, "kind: Pool\nmetadata: {name: local}\nspec: {zone: a}\n", "b.yaml")
    documents = load([write(tmp_path, VERSION), other])
    refused = InvalidRequest.of(
        [
            Fault("objects[0].model_version.backend.options[width]", "must be positive"),
            Fault("objects[0].model_version.artifact.sha256", "is wrong"),
            Fault("objects[0].model_version.lineage.parent", "is missing"),
            Fault("objects[0].model_version.warmup[0].inputs[image].shape[1]", "is odd"),
            Fault("objects[0].metadata.name", "is taken"),
            Fault("objects[1].pool.memory_bytes", "must be positive"),
            Fault("objects[1]", "is unwelcome"),
            Fault("reason", "is too long"),
        ]
    )

    faults = located(refused, documents).faults

    assert [(Path(fault.path).name, fault.message) for fault in faults] == [
        ("a.yaml:10:69", "ModelVersion/digits/1.0.0: spec.backend.options[width]: must be positive"),
        ("a.yaml:9:13", "ModelVersion/digits/1.0.0: spec.artifact.sha256: is wrong"),
        ("a.yaml:5:1", "ModelVersion/digits/1.0.0: spec.lineage.parent: is missing"),
        ("a.yaml:18:28", "ModelVersion/digits/1.0.0: spec.warmup[0].inputs[image].shape[1]: is odd"),
        ("a.yaml:3:9", "ModelVersion/digits/1.0.0: metadata.name: is taken"),
        ("b.yaml:3:1", "Pool/local: spec.memory_bytes: must be positive"),
        ("b.yaml:1:1", "Pool/local: is unwelcome"),
        ("reason", "is too long"),
    ]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n\x85\u2028\ufeff"), max_size=12)
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)


def duration(nanos: int) -> Duration:
    made = Duration()
    made.FromNanoseconds(nanos)
    return made


DURATIONS = st.none() | st.integers(min_value=-(10**18), max_value=10**18).map(duration)
FLOATS = st.floats(allow_nan=False)
LABELS = st.dictionaries(TEXTS, TEXTS, max_size=3)
METADATA = st.builds(objects_pb2.Metadata, name=NAMES, labels=LABELS, annotations=LABELS)
ARTIFACTS = st.builds(
    objects_pb2.Artifact,
    uri=st.sampled_from(["file:/a/b c.bin", "s3://bucket/x", "file:/yes"]),
    sha256=st.sampled_from([DIGEST, "0" * 64, "1" * 64]),
)
TENSORS = st.builds(
    model_pb2.TensorSpec,
    name=TEXTS,
    datatype=TEXTS,
    shape=st.lists(st.integers(min_value=-1, max_value=2**63 - 1), max_size=3),
    optional=st.booleans(),
    allow_non_finite=st.booleans(),
)
MODELS = st.builds(
    objects_pb2.ModelSpec,
    description=TEXTS,
    task=TEXTS,
    inputs=st.lists(TENSORS, max_size=2),
    outputs=st.lists(TENSORS, max_size=2),
    latency_slo=DURATIONS,
)
VERSIONS = st.builds(
    objects_pb2.ModelVersionSpec,
    version=TEXTS,
    artifact=st.none() | ARTIFACTS,
    files=st.dictionaries(TEXTS, ARTIFACTS, max_size=2),
    backend=st.none() | st.builds(objects_pb2.Backend, name=TEXTS, options=LABELS, executes_code=st.booleans()),
    resources=st.none()
    | st.builds(
        resources_pb2.ResourceNeed,
        device_kind=st.sampled_from([0, 1, 2]),
        memory_bytes=st.integers(min_value=-(2**63), max_value=2**63 - 1),
    ),
    batching=st.none() | st.builds(objects_pb2.Batching, max_batch_size=st.integers(0, 64), max_wait=DURATIONS),
    min_replicas=st.integers(-(2**31), 2**31 - 1),
    cost_microusd=st.integers(-(2**63), 2**63 - 1),
    quality=st.none() | FLOATS,
    service_time=DURATIONS,
    warmup=st.lists(
        st.builds(
            objects_pb2.WarmupSample,
            inputs=st.dictionaries(
                TEXTS,
                st.builds(
                    objects_pb2.WarmupTensor, shape=st.lists(st.integers(0, 9), max_size=2), raw=st.binary(max_size=9)
                ),
                max_size=2,
            ),
        ),
        max_size=2,
    ),
)
TARGETS = st.builds(objects_pb2.RouteTarget, model=TEXTS, version=TEXTS)
SINGLES = st.builds(objects_pb2.Single, target=st.none() | TARGETS)
CHOICES = st.builds(
    objects_pb2.Choose, candidates=st.lists(TARGETS, max_size=3), quality_weight=FLOATS, cost_weight=FLOATS
)
ROUTES = (
    st.builds(objects_pb2.RouteSpec, description=TEXTS, default_timeout=DURATIONS)
    | st.builds(objects_pb2.RouteSpec, single=SINGLES)
    | st.builds(objects_pb2.RouteSpec, choose=CHOICES, max_attempts=st.integers(0, 10))
)
POOLS = st.builds(
    objects_pb2.PoolSpec, device_kind=st.sampled_from([0, 1, 2]), memory_bytes=st.integers(0, 2**60), zone=TEXTS
)
OBJECTS = st.one_of(
    st.builds(objects_pb2.Object, metadata=METADATA, model=MODELS),
    st.builds(objects_pb2.Object, metadata=METADATA, model_version=VERSIONS),
    st.builds(objects_pb2.Object, metadata=METADATA, route=ROUTES),
    st.builds(objects_pb2.Object, metadata=METADATA, pool=POOLS),
)


@settings(max_examples=150, deadline=None)
@given(item=OBJECTS)
def test_every_object_is_written_so_that_it_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, item: objects_pb2.Object
) -> None:
    path = tmp_path_factory.mktemp("round") / "a.yaml"
    path.write_text(to_yaml([item]))

    assert only(path).object == item
