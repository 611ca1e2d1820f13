"""The V2 protocol's descriptors under the package its clients know, in a pool of their own.

`tritonclient` and others fill the default pool with package `inference`; a second set of the same symbols
there could not be imported beside them.
"""

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from modelyard.openinference.v2 import grpc_service_pb2, model_config_pb2

PACKAGE = "inference"
"""The package that clients know."""

SERVICE = f"{PACKAGE}.GRPCInferenceService"
"""The service's full name, as clients call it."""


def build() -> DescriptorPool:
    """A pool with package `inference` alone."""
    pool = DescriptorPool()
    for module in (model_config_pb2, grpc_service_pb2):
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        pool.Add(_repackaged(file))
    return pool


def _repackaged(file: FileDescriptorProto) -> FileDescriptorProto:
    own = file.package
    file.package = PACKAGE
    file.name = file.name.rpartition("/")[2]
    for index, dependency in enumerate(file.dependency):
        file.dependency[index] = dependency.rpartition("/")[2]
    for message in file.message_type:
        _rename(message, own)
    for service in file.service:
        for method in service.method:
            method.input_type = _renamed(method.input_type, own)
            method.output_type = _renamed(method.output_type, own)
    return file


def _rename(message: DescriptorProto, own: str) -> None:
    for field in message.field:
        if field.type_name:
            field.type_name = _renamed(field.type_name, own)
    for nested in message.nested_type:
        _rename(nested, own)


def _renamed(name: str, own: str) -> str:
    return f".{PACKAGE}.{name.removeprefix(f'.{own}.')}"
