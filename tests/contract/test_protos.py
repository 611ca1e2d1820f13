"""The contracts as a product: every rpc says what it returns and whether it may be retried."""

from importlib import resources
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message
from grpc_tools import protoc

from modelyard.host.v1 import host_pb2
from modelyard.host.v1 import opaque_pb2 as host_opaque
from modelyard.inference.v1 import inference_pb2
from modelyard.inference.v1 import opaque_pb2 as inference_opaque

ROOT = Path(__file__).parents[2]
STATUSES = {
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
}
SERVICE_FIELD, METHOD_FIELD = 6, 2
"""Field numbers of FileDescriptorProto.service and ServiceDescriptorProto.method in a location's path."""


@pytest.fixture(scope="module")
def rpc_comments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Comment by full name of every rpc of our own packages."""
    out = tmp_path_factory.mktemp("protos") / "set.binpb"
    files = [
        str(path.relative_to(ROOT / "protos"))
        for path in sorted((ROOT / "protos").rglob("*.proto"))
        if "openinference" not in path.parts
    ]
    google = resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'protos'}", f"-I{google}", "--include_source_info"]
    arguments += [f"--descriptor_set_out={out}", *files]
    assert protoc.main(arguments) == 0
    comments = {}
    for file in FileDescriptorSet.FromString(out.read_bytes()).file:
        by_path = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
        for number, service in enumerate(file.service):
            for index, method in enumerate(service.method):
                comments[f"{file.package}.{service.name}.{method.name}"] = by_path.get(
                    (SERVICE_FIELD, number, METHOD_FIELD, index), ""
                )
    return comments


def test_every_rpc_says_what_it_returns(rpc_comments: dict[str, str]) -> None:
    assert len(rpc_comments) >= 17
    for name, comment in rpc_comments.items():
        _, found, stated = comment.partition("Statuses:")
        assert found, f"{name} does not say which statuses it returns"
        named = {word.strip(",;.()\n") for word in stated.split()} & STATUSES
        assert named - {"OK"}, f"{name} names no status but OK"


def test_every_rpc_says_whether_it_may_be_retried(rpc_comments: dict[str, str]) -> None:
    assert [name for name, comment in rpc_comments.items() if "Retry:" not in comment] == []


def test_every_status_named_is_one_of_grpc(rpc_comments: dict[str, str]) -> None:
    for name, comment in rpc_comments.items():
        stated = comment.partition("Statuses:")[2]
        shouted = {word.strip(",;.():\n") for word in stated.split()}
        unknown = {word for word in shouted if word.isupper() and "_" in word and word not in STATUSES | {"REQUEST_ID"}}
        assert not unknown, f"{name} names {unknown}"


def test_opaque_messages_are_their_twins_on_the_wire() -> None:
    twins: dict[type[Message], type[Message]] = {
        host_opaque.OpaqueDispatchRequest: host_pb2.DispatchRequest,
        host_opaque.OpaqueDispatchedCall: host_pb2.DispatchedCall,
        host_opaque.OpaqueDispatchResponse: host_pb2.DispatchResponse,
        host_opaque.OpaqueDispatchResult: host_pb2.DispatchResult,
        inference_opaque.OpaqueInferManyRequest: inference_pb2.InferManyRequest,
        inference_opaque.OpaqueManyCall: inference_pb2.ManyCall,
        inference_opaque.OpaqueInferManyResponse: inference_pb2.InferManyResponse,
        inference_opaque.OpaqueManyResult: inference_pb2.ManyResult,
    }
    passed_on = {"modelyard.inference.v1.InferRequest", "modelyard.inference.v1.InferResponse"}
    described = {opaque.DESCRIPTOR.full_name: twin.DESCRIPTOR.full_name for opaque, twin in twins.items()}
    for opaque, twin in twins.items():
        ours, theirs = opaque.DESCRIPTOR.fields_by_name, twin.DESCRIPTOR.fields_by_name
        assert set(ours) == set(theirs)
        for name, field in ours.items():
            other = theirs[name]
            assert (field.number, field.is_repeated) == (other.number, other.is_repeated), (twin, name)
            if field.type == field.TYPE_BYTES:
                assert other.message_type is not None, (twin, name)
                assert other.message_type.full_name in passed_on, (twin, name)
            elif field.message_type is not None:
                own = field.message_type.full_name
                assert other.message_type is not None
                assert described.get(own, own) == other.message_type.full_name, (twin, name)
            else:
                assert field.type == other.type, (twin, name)
