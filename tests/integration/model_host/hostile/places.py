"""Artifacts that are not where, or not what, an order says; and orders that make a host ask whom it must not."""

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.integration.model_host.hostile.workshop import Hostile, Wanted, Workshop
from tests.support.https_server import Exchange

_Make = Callable[[Workshop], Wanted]

MOST_BYTES = 48 << 20
"""The host of these tests fetches no more."""


def corpus() -> Iterator[Hostile]:
    """Everything of this kind."""
    for uri in _URIS:
        yield Hostile(f"from {uri!r}", "torch", _at(uri))
    for name, make in _FILES.items():
        yield Hostile(name, "torch", make)
    for path in ("/dev/zero", "/dev/null", "/proc/self/environ", "/proc/self/mem", "/etc", "/etc/passwd/x"):
        yield Hostile(f"the file {path}", "torch", _at(f"file:{path}"))
    for path, handler in _SERVED.items():
        yield Hostile(f"a server: {path}", "torch", _served(path, handler))
    yield Hostile("a plug-in", "plugin", lambda workshop: None, architecture="evil", executes_code=True)
    yield Hostile("a plug-in that says it is none", "plugin", lambda workshop: None, architecture="evil")
    for address in ("127.0.0.1:22", "169.254.169.254:80", "unix:/run/docker.sock", "dns:///127.0.0.1:22"):
        yield Hostile(f"a model at {address}", "remote", lambda workshop: None, options={"address": address})


_URIS = (
    "",
    "/etc/passwd",
    "file:etc/passwd",
    "file://evil.example/etc/passwd",
    "file:/models/../etc/passwd",
    "file:/models/%2e%2e/etc/passwd",
    "file:/etc/passwd%00.safetensors",
    "file:/etc/passwd\0.safetensors",
    "file:/etc/passwd?x",
    "ftp://good.example/m",
    "http://good.example/m",
    "gopher://good.example/m",
    "data:application/octet-stream;base64,AAAA",
    "jar:file:/m.zip!/m",
    "https://good.example/m",
    "https://user:pw@good.example/m",
    "https://localhost@evil.example/models/m",
    "https://localhost.evil.example/models/m",
    "https://localhost/models/m",
    "https://169.254.169.254/latest/meta-data/iam/security-credentials",
    "https://[::ffff:169.254.169.254]/latest",
    "https://2852039166/latest",
    "https://metadata.google.internal/computeMetadata/v1/",
    "s3://bucket/key",
    "s3://bucket/../../key",
    "mlflow://localhost/models/m/1/w",
    "mlflow:/models/m/1/w",
    "git+ssh://git@good.example/m",
)


def _at(uri: str) -> _Make:
    return lambda workshop: Wanted(uri)


def _wrong_digest(workshop: Workshop) -> Wanted:
    return Wanted(workshop.file("m.pt", workshop.pickled()).uri, "0" * 64)


def _no_digest(workshop: Workshop) -> Wanted:
    return Wanted(workshop.file("m.pt", workshop.pickled()).uri, "")


def _digest_that_climbs(workshop: Workshop) -> Wanted:
    return Wanted(workshop.file("m.pt", workshop.pickled()).uri, "../" * 21 + "x")


def _link(workshop: Workshop) -> Wanted:
    wanted = workshop.file("m.pt", workshop.pickled())
    (workshop.folder / "link.pt").symlink_to(workshop.folder / "m.pt")
    return Wanted(f"file:{workshop.folder}/link.pt", wanted.sha256)


def _link_to_nothing(workshop: Workshop) -> Wanted:
    (workshop.folder / "link.pt").symlink_to(workshop.folder / "link.pt")
    return Wanted(f"file:{workshop.folder}/link.pt")


def _pipe(workshop: Workshop) -> Wanted:
    os.mkfifo(workshop.folder / "pipe")
    return Wanted(f"file:{workshop.folder}/pipe")


def _socket(workshop: Workshop) -> Wanted:
    with socket.socket(socket.AF_UNIX) as listener:
        home = Path.cwd()
        os.chdir(workshop.folder)  # a path of a socket is short
        try:
            listener.bind("socket")
        finally:
            os.chdir(home)
    return Wanted(f"file:{workshop.folder}/socket")


def _folder(workshop: Workshop) -> Wanted:
    return Wanted(f"file:{workshop.folder}")


def _too_large(workshop: Workshop) -> Wanted:
    path = workshop.folder / "m.safetensors"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    return Wanted(f"file:{path}")


def _name_that_leads_out(workshop: Workshop) -> Wanted:
    """A file may have any name; its copy has a plain one."""
    return workshop.file("..%2f..%2f;touch x\n.pt", workshop.pickled())


_FILES: dict[str, _Make] = {
    "another digest": _wrong_digest,
    "no digest": _no_digest,
    "a digest that is a path": _digest_that_climbs,
    "a link": _link,
    "a link to itself": _link_to_nothing,
    "a pipe": _pipe,
    "a socket": _socket,
    "a folder": _folder,
    "a file too large": _too_large,
    "a name that leads out": _name_that_leads_out,
}


def _endless(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while not exchange.ending.is_set():
        exchange.send(bytes(1 << 20))


def _head(status: str, *headers: str, body: bytes = b"") -> Callable[[Exchange], None]:
    head = "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()
    return lambda exchange: exchange.send(head + body)


def _squeezed(exchange: Exchange) -> None:
    exchange.answer(b"\x1f\x8b" + bytes(100), Content_Encoding="gzip")


_SERVED: dict[str, Callable[[Exchange], None]] = {
    "without an end": _endless,
    "of a terabyte": _head("200 OK", f"Content-Length: {1 << 40}"),
    "that breaks off": _head("200 OK", "Content-Length: 100", body=b"short"),
    "with another digest": lambda exchange: exchange.answer(b"weights"),
    "compressed": _squeezed,
    "to a file": _head("302 Found", "Location: file:///etc/passwd"),
    "to plain HTTP": _head("302 Found", "Location: http://localhost/models/m"),
    "to a metadata service": _head("302 Found", "Location: https://169.254.169.254/latest"),
    "to another server": _head("307 Temporary Redirect", "Location: https://evil.example/models/m"),
    "to what is not allowed": _head("302 Found", "Location: /private/m"),
    "in a circle": _head("302 Found", "Location: /models/in%20a%20circle"),
    "with a page for people": _head("403 Forbidden", "Content-Length: 5", body=b"<html"),
    "that speaks no HTTP": lambda exchange: exchange.send(b"220 ready\r\n"),
}
"""Answers of a server that the host may fetch from."""


def _served(path: str, handler: Callable[[Exchange], None]) -> _Make:
    def make(workshop: Workshop) -> Wanted:
        target = f"/models/{path.replace(' ', '%20')}"
        workshop.server.routes[target] = handler
        return Wanted(f"{workshop.server.url}{target}", hashlib.sha256(b"other").hexdigest())

    return make
