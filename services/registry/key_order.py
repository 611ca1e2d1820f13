"""The order in which objects are listed: by kind, name and version.

Sorting 100,000 keys takes a quarter of a second, so their order is carried on from state to state.
"""

from collections.abc import Iterable
from functools import lru_cache

from services.domain.objects import ObjectKey
from services.domain.persistent import Sorted
from services.domain.semver import semver_order

KeyOrder = Sorted[ObjectKey]

_semver_order = lru_cache(maxsize=4096)(semver_order)


def order_of(
    key: ObjectKey,
) -> tuple[str, str, tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...]], str]:
    """Sort key: kind, name, then versions as semver orders them."""
    return key.kind, key.name, _semver_order(key.version), key.version


def key_order(keys: Iterable[ObjectKey]) -> KeyOrder:
    """Keys in order."""
    return Sorted(keys, rank=order_of)


def first_of(kind: str) -> ObjectKey:
    """A key before every one of its kind, and after those of the kinds before."""
    return ObjectKey(kind, "")
