"""A worker's link to its parent: a pair of sockets, of which the worker has one end as its standard input.

Over it the parent asks for metrics and orders the drain. Its end tells the worker that the parent is gone; no
pid is looked at, so none can be somebody else's by then. A thread serves it: metrics are told, and a lost
parent is noticed, however busy the event loop is.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable

from services.chassis.instruments import REGISTRY
from services.chassis.metrics_merge import encode
from services.chassis.process import FAILED, Process

ASK = b"m"
"""From the parent: say your metrics."""
DRAIN = b"d"
"""From the parent: stop in good order. What follows it is only the end."""

SERVES = b"s"
"""From a worker: it takes calls from now on."""
METRICS = b"m"
"""From a worker: all of its metrics, as `encode` makes them."""

HEAD = struct.Struct("!cI")
"""Before what a worker says: what it is, and how many bytes follow."""

ORPHAN_S = 15.0
"""How long a worker without a parent may take to stop in good order."""

_SAY_S = 10
"""How long the parent may take to read before it is given up on."""


class NoParent(OSError):
    """Standard input is no link to a parent."""


class Link:
    """The worker's end."""

    def __init__(self, process: Process) -> None:
        """Stop `process` when the parent says so or is gone."""
        self._process = process
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._listen, name="link to the parent", daemon=True)
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = False
        self._signalled = False
        self._ended = threading.Event()

    def open(self) -> None:
        """Take standard input for the link, enter its end as a step of the drain, and take over signals.

        One that is sent to the whole group, as Ctrl-C is, comes before or after the parent's word, and is no
        second one for that.

        Raises:
            NoParent: It is something else.
        """
        try:
            self._socket = socket.socket(fileno=os.dup(0))
        except OSError:
            raise NoParent("a worker is started by its parent: leave --worker out") from None
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SAY_S, 0))
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)
        self._thread.start()
        self._process.on_stop("link to the parent", lambda: asyncio.to_thread(self._close))

    def _on_signal(self, number: signal.Signals) -> None:
        if self._signalled:
            os._exit(128 + number)
        self._signalled = True
        self._process.request_stop(number.name)

    def serves(self) -> None:
        """Tell the parent that this worker takes calls."""
        self._say(SERVES, b"")

    def _close(self) -> None:
        """Say the metrics a last time, so that the parent has lost none, and hang up."""
        self._ended.set()
        self._say(METRICS, encode(REGISTRY))
        self._hang_up()
        self._thread.join()

    def _say(self, kind: bytes, body: bytes) -> None:
        assert self._socket is not None
        with self._lock:
            try:
                self._socket.sendall(HEAD.pack(kind, len(body)) + body)
            except OSError:
                self._hang_up()  # half a message may be out: nothing can follow it

    def _hang_up(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError):
            while word := self._socket.recv(1):
                if word == ASK:
                    self._say(METRICS, encode(REGISTRY))
                elif word == DRAIN:
                    self._told = True
                    self._on_loop(lambda: self._process.request_stop("its parent said so"))
        if self._ended.is_set():
            return
        if self._told:
            os._exit(FAILED)  # the parent was ended at once in the middle of its drain: so is this
        self._on_loop(lambda: self._process.request_stop("its parent is gone", exit_code=FAILED))
        if not self._ended.wait(ORPHAN_S):
            os._exit(FAILED)

    def _on_loop(self, job: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the process is about to
            self._loop.call_soon_threadsafe(job)
