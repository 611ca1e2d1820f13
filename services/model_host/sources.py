"""Where artifacts may come from, and a stream of bytes from there.

Owns which places this host fetches from: whoever may write objects must not be able to make a host ask an address of
their choice. Each scheme has a source of its own; `file:` is here. Keeping and checking what comes is `artifacts`.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from services.domain.artifact_uri import ArtifactUri, BadUri, parse_place, parse_uri
from services.domain.errors import ArtifactRejected

ANY_FILE = "file:"
"""The place that holds every file of this machine."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The bytes of one artifact, once."""

    read: Callable[[int], bytes]
    """Gives the next bytes, at most so many; none at the end. Raises ArtifactRejected, or OSError for a file."""
    size_bytes: int | None
    """How many there should be; None where the source does not say."""


class Source(Protocol):
    """One scheme."""

    def open(self, uri: ArtifactUri) -> AbstractContextManager[Stream]:
        """Begin to read.

        Raises:
            ArtifactRejected: It is not there, or not to be had.
            OSError: A file cannot be opened.
        """
        ...


class Places:
    """What a host's settings let it fetch from."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Allow `texts`: URIs of servers, folders or files; `file:` is every file.

        Raises:
            BadUri: One of them names no place.
        """
        self._places = tuple(parse_place(text) for text in texts)
        self._said = ", ".join(map(str, self._places)) or "none"

    def of(self, uri: ArtifactUri) -> ArtifactUri:
        """The place that `uri` lies in, the largest if several do.

        Raises:
            ArtifactRejected: It lies in none.
        """
        found = [place for place in self._places if uri.within(place)]
        if not found:
            raise ArtifactRejected(f"'{uri}' is not in what this host may fetch from: {self._said} (artifact_sources)")
        return min(found, key=lambda place: len(place.segments))


class Sources:
    """Every source of one host."""

    def __init__(self, places: Places, by_scheme: Mapping[str, Source]) -> None:
        """Fetch from `places`, each scheme by its source."""
        self._places = places
        self._by_scheme = by_scheme

    def find(self, text: str) -> ArtifactUri:
        """What `text` names.

        Raises:
            ArtifactRejected: It names no file, or one that this host must not fetch.
        """
        try:
            uri = parse_uri(text)
        except BadUri as error:
            raise ArtifactRejected(str(error)) from None
        self._places.of(uri)
        return uri

    def open(self, uri: ArtifactUri) -> AbstractContextManager[Stream]:
        """Begin to read what `find` gave.

        Raises:
            ArtifactRejected: It is not there, or not to be had.
            OSError: A file cannot be opened.
        """
        return self._by_scheme[uri.scheme].open(uri)


class FileSource:
    """Files of this machine: plain ones, never through a link that could lead out of an allowed folder."""

    def __init__(self, places: Places) -> None:
        """Read files in `places`."""
        self._places = places

    @contextmanager
    def open(self, uri: ArtifactUri) -> Iterator[Stream]:
        """Open the file itself."""
        place = self._places.of(uri)
        with os.fdopen(_open_below(place.path, uri.segments[len(place.segments) :]), "rb") as reader:
            yield Stream(reader.read, os.fstat(reader.fileno()).st_size)


def open_plain(path: str, *, beside: int | None = None) -> int:
    """Open a plain file for reading, never through a link at its end.

    Args:
        path: The file.
        beside: An open folder that a relative path begins at.

    Raises:
        ArtifactRejected: It is a link, a directory or a device.
        OSError: It cannot be opened.
    """
    try:
        # Without O_NONBLOCK the opening of a pipe would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=beside)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ArtifactRejected(f"{path} is a link; name the file itself") from error
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, a device that is not there
            raise ArtifactRejected(f"{path} is not a plain file") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ArtifactRejected(f"{path} is not a plain file")
    return fd


def _open_below(root: str, segments: Sequence[str]) -> int:
    """Open the file at `segments` below the folder `root`; where all files are allowed, folders may be links.

    Raises:
        ArtifactRejected: It is a link or no plain file, or a link lies between.
        OSError: It cannot be opened.
    """
    if not root or not segments:
        return open_plain(root + "".join(f"/{segment}" for segment in segments))
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for segment in segments[:-1]:
            try:
                inner = os.open(segment, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            except NotADirectoryError as error:
                raise ArtifactRejected(f"'{segment}' below {root} is a link or no folder") from error
            os.close(folder)
            folder = inner
        return open_plain(segments[-1], beside=folder)
    finally:
        os.close(folder)
