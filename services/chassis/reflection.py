"""Server reflection (v1alpha) over several descriptor pools.

The V2 protocol's descriptors live in a private pool, because its clients register theirs in the
default one; callers of reflection see one service.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

T = TypeVar("T")


class Pools:
    """What `grpc_reflection` asks of a pool, answered by the first of several that knows."""

    def __init__(self, pools: Sequence[DescriptorPool]) -> None:
        """Ask `pools` in this order."""
        self._pools = tuple(pools)

    def FindFileByName(self, name: str) -> FileDescriptor:
        """The file; KeyError when no pool has it."""
        return self._first(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """The file that declares `symbol`; KeyError when no pool has it."""
        try:
            return self._first(lambda pool: pool.FindFileContainingSymbol(symbol))
        except KeyError:
            # Protobuf's upb pools do not know methods as symbols; tools ask to describe them.
            service, _, method = symbol.rpartition(".")
            found = self._first(lambda pool: pool.FindServiceByName(service))
            if method not in found.methods_by_name:
                raise
            return found.file

    def FindMessageTypeByName(self, name: str) -> Descriptor:
        """The message; KeyError when no pool has it."""
        return self._first(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Descriptor, number: int) -> FieldDescriptor:
        """The extension, from the pool that `message` is of; KeyError when there is none."""
        return message.file.pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Descriptor) -> list[FieldDescriptor]:
        """Every extension of `message` in its own pool."""
        return message.file.pool.FindAllExtensions(message)

    def _first(self, find: Callable[[DescriptorPool], T]) -> T:
        for pool in self._pools:
            try:
                return find(pool)
            except KeyError:
                continue
        raise KeyError
