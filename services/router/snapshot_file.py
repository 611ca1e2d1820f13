"""The router's snapshot on disk: what it starts from when the registry is away.

One line of format, then WatchResponses as the registry would have sent them: a whole state and its hosts, and behind
them what has changed since, until that has grown as long as the state. Each message comes after a digest of itself and
of all before it. A file whose state is cut off or tampered with, or of another format, counts as none; of the changes
those count that come before the first that is not whole, as one is when the machine goes down while it is written.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.codec import record_from, record_to
from services.chassis.object_codec import object_from, object_key_from, object_key_to, object_to, readable
from services.domain.errors import YardError
from services.domain.host import HostRecord
from services.domain.objects import Object
from services.router.snapshot import Objects, Snapshot

FORMAT = b"modelyard-router-snapshot 2\n"
"""Begins the file; a change of what follows changes the number."""

OBJECTS_PER_PART = 500

LEAST_GROWTH = 1 << 20
"""Bytes of changes that a file takes at least before the state is written anew."""

_DIGEST_BYTES = hashlib.sha256().digest_size
_LENGTH_BYTES = 4


class UnusableSnapshot(Exception):
    """The file is there and cannot be used; says why."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A whole state, and the messages that it came in."""

    objects: Objects
    parts: Sequence[bytes]


class SnapshotFile:
    """The file, for one process that writes it, or any number that read it."""

    def __init__(self, path: Path) -> None:
        """At `path`; nothing is read or written yet."""
        self.path = path
        self._held: Snapshot | None = None
        """What the file says; None if that is not known."""
        self._chain = b""
        self._end = 0
        self._base_bytes = 0

    def read(self) -> Snapshot | None:
        """The snapshot; None if there is no file.

        Raises:
            UnusableSnapshot: It is damaged or of another format.
        """
        self._held = None
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnusableSnapshot(f"{self.path}: {error.strerror}") from None
        if not content.startswith(FORMAT):
            raise UnusableSnapshot(f"{self.path}: not of the format that this version reads")
        items: list[Object] = []
        objects: Objects | None = None
        hosts: dict[str, HostRecord] = {}
        revision = 0
        try:
            for message, chain, end in _unframed(content):
                match message.WhichOneof("event"):
                    case "snapshot":
                        revision = message.snapshot.revision
                        items += readable(message.snapshot.objects)[0]
                    case "delta" if objects is not None:
                        delta = message.delta
                        upserts, deletes = map(object_from, delta.upserts), map(object_key_from, delta.deletes)
                        objects = objects.changed(delta.revision, upserts, deletes)
                    case "hosts":
                        if objects is None:
                            objects = Objects().changed(revision, items)
                            self._base_bytes = end
                        hosts = {record.host_id: record_from(record) for record in message.hosts.listed}
                self._chain, self._end = chain, end
        except (DecodeError, YardError) as error:
            raise UnusableSnapshot(f"{self.path}: {error}") from None
        if objects is None:
            raise UnusableSnapshot(f"{self.path}: its digest does not match: it is damaged")
        self._held = Snapshot(objects, hosts)
        return self._held

    def write(self, snapshot: Snapshot, heard: Heard | None = None) -> None:
        """Have the file say `snapshot`: by what has changed, or whole, where a reader finds the old or the new one.

        Args:
            snapshot: What to say.
            heard: The last whole state that the registry sent, if that is not in the file yet: to write it as it came
                takes a tenth of the time that it takes to encode it.

        Raises:
            OSError: It cannot be written; a reader finds what was there before.
        """
        held, self._held = self._held, None
        if heard is not None:
            held = Snapshot(heard.objects, snapshot.hosts)
            self._replace([*heard.parts, _encoded(_hosts(held))])
        if held is None or not self._append(held, snapshot):
            self._replace(map(_encoded, _messages(snapshot)))
        self._held = snapshot

    def _append(self, held: Snapshot, snapshot: Snapshot) -> bool:
        """Add what has changed, unless that is too much, or the file is not the one that is known."""
        upserts, deletes = snapshot.objects.differing(held.objects)
        if len(upserts) > OBJECTS_PER_PART:
            return False
        messages = []
        if snapshot.revision != held.revision or upserts or deletes:
            messages.append(
                pb.WatchResponse(
                    delta=pb.WatchDelta(
                        revision=snapshot.revision,
                        upserts=map(object_to, upserts),
                        deletes=map(object_key_to, deletes),
                    )
                )
            )
        if snapshot.hosts != held.hosts:
            messages.append(_hosts(snapshot))
        addition, chain = _framed(map(_encoded, messages), self._chain)
        if self._end + len(addition) > 2 * self._base_bytes + LEAST_GROWTH:
            return False
        try:
            with self.path.open("r+b") as file:
                if file.seek(0, os.SEEK_END) < self._end:
                    return False
                file.seek(self._end)
                file.write(addition)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except FileNotFoundError:
            return False
        self._chain, self._end = chain, self._end + len(addition)
        return True

    def _replace(self, messages: Iterable[bytes]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        chain, end = _chain_of(b"", FORMAT), len(FORMAT)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(FORMAT)
                for encoded in messages:
                    frame, chain = _framed([encoded], chain)
                    end += file.write(frame)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
            raise
        self._chain = chain
        self._end = self._base_bytes = end


def write(path: Path, snapshot: Snapshot) -> None:
    """Replace the file; see `SnapshotFile.write`."""
    SnapshotFile(path).write(snapshot)


def read(path: Path) -> Snapshot | None:
    """The snapshot; see `SnapshotFile.read`."""
    return SnapshotFile(path).read()


def _messages(snapshot: Snapshot) -> Iterator[pb.WatchResponse]:
    items = snapshot.objects.all()
    for start in range(0, max(1, len(items)), OBJECTS_PER_PART):
        part = [object_to(item) for item in items[start : start + OBJECTS_PER_PART]]
        yield pb.WatchResponse(snapshot=pb.WatchSnapshot(revision=snapshot.revision, objects=part))
    yield _hosts(snapshot)


def _hosts(snapshot: Snapshot) -> pb.WatchResponse:
    """All hosts: they are few beside the objects."""
    listed = [record_to(host) for _, host in sorted(snapshot.hosts.items())]
    return pb.WatchResponse(hosts=pb.WatchHosts(reset=True, listed=listed))


def _encoded(message: pb.WatchResponse) -> bytes:
    return message.SerializeToString(deterministic=True)


def _framed(messages: Iterable[bytes], chain: bytes) -> tuple[bytes, bytes]:
    """Encoded messages as they stand in the file, and the last one's digest; `chain` is the digest before them."""
    frames = []
    for encoded in messages:
        chain = _chain_of(chain, encoded)
        frames += [len(encoded).to_bytes(_LENGTH_BYTES, "little"), chain, encoded]
    return b"".join(frames), chain


def _unframed(content: bytes) -> Iterator[tuple[pb.WatchResponse, bytes, int]]:
    """Messages up to the first that is not whole, each with its digest and where it ends."""
    chain, at = _chain_of(b"", FORMAT), len(FORMAT)
    view = memoryview(content)
    while True:
        body = at + _LENGTH_BYTES + _DIGEST_BYTES
        end = body + int.from_bytes(view[at : at + _LENGTH_BYTES], "little")
        encoded = bytes(view[body:end])
        chain = _chain_of(chain, encoded)
        if end > len(content) or body > len(content) or view[at + _LENGTH_BYTES : body] != chain:
            return
        at = end
        yield pb.WatchResponse.FromString(encoded), chain, at


def _chain_of(chain: bytes, encoded: bytes) -> bytes:
    return hashlib.sha256(chain + encoded).digest()
