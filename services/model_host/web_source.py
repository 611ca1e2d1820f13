"""Artifacts from web servers: HTTPS alone, to where it was asked to go and nowhere else.

No proxy, no cookie, no redirect to another server, no compressed body, and a bound on how long a server may take over
each step. Secrets come from a netrc file and go to the server they are for.
"""

import base64
import http.client
import ipaddress
import netrc
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

from services.domain.artifact_uri import ArtifactUri, BadUri, parse_uri
from services.domain.clock import Clock
from services.domain.errors import ArtifactRejected
from services.model_host.sources import Places, Stream

MAX_REDIRECTS = 4

LOOK_EVERY_S = 0.2
"""Time between two looks at whether a server takes too long."""

BEARER = "bearer"
"""The login in a netrc file whose password is sent as a token."""

_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server may take."""

    connect_s: float = 10.0
    """Until each of its addresses has taken the connection."""
    head_s: float = 30.0
    """From there until the headers have ended, however many there are."""
    idle_s: float = 30.0
    """Until the next bytes of the body."""
    least_bytes_per_s: int = 64 << 10
    """What it must give on average, once it had `idle_s` to begin. Else a server could hold up the thread that loads
    for as long as it likes, with a byte now and then."""


class WebSource:
    """Fetches by HTTPS."""

    def __init__(
        self, places: Places, *, tls: ssl.SSLContext, netrc_file: Path | None, patience: Patience, clock: Clock
    ) -> None:
        """Fetch from `places`.

        Args:
            places: What redirects may lead to as well.
            tls: Whom to believe.
            netrc_file: Names and passwords by host; read each time, so that they can be changed.
            patience: How long servers may take.
            clock: Time.
        """
        self._places = places
        self._tls = tls
        self._netrc_file = netrc_file
        self._patience = patience
        self._clock = clock

    @contextmanager
    def open(self, uri: ArtifactUri) -> Iterator[Stream]:
        """Ask for the file."""
        with self.ask(uri) as stream:
            yield stream

    @contextmanager
    def ask(self, uri: ArtifactUri, query: str = "") -> Iterator[Stream]:
        """The body of a GET; the path of `uri` is asked for whatever its scheme is.

        Raises:
            ArtifactRejected: The server cannot be reached, is not to be believed, refuses, or takes too long.
        """
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "modelyard", **self._secret(uri)}
        target = uri.quoted_path + query
        for _ in range(MAX_REDIRECTS + 1):
            connection = _Connection(uri, self._tls, self._patience, self._clock)
            try:
                answer = connection.get(target, headers)
                if answer.status not in _REDIRECTS:
                    yield self._stream(uri, connection, answer)
                    return
                target = self._redirected(uri, target, answer)
            finally:
                connection.finish()
        raise ArtifactRejected(f"{uri} leads to more than {MAX_REDIRECTS} redirects")

    def _stream(self, uri: ArtifactUri, connection: "_Connection", answer: http.client.HTTPResponse) -> Stream:
        if answer.status != http.HTTPStatus.OK:
            raise ArtifactRejected(f"{uri.host} answers {answer.status} for {uri}")
        encoding = answer.getheader("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise ArtifactRejected(f"{uri.host} sends {uri} compressed ('{encoding[:32]}'), which was not asked for")
        return Stream(connection.read, answer.length)

    def _redirected(self, uri: ArtifactUri, target: str, answer: http.client.HTTPResponse) -> str:
        """Where on the same server to ask next.

        Raises:
            ArtifactRejected: It is elsewhere, or where this host must not fetch from.
        """
        begins = f"https://{_authority(uri)}"
        location = urljoin(f"{begins}{target}", answer.getheader("Location", ""))
        path, mark, query = location.partition("?")
        try:
            there = parse_uri(path)
        except BadUri as error:
            raise ArtifactRejected(f"{uri} redirects to where artifacts cannot be: {error}") from None
        if (there.scheme, there.host, there.port) != ("https", uri.host, uri.port):
            raise ArtifactRejected(f"{uri} redirects to another server ({there.scheme}://{there.host}): name that one")
        if uri.scheme == there.scheme:
            self._places.of(there)
        if not (query.isascii() and query.isprintable()) or " " in query:
            raise ArtifactRejected(f"{uri} redirects to a broken query")
        return there.quoted_path + mark + query

    def _secret(self, uri: ArtifactUri) -> dict[str, str]:
        """What proves to the host of `uri` who asks."""
        if self._netrc_file is None:
            return {}
        try:
            found = netrc.netrc(str(self._netrc_file)).authenticators(uri.host)
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):  # its text may quote a secret
            raise ArtifactRejected("the file with names and passwords (netrc_file) cannot be read") from None
        if found is None:
            return {}
        login, _, password = found
        if login == BEARER:
            return {"Authorization": f"Bearer {password}"}
        return {"Authorization": "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()}


class _Connection(http.client.HTTPConnection):
    """One connection that is cut where its server takes too long."""

    default_port = http.client.HTTPS_PORT

    def __init__(self, uri: ArtifactUri, tls: ssl.SSLContext, patience: Patience, clock: Clock) -> None:
        """Connect to the server of `uri` at the first request."""
        super().__init__(uri.host, uri.port, timeout=patience.connect_s)
        self._uri = uri
        self._tls = tls
        self._patience = patience
        self._clock = clock
        self._answer: http.client.HTTPResponse | None = None
        self._wire: ssl.SSLSocket | None = None
        self._read_bytes = 0
        self._began_s = 0.0
        self._watchdog = _Watchdog(self._cut, clock)

    def connect(self) -> None:
        """Connect to an address that is nobody's metadata service, and see whose it is."""
        plain = _dial(self._uri, self._patience.connect_s)
        self.sock = self._wire = wire = self._tls.wrap_socket(
            plain, server_hostname=self._uri.host, do_handshake_on_connect=False
        )
        wire.settimeout(max(self._patience.head_s, self._patience.idle_s))
        self._watchdog.allow(self._patience.head_s)
        wire.do_handshake()

    def get(self, target: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Ask; the answer's headers have ended.

        Raises:
            ArtifactRejected: It did not work.
        """
        with self._mapped():
            self.request("GET", target, headers=headers)
            self._answer = answer = self.getresponse()
            self._watchdog.rest()
        self._began_s = self._clock.now_s()
        return answer

    def read(self, most: int) -> bytes:
        """The next bytes of the body.

        Raises:
            ArtifactRejected: They do not come, or too slowly.
        """
        assert self._answer is not None
        with self._mapped():
            self._watchdog.allow(self._patience.idle_s)
            chunk = self._answer.read1(most)
            self._watchdog.rest()
        self._read_bytes += len(chunk)
        took_s = self._clock.now_s() - self._began_s
        if chunk and took_s > self._patience.idle_s and self._read_bytes < self._patience.least_bytes_per_s * took_s:
            raise ArtifactRejected(
                f"{self._uri.host} is too slow: {self._read_bytes} bytes of {self._uri} in {took_s:.0f} s"
            )
        return chunk

    def finish(self) -> None:
        """Let go of everything; `close` is what http.client calls once the answer has the connection to itself."""
        self._watchdog.stop()
        if self._answer is not None:
            self._answer.close()
        self.close()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        late = f"{self._uri.host} takes too long over {self._uri}"
        try:
            yield
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self._watchdog.expired or isinstance(error, TimeoutError):
                raise ArtifactRejected(late) from None
            raise ArtifactRejected(f"cannot fetch {self._uri}: {type(error).__name__}: {error}"[:500]) from None
        if self._watchdog.expired:  # what was cut can look like an end
            raise ArtifactRejected(late)

    def _cut(self) -> None:
        if self._wire is not None:
            try:
                # As a plain socket: as a TLS one it would go on in plain text.
                socket.socket.shutdown(self._wire, socket.SHUT_RDWR)
            except OSError:
                return  # the other side was first


class _Watchdog:
    """Cuts what takes longer than it was allowed; a timeout of the socket alone begins anew with each byte."""

    def __init__(self, cut: Callable[[], None], clock: Clock) -> None:
        """Call `cut` from another thread, once."""
        self.expired = False
        self._cut = cut
        self._clock = clock
        self._until_s: float | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def allow(self, duration_s: float) -> None:
        """Wait so long from now on."""
        self._until_s = self._clock.now_s() + duration_s
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="fetch watchdog", daemon=True)
            self._thread.start()

    def rest(self) -> None:
        """Wait for nothing: what takes long now is not the server."""
        self._until_s = None

    def stop(self) -> None:
        """Cut nothing any more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            until_s = self._until_s
            left_s = LOOK_EVERY_S if until_s is None else until_s - self._clock.now_s()
            if left_s <= 0.0:
                break
            # Allowing more wakes nobody: that is done for every few kilobytes.
            if self._stopped.wait(min(left_s, LOOK_EVERY_S)):
                return
        self.expired = True
        self._cut()


def _dial(uri: ArtifactUri, timeout_s: float) -> socket.socket:
    """Connect to the first address of the host that answers.

    Raises:
        ArtifactRejected: The name leads to an address that only this machine's surroundings have.
        OSError: None answers.
    """
    last: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(uri.host, uri.port, type=socket.SOCK_STREAM):
        where = str(address[0]).partition("%")[0]
        if where != uri.host and _is_odd(where):
            raise ArtifactRejected(f"{uri.host} leads to {where}, which is no server's address")
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout_s)
            sock.connect(address)
        except OSError as error:
            sock.close()
            last = error
        else:
            return sock
    raise last or OSError(f"{uri.host} has no address")


def _is_odd(address: str) -> bool:
    """Whether it is link-local, as metadata services of clouds are, or no single machine's."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_link_local or ip.is_multicast or ip.is_unspecified


def _authority(uri: ArtifactUri) -> str:
    host = f"[{uri.host}]" if ":" in uri.host else uri.host
    return f"{host}:{uri.port}"
