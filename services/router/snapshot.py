"""What the router routes by: one immutable view of routes, versions and hosts.

A reader takes the current one and keeps it for the whole call; the catalog makes a new one for
every change. What only some calls need is worked out when first asked for, and kept.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from services.domain.errors import Fault, InvalidRequest, ModelNotFound
from services.domain.host import HostRecord
from services.domain.model import ModelKey, ModelState, TensorMeta
from services.domain.objects import (
    Choose,
    Metadata,
    Model,
    ModelVersion,
    Object,
    ObjectKey,
    Policy,
    Pool,
    Route,
    RouteTarget,
    Single,
    Tenant,
)
from services.domain.persistent import Sorted, Trie
from services.domain.request import RouteOptions
from services.domain.rules import Rules
from services.domain.semver import semver_order
from services.domain.strategies import Callee, named
from services.policy.classing import DEFAULT_POLICY, rules_of
from services.router.destination import LONGEST_NAME, NAMED, Destination, Option

LOOKED_AT = 400
"""Most names compared with one that was not found, of those around it: each takes up to 50 µs, on the event loop."""

CARRIED = 4096
"""Most destinations that a view takes over from the one before."""


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of one revision that matter to routing."""

    revision: int = 0
    models: Trie[str, Model] = field(default_factory=Trie)
    routes: Trie[str, Route] = field(default_factory=Trie)
    versions: Trie[str, Mapping[str, ModelVersion]] = field(default_factory=Trie)
    """By model, then version."""
    pools: Trie[str, Pool] = field(default_factory=Trie)
    policies: Trie[str, Policy] = field(default_factory=Trie)
    tenants: Trie[str, Tenant] = field(default_factory=Trie)
    names: Sorted[str] = field(default_factory=lambda: Sorted(rank=str), compare=False)
    """Of models and routes: what callers may name."""

    def changed(self, revision: int, upserts: Iterable[Object], deletes: Iterable[ObjectKey] = ()) -> "Objects":
        """The objects after a change; shares with these what the change leaves alone."""
        models: dict[str, Model] = {}
        routes: dict[str, Route] = {}
        pools: dict[str, Pool] = {}
        policies: dict[str, Policy] = {}
        tenants: dict[str, Tenant] = {}
        versions: dict[str, dict[str, ModelVersion]] = {}
        gone: dict[str, list[str]] = {}
        for key in deletes:
            if key.kind == "ModelVersion":
                self._copied(versions, key.name).pop(key.version, None)
            else:
                gone.setdefault(key.kind, []).append(key.name)
        for item in upserts:
            match item:
                case Model():
                    models[item.metadata.name] = item
                case Route():
                    routes[item.metadata.name] = item
                case Pool():
                    pools[item.metadata.name] = item
                case Policy():
                    policies[item.metadata.name] = item
                case Tenant():
                    tenants[item.metadata.name] = item
                case ModelVersion():
                    self._copied(versions, item.metadata.name)[item.version] = item
        made = Objects(
            revision,
            self.models.changed(models, gone.get("Model", ())),
            self.routes.changed(routes, gone.get("Route", ())),
            self.versions.changed(
                {name: of_model for name, of_model in versions.items() if of_model},
                [name for name, of_model in versions.items() if not of_model],
            ),
            self.pools.changed(pools, gone.get("Pool", ())),
            self.policies.changed(policies, gone.get("Policy", ())),
            self.tenants.changed(tenants, gone.get("Tenant", ())),
        )
        came = {name for name in (*models, *routes) if not self.knows(name)}
        went = {name for kind in ("Model", "Route") for name in gone.get(kind, ())}
        names = self.names.changed(came, [name for name in went if self.knows(name) and not made.knows(name)])
        return replace(made, names=names)

    def knows(self, name: str) -> bool:
        """Whether a model or a route is called that."""
        return name in self.models or name in self.routes

    def differing(self, before: "Objects") -> tuple[list[Object], list[ObjectKey]]:
        """What came or is another one than in `before`, and what went; does not look at what both share."""
        upserts: list[Object] = []
        deletes: list[ObjectKey] = []
        kinds: tuple[tuple[str, tuple[Mapping[str, Object], Iterable[str]]], ...] = (
            ("Model", self.models.differing(before.models)),
            ("Route", self.routes.differing(before.routes)),
            ("Pool", self.pools.differing(before.pools)),
            ("Policy", self.policies.differing(before.policies)),
            ("Tenant", self.tenants.differing(before.tenants)),
        )
        for kind, (puts, drops) in kinds:
            upserts += puts.values()
            deletes += [ObjectKey(kind, name) for name in drops]
        versions, gone = self.versions.differing(before.versions)
        for name in (*versions, *gone):
            old, new = before.versions.get(name, {}), versions.get(name, {})
            upserts += [version for at, version in new.items() if old.get(at) != version]
            deletes += [ObjectKey("ModelVersion", name, at) for at in old if at not in new]
        return upserts, deletes

    def _copied(self, versions: dict[str, dict[str, ModelVersion]], model: str) -> dict[str, ModelVersion]:
        """The versions of a model, to be changed."""
        if model not in versions:
            versions[model] = dict(self.versions.get(model, {}))
        return versions[model]

    def all(self) -> list[Object]:
        """Every object."""
        return [
            *self.models.values(),
            *self.policies.values(),
            *self.pools.values(),
            *self.routes.values(),
            *self.tenants.values(),
            *(version for of_model in self.versions.values() for version in of_model.values()),
        ]


class Snapshot:
    """One view of everything; never changes."""

    def __init__(self, objects: Objects, hosts: Mapping[str, HostRecord]) -> None:
        """View `objects` and the `hosts` by id, neither of which changes from now on."""
        self.objects = objects
        self.hosts = hosts
        self._destinations: dict[tuple[str, str], Destination] = {}
        self._targets: dict[RouteTarget, Destination] = {}
        self._ready: dict[ModelKey, tuple[HostRecord, ...]] | None = None
        self._rules: dict[tuple[str, str, int, str], Rules] = {}

    def followed_by(self, objects: Objects, touched: Iterable[ObjectKey]) -> "Snapshot":
        """The view of the same hosts and other `objects`, of which those that were `touched` differ.

        What names lead to stays known where none of these is on the way.
        """
        made = Snapshot(objects, self.hosts)
        made._ready = self._ready
        routes: set[str] = set()
        models: set[str] = set()
        for key in touched:
            match key.kind:
                case "Route":
                    routes.add(key.name)
                case "Model" | "ModelVersion":
                    models.add(key.name)
                case "Pool" | "Policy" | "Tenant":
                    pass
                case _:
                    return made
        made._destinations = {
            at: found
            for at, found in islice(self._destinations.items(), CARRIED)
            if found.name not in routes and not found.leads_over(models)
        }
        made._targets = {
            target: found for target, found in islice(self._targets.items(), CARRIED) if target.model not in models
        }
        return made

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

    def target(self, target: RouteTarget) -> Destination:
        """What a strategy leads to that names `target` itself."""
        found = self._targets.get(target)
        if found is None:
            route = Route(Metadata(target.model), Single(target))
            found = self._targets[target] = self._choosing(target.model, route, target)
        return found

    def rules(self, options: RouteOptions, policy: str = "") -> Rules:
        """The rules of a call with these options, whose route names `policy`, if it names one.

        Raises:
            InvalidRequest: Its tenant or its tier is none, or not for it.
        """
        asked = (options.tenant, options.tier, options.priority, policy)
        found = self._rules.get(asked)
        if found is None:
            tenant = self.objects.tenants.get(options.tenant) if options.tenant else None
            named = policy or (DEFAULT_POLICY if tenant is None else tenant.policy)
            made = rules_of(
                self.objects.policies.get(named),
                tenant,
                tenant_name=options.tenant,
                tier_name=options.tier,
                priority=options.priority,
            )
            if isinstance(made, Fault):
                raise InvalidRequest.of([made])
            if len(self._rules) >= CARRIED:  # callers may make up as many priorities as they like
                self._rules.clear()
            found = self._rules[asked] = made
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
        if not isinstance(route.strategy, Single | Choose):
            callees = tuple(self._callee(callee) for _, callee in named(route.strategy))
            options = [option for callee in callees for option in callee.options]
            return Destination(name, route, tuple(options), True, None, callees)
        return self._choosing(name, route)

    def _choosing(self, name: str, route: Route, target: RouteTarget | None = None) -> Destination:
        """What a route leads to that chooses one of its models for each call."""
        assert isinstance(route.strategy, Single | Choose)
        options = [option for each in route.targets for option in self._options(each)]
        schemas = {option.model.inputs for option in options}
        return Destination(name, route, tuple(options), len(schemas) <= 1, route.strategy, target=target)

    def _callee(self, callee: Callee) -> Destination:
        """What a strategy names: another route, or a model by itself, whatever routes are called like it.

        Routes that lead back to themselves were refused by the registry.
        """
        return self.target(callee) if isinstance(callee, RouteTarget) else self.destination(callee.route)

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
        names = self.objects.names
        looked_at = names.around(asked, LOOKED_AT // 2) if len(names) > LOOKED_AT else list(names)
        near = difflib.get_close_matches(asked, looked_at, n=3)
        if near:
            hint = f"near it: {', '.join(near)}"
        elif looked_at:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            hint = f"there are: {', '.join(islice(names, NAMED))}{more}"
        else:
            hint = "none was applied yet"
        return ModelNotFound(f"there is no route or model '{asked}'; {hint}", metadata={"name": asked})
