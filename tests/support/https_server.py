"""A real HTTPS server on loopback that answers byte for byte what a test says, well or badly."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import trustme

LOOPBACK = "127.0.0.1"
RECEIVE_S = 20.0


@dataclass
class Request:
    """What a client asked."""

    method: str
    """GET or HEAD."""
    target: str
    """Path and query."""
    headers: Mapping[str, str]
    """By names in lower case."""


@dataclass
class Exchange:
    """One request, and the way back."""

    request: Request
    send: Callable[[bytes], None]
    """Sends bytes as they are; raises OSError once the client has gone."""
    ending: threading.Event
    """Set when the server ends; wait on it to be slow."""

    def answer(self, body: bytes, status: str = "200 OK", **headers: str) -> None:
        """A whole and honest answer."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "", ""]).encode() + (body if self.request.method == "GET" else b""))


Handler = Callable[[Exchange], None]


@dataclass
class HttpsServer:
    """The server; `routes` are by path, without query. `plain` speaks HTTP without TLS."""

    directory: Path
    names: tuple[str, ...] = ("localhost", LOOPBACK)
    plain: bool = False
    routes: dict[str, Handler] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    """Every request, those included that no route answers."""

    def __post_init__(self) -> None:
        self._authority = trustme.CA()
        self.ca_file = self.directory / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca_file))
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*self.names).configure_cert(self._tls)
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end."""
        return f"http{'' if self.plain else 's'}://localhost:{self.port}"

    def __enter__(self) -> "HttpsServer":
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ending.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(RECEIVE_S)

    def file(self, path: str, body: bytes) -> str:
        """Serve `body` at `path`; its URL."""
        self.routes[path] = lambda exchange: exchange.answer(body)
        return f"{self.url}{path}"

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(lambda connection=connection: self._serve(connection))  # type: ignore[misc]

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(RECEIVE_S)
        with contextlib.suppress(OSError), self._wrapped(connection) as wire:
            head = b""
            while b"\r\n\r\n" not in head:
                chunk = wire.recv(65536)
                if not chunk:
                    return
                head += chunk
                if not head.startswith((b"GET ", b"HEAD ")):  # TLS, to a server that has none
                    wire.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    return
            request = _request(head)
            self.seen.append(request)
            exchange = Exchange(request, wire.sendall, self._ending)
            handler = self.routes.get(request.target.partition("?")[0])
            if handler is None:
                exchange.answer(b"not here", "404 Not Found")
            else:
                handler(exchange)

    @contextmanager
    def _wrapped(self, connection: socket.socket) -> Iterator[socket.socket]:
        with connection:
            if self.plain:
                yield connection
                return
            with self._tls.wrap_socket(connection, server_side=True) as wire:
                yield wire


def _request(head: bytes) -> Request:
    first, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    method, target, _ = first.split(" ")
    return Request(method, target, {name.lower(): value.strip() for name, _, value in pairs})
