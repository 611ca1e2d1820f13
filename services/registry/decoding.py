"""Objects out of their stored form. In memory a state has only that: read, an object takes ten times as much.

What was read or written lately is kept, since one apply asks for an object several times.
"""

from modelyard.registry.v1 import objects_pb2
from services.chassis.object_codec import object_from
from services.domain.errors import Internal, InvalidRequest
from services.domain.objects import Object

KEPT = 4096
"""Objects kept at least, and at most twice as many: about 25 MB."""

KEPT_BYTES = 4096
"""A stored form that is larger is read anew each time."""


class Decoder:
    """Reads objects. May be used by several threads: they only do some work twice then."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._young: dict[str, Object] = {}
        self._old: dict[str, Object] = {}

    def item(self, digest: str, raw: bytes) -> Object:
        """The object that is stored as `raw`.

        Raises:
            Internal: It was written by a later release, with kinds of its own.
        """
        found = self._young.get(digest)
        if found is not None:
            return found
        found = self._old.get(digest)
        if found is None:
            try:
                found = object_from(objects_pb2.Object.FromString(raw))
            except InvalidRequest as error:
                raise Internal(f"stored object {digest} cannot be read by this release: {error}") from error
        self.keep(digest, raw, found)
        return found

    def keep(self, digest: str, raw: bytes, item: Object) -> None:
        """Know what `raw` is without reading it."""
        if len(raw) > KEPT_BYTES:
            return
        if len(self._young) >= KEPT:
            self._old, self._young = self._young, {}
        self._young[digest] = item
