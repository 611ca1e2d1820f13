"""What is asked of a state beside its objects by key: their order, and who needs an object.

Worked out when it is first asked for, which takes seconds where there are 100,000 objects; from then on carried from
state to state, at the cost of what changes.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from services.domain.objects import Object, ObjectKey, references
from services.domain.persistent import Trie
from services.registry.key_order import KeyOrder, key_order


class HasItem(Protocol):
    """What is stored of an object."""

    @property
    def item(self) -> Object:
        """The object."""
        ...


Entries = Mapping[ObjectKey, HasItem]
Users = Trie[ObjectKey, Trie[ObjectKey, None]]


class Index:
    """The index of one state."""

    def __init__(self, entries: Entries) -> None:
        """Index `entries`."""
        self._entries = entries
        self._order: KeyOrder | None = None
        self._users: Users | None = None
        self._origin: tuple[Index, list[ObjectKey]] | None = None
        """The index of the state before, while that did not know the users yet either, and which objects differ."""

    @property
    def knows_users(self) -> bool:
        """Whether `users_of` is at hand."""
        return self._users is not None

    @property
    def order(self) -> KeyOrder:
        """Every key, by kind, name and version."""
        if self._order is None:
            self._order = key_order(self._entries)
        return self._order

    def prepare(self) -> None:
        """Work out all of it. May be called from a thread."""
        self._find_users()
        self._order = self._order or key_order(self._entries)

    def users_of(self, key: ObjectKey) -> Collection[ObjectKey]:
        """Keys of the objects that refer to an object, whether it exists or not. May be called from a thread."""
        users = self._users
        return (self._find_users() if users is None else users).get(key, ())

    def followed_by(self, entries: Entries, upserts: Collection[ObjectKey], deletes: Collection[ObjectKey]) -> "Index":
        """The index of `entries`, which differ from those of this one in `upserts` and `deletes`."""
        made = Index(entries)
        if self._order is not None:
            made._order = self._order.changed([key for key in upserts if key not in self._entries], deletes)
        made._origin = (self, [*upserts, *deletes])
        if self._users is not None:
            made._find_users()
        return made

    def _find_users(self) -> Users:
        """Go back to an index that knows them, or to the first one, and come here from there."""
        steps: list[tuple[Index, Index, list[ObjectKey]]] = []
        index = self
        while True:
            users, origin = index._users, index._origin  # in this order, as another thread may set both in it
            if users is not None or origin is None:
                break
            before, keys = origin
            steps.append((index, before, keys))
            index = before
        if users is None:
            everyone = ((key, (), references(entry.item)) for key, entry in index._entries.items())
            users = index._users = _changed(Trie(), everyone)
        for index, before, keys in reversed(steps):
            old, new = before._entries, index._entries
            users = index._users = _changed(users, ((key, _needs(old, key), _needs(new, key)) for key in keys))
            index._origin = None
        return users


def _needs(entries: Entries, key: ObjectKey) -> tuple[ObjectKey, ...]:
    entry = entries.get(key)
    return () if entry is None else references(entry.item)


def _changed(users: Users, changes: Iterable[tuple[ObjectKey, tuple[ObjectKey, ...], tuple[ObjectKey, ...]]]) -> Users:
    """Who needs whom, after changes: each a key, and whom it needs before and after."""
    more: dict[ObjectKey, dict[ObjectKey, None]] = {}
    less: dict[ObjectKey, list[ObjectKey]] = {}
    for key, before, after in changes:
        if before == after:
            continue
        for need in after:
            if need not in before:
                more.setdefault(need, {})[key] = None
        for need in before:
            if need not in after:
                less.setdefault(need, []).append(key)
    nobody: Trie[ObjectKey, None] = Trie()
    made = {need: users.get(need, nobody).changed(more.get(need, {}), less.get(need, ())) for need in {**more, **less}}
    kept = {need: by for need, by in made.items() if by}
    return users.changed(kept, [need for need in made if need not in kept])
