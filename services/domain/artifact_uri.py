"""What an artifact's URI names, and whether it lies within a place that a host may fetch from.

Owns the grammar that the registry checks and hosts go by, so that both read a URI alike. Whatever two readers could
read in two ways is no URI here: user names, queries, `..` in any spelling, backslashes, control characters.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

SCHEMES = ("file", "https", "mlflow", "s3")
"""Where artifacts may lie: on the host, on a web server, in an MLflow server, in an object store."""

HTTPS_PORT = 443

_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class BadUri(ValueError):
    """It is no URI of an artifact; the text says why, and begins with the URI."""


@dataclass(frozen=True, slots=True)
class ArtifactUri:
    """A URI, taken apart and normal: what is equal here names the same place."""

    scheme: str
    host: str
    """Host in lower case, for s3 the bucket; empty for files."""
    port: int
    """0 where the scheme has none."""
    segments: tuple[str, ...]
    """The path, each part decoded."""

    @property
    def path(self) -> str:
        """The path, decoded, with a slash before each part."""
        return "".join(f"/{segment}" for segment in self.segments)

    @property
    def quoted_path(self) -> str:
        """The path as it goes over the wire."""
        return "".join(f"/{quote(segment, safe='')}" for segment in self.segments)

    def within(self, place: "ArtifactUri") -> bool:
        """Whether this lies in `place`: part by part, so that `/models` is not the beginning of `/models-of-others`."""
        return (
            (self.scheme, self.host, self.port) == (place.scheme, place.host, place.port)
            and self.segments[: len(place.segments)] == place.segments
        )  # fmt: skip

    def __str__(self) -> str:
        """The normal spelling."""
        if self.scheme == "file":
            return f"file:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port in (0, HTTPS_PORT) else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.quoted_path if self.port else self.path}"


def parse_uri(text: str) -> ArtifactUri:
    """The file that `text` names.

    Raises:
        BadUri: It names none.
    """
    parsed = _parse(text)
    if not parsed.segments or text.endswith("/"):
        raise BadUri(f"'{_shown(text)}' must name a file, not a folder")
    return parsed


def parse_place(text: str) -> ArtifactUri:
    """The place that `text` names: all files, a folder, a server, a folder of one, or one file.

    Raises:
        BadUri: It names none.
    """
    return ArtifactUri("file", "", 0, ()) if text == "file:" else _parse(text)


def _parse(text: str) -> ArtifactUri:
    # urlsplit takes some control characters out and goes on, as if they had not been there.
    if _CONTROL.search(text) or text != text.strip():
        raise BadUri(f"'{_shown(text)}' holds control characters or begins or ends with a space")
    scheme = text.partition(":")[0]
    if scheme not in SCHEMES:
        raise BadUri(f"'{_shown(text)}' must begin with file:, https:, mlflow: or s3:")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise BadUri(f"'{_shown(text)}' is no URI: {error}") from None
    if "@" in parts.netloc:
        raise BadUri(f"'{_shown(text)}' must not hold a user or a password; hosts read secrets from a file")
    if "?" in text or "#" in text:
        raise BadUri(f"'{_shown(text)}' must not have a query or a fragment")
    if scheme == "file":
        return _file(text, parts.netloc, parts.path)
    if scheme == "s3":
        if not _BUCKET.fullmatch(parts.netloc):
            raise BadUri(f"'{_shown(text)}' must be 's3://' with a bucket and a key")
        return ArtifactUri(scheme, parts.netloc, 0, _segments(text, parts.path, decode=False))
    host = _host(text, parts.hostname or "", parts.netloc)
    return ArtifactUri(scheme, host, HTTPS_PORT if port is None else port, _segments(text, parts.path, decode=True))


def _file(text: str, netloc: str, path: str) -> ArtifactUri:
    decoded = unquote(path)
    if netloc not in ("", "localhost") or not decoded.startswith("/"):
        raise BadUri(f"'{_shown(text)}' must be 'file:' and an absolute path")
    if _CONTROL.search(decoded):
        raise BadUri(f"'{_shown(text)}' holds control characters")
    segments = tuple(segment for segment in decoded.split("/") if segment not in ("", "."))
    if ".." in segments:
        raise BadUri(f"'{_shown(text)}' must not contain '..'")
    return ArtifactUri("file", "", 0, segments)


def _segments(text: str, path: str, *, decode: bool) -> tuple[str, ...]:
    """The parts of a path on a server; a single slash at its end is left out."""
    parts = path.removeprefix("/").removesuffix("/").split("/") if path not in ("", "/") else []
    segments = tuple(unquote(part) if decode else part for part in parts)
    for segment in segments:
        # `..;x` is `..` to servers that take parameters off a part first.
        if segment.partition(";")[0] in ("", ".", ".."):
            raise BadUri(f"'{_shown(text)}' must not contain '..', '.' or nothing between two slashes")
        if "/" in segment or "\\" in segment or _CONTROL.search(segment) or (decode and "%" in segment):
            raise BadUri(f"'{_shown(text)}' hides a slash, a per cent sign or a control character")
    return segments


def _host(text: str, host: str, netloc: str) -> str:
    if netloc.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host if "%" not in host else ""))
        except ValueError:
            raise BadUri(f"'{_shown(text)}' has no IPv6 address in its brackets") from None
    if not _HOST.fullmatch(host) or ".." in host:
        raise BadUri(f"'{_shown(text)}' needs a host: ASCII letters, digits, dots and hyphens")
    return host


def _shown(text: str) -> str:
    """`text` on one line, without what may be a secret, and cut if it is long."""
    scheme, separator, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        text = f"{scheme}{separator}...@{authority.rpartition('@')[2]}{slash}{path}"
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= 200 else f"{text[:197]}..."
