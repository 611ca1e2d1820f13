"""What a name that callers use leads to: versions, hosts, and what the route does with them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from services.domain.errors import Fault, InvalidRequest, VersionNotFound
from services.domain.host import HostRecord
from services.domain.model import ModelKey, TensorMeta, TensorSpec, schema_faults
from services.domain.objects import Choose, Model, ModelVersion, Route, RouteTarget, Single
from services.domain.request import RouteOptions
from services.domain.strategies import Ensemble, Fallback, Pipeline, Shadow, strategy_name
from services.policy import content
from services.policy.complexity import Kind, kind_of
from services.policy.shortlisting import Shortlists

if TYPE_CHECKING:
    from services.router.answer_scope import Stem

NAMED = 10
"""Most names that an error lists."""

FITTING_KEPT = 512
"""Sets of inputs that each destination remembers to fit: checking costs as much as the rest of a decision."""

LONGEST_NAME = 63
"""More of a name that was not found is neither compared nor repeated."""


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
    """How one of the options is chosen; None if the strategy is one that leads over `callees`."""
    callees: tuple["Destination", ...] = ()
    """What those that the strategy names lead to, in its order."""
    target: RouteTarget | None = None
    """Set if it is what a strategy names: not to be looked up by its name, which may be a route's too."""
    fitting: set[tuple[TensorMeta, ...]] = field(default_factory=set)
    """Inputs that were found to be well formed and to fit an option."""
    shortlists: Shortlists = field(default_factory=Shortlists)
    """In what order the options are looked at, where they are scored."""
    stems: "list[Stem | None]" = field(default_factory=list)
    """What the kept answers of all calls that lead here have in common; empty until it was asked for."""
    known_kinds: dict[tuple[object, ...], tuple[Kind, ...]] = field(default_factory=dict)
    """What kind of call it is for each option, by what that depends on."""
    known_unfit: dict[tuple[object, ...], tuple[str, ...]] = field(default_factory=dict)
    """Why such a call does not go to each option, by what that depends on."""

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return strategy_name(self.route.strategy)

    @property
    def generates(self) -> bool:
        """Whether an option answers in pieces."""
        return any(option.version.generation is not None for option in self.options)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What callers send: by the route itself, else by the first that it names."""
        if self.route.inputs or not self.callees:
            return self.route.inputs or (self.options[0].model.inputs if self.options else ())
        return self.callees[0].inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What callers get: by the route itself, else by the first that it names."""
        if self.route.outputs or not self.callees:
            return self.route.outputs or (self.options[0].model.outputs if self.options else ())
        return self.callees[0].outputs

    @property
    def ready(self) -> bool:
        """Whether there are hosts for what a call needs."""
        match self.route.strategy:
            case Pipeline():
                return all(callee.ready for callee in self.callees)
            case Fallback(static_answer=answer) if answer is not None:
                return True
            case Shadow():
                return self.callees[0].ready
            case Ensemble(quorum=quorum):
                return sum(callee.ready for callee in self.callees) >= quorum
            case _ if self.callees:
                return any(callee.ready for callee in self.callees)
            case _:
                return any(option.hosts for option in self.options)

    @property
    def expected_s(self) -> float:
        """What an answer is registered to take, without waiting."""
        times = [callee.expected_s for callee in self.callees]
        match self.route.strategy:
            case Pipeline():
                return sum(times)
            case Ensemble():
                return max(times)
            case _ if times:
                return times[0]
            case _:
                options = [option for option in self.options if option.hosts] or self.options
                return min((option.version.service_time_s for option in options), default=0.0)

    @property
    def cost_microusd(self) -> int:
        """What a call of its first option costs, one that is ready before one that is not."""
        options = [option for option in self.options if option.hosts] or self.options
        return options[0].version.cost_microusd if options else 0

    @property
    def quality(self) -> float | None:
        """How good that option is; None if it was not measured."""
        options = [option for option in self.options if option.hosts] or self.options
        return options[0].version.quality if options else None

    def pinned(self, version: str) -> "Destination":
        """The same, with options of `version` only.

        Raises:
            VersionNotFound: No option has it.
            InvalidRequest: The route's strategy leaves no choice of versions.
        """
        if self.choice is None:
            text = f"'{self.name}' is a route that says itself which versions answer: leave it out, or name a model"
            raise InvalidRequest.of([Fault("model_version", text)])
        options = tuple(option for option in self.options if option.version.version == version)
        if not options:
            offered = ", ".join(str(option.key) for option in self.options[:NAMED]) or "none yet"
            raise VersionNotFound(
                f"'{self.name}' has no version '{version[:LONGEST_NAME]}'; versions: {offered}",
                metadata={"name": self.name, "version": version[:LONGEST_NAME]},
            )
        return replace(
            self, options=options, fitting=set(), shortlists=Shortlists(), stems=[], known_kinds={}, known_unfit={}
        )

    def leads_over(self, models: Collection[str]) -> bool:
        """Whether a change of one of `models` may be a change of this; over other routes, any may."""
        return bool(self.route.routes) or any(target.model in models for target in self.route.targets)

    def remember(self, inputs: tuple[TensorMeta, ...]) -> None:
        """Note that `inputs` are well formed and fit."""
        if len(self.fitting) >= FITTING_KEPT:
            self.fitting.clear()
        self.fitting.add(inputs)

    def kinds(self, inputs: tuple[TensorMeta, ...], options: RouteOptions) -> tuple[Kind, ...]:
        """What kind of call it is for each of `self.options`."""
        by = (inputs, options.domain, options.complexity, options.labels)
        found = self.known_kinds.get(by)
        if found is None:
            if len(self.known_kinds) >= FITTING_KEPT:
                self.known_kinds.clear()
            if self.one_schema and self.options:
                found = (kind_of(options, inputs, self.options[0].model.inputs),) * len(self.options)
            else:
                found = tuple(kind_of(options, inputs, option.model.inputs) for option in self.options)
            self.known_kinds[by] = found
        return found

    def unfit(self, inputs: tuple[TensorMeta, ...], options: RouteOptions) -> tuple[str, ...]:
        """Why calls like this one do not go to each of `self.options`; empty where they may."""
        by = (inputs, options.domain, options.complexity, options.labels)
        found = self.known_unfit.get(by)
        if found is None:
            if len(self.known_unfit) >= FITTING_KEPT:
                self.known_unfit.clear()
            rules = self.choice.rules if isinstance(self.choice, Choose) else ()
            found = tuple(content.unfit(option.model, rules, options, inputs) for option in self.options)
            self.known_unfit[by] = found
        return found

    def misfits(self, inputs: Sequence[TensorMeta]) -> list[Fault]:
        """What is wrong with a call's inputs for the route's own schema or every option; empty if one takes them."""
        if self.choice is None:
            return schema_faults(inputs, specs) if (specs := self.inputs) else []
        faults = schema_faults(inputs, self.route.inputs) if self.route.inputs else []
        if faults:
            return faults
        for option in self.options[:1] if self.one_schema else self.options:
            found = schema_faults(inputs, option.model.inputs)
            if not found:
                return []
            faults = faults or found
        return faults
