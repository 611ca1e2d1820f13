"""How far a change reaches: whose validity it can affect, and what else has to be looked at to judge that.

So that a change to a few objects among many costs what it changes. It goes by what validity depends on:

- what an object refers to, and what that refers to in turn;
- for a Route also a Model of the same name;
- for a Tenant also everything that belongs to it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from services.domain.objects import Metadata, Model, ModelVersion, Object, ObjectKey, Pool, references

UsersOf = Callable[[ObjectKey], Iterable[ObjectKey]]


class Reach:
    """A change to a state, and how far it reaches."""

    def __init__(
        self, before: Mapping[ObjectKey, Object], changes: Mapping[ObjectKey, Object | None], users_of: UsersOf
    ) -> None:
        """Look how far `changes` reach.

        Args:
            before: The state.
            changes: Objects as they will be; None for those that go.
            users_of: Keys of the objects of `before` that refer to an object, which need not exist.
        """
        self.before = before
        self.after: Mapping[ObjectKey, Object] = _After(before, changes)
        self._users_of = users_of
        self.judged: dict[ObjectKey, None] = {}
        """Keys of the objects that the change can make valid or not; those that change come first."""
        self._judge(changes)

    def part(self, state: Mapping[ObjectKey, Object]) -> dict[ObjectKey, Object]:
        """What of `before` or `after` has to be looked at to judge the objects in question."""
        part: dict[ObjectKey, Object] = {}
        rest = [*self.judged]
        for tenant in self.judged:
            if tenant.kind == "Tenant":
                rest += self._users_of(tenant)
        for key in rest:
            item = None if key in part else state.get(key)
            if item is not None:
                part[key] = item
                rest += references(item)
                if key.kind == "Route":
                    rest.append(ObjectKey("Model", key.name))
        return part

    def _judge(self, changes: Mapping[ObjectKey, Object | None]) -> None:
        rest: list[ObjectKey] = []
        for key, new in changes.items():
            self.judged[key] = None
            old = self.before.get(key)
            if old is None or new is None or _shown(old) != _shown(new):
                rest.append(key)
            for item in (old, new):
                if item is not None and item.metadata.tenant:
                    self.judged[ObjectKey("Tenant", item.metadata.tenant)] = None
        for key in rest:
            for user in self._affected_by(key):
                if user not in self.judged:
                    self.judged[user] = None
                    if user.kind == "Route":  # a route that names it sees through it
                        rest.append(user)

    def _affected_by(self, key: ObjectKey) -> Iterator[ObjectKey]:
        yield from self._users_of(key)
        if key.kind == "Model":
            yield ObjectKey("Route", key.name)


def _shown(item: Object) -> object:
    """What of an object the validity of others can depend on, beside that it is there."""
    tenant = item.metadata.tenant
    match item:
        case Model():
            return tenant, item.inputs, item.outputs
        case ModelVersion():
            return tenant
        case Pool():
            return tenant, item.device_kind, item.trusts_artifacts
        case _:
            return replace(item, metadata=Metadata(item.metadata.name, tenant=tenant))


class _After(Mapping[ObjectKey, Object]):
    """A state after a change, without a copy of it."""

    def __init__(self, before: Mapping[ObjectKey, Object], changes: Mapping[ObjectKey, Object | None]) -> None:
        self._before = before
        self._changes = changes

    def __getitem__(self, key: ObjectKey) -> Object:
        item = self._changes[key] if key in self._changes else self._before[key]
        if item is None:
            raise KeyError(key)
        return item

    def __iter__(self) -> Iterator[ObjectKey]:
        yield from (key for key in self._before if self._changes.get(key, key) is not None)
        yield from (key for key, item in self._changes.items() if item is not None and key not in self._before)

    def __len__(self) -> int:
        return sum(1 for _ in self)
