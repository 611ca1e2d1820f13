"""Our Open Inference Protocol V2 is, field by field, the one that tritonclient speaks."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import Default, DescriptorPool

from modelyard.inference.v1 import inference_pb2
from modelyard.openinference.v2 import grpc_service_pb2
from services.router import v2_pool
from tests.support import clients

OWN = "modelyard.openinference.v2."
THEIRS = "inference."

pytestmark = pytest.mark.timeout(700)  # the first run installs the clients


@pytest.fixture(scope="module")
def theirs() -> DescriptorPool:
    """tritonclient's descriptors in a pool of their own."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(clients.descriptors()).file:
        pool.Add(file)
    return pool


def relative(name: str) -> str:
    return name.removeprefix(OWN).removeprefix(THEIRS)


def reachable(roots: list[Descriptor]) -> dict[str, Descriptor | EnumDescriptor]:
    """Every message and enum that messages lead to, by name without package."""
    found: dict[str, Descriptor | EnumDescriptor] = {}
    waiting = list(roots)
    while waiting:
        message = waiting.pop()
        if relative(message.full_name) in found:
            continue
        found[relative(message.full_name)] = message
        for field in message.fields:
            if field.message_type is not None:
                waiting.append(field.message_type)
            if field.enum_type is not None:
                found[relative(field.enum_type.full_name)] = field.enum_type
    return found


def facts_of(field: FieldDescriptor) -> tuple[object, ...]:
    """Everything about a field that shows on the wire or in JSON."""
    kind = field.message_type or field.enum_type
    return (
        field.name,
        field.number,
        field.type,
        field.is_repeated,
        field.is_packed,
        field.json_name,
        field.has_presence,
        relative(kind.full_name) if kind is not None else None,
        field.containing_oneof.name if field.containing_oneof is not None else None,
    )


def facts(kind: Descriptor | EnumDescriptor) -> list[tuple[object, ...]]:
    if isinstance(kind, EnumDescriptor):
        return sorted((value.name, value.number) for value in kind.values)
    return sorted((facts_of(field) for field in kind.fields), key=lambda fact: str(fact[0]))


def methods(pool: DescriptorPool, name: str) -> Iterator[tuple[str, Descriptor, Descriptor, bool, bool]]:
    for method in pool.FindServiceByName(name).methods:
        yield method.name, method.input_type, method.output_type, method.client_streaming, method.server_streaming


def test_the_rpcs_are_the_same(theirs: DescriptorPool) -> None:
    def shapes(pool: DescriptorPool, name: str) -> list[tuple[object, ...]]:
        return [
            (rpc, relative(asked.full_name), relative(answered.full_name), *streams)
            for rpc, asked, answered, *streams in methods(pool, name)
        ]

    expected = shapes(theirs, "inference.GRPCInferenceService")

    assert len(expected) == 20
    assert shapes(Default(), f"{OWN}GRPCInferenceService") == expected


def test_every_message_and_enum_is_the_same(theirs: DescriptorPool) -> None:
    def kinds(pool: DescriptorPool, name: str) -> dict[str, Descriptor | EnumDescriptor]:
        return reachable([kind for _, asked, answered, *_ in methods(pool, name) for kind in (asked, answered)])

    expected = kinds(theirs, "inference.GRPCInferenceService")
    own = kinds(Default(), f"{OWN}GRPCInferenceService")

    assert len(expected) > 100
    assert set(own) == set(expected)
    assert {name: facts(kind) for name, kind in own.items()} == {name: facts(kind) for name, kind in expected.items()}


@pytest.mark.parametrize(
    ("own", "v2", "extension"),
    [
        (inference_pb2.InferRequest, "ModelInferRequest", {"route": 100}),
        (inference_pb2.InferResponse, "ModelInferResponse", {"decision": 100}),
    ],
)
def test_the_native_messages_are_the_protocols_with_one_field_more(
    theirs: DescriptorPool, own: type, v2: str, extension: dict[str, int]
) -> None:
    def of_native(kind: Descriptor) -> dict[str, list[tuple[object, ...]]]:
        prefix, name = "modelyard.inference.v1.", kind.full_name.removeprefix("modelyard.inference.v1.")
        found = {}
        for message in (entry for entry in all_messages(kind) if entry.full_name.startswith(f"{prefix}Infer")):
            short = message.full_name.removeprefix(prefix)
            found[v2 + short.removeprefix(name) if short.startswith(name) else short] = [
                renamed(field, prefix, name) for field in message.fields if field.name not in extension
            ]
        return found

    def renamed(field: FieldDescriptor, prefix: str, name: str) -> tuple[object, ...]:
        *head, kind, oneof = facts_of(field)
        if isinstance(kind, str):
            short = kind.removeprefix(prefix)
            kind = v2 + short.removeprefix(name) if short.startswith(f"{name}.") else short
        return (*head, kind, oneof)

    def all_messages(kind: Descriptor) -> list[Descriptor]:
        return [entry for entry in reachable([kind]).values() if isinstance(entry, Descriptor)]

    expected = {
        relative(message.full_name): [facts_of(field) for field in message.fields]
        for message in all_messages(theirs.FindMessageTypeByName(f"inference.{v2}"))
    }
    native = of_native(own.DESCRIPTOR)  # type: ignore[attr-defined]

    assert {name: sorted(fields, key=str) for name, fields in native.items()} == {
        name: sorted(fields, key=str) for name, fields in expected.items()
    }
    numbers = {field.name: field.number for field in own.DESCRIPTOR.fields}  # type: ignore[attr-defined]
    assert {name: numbers[name] for name in extension} == extension


def test_reflection_describes_the_protocol_under_its_own_name(theirs: DescriptorPool) -> None:
    pool = v2_pool.build()

    described = reachable([asked for _, asked, *_ in methods(pool, v2_pool.SERVICE)])
    expected = reachable([asked for _, asked, *_ in methods(theirs, v2_pool.SERVICE)])

    assert {name: facts(kind) for name, kind in described.items()} == {
        name: facts(kind) for name, kind in expected.items()
    }


def test_no_symbol_of_the_clients_package_enters_the_default_pool() -> None:
    script = (
        "import services.router.app\n"
        "from google.protobuf.descriptor_pool import Default\n"
        "for name in ('inference.ModelInferRequest', 'inference.GRPCInferenceService', 'inference.ModelConfig'):\n"
        "    try:\n"
        "        Default().FindFileContainingSymbol(name)\n"
        "    except KeyError:\n"
        "        continue\n"
        "    raise SystemExit(f'{name} is there')\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert grpc_service_pb2.DESCRIPTOR.package == "modelyard.openinference.v2"
