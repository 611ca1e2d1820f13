"""The router's snapshot on disk: what it starts from when the registry is away.

One line of format and digest, then WatchResponses as the registry would have sent them. A file that is
cut off, tampered with, or of another format counts as none.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.codec import record_from, record_to
from services.chassis.object_codec import object_from, object_to
from services.domain.errors import YardError
from services.domain.host import HostRecord
from services.domain.objects import Object
from services.router.snapshot import Objects, Snapshot

FORMAT = b"modelyard-router-snapshot 1 "
"""Begins the file; a change of what follows changes the number."""

OBJECTS_PER_PART = 500


class UnusableSnapshot(Exception):
    """The file is there and cannot be used; says why."""


def write(path: Path, snapshot: Snapshot) -> None:
    """Replace the file, so that a reader finds the old one or the new one.

    Raises:
        OSError: It cannot be written; the old one is untouched.
    """
    body = b"".join(_framed(message) for message in _messages(snapshot))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(FORMAT + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def read(path: Path) -> Snapshot | None:
    """The snapshot; None if there is no file.

    Raises:
        UnusableSnapshot: It is damaged or of another format.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableSnapshot(f"{path}: {error.strerror}") from None
    head, _, body = content.partition(b"\n")
    if not head.startswith(FORMAT):
        raise UnusableSnapshot(f"{path}: not of the format that this version reads")
    if head.removeprefix(FORMAT) != hashlib.sha256(body).hexdigest().encode():
        raise UnusableSnapshot(f"{path}: its digest does not match: it is damaged")
    revision = 0
    items: list[Object] = []
    hosts: dict[str, HostRecord] = {}
    try:
        for message in _unframed(body):
            if message.HasField("snapshot"):
                revision = message.snapshot.revision
                items += [object_from(item) for item in message.snapshot.objects]
            hosts.update({record.host_id: record_from(record) for record in message.hosts.listed})
    except (DecodeError, YardError) as error:
        raise UnusableSnapshot(f"{path}: {error}") from None
    return Snapshot(Objects().changed(revision, items), hosts)


def _messages(snapshot: Snapshot) -> Iterator[pb.WatchResponse]:
    items = snapshot.objects.all()
    hosts = [record_to(host) for _, host in sorted(snapshot.hosts.items())]
    for start in range(0, max(1, len(items)), OBJECTS_PER_PART):
        part = [object_to(item) for item in items[start : start + OBJECTS_PER_PART]]
        yield pb.WatchResponse(snapshot=pb.WatchSnapshot(revision=snapshot.revision, objects=part))
    yield pb.WatchResponse(hosts=pb.WatchHosts(reset=True, listed=hosts))


def _framed(message: pb.WatchResponse) -> bytes:
    encoded = message.SerializeToString(deterministic=True)
    return len(encoded).to_bytes(4, "little") + encoded


def _unframed(body: bytes) -> Iterator[pb.WatchResponse]:
    at = 0
    while at < len(body):
        length = int.from_bytes(body[at : at + 4], "little")
        yield pb.WatchResponse.FromString(body[at + 4 : at + 4 + length])
        at += 4 + length
