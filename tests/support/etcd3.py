"""The `etcd3` package as a second opinion on what is in etcd.

Its generated messages need a protobuf of long ago, so they are made anew, in a descriptor pool of their own, from the
descriptors inside those files: etcd's own, not ours. The client itself runs unchanged.
"""

import ast
import importlib
import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.internal import enum_type_wrapper

_FILES = ("kv", "auth", "rpc")


def etcd_descriptors() -> descriptor_pool.DescriptorPool:
    """What etcd says that its messages are: files kv.proto, auth.proto and rpc.proto."""
    package = importlib.util.find_spec("etcd3")
    assert package is not None, "no etcd3: pip install etcd3"
    assert package.origin is not None
    pool = descriptor_pool.DescriptorPool()
    for name in _FILES:
        source = (Path(package.origin).parent / "etcdrpc" / f"{name}_pb2.py").read_text()
        pool.Add(_descriptor_in(source))
    return pool


def etcd3_client(endpoint: str) -> Any:
    """An `etcd3.Etcd3Client` of `HOST:PORT`; close it."""
    host, _, port = endpoint.rpartition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _package("etcd3").client(host=host, port=int(port), timeout=5)


def etcd3_rpc() -> tuple[Any, Any]:
    """`etcd3`'s modules of messages and stubs: `etcdrpc`, and its `kv_pb2` for keys and events."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _package("etcd3.etcdrpc"), _package("etcd3.etcdrpc.kv_pb2")


def _package(name: str) -> Any:
    if "etcd3" not in sys.modules:
        pool = etcd_descriptors()
        for file in _FILES:
            sys.modules[f"etcd3.etcdrpc.{file}_pb2"] = _module(f"{file}_pb2", pool.FindFileByName(f"{file}.proto"))
    return importlib.import_module(name)


def _descriptor_in(source: str) -> descriptor_pb2.FileDescriptorProto:
    """The descriptor in a file that an old protoc wrote: `serialized_pb=_b('...')`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb" and isinstance(node.value, ast.Call):
            text = ast.literal_eval(node.value.args[0])
            return descriptor_pb2.FileDescriptorProto.FromString(text.encode("latin1"))
    raise AssertionError("no descriptor in there")


def _module(name: str, file: FileDescriptor) -> types.ModuleType:
    module = types.ModuleType(f"etcd3.etcdrpc.{name}")
    for message in file.message_types_by_name.values():
        setattr(module, message.name, message_factory.GetMessageClass(message))
    for enum in file.enum_types_by_name.values():
        wrapper = enum_type_wrapper.EnumTypeWrapper(enum)
        setattr(module, enum.name, wrapper)
        for value in enum.values:
            setattr(module, value.name, value.number)
    return module
