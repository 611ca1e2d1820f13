"""The ground truth: a watch of etcd from revision 1 on, in a process of its own, by another client than the product's.

Uses the messages and stubs of the `etcd3` package, and none of the product's code. Goes from member to member as they
die or fall silent, and resumes after the last whole transaction it has written down. When its stdin ends it writes a
last key of its own, waits until the watch has told it of that, and writes down what etcd lists at that revision.

`python -m tests.chaos.registry.recorder FILE ENDPOINT...`
"""

import queue
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import grpc

from tests.chaos.registry.events import Event
from tests.support.etcd3 import etcd3_rpc

PREFIX = b"/modelyard/v1/"
PREFIX_END = b"/modelyard/v10"
END_KEY = b"/modelyard/v1/chaos-end"
SILENCE_S = 0.5
ASK_S = 0.5
END_S = 60.0
PAGE = 500
_EVENT, _LISTED = b"E", b"L"
_METADATA = (("hasleader", "true"),)
# No pings: etcd takes frequent ones for an attack. Silence is broken by asking instead.
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


class Silent(Exception):
    """The member does not answer any more."""


class Recorder:
    """Writes down every event."""

    def __init__(self, endpoints: list[str], log: BinaryIO) -> None:
        """Ask `endpoints` in turn."""
        self._rpc, _ = etcd3_rpc()
        self._endpoints = endpoints
        self._log = log
        self._turn = 0
        self.last = 0
        """etcd's revision of the last event."""
        self.resumes = 0
        self._ended = threading.Event()
        self._end_revision = 0

    def run(self) -> None:
        """Record until asked to end and everything up to then has come."""
        threading.Thread(target=self._wait_for_end, daemon=True).start()
        while not self._end_revision or self.last < self._end_revision:
            with grpc.insecure_channel(self._endpoints[self._turn], options=_OPTIONS) as channel:
                try:
                    self._follow(channel)
                except (grpc.RpcError, Silent):
                    self.resumes += 1
                    time.sleep(0.05)
            self._turn = (self._turn + 1) % len(self._endpoints)
        self._list()

    def _follow(self, channel: grpc.Channel) -> None:
        """Watch at one member until it fails or the end has come."""
        create = self._rpc.WatchCreateRequest(key=PREFIX, range_end=PREFIX_END, start_revision=self.last + 1)
        asked: queue.Queue[Any] = queue.Queue()
        asked.put(self._rpc.WatchRequest(create_request=create))
        call = self._rpc.WatchStub(channel).Watch(iter(asked.get, None), metadata=_METADATA)
        said: queue.Queue[Any] = queue.Queue()
        reading = threading.Thread(target=_drain, args=(call, said), daemon=True)
        reading.start()
        try:
            while not self._end_revision or self.last < self._end_revision:
                try:
                    response = said.get(timeout=SILENCE_S)
                except queue.Empty:
                    self._still_there(channel)
                    continue
                if isinstance(response, Exception):
                    raise response
                if response.canceled or response.compact_revision:
                    raise SystemExit(f"the watch was ended: {response}")
                for event in response.events:
                    self._write(event)
        finally:
            asked.put(None)
            call.cancel()
            reading.join(5.0)

    def _still_there(self, channel: grpc.Channel) -> None:
        """Whether the member can still agree with the others on anything."""
        request = self._rpc.RangeRequest(key=END_KEY)
        self._rpc.KVStub(channel).Range(request, timeout=ASK_S, metadata=_METADATA)

    def _write(self, event: Any) -> None:
        revision = event.kv.mod_revision
        if revision < self.last:
            raise SystemExit(f"etcd told of revision {revision} after {self.last}")
        self.last = revision
        _frame(self._log, _EVENT, event.SerializeToString())
        if event.kv.key == END_KEY:
            self._end_revision = revision

    def _wait_for_end(self) -> None:
        """Write the last key once stdin ends; over and over, as an answer may be lost."""
        sys.stdin.buffer.read()
        end_s = time.monotonic() + END_S
        turn = 0
        while not self._end_revision and time.monotonic() < end_s:
            with grpc.insecure_channel(self._endpoints[turn % len(self._endpoints)], options=_OPTIONS) as channel:
                try:
                    request = self._rpc.PutRequest(key=END_KEY, value=b"end")
                    self._rpc.KVStub(channel).Put(request, timeout=2.0, metadata=_METADATA)
                    break
                except grpc.RpcError:
                    turn += 1
                    time.sleep(0.1)

    def _list(self) -> None:
        """What there is at the end, when nobody disturbs etcd any more."""
        with grpc.insecure_channel(self._endpoints[0], options=_OPTIONS) as channel:
            kv, key = self._rpc.KVStub(channel), PREFIX
            while True:
                request = self._rpc.RangeRequest(key=key, range_end=PREFIX_END, limit=PAGE, revision=self._end_revision)
                page = kv.Range(request, timeout=10.0, wait_for_ready=True, metadata=_METADATA)
                for found in page.kvs:
                    _frame(self._log, _LISTED, found.SerializeToString())
                if not page.more:
                    return
                key = page.kvs[-1].key + b"\0"


def _drain(call: Any, said: "queue.Queue[Any]") -> None:
    try:
        for response in call:
            said.put(response)
        said.put(Silent())
    except grpc.RpcError as error:
        said.put(error)


def _frame(log: BinaryIO, kind: bytes, raw: bytes) -> None:
    log.write(kind + struct.pack("<I", len(raw)) + raw)


def read(path: Path) -> Iterator[Event]:
    """What was recorded, in order."""
    _, messages = etcd3_rpc()
    for kind, raw in _frames(path):
        if kind == _EVENT:
            event = messages.Event.FromString(raw)
            value = None if event.type == messages.Event.DELETE else bytes(event.kv.value)
            yield Event(event.kv.mod_revision, event.kv.key.decode(), value, event.kv.create_revision)


def read_listing(path: Path) -> dict[str, bytes]:
    """What etcd listed in the end."""
    _, messages = etcd3_rpc()
    found = (messages.KeyValue.FromString(raw) for kind, raw in _frames(path) if kind == _LISTED)
    return {kv.key.decode(): bytes(kv.value) for kv in found}


def _frames(path: Path) -> Iterator[tuple[bytes, bytes]]:
    with path.open("rb") as log:
        while head := log.read(5):
            yield head[:1], log.read(struct.unpack("<I", head[1:])[0])


def main() -> None:
    """Record, then say how it went: last revision and resumes."""
    with Path(sys.argv[1]).open("wb") as log:
        recorder = Recorder(sys.argv[2:], log)
        recorder.run()
    print(recorder.last, recorder.resumes, flush=True)


if __name__ == "__main__":
    main()
