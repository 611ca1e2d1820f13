"""Templates as manifests: what they make is written as in a file of its own, and parameters stand where values do."""

from pathlib import Path

from services.chassis.templating import render
from services.domain.errors import Fault, InvalidRequest
from services.registry.wire import submitted
from tests.unit.yardctl.manifest_files import faults_of, only, write
from yardctl.manifest_text import to_yaml
from yardctl.manifests import located
from yardctl.object_table import summary

SERVED = """
kind: Template
metadata: {name: served}
spec:
  owner: olga
  parameters:
    - {name: name}
    - {name: replicas, type: INTEGER, default: "1"}
    - {name: wait_s, type: NUMBER, default: "0.005"}
    - {name: device, default: CPU, allowed: [CPU, CUDA]}
    - {name: width, type: INTEGER, default: "64"}
    - {name: trusted, type: BOOLEAN, default: "false"}
  objects:
    - kind: Model
      metadata: {name: "${name}"}
      spec:
        inputs: [{name: x, datatype: FP32, shape: [-1, "${width}"]}]
        outputs: [{name: y, datatype: FP32, shape: [-1]}]
    - kind: ModelVersion
      metadata:
        name: ${name}
      spec:
        version: 1.0.0
        artifact: {uri: "file:/models/${name}.safetensors", sha256: "${name}"}
        backend: {name: torch, executes_code: "${trusted}"}
        resources: {device_kind: "${device}", memory_bytes: 64MiB}
        batching:
          max_batch_size: 8
          max_wait: ${wait_s}
        min_replicas: ${replicas}
  requires_smoke: true
"""


def test_a_parameter_stands_where_a_value_does(tmp_path: Path) -> None:
    item = only(write(tmp_path, SERVED)).object

    assert submitted(item).faults == ()
    assert [(each.object, each.path, each.parameter) for each in item.template.bindings] == [
        (0, "model.inputs[0].shape[1]", "width"),
        (1, "model_version.backend.executes_code", "trusted"),
        (1, "model_version.resources.device_kind", "device"),
        (1, "model_version.batching.max_wait", "wait_s"),
        (1, "model_version.min_replicas", "replicas"),
    ]
    model, version = render(item.template, {"name": "fox", "replicas": "3"})
    assert list(model.model.inputs[0].shape) == [-1, 64]
    assert version.model_version.artifact.uri == "file:/models/fox.safetensors"
    assert (version.model_version.min_replicas, version.model_version.batching.max_wait.nanos) == (3, 5_000_000)
    assert summary(item) == "2 objects of name, replicas, wait_s, device, width, trusted, requires a smoke test"


def test_what_is_printed_reads_back_as_the_same_template(tmp_path: Path) -> None:
    item = only(write(tmp_path, SERVED)).object
    text = to_yaml([item])

    again = only(write(tmp_path, text, "again.yaml")).object

    assert again == item
    assert "- kind: ModelVersion" in text


def test_faults_within_a_template_come_with_their_lines(tmp_path: Path) -> None:
    document = only(write(tmp_path, SERVED))
    error = InvalidRequest.of([Fault("objects[0].template.objects[1].model_version.artifact.uri", "is not there")])

    (fault,) = located(error, [document]).faults

    assert fault.path.endswith("a.yaml:24:25")
    assert fault.message == "Template/served: spec.objects[1].model_version.artifact.uri: is not there"


def test_what_a_template_makes_is_read_as_strictly_as_any_object(tmp_path: Path) -> None:
    text = SERVED.replace("min_replicas: ${replicas}", "min_replica: 1").replace("64MiB", '"${a b}"')

    size, unknown = faults_of(write(tmp_path, text))
    assert size.startswith("a.yaml:26:61: 'memory_bytes' must be a whole number or a size such as 512MiB")
    assert unknown == (
        "a.yaml:30:9: unknown field of the spec of a ModelVersion 'min_replica'; did you mean 'min_replicas'?"
    )
    nested = "kind: Template\nmetadata: {name: a}\nspec:\n  objects:\n    - kind: Template\n      metadata: {name: b}\n"
    assert faults_of(write(tmp_path, nested)) == ["a.yaml:5:13: a Template makes no Templates"]


def test_outside_of_a_template_a_placeholder_is_no_number(tmp_path: Path) -> None:
    text = 'kind: Pool\nmetadata: {name: a}\nspec: {min_hosts: "${hosts}"}\n'

    assert faults_of(write(tmp_path, text)) == [
        "a.yaml:3:19: 'min_hosts' must be a whole number, not the text '${hosts}'"
    ]
