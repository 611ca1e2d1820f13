"""Manifests: YAML files to registry objects, with file, line and column of everything wrong in them.

One document is one object: `kind`, `metadata` and `spec`, the fields being those of the kind's
message in `modelyard.registry.v1`. What the fields may hold is the registry's to say; its
faults are brought back to the lines they come from.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from google.protobuf.message import Message

from modelyard.registry.v1 import objects_pb2
from services.domain.errors import Fault, InvalidRequest
from services.domain.objects import ObjectKey
from yardctl.errors import CommandError
from yardctl.manifest_fields import FieldReader, Position

KIND_FIELDS: Mapping[str, str] = {
    "".join(part.capitalize() for part in field.name.split("_")): field.name
    for field in objects_pb2.Object.DESCRIPTOR.oneofs_by_name["spec"].fields
}
"""Kind to the field of Object that holds its spec: `ModelVersion` is `model_version`."""

MAX_FILE_BYTES = 4 << 20
"""Largest manifest: YAML is read at some hundred kilobytes per second, and an object holds 1 MiB at most."""

_SUFFIXES = (".yaml", ".yml")
_ENVELOPE = ("kind", "metadata", "spec")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_OBJECT_PATH = re.compile(r"objects\[(\d+)\]\.?(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Document:
    """One object, and where each of its fields stands."""

    object: objects_pb2.Object
    position: Position
    positions: Mapping[str, Position]
    """By the field's path in the object, such as `model_version.artifact.sha256`."""

    @property
    def key(self) -> ObjectKey:
        """Its identity."""
        return key_of(self.object)

    def locate(self, path: str) -> Position:
        """Where the field at `path` stands, or the nearest thing around it that does."""
        around = [
            known for known in self.positions if path == known or (path.startswith(known) and path[len(known)] in ".[")
        ]
        return self.positions[max(around, key=len)] if around else self.position


def kind_of(item: objects_pb2.Object) -> str:
    """The kind of an object; empty if it has no spec."""
    field = item.WhichOneof("spec")
    return next((kind for kind, name in KIND_FIELDS.items() if name == field), "")


def key_of(item: objects_pb2.Object) -> ObjectKey:
    """The identity of an object."""
    return ObjectKey(kind_of(item), item.metadata.name, item.model_version.version)


def manifest_files(paths: Sequence[Path]) -> list[Path]:
    """The files themselves, and of each folder every YAML file in it, sorted; hidden ones are left out.

    Raises:
        CommandError: A path does not exist, or there is no YAML file at all.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(
                found
                for found in path.rglob("*")
                if found.suffix in _SUFFIXES
                and found.is_file()
                and not any(part.startswith(".") for part in found.relative_to(path).parts)
            )
        elif path.exists():
            files.append(path)
        else:
            raise CommandError(f"there is no file or folder '{path}'")
    if not files:
        raise CommandError(f"no {' or '.join(_SUFFIXES)} file in {', '.join(map(str, paths))}")
    return files


def load(paths: Sequence[Path]) -> list[Document]:
    """Read every object in files and folders.

    Raises:
        InvalidRequest: Something is wrong; each fault's path is `file:line:column`.
        CommandError: There is nothing to read.
    """
    documents: list[Document] = []
    faults: list[Fault] = []
    for file in manifest_files(paths):
        documents += _load_file(file, faults)
    first: dict[ObjectKey, Position] = {}
    for document in documents:
        if document.key in first:
            message = f"{document.key} is already at {first[document.key]}"
            faults.append(Fault(str(document.position), message))
        elif document.key.kind and document.key.name:
            first[document.key] = document.position
    if faults:
        raise InvalidRequest.of(faults)
    if not documents:
        raise CommandError(f"no object in {', '.join(map(str, paths))}")
    return documents


def located(error: InvalidRequest, documents: Sequence[Document]) -> InvalidRequest:
    """The registry's refusal with the lines of the manifests in place of message paths.

    Args:
        error: Answer to an Apply of the documents' objects, in order.
        documents: Those documents.
    """
    faults = []
    for fault in error.faults:
        match = _OBJECT_PATH.fullmatch(fault.path)
        if match is None or int(match[1]) >= len(documents):
            faults.append(fault)
            continue
        document = documents[int(match[1])]
        what = f"{document.key}: {_as_written(match[2], document)}".removesuffix(": ")
        faults.append(Fault(str(document.locate(match[2])), f"{what}: {fault.message}"))
    return InvalidRequest.of(faults) if faults else error


def _as_written(path: str, document: Document) -> str:
    # What is `model_version.version` in the message is `spec.version` in the file.
    field = document.object.WhichOneof("spec")
    if field is not None and path.split(".", maxsplit=1)[0] == field:
        return f"spec{path.removeprefix(field)}"
    return path


class _Anchored(Exception):
    """A node with an anchor, or an alias of one."""

    def __init__(self, event: yaml.NodeEvent) -> None:
        super().__init__(f"'{'*' if isinstance(event, yaml.AliasEvent) else '&'}{event.anchor}'")
        self.event = event


class _Loader(yaml.SafeLoader):
    """PyYAML's, without anchors and aliases: with a few lines of them a file can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise _Anchored(event)
        return super().compose_node(parent, index)


def _load_file(file: Path, faults: list[Fault]) -> list[Document]:
    documents = []
    try:
        with file.open("rb") as content:
            raw = content.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            text = f"larger than {MAX_FILE_BYTES >> 20} MiB: split it; large data belongs in artifacts"
            faults.append(Fault(str(Position(str(file), 1, 1)), text))
            return []
        for node in yaml.compose_all(raw.decode(), Loader=_Loader):
            if isinstance(node, yaml.ScalarNode) and node.value == "":
                continue
            documents.append(_read_document(node, file, faults))
    except _Anchored as error:
        mark = error.event.start_mark
        at = Position(str(file), mark.line + 1, mark.column + 1) if mark else Position(str(file), 1, 1)
        faults.append(Fault(str(at), f"{error}: anchors and aliases are not taken, write it out"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Position(str(file), mark.line + 1, mark.column + 1) if mark else Position(str(file), 1, 1)
        context = f" {error.context}" if error.context else ""
        faults.append(Fault(str(at), f"not YAML: {error.problem or 'cannot be read'}{context}"))
    except yaml.YAMLError as error:
        faults.append(Fault(str(Position(str(file), 1, 1)), f"not YAML: {' '.join(str(error).split())}"))
    except UnicodeDecodeError as error:
        faults.append(Fault(str(Position(str(file), 1, 1)), f"not UTF-8 text: {error.reason} at byte {error.start}"))
    except RecursionError:
        faults.append(Fault(str(Position(str(file), 1, 1)), "nested too deeply"))
    except OSError as error:
        faults.append(Fault(str(file), f"cannot be read: {error.strerror}"))
    return documents


def _read_document(node: yaml.Node, file: Path, faults: list[Fault]) -> Document:
    item = objects_pb2.Object()
    reader = FieldReader(str(file), faults)
    reader.after_message = lambda message, path: _finish_artifact(message, path, file, reader)
    document = Document(item, reader.at(node), reader.positions)
    bound: list[objects_pb2.TemplateBinding] = []

    def read_made(node: yaml.Node, message: Message, path: str) -> None:
        assert isinstance(message, objects_pb2.Object)
        index = int(path.removeprefix("template.objects[").removesuffix("]"))
        reader.bind = lambda at, parameter: bound.append(
            objects_pb2.TemplateBinding(object=index, path=at.removeprefix(f"{path}."), parameter=parameter)
        )
        _read_object(node, message, reader, path)
        reader.bind = None

    reader.read_otherwise = {objects_pb2.Object.DESCRIPTOR.full_name: read_made}
    _read_object(node, item, reader, "")
    if bound:
        item.template.bindings.extend(bound)
    return document


def _read_object(node: yaml.Node, item: objects_pb2.Object, reader: FieldReader, path: str) -> None:
    """Read `kind`, `metadata` and `spec`; `path` is where in a template the object is, empty if it is in none."""
    at = f"{path}." if path else ""
    parts: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    faults_before = len(reader.faults)
    for name, key_node, value_node in reader.entries(node, "the object"):
        if name in _ENVELOPE:
            parts[name] = (key_node, value_node)
        else:
            reader.unknown(key_node, name, _ENVELOPE, "field of the object")
    if not isinstance(node, yaml.MappingNode):
        return
    if "metadata" in parts:
        key_node, value_node = parts["metadata"]
        reader.positions[f"{at}metadata"] = reader.at(key_node)
        reader.message(value_node, item.metadata, f"{at}metadata", "'metadata'")
    if not item.metadata.name and len(reader.faults) == faults_before:
        reader.fault(parts["metadata"][0] if "metadata" in parts else node, "metadata.name is missing")
    if "kind" not in parts:
        reader.fault(node, f"'kind' is missing: one of {', '.join(KIND_FIELDS)}")
        return
    kind_node = parts["kind"][1]
    kind = kind_node.value if isinstance(kind_node, yaml.ScalarNode) else ""
    if kind not in KIND_FIELDS:
        reader.unknown(kind_node, str(kind), KIND_FIELDS, "kind")
        return
    if path and kind == "Template":
        reader.fault(kind_node, "a Template makes no Templates")
        return
    field = KIND_FIELDS[kind]
    reader.positions[f"{at}{field}"] = reader.at(parts["spec"][0] if "spec" in parts else node)
    if "spec" in parts:
        reader.message(parts["spec"][1], getattr(item, field), f"{at}{field}", f"the spec of a {kind}")
    else:
        reader.fault(node, "'spec' is missing")


def _finish_artifact(message: Message, path: str, file: Path, reader: FieldReader) -> None:
    """Make a local artifact's path absolute, and work out the digest that the manifest leaves out."""
    if not isinstance(message, objects_pb2.Artifact) or not message.uri:
        return
    if reader.bind is not None and "${" in message.uri:
        return  # which file it is, a parameter says
    scheme = _SCHEME.match(message.uri)
    if scheme is not None and scheme[0] != "file:":
        return
    given = message.uri.removeprefix("file:")
    local = Path(f"/{given.lstrip('/')}") if given.startswith("/") else (file.parent / given).resolve()
    message.uri = f"file:{local}"
    if message.sha256:
        return
    try:
        with local.open("rb") as content:
            message.sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        where = reader.positions.get(f"{path}.uri")
        reader.faults.append(
            Fault(str(where or file), f"no sha256 is given, and '{local}' cannot be read: {error.strerror}")
        )
