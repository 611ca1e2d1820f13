"""Artifacts on this host: fetched by a streamed copy, and nothing parses them before their digest is right.

The cache is content-addressed: `<sha256>/<file name>`. A copy is written beside it, synced, checked
and then renamed, so that a crash leaves no half of a file under a digest. What is cached is
checked again each time it is used. Where artifacts come from is `sources`.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from services.domain.artifact_uri import ArtifactUri
from services.domain.errors import ArtifactRejected
from services.domain.objects import Artifact
from services.model_host.sources import Sources, Stream, open_plain

CHUNK_BYTES = 1 << 20
"""Read and hashed at a time."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_INCOMING = "incoming-"


class ArtifactStore:
    """The artifacts of one host. Its methods block; call them from a thread."""

    def __init__(self, directory: Path, *, sources: Sources, max_bytes: int) -> None:
        """Keep copies of what `sources` has under `directory`, refuse files larger than `max_bytes`."""
        self._directory = directory
        self._sources = sources
        self._max_bytes = max_bytes
        self._sequence = 0

    def prepare(self) -> None:
        """Create the directory, and remove what a crash left half done.

        Raises:
            OSError: The directory cannot be written.
        """
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for entry in self._directory.iterdir():
            if entry.name.startswith(_INCOMING):
                shutil.rmtree(entry, ignore_errors=True)

    def fetch(self, artifact: Artifact, *, pinned: Collection[str] = ()) -> Path:
        """A local copy of `artifact` whose digest is right.

        Args:
            artifact: What and from where.
            pinned: Digests of other artifacts that must stay, should room be needed.

        Raises:
            ArtifactRejected: It is not to be fetched or not there, not a plain file, too large, not what its digest
                says, or there is no room for it.
        """
        uri = self._sources.find(artifact.uri)
        if not _SHA256.fullmatch(artifact.sha256):
            raise ArtifactRejected(f"'{artifact.sha256}' is no SHA-256: 64 lower-case hexadecimal digits are")
        cached = self._directory / artifact.sha256 / _file_name(uri)
        if self._is_intact(cached, artifact.sha256):
            return cached
        try:
            self._copy(uri, cached, artifact.sha256)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise ArtifactRejected(f"cannot fetch {uri}: {error.strerror}") from error
            self._make_room({*pinned, artifact.sha256})
            try:
                self._copy(uri, cached, artifact.sha256)
            except OSError as again:
                raise ArtifactRejected(f"no room for {uri} in the cache {self._directory}: {again.strerror}") from again
        return cached

    def _copy(self, uri: ArtifactUri, target: Path, sha256: str) -> None:
        """Copy, check, and only then put in place.

        Raises:
            ArtifactRejected: It is not what it should be.
            OSError: Reading or writing failed.
        """
        self._sequence += 1
        incoming = self._directory / f"{_INCOMING}{os.getpid()}-{self._sequence}"
        incoming.mkdir(mode=0o700)
        try:
            copy = incoming / target.name
            with self._sources.open(uri) as stream:
                size_bytes = stream.size_bytes
                if size_bytes is not None and size_bytes > self._max_bytes:
                    raise ArtifactRejected(f"{uri} has {size_bytes} bytes, and {self._max_bytes} are the most")
                with copy.open("xb") as writer:
                    found = self._stream(stream, writer, uri)
                    writer.flush()
                    os.fsync(writer.fileno())
            if found != sha256:
                raise ArtifactRejected(
                    f"{uri} has sha256 {found}, and {sha256} is declared", metadata={"sha256": found}
                )
            copy.chmod(0o400)
            # The same bytes may be here under another name, and in use.
            target.parent.mkdir(mode=0o700, exist_ok=True)
            copy.replace(target)
            _sync_directory(target.parent)
            _sync_directory(self._directory)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def _stream(self, stream: Stream, writer: BinaryIO, uri: ArtifactUri) -> str:
        """Copy all of `stream`, and its digest."""
        most = self._max_bytes if stream.size_bytes is None else stream.size_bytes
        digest = hashlib.sha256()
        copied = 0
        while chunk := stream.read(CHUNK_BYTES):
            copied += len(chunk)
            if copied > most:  # it grew while it was read, or its server goes on and on
                raise ArtifactRejected(f"{uri} gives more than {most} bytes")
            digest.update(chunk)
            writer.write(chunk)
        if stream.size_bytes is not None and copied < stream.size_bytes:
            raise ArtifactRejected(f"{uri} ended after {copied} of {stream.size_bytes} bytes")
        return digest.hexdigest()

    def _is_intact(self, cached: Path, sha256: str) -> bool:
        try:
            fd = open_plain(str(cached))
        except (OSError, ArtifactRejected):
            return False
        with os.fdopen(fd, "rb") as reader:
            return hashlib.file_digest(reader, "sha256").hexdigest() == sha256

    def _make_room(self, pinned: Collection[str]) -> None:
        """Remove every cached artifact that is not pinned; what is loaded already does not need its file."""
        for entry in self._directory.iterdir():
            if entry.name not in pinned and not entry.name.startswith(_INCOMING):
                shutil.rmtree(entry, ignore_errors=True)


def _file_name(uri: ArtifactUri) -> str:
    """The name of the copy; the source's own where it is plain, since some formats go by it."""
    name = uri.segments[-1]
    return name if _NAME.fullmatch(name) else "artifact"


def _sync_directory(directory: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a directory
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
