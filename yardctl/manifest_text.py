"""Registry objects as manifests: the inverse of `manifests`, for `yardctl get -o yaml`."""

import base64
from collections.abc import Iterable
from typing import Any

import yaml
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from modelyard.registry.v1 import objects_pb2
from yardctl.manifest_fields import DURATION, enum_names
from yardctl.manifests import KIND_FIELDS, kind_of
from yardctl.quantities import format_duration, format_size

_LINE_BREAKS = "\r\x85\u2028\u2029\ufeff"


def to_yaml(objects: Iterable[objects_pb2.Object]) -> str:
    """The objects as one multi-document manifest that reads back as the same objects."""
    return yaml.dump_all(
        [to_manifest(item) for item in objects],
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=120,
        explicit_start=True,
    )


class _Dumper(yaml.SafeDumper):
    """PyYAML's, less a fault.

    Outside of double quotes PyYAML writes Unicode's line breaks as they are, and reads them back as others.
    """


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if any(each in text for each in _LINE_BREAKS) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def to_manifest(item: objects_pb2.Object) -> dict[str, Any]:
    """The object as plain values: `kind`, `metadata`, `spec`."""
    kind = kind_of(item)
    spec = fields(getattr(item, KIND_FIELDS[kind])) if kind else {}
    return {"kind": kind, "metadata": fields(item.metadata), "spec": spec}


def fields(message: Message) -> dict[str, Any]:
    """The fields that are set, by name, as plain values."""
    return {spec.name: _value(spec, value) for spec, value in message.ListFields()}


def _value(spec: FieldDescriptor, value: Any) -> Any:
    if spec.message_type is not None and spec.message_type.GetOptions().map_entry:
        inner = spec.message_type.fields_by_name["value"]
        return {key: _single(inner, value[key]) for key in sorted(value)}
    if spec.is_repeated:
        return [_single(spec, item) for item in value]
    return _single(spec, value)


def _single(spec: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, objects_pb2.Object):
        return to_manifest(value)
    if spec.message_type is not None:
        return format_duration(value.ToNanoseconds()) if spec.message_type.full_name == DURATION else fields(value)
    if spec.enum_type is not None:
        return next((name for name, number in enum_names(spec.enum_type).items() if number == value), value)
    if spec.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode()
    if isinstance(value, int) and not isinstance(value, bool) and spec.name.endswith("_bytes"):
        return format_size(value)
    return value
