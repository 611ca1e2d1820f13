"""What a route may say of the answers that it keeps."""

from dataclasses import replace

from services.domain.caching import Cache
from services.domain.objects import Metadata, Route, RouteTarget
from services.domain.strategies import Combine, Ensemble, EnsembleMember, Fallback, RouteName
from services.domain.validation import object_faults
from tests.unit.domain.test_validation import MODEL, POOL, ROUTE, VERSION, faults_of


def test_answers_are_kept_for_a_positive_time_of_a_day_at_most() -> None:
    model, route = replace(MODEL, deterministic=True), replace(ROUTE, cache=Cache(60.0, stale_s=600.0))
    assert faults_of(model, VERSION, POOL, route) == []

    for cache, path in ((Cache(0.0), "ttl"), (Cache(86_401.0), "ttl"), (Cache(1.0, stale_s=-1.0), "stale")):
        assert [fault.path for fault in object_faults(replace(route, cache=cache))] == [f"route.cache.{path}"]


def test_answers_of_models_that_are_not_deterministic_are_not_kept() -> None:
    route = replace(ROUTE, cache=Cache(60.0))

    (fault,) = faults_of(MODEL, VERSION, POOL, route)

    assert "route.cache: Model 'digits' is not declared `deterministic`" in str(fault)


def test_a_route_that_names_only_routes_keeps_no_answers_of_its_own() -> None:
    route = Route(Metadata("outer"), Fallback((RouteName("inner"), RouteName("other"))), cache=Cache(60.0))

    assert [fault.path for fault in object_faults(route)] == ["route.cache"]


def test_old_answers_do_not_stand_in_for_parts_of_an_answer() -> None:
    members = (EnsembleMember(RouteTarget("a")), EnsembleMember(RouteTarget("b")))
    route = Route(Metadata("council"), Ensemble(members, Combine.MEAN, 2), cache=Cache(60.0, stale_s=5.0))

    assert [fault.path for fault in object_faults(route)] == ["route.cache.stale"]
