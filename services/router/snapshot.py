"""What the router routes by: one immutable view of routes, versions and hosts.

A reader takes the current one and keeps it for the whole call; the catalog makes a new one for
every change. What only some calls need is worked out when first asked for, and kept.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.domain.errors import Fault, ModelNotFound, NotSupported, VersionNotFound
from services.domain.host import HostRecord
from services.domain.model import ModelKey, ModelState, TensorMeta, schema_faults
from services.domain.objects import (
    Choose,
    Metadata,
    Model,
    ModelVersion,
    Object,
    ObjectKey,
    Pool,
    Route,
    RouteTarget,
    Single,
    semver_order,
)
from services.domain.strategies import strategy_name

NAMED = 10
"""Most names that an error lists."""

LOOKED_AT = 1000
"""Most names compared with one that was not found: comparing takes microseconds each, on the event loop."""

FITTING_KEPT = 512
"""Sets of inputs that each destination remembers to fit: checking costs as much as the rest of a decision."""

LONGEST_NAME = 63
"""More of a name that was not found is neither compared nor repeated."""


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of one revision that matter to routing."""

    revision: int = 0
    models: Mapping[str, Model] = field(default_factory=dict)
    routes: Mapping[str, Route] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, ModelVersion]] = field(default_factory=dict)
    """By model, then version."""
    pools: Mapping[str, Pool] = field(default_factory=dict)

    def changed(self, revision: int, upserts: Iterable[Object], deletes: Iterable[ObjectKey] = ()) -> "Objects":
        """The objects after a change."""
        models, routes, pools = dict(self.models), dict(self.routes), dict(self.pools)
        versions = {model: dict(of_model) for model, of_model in self.versions.items()}
        for key in deletes:
            match key.kind:
                case "Model":
                    models.pop(key.name, None)
                case "Route":
                    routes.pop(key.name, None)
                case "Pool":
                    pools.pop(key.name, None)
                case "ModelVersion":
                    versions.get(key.name, {}).pop(key.version, None)
        for item in upserts:
            match item:
                case Model():
                    models[item.metadata.name] = item
                case Route():
                    routes[item.metadata.name] = item
                case Pool():
                    pools[item.metadata.name] = item
                case ModelVersion():
                    versions.setdefault(item.metadata.name, {})[item.version] = item
        return Objects(revision, models, routes, {model: of for model, of in versions.items() if of}, pools)

    def all(self) -> list[Object]:
        """Every object."""
        return [
            *self.models.values(),
            *self.pools.values(),
            *self.routes.values(),
            *(version for of_model in self.versions.values() for version in of_model.values()),
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """One version that a name may lead to."""

    version: ModelVersion
    model: Model
    key: ModelKey
    hosts: tuple[HostRecord, ...]
    """Hosts that have it ready and take calls, by id."""
    elsewhere: str
    """What is known of it where it is not ready; empty if that is nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Destination:
    """What a name leads to."""

    name: str
    route: Route
    """For a model that was named directly: a `single` route to it with the defaults."""
    options: tuple[Option, ...]
    """For `single` the newest version first; else in the route's order, newest first in each model."""
    one_schema: bool
    """True if all options take the same inputs."""
    choice: Single | Choose | None
    """How one of the options is chosen; None if this router does not carry the route's strategy out."""
    fitting: set[tuple[TensorMeta, ...]] = field(default_factory=set)
    """Inputs that were found to be well formed and to fit an option."""

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return strategy_name(self.route.strategy)

    def executable(self) -> "Destination":
        """This, to be called.

        Raises:
            NotSupported: This router does not carry the route's strategy out.
        """
        if self.choice is None:
            raise NotSupported(
                f"route '{self.name}' has the strategy '{self.strategy}', which this router does not carry out yet, "
                "only 'single' and 'choose'; its models can be called by their own names",
                metadata={"name": self.name, "strategy": self.strategy},
            )
        return self

    def pinned(self, version: str) -> "Destination":
        """The same, with options of `version` only.

        Raises:
            VersionNotFound: No option has it.
        """
        options = tuple(option for option in self.options if option.version.version == version)
        if not options:
            offered = ", ".join(str(option.key) for option in self.options[:NAMED]) or "none yet"
            raise VersionNotFound(
                f"'{self.name}' has no version '{version[:LONGEST_NAME]}'; versions: {offered}",
                metadata={"name": self.name, "version": version[:LONGEST_NAME]},
            )
        return replace(self, options=options, fitting=set())

    def remember(self, inputs: tuple[TensorMeta, ...]) -> None:
        """Note that `inputs` are well formed and fit."""
        if len(self.fitting) >= FITTING_KEPT:
            self.fitting.clear()
        self.fitting.add(inputs)

    def misfits(self, inputs: Sequence[TensorMeta]) -> list[Fault]:
        """What is wrong with a call's inputs for the route's own schema or every option; empty if one takes them."""
        faults = schema_faults(inputs, self.route.inputs) if self.route.inputs else []
        if faults:
            return faults
        for option in self.options[:1] if self.one_schema else self.options:
            found = schema_faults(inputs, option.model.inputs)
            if not found:
                return []
            faults = faults or found
        return faults


class Snapshot:
    """One view of everything; never changes."""

    def __init__(self, objects: Objects, hosts: Mapping[str, HostRecord]) -> None:
        """View `objects` and the `hosts` by id, neither of which changes from now on."""
        self.objects = objects
        self.hosts = hosts
        self._destinations: dict[tuple[str, str], Destination] = {}
        self._ready: dict[ModelKey, tuple[HostRecord, ...]] | None = None

    @property
    def revision(self) -> int:
        """The registry's revision."""
        return self.objects.revision

    def destination(self, name: str, version: str = "") -> Destination:
        """What `name` leads to, and of that only `version`, if one is given.

        Raises:
            ModelNotFound: Neither a route nor a model is called that.
            VersionNotFound: No option has the version.
        """
        found = self._destinations.get((name, version))
        if found is None:
            found = self.destination(name).pinned(version) if version else self._destination(name)
            self._destinations[name, version] = found
        return found

    def fits(self, name: str, version: str, inputs: tuple[TensorMeta, ...]) -> Destination | None:
        """What `name` and `version` lead to, if `inputs` are known to fit it; None says nothing."""
        found = self._destinations.get((name, version))
        return found if found is not None and inputs in found.fitting else None

    def ready(self, key: ModelKey) -> tuple[HostRecord, ...]:
        """Hosts that have the version ready and take calls, by id."""
        if self._ready is None:
            self._ready = self._find_ready()
        return self._ready.get(key, ())

    def ready_keys(self) -> Mapping[ModelKey, tuple[HostRecord, ...]]:
        """Every version that is ready somewhere, with the hosts that take calls for it."""
        if self._ready is None:
            self._ready = self._find_ready()
        return self._ready

    def newest_first(self, model: str) -> list[ModelVersion]:
        """Versions of a model."""
        of_model = self.objects.versions.get(model, {})
        return sorted(of_model.values(), key=lambda version: semver_order(version.version), reverse=True)

    def states(self, key: ModelKey) -> list[tuple[HostRecord, ModelState, str]]:
        """Every host that has anything to say about the version: host, state, message; by host id."""
        return [
            (host, hosted.state, hosted.message)
            for _, host in sorted(self.hosts.items())
            if (hosted := host.hosted(key)) is not None
        ]

    def _find_ready(self) -> dict[ModelKey, tuple[HostRecord, ...]]:
        found: dict[ModelKey, list[HostRecord]] = {}
        for _, host in sorted(self.hosts.items()):
            if not host.draining:
                for hosted in host.models:
                    if hosted.state is ModelState.READY:
                        found.setdefault(hosted.key, []).append(host)
        return {key: tuple(hosts) for key, hosts in found.items()}

    def _destination(self, name: str) -> Destination:
        route = self.objects.routes.get(name)
        if route is None:
            if name not in self.objects.models:
                raise self._not_found(name)
            route = Route(Metadata(name), Single(RouteTarget(name)))
        options = [option for target in route.targets for option in self._options(target)]
        schemas = {option.model.inputs for option in options}
        choice = route.strategy if isinstance(route.strategy, Single | Choose) else None
        return Destination(name, route, tuple(options), len(schemas) <= 1, choice)

    def _options(self, target: RouteTarget) -> list[Option]:
        model = self.objects.models.get(target.model)
        if model is None:
            return []
        return [
            Option(version, model, version.model_key, self.ready(version.model_key), self._elsewhere(version))
            for version in self.newest_first(target.model)
            if target.version in ("", version.version)
        ]

    def _elsewhere(self, version: ModelVersion) -> str:
        said = []
        for host, state, message in self.states(version.model_key):
            if host.draining:
                said.append(f"draining on {host.host_id}")
            elif state is not ModelState.READY:
                said.append(f"{state.value} on {host.host_id}" + (f" ({message})" if message else ""))
        return ", ".join(said[:NAMED])

    def _not_found(self, name: str) -> ModelNotFound:
        asked = name[:LONGEST_NAME]
        names = sorted({*self.objects.routes, *self.objects.models})
        looked_at = names
        if len(names) > LOOKED_AT:
            looked_at = [known for known in names if known[:2] == asked[:2]][:LOOKED_AT]
        near = difflib.get_close_matches(asked, looked_at, n=3)
        if near:
            hint = f"near it: {', '.join(near)}"
        elif names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            hint = f"there are: {', '.join(names[:NAMED])}{more}"
        else:
            hint = "none was applied yet"
        return ModelNotFound(f"there is no route or model '{asked}'; {hint}", metadata={"name": asked})
