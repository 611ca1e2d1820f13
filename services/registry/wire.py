"""protobuf ⇄ domain for the registry's calls, and the faults that only the wire form shows.

What is wrong with an object itself is found by `policy.change_check`.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Sequence

from modelyard.registry.v1 import objects_pb2, registry_pb2
from modelyard.type.v1 import resources_pb2
from services.chassis import templating
from services.chassis.object_codec import message_key, object_from, object_key_from, object_key_to
from services.domain.errors import Fault, InvalidRequest
from services.domain.objects import KINDS, ObjectKey, is_dns_label
from services.domain.templates import TEMPLATE_ANNOTATION, origin_of
from services.domain.texts import MAX_LABELS, name_faults, shown, too_many
from services.policy.change_check import Submitted
from services.policy.gating import Finding
from services.policy.tree_diff import Action, Change
from services.registry.apply import MAX_OBJECT_BYTES, Applied, Command
from services.registry.wire_values import value_faults

MAX_RECORD_BYTES = 64 * 1024
"""Most bytes of a host's record; it is written whenever a model on the host changes its state."""

_ACTIONS = {
    Action.CREATE: registry_pb2.CHANGE_ACTION_CREATE,
    Action.UPDATE: registry_pb2.CHANGE_ACTION_UPDATE,
    Action.DELETE: registry_pb2.CHANGE_ACTION_DELETE,
}


def command_from(request: registry_pb2.ApplyRequest) -> Command:
    """What is to be applied; an object that cannot be read carries its faults along."""
    return Command(
        submitted=tuple(submitted(message) for message in request.objects),
        deletes=tuple(object_key_from(key) for key in request.deletes),
        expected_revision=request.expected_revision,
        reason=request.reason,
        author=request.author,
        request_id=request.request_id,
        dry_run=request.dry_run,
    )


def instantiation_from(request: registry_pb2.InstantiateRequest, objects: Sequence[objects_pb2.Object]) -> Command:
    """What a template makes, to be applied."""
    return Command(
        submitted=tuple(submitted(message) for message in objects),
        deletes=(),
        expected_revision=request.expected_revision,
        reason=request.reason or f"template {request.template}",
        author=request.author,
        request_id=request.request_id,
        dry_run=request.dry_run,
        by_name=True,
    )


def made_from(
    request: registry_pb2.InstantiateRequest, template: objects_pb2.Object, digest: str
) -> list[objects_pb2.Object]:
    """The objects that a template makes, each saying of which it is.

    Args:
        request: What is asked for.
        template: The Template.
        digest: Of its stored form.

    Raises:
        InvalidRequest: With every fault of parameters, and of what became of the template's texts.
    """
    made = templating.render(template.template, request.parameters)
    for message in made:
        message.metadata.annotations[TEMPLATE_ANNOTATION] = origin_of(request.template, digest)
    return made


def rollback_from(request: registry_pb2.RollbackRequest) -> Command:
    """What is to be taken over.

    Raises:
        InvalidRequest: No revision is named.
    """
    if request.revision <= 0:
        raise InvalidRequest.of([Fault("revision", f"{request.revision} must be the number of a revision")])
    return Command(
        submitted=(),
        deletes=(),
        expected_revision=request.expected_revision,
        reason=request.reason or f"rollback to revision {request.revision}",
        author=request.author,
        request_id=request.request_id,
        dry_run=request.dry_run,
        restores=request.revision,
    )


def import_from(options: registry_pb2.ImportOptions, objects: Sequence[objects_pb2.Object]) -> Command:
    """A state to be taken over: what is not in it goes."""
    return Command(
        submitted=tuple(submitted(message) for message in objects),
        deletes=(),
        expected_revision=options.expected_revision,
        reason=options.reason or "import",
        author=options.author,
        request_id=options.request_id,
        dry_run=options.dry_run,
        exact=True,
    )


def submitted(message: objects_pb2.Object) -> Submitted:
    """An object of a request; one that cannot be read carries its faults along."""
    if faults := _size_faults(message):
        return Submitted(message_key(message), None, faults)
    faults = tuple(value_faults(message))
    if message.WhichOneof("spec") == "template":
        faults += tuple(templating.check(message.template))
    try:
        item = object_from(message)
    except InvalidRequest as error:
        return Submitted(message_key(message), None, (*error.faults, *faults))
    return Submitted(item.key, item, faults)


def _size_faults(message: objects_pb2.Object) -> tuple[Fault, ...]:
    """Whether it is too large to be worth reading; looks at lengths only."""
    metadata = message.metadata
    counts = (("metadata.labels", len(metadata.labels)), ("metadata.annotations", len(metadata.annotations)))
    crowded = [too_many(count, MAX_LABELS, path) for path, count in counts if count > MAX_LABELS]
    size_bytes = message.ByteSize()
    if not crowded and size_bytes > MAX_OBJECT_BYTES:
        text = f"takes {size_bytes} bytes, at most {MAX_OBJECT_BYTES}: large data belongs in artifacts"
        return (Fault("", text),)
    return tuple(crowded)


def applied_to(applied: Applied) -> registry_pb2.ApplyResponse:
    """What was applied."""
    return registry_pb2.ApplyResponse(
        revision=applied.revision, changes=changes_to(applied.changes), findings=findings_to(applied.findings)
    )


def findings_to(findings: Iterable[Finding]) -> list[registry_pb2.Finding]:
    """What gates found."""
    return [
        registry_pb2.Finding(gate=each.gate, key=object_key_to(each.key), passed=each.passed, text=each.text)
        for each in findings
    ]


def changes_to(changes: Iterable[Change]) -> list[registry_pb2.Change]:
    """Changes, in their order."""
    return [change_to(change) for change in changes]


def change_to(change: Change) -> registry_pb2.Change:
    """One change."""
    return registry_pb2.Change(
        action=_ACTIONS[change.action],
        key=object_key_to(change.key),
        fields=[
            registry_pb2.FieldChange(path=each.path, before=each.before, after=each.after) for each in change.fields
        ],
    )


def lookup_key_from(key: objects_pb2.ObjectKey) -> ObjectKey:
    """The key of an object to be read.

    Raises:
        InvalidRequest: It names none.
    """
    faults = kind_faults(key.kind, "key.kind")
    faults += name_faults(key.name, "key.name")
    if key.kind == "ModelVersion" and not key.version:
        faults.append(Fault("key.version", "must not be empty for a ModelVersion"))
    if key.kind in KINDS and key.kind != "ModelVersion" and key.version:
        faults.append(Fault("key.version", f"must be empty for a {key.kind}"))
    if faults:
        raise InvalidRequest.of(faults)
    return object_key_from(key)


def kind_faults(kind: str, path: str) -> list[Fault]:
    """Whether a kind exists."""
    return [] if kind in KINDS else [Fault(path, f"{shown(kind)} is none of {', '.join(KINDS)}")]


def record_from(request: registry_pb2.RegisterHostRequest, host_id: str) -> resources_pb2.HostRecord | None:
    """The record that a report brings; None if it brings none, which the first one may not.

    Args:
        request: The report.
        host_id: Whose stream it is; empty on the first report.

    Raises:
        InvalidRequest: With every fault of the record.
    """
    if not request.HasField("record"):
        if host_id:
            return None
        raise InvalidRequest.of([Fault("record", "the first report must bring the record")])
    record = request.record
    faults = record_faults(record)
    if host_id and record.host_id != host_id:
        faults.append(Fault("record.host_id", f"this stream is of '{host_id}', not of '{record.host_id}'"))
    if faults:
        raise InvalidRequest.of(faults)
    return record


def record_faults(record: resources_pb2.HostRecord) -> list[Fault]:
    """Everything wrong with a host's record."""
    faults = []
    if not is_dns_label(record.host_id):
        faults.append(Fault("record.host_id", f"'{record.host_id}' must be a DNS label, at most 63 characters"))
    host, _, port = record.address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        faults.append(Fault("record.address", f"'{record.address}' must be HOST:PORT"))
    if not is_dns_label(record.pool):
        faults.append(Fault("record.pool", f"'{record.pool}' is not the name of a pool"))
    if record.device.kind not in (resources_pb2.DEVICE_KIND_CPU, resources_pb2.DEVICE_KIND_CUDA):
        faults.append(Fault("record.device.kind", f"{record.device.kind} is no kind of device"))
    for path, value in (("memory_bytes", record.device.memory_bytes), ("used_bytes", record.device.used_bytes)):
        if value < 0:
            faults.append(Fault(f"record.device.{path}", f"{value} must not be negative"))
    if record.ByteSize() > MAX_RECORD_BYTES:
        faults.append(Fault("record", f"takes {record.ByteSize()} bytes, at most {MAX_RECORD_BYTES}"))
    return faults


def plan_from(request: registry_pb2.PublishPlanRequest) -> registry_pb2.Plan:
    """The plan to be published.

    Raises:
        InvalidRequest: There is none, or the store could not hold it.
    """
    if not request.HasField("plan"):
        raise InvalidRequest.of([Fault("plan", "must be set")])
    if request.plan.ByteSize() > MAX_OBJECT_BYTES:
        raise InvalidRequest.of([Fault("plan", f"takes {request.plan.ByteSize()} bytes, at most {MAX_OBJECT_BYTES}")])
    return request.plan


def page_size_from(page_size: int, *, default: int, most: int, path: str = "page_size") -> int:
    """How many a page has.

    Raises:
        InvalidRequest: It is negative.
    """
    if page_size < 0:
        raise InvalidRequest.of([Fault(path, f"{page_size} must not be negative")])
    return min(page_size or default, most)


def revision_token_from(token: str) -> int:
    """The revision at which a page of the history begins.

    Raises:
        InvalidRequest: It is no token of ListRevisions.
    """
    (revision,) = token_from(token, int)
    return int(revision)


def token_to(*parts: str | int) -> str:
    """A page token; opaque to callers, and no secret."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def token_from(token: str, *kinds: type) -> list[str | int]:
    """The parts of a page token.

    Args:
        token: As `token_to` made it.
        kinds: Type of each part.

    Raises:
        InvalidRequest: It is no token of this call.
    """
    try:
        parts = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError):
        parts = None
    if not isinstance(parts, list) or [type(part) for part in parts] != list(kinds):
        raise InvalidRequest.of([Fault("page_token", "is not one of this call's; begin again without it")])
    return parts
