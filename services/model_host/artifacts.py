"""Artifacts on this host: fetched by a streamed copy, and nothing parses them before their digest is right.

The cache is content-addressed: `<sha256>/<file name>`. A copy is written beside it, synced, checked
and then renamed, so that a crash leaves no half of a file under a digest. What is cached is
checked again each time it is used.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from services.domain.errors import ArtifactRejected
from services.domain.objects import Artifact

CHUNK_BYTES = 1 << 20
"""Read and hashed at a time."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_INCOMING = "incoming-"


class ArtifactStore:
    """The artifacts of one host. Its methods block; call them from a thread."""

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        """Keep copies under `directory`, refuse files larger than `max_bytes`."""
        self._directory = directory
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
            ArtifactRejected: It is not there, not a plain file, too large, not what its digest says, or
                there is no room for it.
        """
        source = source_path(artifact.uri)
        if not re.fullmatch(r"[0-9a-f]{64}", artifact.sha256):
            raise ArtifactRejected(f"'{artifact.sha256}' is no SHA-256: 64 lower-case hexadecimal digits are")
        cached = self._directory / artifact.sha256 / _file_name(source)
        if self._is_intact(cached, artifact.sha256):
            return cached
        shutil.rmtree(cached.parent, ignore_errors=True)
        try:
            self._copy(source, cached, artifact.sha256)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise ArtifactRejected(f"cannot fetch {artifact.uri}: {error.strerror}") from error
            self._make_room({*pinned, artifact.sha256})
            try:
                self._copy(source, cached, artifact.sha256)
            except OSError as again:
                raise ArtifactRejected(
                    f"no room for {artifact.uri} in the cache {self._directory}: {again.strerror}"
                ) from again
        return cached

    def _copy(self, source: Path, target: Path, sha256: str) -> None:
        """Copy, check, and only then put in place.

        Raises:
            ArtifactRejected: It is not what it should be.
            OSError: Reading or writing failed.
        """
        self._sequence += 1
        incoming = self._directory / f"{_INCOMING}{os.getpid()}-{self._sequence}"
        incoming.mkdir(mode=0o700)
        try:
            # Neither a link nor a pipe is followed into: the path names the file itself.
            fd = _open_plain(source)
            with os.fdopen(fd, "rb") as reader:
                size_bytes = os.fstat(fd).st_size
                if size_bytes > self._max_bytes:
                    raise ArtifactRejected(f"{source} has {size_bytes} bytes, and {self._max_bytes} are the most")
                copy = incoming / target.name
                with copy.open("xb") as writer:
                    found = self._stream(reader, writer, source)
                    writer.flush()
                    os.fsync(writer.fileno())
            if found != sha256:
                raise ArtifactRejected(
                    f"{source} has sha256 {found}, and {sha256} is declared", metadata={"sha256": found}
                )
            copy.chmod(0o400)
            incoming.rename(target.parent)
            _sync_directory(self._directory)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def _stream(self, reader: BinaryIO, writer: BinaryIO, source: Path) -> str:
        digest = hashlib.sha256()
        copied = 0
        while chunk := reader.read(CHUNK_BYTES):
            copied += len(chunk)
            if copied > self._max_bytes:  # it grew while it was read
                raise ArtifactRejected(f"{source} has more than {self._max_bytes} bytes")
            digest.update(chunk)
            writer.write(chunk)
        return digest.hexdigest()

    def _is_intact(self, cached: Path, sha256: str) -> bool:
        try:
            fd = _open_plain(cached)
        except (OSError, ArtifactRejected):
            return False
        with os.fdopen(fd, "rb") as reader:
            return hashlib.file_digest(reader, "sha256").hexdigest() == sha256

    def _make_room(self, pinned: Collection[str]) -> None:
        """Remove every cached artifact that is not pinned; what is loaded already does not need its file."""
        for entry in self._directory.iterdir():
            if entry.name not in pinned and not entry.name.startswith(_INCOMING):
                shutil.rmtree(entry, ignore_errors=True)


def source_path(uri: str) -> Path:
    """The path that a `file:` URI names.

    Raises:
        ArtifactRejected: It is another kind of URI, not absolute, or climbs with `..`.
    """
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise ArtifactRejected(f"'{uri}' must be 'file:' and an absolute path")
    if not path.startswith("/") or "\0" in path or path.endswith("/"):
        raise ArtifactRejected(f"'{uri}' must be 'file:' and the absolute path of a file")
    if ".." in path.split("/"):
        raise ArtifactRejected(f"'{uri}' must not contain '..'")
    return Path(path)


def _file_name(source: Path) -> str:
    """The name of the copy; the source's own where it is plain, since some formats go by it."""
    return source.name if _NAME.fullmatch(source.name) else "artifact"


def _open_plain(path: Path) -> int:
    """Open a plain file for reading, never through a link at its end.

    Raises:
        ArtifactRejected: It is a link, a directory or a device.
        OSError: It cannot be opened.
    """
    try:
        # Without O_NONBLOCK the opening of a pipe would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ArtifactRejected(f"{path} is a link; name the file itself") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ArtifactRejected(f"{path} is not a plain file")
    return fd


def _sync_directory(directory: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a directory
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
