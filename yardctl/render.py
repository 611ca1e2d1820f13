"""How things look: tables, trees, sizes and times for people, plain values for programs."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from modelyard.registry.v1 import objects_pb2, registry_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from yardctl.manifest_fields import DURATION, enum_names
from yardctl.spans import to_json
from yardctl.trace import Trace, TraceNode, links_elsewhere

_STYLES = {
    "healthy": "green",
    "READY": "green",
    "OK": "green",
    "down": "red",
    "FAILED": "red",
    "LOADING": "yellow",
    "UNLOADING": "yellow",
    "draining": "yellow",
}
_SHOWN_ATTRIBUTES = 6
_HIDDEN_ATTRIBUTES = ("rpc.", "error.type")
"""What the span's name or error says already."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """A plain table: a heading, and a line for each row."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(column.upper(), overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return made


def state(word: str) -> Text:
    """A state in its colour."""
    return Text(word, style=_STYLES.get(word, ""))


def to_dict(message: Message) -> dict[str, Any]:
    """A message as plain values, for programs.

    Fields keep their names in the contract. Durations become seconds and say so by `_s`, times
    are ISO 8601, enums their short names, bytes base64. Fields that can be absent are left out
    where they are.
    """
    found: dict[str, Any] = {}
    for spec in message.DESCRIPTOR.fields:
        if spec.has_presence and not message.HasField(spec.name):
            continue
        is_duration = spec.message_type is not None and spec.message_type.full_name == DURATION
        name = f"{spec.name}_s" if is_duration else spec.name
        value = getattr(message, spec.name)
        if spec.message_type is not None and spec.message_type.GetOptions().map_entry:
            inner = spec.message_type.fields_by_name["value"]
            found[name] = {str(key): _plain(inner, value[key]) for key in sorted(value)}
        elif spec.is_repeated:
            found[name] = [_plain(spec, item) for item in value]
        else:
            found[name] = _plain(spec, value)
    return found


def _plain(spec: Any, value: Any) -> Any:
    if isinstance(value, Duration):
        return seconds(value)
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Message):
        return to_dict(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if spec.enum_type is not None:
        return next((name for name, number in enum_names(spec.enum_type).items() if number == value), value)
    return value


def seconds(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.seconds + duration.nanos * 1e-9


def span_of_time(duration_s: float) -> str:
    """A duration with three digits that count: `1.23 ms`, `45.0 s`, `3 h 12 min`."""
    if duration_s < 1e-3:
        return f"{duration_s * 1e6:.0f} µs"
    if duration_s < 1.0:
        return f"{duration_s * 1e3:.{2 if duration_s < 0.01 else 1}f} ms"
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    minutes, rest_s = divmod(int(duration_s), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size(size_bytes: float) -> str:
    """A size with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


def time_of(timestamp: Timestamp) -> str:
    """A time in UTC, to the second."""
    return datetime.fromtimestamp(timestamp.seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def key_text(key: objects_pb2.ObjectKey) -> str:
    """`Kind/name` or `Kind/name/version`."""
    return "/".join(part for part in (key.kind, key.name, key.version) if part)


def action(change: registry_pb2.Change) -> str:
    """`create`, `update` or `delete`."""
    return registry_pb2.ChangeAction.Name(change.action).removeprefix("CHANGE_ACTION_").lower()


def changes(found: Sequence[registry_pb2.Change]) -> Table:
    """What an apply changes, field by field."""
    rows: list[Sequence[str | Text]] = []
    colours = {"create": "green", "delete": "red", "update": "yellow"}
    for change in found:
        word = action(change)
        rows.append((Text(word, style=colours.get(word, "")), key_text(change.key), "", ""))
        rows += [("", f"  {field.path}", field.before or "-", field.after or "-") for field in change.fields]
    return table(("change", "object", "before", "after"), rows)


def findings(found: Iterable[registry_pb2.Finding]) -> Table:
    """What gates found."""
    rows = [
        (each.gate, key_text(each.key), Text("passed", "green") if each.passed else Text("failed", "red"), each.text)
        for each in found
    ]
    return table(("gate", "object", "", "found"), rows)


def change_counts(found: Iterable[registry_pb2.Change]) -> str:
    """`2 created, 1 updated`."""
    counts: dict[str, int] = {}
    for change in found:
        word = f"{action(change)}d"
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def device_kind(kind: "resources_pb2.DeviceKind.ValueType") -> str:
    """`CPU` or `CUDA`."""
    return resources_pb2.DeviceKind.Name(kind).removeprefix("DEVICE_KIND_")


def model_state(hosted: resources_pb2.HostedModel) -> str:
    """`READY`, `LOADING`, ..."""
    return model_pb2.ModelState.Name(hosted.state).removeprefix("MODEL_STATE_")


# --- hosts -------------------------------------------------------------------------------------


def hosts(records: Sequence[resources_pb2.HostRecord]) -> Table:
    """Hosts, and below each the versions it has."""
    rows: list[Sequence[str | Text]] = []
    for record in records:
        memory = f"{size(record.device.used_bytes)} of {size(record.device.memory_bytes)}"
        pool = "/".join(part for part in (record.pool, record.zone) if part)
        stands = state("draining" if record.draining else "cordoned" if record.cordoned else "healthy")
        rows.append((record.host_id, record.address, pool, device_kind(record.device.kind), memory, stands))
        for hosted in record.models:
            used = size(hosted.memory_bytes) if hosted.memory_bytes else ""
            word = Text.assemble(state(model_state(hosted)), f" {hosted.message}" if hosted.message else "")
            rows.append((f"  {hosted.key.model}:{hosted.key.version}", "", "", "", used, word))
    return table(("host", "address", "pool", "device", "memory", "state"), rows)


def gone_hosts(found: Sequence[registry_pb2.KnownHost]) -> Table:
    """Hosts that are gone, and what they had."""
    rows: list[Sequence[str | Text]] = []
    for host in found:
        record = host.record
        how = "signed off" if host.end == registry_pb2.HOST_END_SIGNED_OFF else "vanished"
        had = ", ".join(f"{each.key.model}:{each.key.version} {model_state(each)}" for each in record.models)
        rows.append(
            (record.host_id, record.address, str(record.pid), time_of(host.registered), time_of(host.gone),
             Text(how, style="red" if how == "vanished" else ""), had)
        )  # fmt: skip
    return table(("host", "address", "pid", "registered (utc)", "gone (utc)", "how", "had"), rows)


# --- traces ------------------------------------------------------------------------------------


def trace(found: Trace) -> Tree:
    """A trace as a tree, each span with its time and when it began."""
    head = Text.assemble(("trace ", "dim"), (found.trace_id, "bold"), f"  {span_of_time(found.duration_s)}")
    tree = Tree(head, guide_style="dim")
    for root in found.roots:
        _add(tree, root, found)
    return tree


def _add(tree: Tree, node: TraceNode, whole: Trace) -> None:
    span = node.span
    offset_s = (span.start_ns - whole.start_ns) / 1e9
    where = "@".join(part for part in (span.service, span.instance) if part)
    line = Text.assemble(
        (_short_name(span.name), "bold"),
        f"  {span_of_time(span.duration_s)}",
        (f"  +{span_of_time(max(0.0, offset_s))}", "dim"),
        (f"  {where}", "cyan"),
    )
    if node.orphan:
        line.append("  (its parent is not in the store)", style="yellow")
    if node.linked:
        line.append(f"  ⇠ in trace {span.trace_id[:8]}", style="magenta")
    if len(span.links) > 1 or links_elsewhere(span, whole.trace_id):
        line.append(f"  ⇢ {_links(span.links, span, whole)}", style="magenta")
    if span.error:
        line.append(f"  {span.error}", style="red")
    shown = [
        f"{key.removeprefix('modelyard.')}={value}"
        for key, value in span.attributes.items()
        if value not in ("", None) and not key.startswith(_HIDDEN_ATTRIBUTES)
    ]
    if shown:
        line.append("  " + " ".join(shown[:_SHOWN_ATTRIBUTES]), style="dim")
    branch = tree.add(line)
    for child in node.children:
        _add(branch, child, whole)


def _short_name(name: str) -> str:
    """`InferenceService/Infer` of a method's full path."""
    service, slash, method = name.rpartition("/")
    return f"{service.rpartition('.')[2]}/{method}" if slash else name


def _links(links: Sequence[Any], span: Any, whole: Trace) -> str:
    others = len(links_elsewhere(span, whole.trace_id))
    here = len(links) - others
    words = [f"{here} of this trace" if here else "", f"{others} of others" if others else ""]
    return f"links {' and '.join(word for word in words if word)}"


def trace_json(found: Trace) -> Mapping[str, Any]:
    """A trace as plain values."""

    def plain(node: TraceNode) -> dict[str, Any]:
        return {
            **to_json(node.span),
            "duration_s": node.span.duration_s,
            "linked": node.linked,
            "children": [plain(child) for child in node.children],
        }

    return {
        "trace_id": found.trace_id,
        "duration_s": found.duration_s,
        "spans": [plain(root) for root in found.roots],
    }
