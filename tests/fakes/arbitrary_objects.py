"""Objects of every kind and strategy for property tests: any values that the contract can carry, valid or not."""

from hypothesis import strategies as st

from services.chassis.object_codec import object_to
from services.domain.host import DeviceKind
from services.domain.model import TensorSpec
from services.domain.objects import (
    Artifact,
    Backend,
    Generation,
    Lineage,
    Metadata,
    Model,
    ModelVersion,
    Object,
    Padding,
    Policy,
    Pool,
    Route,
    SegmentQuality,
    SmokeTest,
    Template,
    Tenant,
    WarmupTensor,
)
from services.domain.strategies import (
    Calibration,
    CalibrationPoint,
    Cascade,
    CascadeStep,
    Choose,
    Combine,
    Ensemble,
    EnsembleMember,
    Escalation,
    Fallback,
    HashKey,
    Pipeline,
    PipelineStep,
    RouteName,
    RouteTarget,
    Shadow,
    Single,
    Split,
    SplitTarget,
    StaticTensor,
    TensorSource,
)
from services.domain.templates import Binding, Parameter, ParameterType
from services.domain.tenancy import (
    Balancing,
    BalancingStrategy,
    Budget,
    HedgeRules,
    Preemption,
    PriceRules,
    Protection,
    Quotas,
    RateLimit,
    RetryRules,
    SessionAffinity,
    Tier,
    ZoneSpill,
)

names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
texts = names | st.just("")
counts = st.integers(0, (1 << 31) - 1)
millis = st.integers(1, 10_000_000).map(lambda value: value / 1000)
numbers = st.floats(-1e9, 1e9)
labels = st.dictionaries(names, names, max_size=3)
metadata = st.builds(Metadata, names, labels, labels, texts)
tensors = st.builds(
    TensorSpec, names, st.sampled_from(["FP32", "BYTES"]), st.lists(st.integers(-1, 9), max_size=3).map(tuple)
)
schemas = st.lists(tensors, max_size=3).map(tuple)
models = st.builds(
    Model, metadata, schemas, schemas, names, names, texts, st.none() | millis, texts, st.none() | numbers
)
artifacts = st.builds(Artifact, names.map("file:/{}".format), names)
samples = st.dictionaries(names, st.builds(WarmupTensor, st.just((1, 2)), st.binary(max_size=8)), max_size=2)
warmups = st.lists(samples, max_size=2).map(tuple)
versions = st.builds(
    ModelVersion,
    metadata,
    names,
    st.builds(Backend, names, names, labels, st.booleans()),
    st.none() | artifacts,
    st.dictionaries(names, artifacts, max_size=2),
    st.none() | st.sampled_from(DeviceKind),
    counts,
    counts,
    millis,
    counts,
    texts,
    counts,
    st.none() | st.floats(0, 1),
    texts,
    millis,
    st.builds(Lineage, texts, texts, texts, texts, labels, texts),
    warmups,
    st.lists(st.builds(SegmentQuality, texts, texts, numbers, texts), max_size=2).map(tuple),
    st.lists(names, max_size=2).map(tuple),
    texts,
    st.none() | st.builds(SmokeTest, samples, samples, numbers, st.none() | millis),
    st.none() | st.builds(Generation, *(st.integers(1, 1 << 20) for _ in range(4))),
    st.booleans(),
    st.lists(
        st.builds(Padding, names, st.integers(0, 9), numbers, st.dictionaries(names, st.integers(0, 9), max_size=2)),
        max_size=2,
    ).map(tuple),
)
pools = st.builds(
    Pool,
    metadata,
    st.sampled_from(DeviceKind),
    counts,
    st.integers(1, 9),
    st.integers(1, 9),
    names,
    names,
    st.booleans(),
    st.booleans(),
    counts,
    millis,
)
budgets = st.builds(Budget, st.integers(-(1 << 40), 1 << 40), millis)
targets = st.builds(RouteTarget, names, texts)
callees = targets | st.builds(RouteName, names)
sources = st.dictionaries(names, st.builds(TensorSource, names, texts), max_size=2)
static_tensors = st.builds(StaticTensor, st.lists(st.integers(0, 9), max_size=2).map(tuple), st.binary(max_size=8))
singles = st.builds(Single, targets)
choices = st.builds(
    Choose, st.lists(targets, min_size=1, max_size=3).map(tuple), st.floats(0.1, 9), st.floats(0.1, 9), st.just(1.0)
)
splits = st.builds(
    Split, st.lists(st.builds(SplitTarget, targets, numbers), max_size=3).map(tuple), st.sampled_from(HashKey)
)
shadows = st.builds(Shadow, targets, targets, numbers, st.none() | budgets, st.integers(1, 9))
fallbacks = st.builds(
    Fallback,
    st.lists(callees, max_size=3).map(tuple),
    st.none() | st.dictionaries(names, static_tensors, max_size=2),
)
calibrations = st.lists(st.builds(CalibrationPoint, numbers, numbers), max_size=3).map(tuple).map(Calibration)
escalations = st.builds(Escalation, names, numbers, st.none() | calibrations, numbers)
cascades = st.builds(
    Cascade,
    st.lists(st.builds(CascadeStep, targets, st.none() | escalations), max_size=3).map(tuple),
)
ensembles = st.builds(
    Ensemble,
    st.lists(st.builds(EnsembleMember, targets, st.none() | numbers), max_size=3).map(tuple),
    st.sampled_from(Combine),
    st.integers(1, 9),
)
pipelines = st.builds(
    Pipeline, st.lists(st.builds(PipelineStep, names, callees, sources), max_size=3).map(tuple), sources
)
strategies = singles | choices | splits | shadows | fallbacks | cascades | ensembles | pipelines
routes = st.builds(
    Route,
    metadata,
    strategies,
    texts,
    millis,
    millis,
    st.integers(1, 9),
    texts,
    texts,
    st.booleans(),
    schemas,
    schemas,
    max_in_flight=counts,
)
tiers = st.builds(
    Tier,
    names,
    counts,
    st.none() | millis,
    st.none() | millis,
    numbers,
    numbers,
    counts,
    st.booleans(),
    st.sampled_from(Preemption),
    st.none() | numbers,
)
policies = st.builds(
    Policy,
    metadata,
    st.lists(tiers, max_size=3).map(tuple),
    texts,
    texts,
    st.builds(RetryRules, st.integers(1, 9), numbers),
    st.builds(HedgeRules, st.booleans(), numbers),
    st.none() | st.builds(PriceRules, numbers, numbers, numbers, millis, numbers),
    st.builds(
        Balancing,
        st.sampled_from(BalancingStrategy),
        st.builds(SessionAffinity, st.booleans(), numbers),
        st.builds(ZoneSpill, numbers, millis),
    ),
    protection=st.builds(Protection, st.booleans(), st.booleans(), st.booleans(), st.booleans()),
)
tenants = st.builds(
    Tenant,
    metadata,
    texts,
    texts,
    texts,
    texts,
    st.builds(Quotas, counts, counts, counts, counts, counts),
    st.none() | st.builds(RateLimit, numbers, st.integers(1, 9)),
    counts,
    st.none() | budgets,
)
parameters = st.builds(
    Parameter, names, texts, st.sampled_from(ParameterType), st.none() | texts, st.lists(texts, max_size=2).map(tuple)
)
bodies = (models | versions | routes | pools | policies | tenants).map(
    lambda item: object_to(item).SerializeToString(deterministic=True)
)
templates = st.builds(
    Template,
    metadata,
    st.lists(parameters, max_size=2).map(tuple),
    st.lists(bodies, max_size=2).map(tuple),
    st.lists(st.builds(Binding, counts, names, names), max_size=2).map(tuple),
    texts,
    texts,
    st.booleans(),
    st.booleans(),
)
objects: st.SearchStrategy[Object] = models | versions | routes | pools | policies | tenants | templates
