"""Loopback ports that are free and that no other test process will choose.

Each test process draws from a block of ports of its own. The first port of a block, held bound, tells every other
test process on the machine that the block is taken; the system lets go of it when the process ends. The blocks lie
above the ports of `yardctl.layout.free_base_port`, and below those that Linux hands out by itself (32768 and up), so
that no outgoing connection lands on a port between its choice and its use.
"""

import atexit
import functools
import random
import socket

LOOPBACK = "127.0.0.1"
BLOCK_PORTS = 200
BLOCKS = range(24_000, 32_600, BLOCK_PORTS)


class Block:
    """The ports that follow a claimed one."""

    def __init__(self, first: int) -> None:
        """Begin with the port after `first`, the claimed one."""
        self._first = first
        self._next = 1

    def take(self, count: int) -> tuple[int, ...]:
        """`count` ports in a row; one comes round again only after all the others."""
        starts = range(1, BLOCK_PORTS - count + 1)
        for start in sorted(starts, key=lambda each: each < self._next):
            ports = range(self._first + start, self._first + start + count)
            if all(_is_free(port) for port in ports):
                self._next = start + count
                return tuple(ports)
        raise AssertionError(f"{count} ports in a row are not free from {self._first} on")


def free_ports(count: int) -> tuple[int, ...]:
    """`count` free loopback ports in a row."""
    return _own_block().take(count)


def _is_free(port: int) -> bool:
    """Whether even a listener that sets no SO_REUSEADDR could have it: nothing lingers on it."""
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


@functools.cache
def _own_block() -> Block:
    for first in random.sample(BLOCKS, len(BLOCKS)):
        claim = socket.socket()
        try:
            claim.bind((LOOPBACK, first))
        except OSError:
            claim.close()
        else:
            atexit.register(claim.close)
            return Block(first)
    raise AssertionError(f"every block of ports from {BLOCKS.start} to {BLOCKS.stop} is taken")
