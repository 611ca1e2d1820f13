"""A template makes what it says, tells everything that is wrong with it, and is not brought down by any input."""

from typing import Any

import pytest
from google.protobuf import json_format

from modelyard.registry.v1 import objects_pb2 as pb
from services.chassis.templating import MAX_MADE_BYTES, TOLD_FAULTS, check, render
from services.domain.errors import InvalidRequest

POOL = {"metadata": {"name": "${name}"}, "pool": {"memoryBytes": 1}}
NAME: dict[str, Any] = {"name": "name"}


def a_template(*objects: dict[str, Any], parameters: Any = (NAME,), bindings: Any = ()) -> pb.TemplateSpec:
    """A template, from the JSON form of its parts."""
    spec = {"objects": list(objects), "parameters": list(parameters), "bindings": list(bindings)}
    return json_format.ParseDict(spec, pb.TemplateSpec())


def bound(path: str, parameter: str = "it", at: int = 0) -> dict[str, Any]:
    return {"object": at, "path": path, "parameter": parameter}


def of_type(kind: str, **more: Any) -> dict[str, Any]:
    return {"name": "it", "type": f"TEMPLATE_PARAMETER_TYPE_{kind}", **more}


def told(spec: pb.TemplateSpec) -> list[str]:
    return [str(fault) for fault in check(spec)]


def refused(spec: pb.TemplateSpec, **given: str) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        render(spec, given)
    return [str(fault) for fault in caught.value.faults]


VERSION: dict[str, Any] = {
    "metadata": {"name": "m", "labels": {"${it}": "${it}"}},
    "modelVersion": {
        "version": "1.0.0",
        "warmup": [{"inputs": {"${it}": {"shape": [0, 64]}}}],
        "files": {"${it}": {"uri": "file:/models/${it}/$${it}"}},
        "failureModes": ["a ${it}", "plain"],
    },
}


def test_every_text_and_every_key_of_a_map_takes_values_and_nothing_else_changes() -> None:
    spec = a_template(VERSION, parameters=[{"name": "it"}])

    assert check(spec) == []
    (made,) = render(spec, {"it": "a ${it} $${b"})

    version = made.model_version
    value = "a ${it} $${b"
    assert dict(made.metadata.labels) == {value: value}, "values are not looked into"
    assert version.files[value].uri == f"file:/models/{value}/${{it}}"
    assert list(version.failure_modes) == [f"a {value}", "plain"]
    assert list(version.warmup[0].inputs[value].shape) == [0, 64]
    assert render(spec, {"it": "b"})[0].metadata.labels["b"] == "b", "the template stays as it was"


@pytest.mark.parametrize(
    ("path", "kind", "text", "expected"),
    [
        ("model_version.min_replicas", "INTEGER", "3", {"minReplicas": 3}),
        ("model_version.resources.memory_bytes", "INTEGER", "4294967296", {"resources": {"memoryBytes": "4294967296"}}),
        ("model_version.batching.max_wait", "NUMBER", "2.5e-3", {"batching": {"maxWait": "0.002500s"}}),
        ("model_version.quality", "INTEGER", "1", {"quality": 1.0}),
        ("model_version.backend.executes_code", "BOOLEAN", "true", {"backend": {"executesCode": True}}),
        ("model_version.resources.device_kind", "TEXT", "CUDA", {"resources": {"deviceKind": "DEVICE_KIND_CUDA"}}),
        ("model_version.warmup[0].inputs[${x}].shape[1]", "INTEGER", "7", {}),
    ],
)
def test_bindings_give_numbers_truth_values_enums_and_durations(
    path: str, kind: str, text: str, expected: dict[str, Any]
) -> None:
    version = {
        "metadata": {"name": "m"},
        "modelVersion": {"warmup": [{"inputs": {"${x}": {"shape": [1, 0]}}}]},
    }
    spec = a_template(version, parameters=[of_type(kind), {"name": "x", "default": "y"}], bindings=[bound(path)])

    assert check(spec) == []
    (made,) = render(spec, {"it": text})

    found = json_format.MessageToDict(made.model_version)
    shape = found.pop("warmup")[0]["inputs"]["y"]["shape"]
    assert (found, shape) == (expected, ["1", "0"] if expected else ["1", "7"])


@pytest.mark.parametrize(
    ("path", "kind", "why"),
    [
        ("model_version.min_replicas", "TEXT", "is a whole number, for a parameter of type INTEGER; 'it' is TEXT"),
        ("model_version.min_replicas", "NUMBER", "for a parameter of type INTEGER"),
        (
            "model_version.service_time",
            "BOOLEAN",
            "is a duration in seconds, for a parameter of",
        ),
        ("model_version.pool", "TEXT", "is a text: write the parameter into it"),
        ("model_version.nothing", "TEXT", "model_version has no field 'nothing'"),
        ("pool.min_hosts", "INTEGER", "objects[0] has another spec than 'pool'"),
        ("template.objects[0].pool.min_hosts", "INTEGER", "the object has no field 'template'"),
        ("model_version.warmup[1].inputs[a].shape[0]", "INTEGER", "warmup has no [1]; it has 1 elements"),
        ("model_version.warmup[-1]", "INTEGER", "warmup has no [-1]"),
        ("model_version.warmup[99999999999999999999].inputs", "INTEGER", "warmup has no"),
        ("model_version.warmup.inputs", "INTEGER", "warmup has no []"),
        ("model_version[min_replicas]", "INTEGER", "has no field '[min_replicas'"),
        ("model_version.files[a].uri", "TEXT", "files has no 'a' that could be bound"),
        ("model_version.warmup[0].inputs[${it}].raw", "TEXT", "is bytes, which no parameter gives"),
        ("model_version.batching", "INTEGER", "is not a single value but what holds some"),
        ("model_version.min_replicas.more", "INTEGER", "has nothing in it, no 'more' either"),
        ("model_version..min_replicas", "INTEGER", "is no path such as"),
        ("", "INTEGER", "is no path such as"),
        ("a." * 100_000, "INTEGER", "is no path such as"),
        ("[" * 500, "INTEGER", "is no path such as"),
    ],
)
def test_a_binding_that_leads_nowhere_or_to_another_type_is_a_fault(path: str, kind: str, why: str) -> None:
    faults = told(a_template(VERSION, parameters=[of_type(kind)], bindings=[bound(path)]))

    assert len(faults) == 1
    assert faults[0].startswith("template.bindings[0]: ")
    assert why in faults[0]


def test_values_that_a_binding_is_known_to_get_must_fit() -> None:
    kinds = of_type("TEXT", default="CPU", allowed=["CPU", "GPU"])
    path = "pool.device_kind"

    assert told(a_template(POOL, parameters=[NAME, kinds], bindings=[bound(path)])) == [
        "template.bindings[0]: 'GPU' is none of CPU, CUDA"
    ]
    twice = a_template(POOL, parameters=[NAME, of_type("INTEGER")], bindings=[bound("pool.min_hosts")] * 2)
    assert told(twice) == ["template.bindings[1]: 'pool.min_hosts' of objects[0] is bound already"]
    nobody = a_template(POOL, bindings=[bound("pool.min_hosts"), bound("pool.min_hosts", "name", 7)])
    assert told(nobody) == [
        "template.bindings[0]: there is no parameter 'it'; there is name",
        "template.bindings[1]: there is no objects[7]; there are 1",
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("${nobody}", "there is no parameter 'nobody'; there is name"),
        ("${}", "there is no parameter ''"),
        ("${name", "a '${' is not followed by a parameter's name and '}'"),
        ("${ name }", "a '${' is not followed by"),
        ("${a${name}}", "a '${' is not followed by"),
        ("${" * 100_000, "a '${' is not followed by"),
        ("${" + "a" * 100_000, "a '${' is not followed by"),
    ],
)
def test_a_placeholder_of_nothing_is_a_fault(text: str, why: str) -> None:
    (fault,) = told(a_template({"metadata": {"name": "${name}"}, "pool": {"zone": text}}))

    assert fault.startswith("template.objects[0].pool.zone: ")
    assert why in fault
    assert len(fault) < 300


def test_faults_are_told_up_to_a_number() -> None:
    labels = {f"k{number}": f"${{a{number}}}" for number in range(1000)}
    many = "".join(f"${{b{number}}}" for number in range(20_000))
    spec = a_template({"metadata": {"name": "${name}", "labels": labels}, "pool": {"zone": many}})

    assert len(told(spec)) == TOLD_FAULTS


def test_a_hundred_thousand_placeholders_are_filled_but_not_with_more_than_can_be_kept() -> None:
    spec = a_template({"metadata": {"name": "${name}"}, "pool": {"zone": "${name}" * 100_000}})

    assert check(spec) == []
    assert render(spec, {"name": "ab"})[0].pool.zone == "ab" * 100_000
    assert refused(spec, name="x" * 4096) == [
        f"template.objects[0].pool.zone: with these values all of it takes more than {MAX_MADE_BYTES >> 20} MiB"
    ]


def test_templates_within_templates_are_refused_however_deep_and_so_are_objects_of_no_kind() -> None:
    nested: dict[str, Any] = POOL
    for _ in range(20):
        nested = {"metadata": {"name": "n"}, "template": {"objects": [nested]}}
    spec = a_template(nested, {"metadata": {"name": "${name}"}})

    why = ["template.objects[0]: a Template makes no Templates", "template.objects[1]: has no spec"]
    assert told(spec) == why
    assert refused(spec, name="a") == why


def test_objects_of_one_name_are_a_fault_before_or_after_values() -> None:
    other = {"metadata": {"name": "x-${name}"}, "pool": {}}
    fixed = {"metadata": {"name": "x-a"}, "pool": {}}

    assert told(a_template(POOL, POOL)) == [
        "template.objects[1]: Pool/${name} stands in the template twice, at objects[0] already"
    ]
    spec = a_template(other, fixed)
    assert check(spec) == []
    assert refused(spec, name="a") == ["template.objects[1]: becomes Pool/x-a, as objects[0] does"]


def test_keys_that_become_one_are_a_fault() -> None:
    spec = a_template({"metadata": {"name": "a", "labels": {"${name}": "1", "b": "2"}}, "pool": {}})

    assert refused(spec, name="b") == ["template.objects[0].metadata.labels[b]: becomes 'b', as another key does"]


def test_a_parameter_that_is_used_nowhere_is_a_fault() -> None:
    assert told(a_template(POOL, parameters=[NAME, of_type("TEXT")])) == [
        "template.parameters[1]: 'it' is used nowhere"
    ]


@pytest.mark.parametrize(
    ("parameter", "given", "why"),
    [
        (of_type("TEXT"), None, "is not given and has no default"),
        (of_type("INTEGER"), "1.5", "'1.5' is not a whole number"),
        (of_type("INTEGER"), "٣", "is not a whole number"),
        (of_type("INTEGER"), "9" * 5000, "is not a whole number"),
        (of_type("INTEGER"), str(1 << 63), "is not a whole number"),
        (of_type("NUMBER"), "nan", "is not a finite number"),
        (of_type("NUMBER"), "1e999", "is not a finite number"),
        (of_type("BOOLEAN"), "True", "is not true or false"),
        (of_type("TEXT"), "x" * 4097, "is not a text of at most 4096 characters"),
        (of_type("TEXT", allowed=["a", "b"]), "c", "'c' is none of a, b"),
        (of_type("NUMBER", allowed=["0.5", "1"]), "2", "'2' is none of 0.5, 1"),
    ],
)
def test_values_that_are_missing_or_not_of_their_type_are_faults(
    parameter: dict[str, Any], given: str | None, why: str
) -> None:
    spec = a_template({"metadata": {"name": "${it}"}, "pool": {}}, parameters=[parameter])

    faults = refused(spec, more="1", **({} if given is None else {"it": given}))

    assert any(fault.startswith("parameters[it]: ") and why in fault for fault in faults), faults
    assert "parameters[more]: the template has no such parameter; there is it" in faults


def test_a_value_that_its_field_cannot_hold_is_a_fault_of_the_parameter() -> None:
    kinds = (of_type("INTEGER"), of_type("NUMBER"), of_type("TEXT"))
    paths = ("model_version.min_replicas", "model_version.service_time", "model_version.resources.device_kind")
    why = ("is out of the range of 'min_replicas'", "seconds are too long", "'3000000000' is none of CPU, CUDA")
    for kind, path, text in zip(kinds, paths, why, strict=True):
        spec = a_template({"metadata": {"name": "m"}, "modelVersion": {}}, parameters=[kind], bindings=[bound(path)])
        assert check(spec) == []
        (fault,) = refused(spec, it="3000000000" if "long" not in text else "1e300")
        assert fault.startswith(f"parameters[it]: {path}: ")
        assert text in fault


def test_the_same_value_in_another_form_is_allowed() -> None:
    spec = a_template(
        {"metadata": {"name": "m-${it}"}, "pool": {}}, parameters=[of_type("NUMBER", allowed=["0.50"], default="0.5")]
    )

    assert render(spec, {})[0].metadata.name == "m-0.5"
