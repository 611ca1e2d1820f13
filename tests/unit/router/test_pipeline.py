"""One call through the router, over hosts in memory and a clock moved by hand."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from services.domain.errors import (
    BudgetExhausted,
    Draining,
    HostUnavailable,
    InvalidRequest,
    ModelFailed,
    ModelNotFound,
    ModelNotReady,
    NoCandidate,
    NoReadyHost,
    Overloaded,
    VersionNotFound,
)
from services.domain.host import HostLoad, HostRecord, ModelLoad
from services.domain.model import ModelKey, ModelState, TensorMeta, TensorSpec
from services.domain.objects import Object
from services.domain.request import Preference, RouteOptions
from services.domain.service_class import ServiceClass
from services.policy.admission import DeadlineSource
from services.router.attempting import AttemptFailed, HostAnswer
from tests.fakes.objects import a_host, a_model, a_version, hosted
from tests.unit.router.yards import INPUT, World, a_call, a_choice, a_single, a_snapshot, digits, rated


def two_hosts(model: str = "digits") -> list[HostRecord]:
    return [a_host("h0", hosted(model)), a_host("h1", hosted(model))]


async def test_a_model_can_be_called_by_its_own_name() -> None:
    world = World(digits(), two_hosts())

    decision = await world.decide(a_call())

    assert decision.version is not None
    assert (decision.route, str(decision.version.model_key), decision.strategy) == ("digits", "digits:1.0.0", "single")
    assert decision.reason == "newest version"
    assert decision.registry_revision == 1
    assert [attempt.error for attempt in decision.attempts] == [None]
    assert decision.deadline_source is DeadlineSource.ROUTE_DEFAULT
    assert world.notes.answered_by == [decision]


async def test_stage_times_add_up() -> None:
    world = World(digits(), two_hosts())

    stages = (await world.decide(a_call())).stages

    assert stages.queue_s == 0.0
    assert stages.compute_s == pytest.approx(0.008)
    assert stages.network_s == pytest.approx(0.002)
    assert stages.total_s == pytest.approx(0.010)


async def test_the_newest_ready_version_answers() -> None:
    hosts = [a_host("h0", hosted("digits", "1.9.0"), hosted("digits", "1.10.0", state=ModelState.LOADING))]
    world = World(digits("1.9.0", "1.10.0"), hosts)

    decision = await world.decide(a_call())

    assert decision.version is not None
    assert decision.version.version == "1.9.0"
    assert decision.reason == "newest version that can answer; 1.10.0: no host has it ready; LOADING on h0"


async def test_a_version_asked_for_is_the_one_that_answers() -> None:
    world = World(digits("1.0.0", "2.0.0"), [a_host("h0", hosted("digits", "1.0.0"), hosted("digits", "2.0.0"))])

    decision = await world.decide(a_call(version="1.0.0"))

    assert decision.version is not None
    assert decision.version.version == "1.0.0"


async def test_an_unknown_name_is_told_what_is_near() -> None:
    world = World(digits(), two_hosts())

    with pytest.raises(ModelNotFound, match="no route or model 'digtis'; near it: digits"):
        await world.decide(a_call("digtis"))


async def test_an_unknown_name_like_no_other_is_told_what_there_is() -> None:
    world = World(digits(), two_hosts())

    with pytest.raises(ModelNotFound, match="there are: digits"):
        await world.decide(a_call("xyz"))


async def test_a_name_of_a_megabyte_is_not_repeated() -> None:
    world = World(digits(), two_hosts())

    with pytest.raises(ModelNotFound) as caught:
        await world.decide(a_call("z" * 1_000_000))

    assert len(caught.value.message) < 300


async def test_an_unknown_version_is_told_the_known_ones() -> None:
    world = World(digits("1.0.0", "1.1.0"), two_hosts())

    with pytest.raises(VersionNotFound, match=r"versions: digits:1\.1\.0, digits:1\.0\.0"):
        await world.decide(a_call(version="9.0.0"))


async def test_a_version_without_a_host_is_unavailable_for_now() -> None:
    world = World(digits(), [a_host("h0", hosted("digits", state=ModelState.FAILED, message="out of memory"))])

    with pytest.raises(NoReadyHost, match=r"FAILED on h0 \(out of memory\)") as caught:
        await world.decide(a_call())

    assert caught.value.retry_after_s == 1.0


async def test_a_model_without_versions_is_unavailable_for_now() -> None:
    world = World([a_model("digits")], [])

    with pytest.raises(NoReadyHost, match="has no version yet"):
        await world.decide(a_call())


async def test_a_draining_host_gets_no_calls() -> None:
    world = World(digits(), [a_host("h0", hosted("digits"), draining=True), a_host("h1", hosted("digits"))])

    served = {(await world.decide(a_call(request_id=str(number)))).host for number in range(20)}

    assert {host.host_id for host in served if host is not None} == {"h1"}


@pytest.mark.parametrize(
    ("tensor", "path"),
    [
        (INPUT._replace(datatype="FLOAT"), "inputs[0].datatype"),
        (INPUT._replace(datatype="INT32"), "inputs[0].datatype"),
        (INPUT._replace(shape=(4,)), "inputs[0].shape"),
        (INPUT._replace(shape=(1, 5), raw_bytes=20), "inputs[0].shape"),
        (INPUT._replace(raw_bytes=15), "inputs[0]"),
        (INPUT._replace(shape=(-1, 4)), "inputs[0].shape"),
        (INPUT._replace(shape=(1 << 62, 4)), "inputs[0].shape"),
        (INPUT._replace(shape=(1,) * 9), "inputs[0].shape"),
        (INPUT._replace(name="y"), "inputs[0].name"),
    ],
)
async def test_a_tensor_that_does_not_fit_is_named(tensor: TensorMeta, path: str) -> None:
    world = World(digits(), two_hosts())

    with pytest.raises(InvalidRequest) as caught:
        await world.decide(a_call(inputs=(tensor,)))

    assert caught.value.faults[0].path == path
    assert f"'{tensor.name}'" in caught.value.message
    assert world.hosts.calls == []


async def test_a_missing_input_is_named() -> None:
    world = World(digits(), two_hosts())

    with pytest.raises(InvalidRequest, match=r"input 'x' .* is missing"):
        await world.decide(a_call(inputs=()))


async def test_a_call_without_a_name_is_refused() -> None:
    world = World(digits(), two_hosts())

    with pytest.raises(InvalidRequest, match="model_name"):
        await world.decide(a_call(""))


# --- deadlines and admission -------------------------------------------------------------------


async def test_the_routes_limits_apply_and_the_decision_says_so() -> None:
    route = replace(a_single("hand", "digits"), default_timeout_s=2.0, max_timeout_s=4.0)
    world = World([*digits(), route], two_hosts())

    unset = await world.decide(a_call("hand"))
    longer = await world.decide(a_call("hand"), remaining_s=60.0)
    shorter = await world.decide(a_call("hand", timeout_s=0.5), remaining_s=1.0)

    assert (unset.deadline_s, unset.deadline_source) == (2.0, DeadlineSource.ROUTE_DEFAULT)
    assert (longer.deadline_s, longer.deadline_source) == (4.0, DeadlineSource.ROUTE_MAXIMUM)
    assert (shorter.deadline_s, shorter.deadline_source) == (0.5, DeadlineSource.TIMEOUT_PARAMETER)
    assert world.hosts.timeouts_s == [pytest.approx(1.995), pytest.approx(3.995), pytest.approx(0.495)]


async def test_a_call_behind_a_queue_it_cannot_wait_for_is_refused_at_once() -> None:
    world = World(digits(), [a_host("h0", hosted("digits"))])
    await world.decide(a_call())  # measures 8 ms of compute
    busy = Stuck(world)
    waiting = [asyncio.ensure_future(world.decide(a_call())) for _ in range(20)]
    await asyncio.sleep(0)

    with pytest.raises(Overloaded, match="predicted") as caught:
        await world.decide(a_call(), remaining_s=0.050)

    assert caught.value.retry_after_s == pytest.approx(21 * 0.008 - 0.050, abs=0.005)
    assert busy.count == 20
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_call_that_no_idle_host_could_answer_in_time_is_refused_as_late() -> None:
    world = World(digits(), [a_host("h0", hosted("digits"))])
    await world.decide(a_call())

    with pytest.raises(BudgetExhausted, match="over the 2 ms left"):
        await world.decide(a_call(), remaining_s=0.002)


async def test_a_declared_time_alone_refuses_nobody() -> None:
    slow = replace(a_version("digits"), service_time_s=5.0)
    world = World([a_model("digits"), slow], [a_host("h0", hosted("digits"))])

    assert (await world.decide(a_call(), remaining_s=0.050)).host is not None


async def test_a_full_router_refuses() -> None:
    world = World(digits(), two_hosts(), most_in_flight=1)
    Stuck(world)
    first = asyncio.ensure_future(world.decide(a_call()))
    await asyncio.sleep(0)

    with pytest.raises(Overloaded, match="the most it holds"):
        await world.decide(a_call())

    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert world.notes.cancellations == 1


# --- choosing ----------------------------------------------------------------------------------

EMBED: list[Object] = [
    a_model("small"),
    a_model("large"),
    rated("small", quality=0.80, cost=10),
    rated("large", quality=0.92, cost=60),
    a_choice("embed", "small", "large"),
]


def embed_hosts() -> list[HostRecord]:
    return [a_host("h0", hosted("small"), hosted("large"), zone="a"), a_host("h1", hosted("small"), zone="b")]


@pytest.mark.parametrize(
    ("options", "model"),
    [
        (RouteOptions(), "large"),
        (RouteOptions(max_cost_microusd=20), "small"),
        (RouteOptions(min_quality=0.9), "large"),
        (RouteOptions(prefer=Preference.COST), "small"),
        (RouteOptions(zone="b"), "small"),
    ],
)
async def test_wishes_decide_between_the_candidates_of_a_route(options: RouteOptions, model: str) -> None:
    world = World(EMBED, embed_hosts())

    decision = await world.decide(a_call("embed", options=options))

    assert decision.version is not None
    assert decision.version.metadata.name == model
    assert decision.strategy == "choose"


async def test_wishes_that_nothing_meets_name_every_candidate() -> None:
    world = World(EMBED, embed_hosts())

    with pytest.raises(NoCandidate, match=r"small:1\.0\.0: quality 0\.8 .*; large:1\.0\.0: quality 0\.92"):
        await world.decide(a_call("embed", options=RouteOptions(min_quality=0.99)))


async def test_a_zone_without_a_ready_host_names_the_zones_that_have_one() -> None:
    world = World(EMBED, embed_hosts())

    with pytest.raises(NoReadyHost, match="zones that have: a"):
        await world.decide(a_call("large", options=RouteOptions(zone="b")))


async def test_a_promise_of_latency_turns_calls_to_the_quicker_model() -> None:
    promising = replace(a_model("large"), latency_slo_s=0.020)
    slow = replace(rated("large", quality=0.92, cost=60), service_time_s=0.050)
    objects: list[Object] = [a_model("small"), promising, rated("small", quality=0.80, cost=10), slow, EMBED[-1]]
    world = World(objects, embed_hosts())

    decision = await world.decide(a_call("embed"))

    assert decision.version is not None
    assert decision.version.metadata.name == "small"


async def test_explain_shows_every_candidate_and_host_and_runs_nothing() -> None:
    world = World(EMBED, embed_hosts())

    decision = world.pipeline.explain(a_call("embed", options=RouteOptions(max_cost_microusd=20)), remaining_s=None)

    assert world.hosts.calls == []
    assert [(view.version.metadata.name, view.filtered) for view in decision.candidates] == [
        ("small", ""),
        ("large", "costs 60 µUSD, over the 20 allowed"),
    ]
    assert [score.host_id for score in decision.candidates[0].hosts] == ["h0", "h1"]
    assert decision.version is not None
    assert decision.host is not None


async def test_explain_without_inputs_asks_what_the_name_alone_leads_to() -> None:
    world = World(EMBED, embed_hosts())
    call = a_call("embed", inputs=())

    assert world.pipeline.explain(call, remaining_s=None).version is not None
    with pytest.raises(InvalidRequest, match="is missing"):
        await world.decide(call)


async def test_explain_says_why_nothing_would_be_chosen() -> None:
    world = World(EMBED, [])

    decision = world.pipeline.explain(a_call("embed"), remaining_s=None)

    assert decision.version is None
    assert "no host has it ready" in decision.reason


async def test_the_same_request_is_decided_the_same_way() -> None:
    hosts = [a_host(f"h{number}", hosted("digits")) for number in range(12)]
    first, second = World(digits(), hosts), World(digits(), hosts)

    for number in range(30):
        call = a_call(request_id=f"r{number}")
        one, other = await first.decide(call), await second.decide(call)
        assert one.host is not None
        assert other.host is not None
        assert one.host.host_id == other.host.host_id


# --- failures ----------------------------------------------------------------------------------


async def test_a_lost_call_is_answered_by_another_host() -> None:
    world = World(digits(), two_hosts())
    world.hosts.fail("h0", HostUnavailable("gone"))

    decisions = [await world.decide(a_call(request_id=str(number))) for number in range(40)]

    assert {decision.host.host_id for decision in decisions if decision.host} == {"h1"}
    tries = [[attempt.host_id for attempt in decision.attempts] for decision in decisions]
    assert ["h0", "h1"] in tries
    # Once it failed, it is left alone but for the odd probe.
    assert sum(len(hosts) for hosts in tries) <= 43


async def test_a_retry_prefers_another_candidate_over_failing() -> None:
    world = World(EMBED, [a_host("h0", hosted("large")), a_host("h1", hosted("small"))])
    world.hosts.fail("h0", HostUnavailable("gone"))

    decision = await world.decide(a_call("embed"))

    assert decision.version is not None
    assert decision.version.metadata.name == "small"
    assert [attempt.host_id for attempt in decision.attempts] == ["h0", "h1"]


async def test_a_better_model_on_a_failing_host_does_not_keep_costing_retries() -> None:
    world = World(EMBED, [a_host("h0", hosted("large")), a_host("h1", hosted("small"))])
    world.hosts.fail("h0", HostUnavailable("gone"))

    decisions = [await world.decide(a_call("embed", request_id=str(number))) for number in range(300)]

    assert sum(len(decision.attempts) > 1 for decision in decisions) <= 8  # the first, and probes
    last = decisions[-1]
    assert last.version is not None
    assert last.version.metadata.name == "small"


async def test_a_call_that_is_not_idempotent_is_not_sent_twice() -> None:
    world = World(digits(), two_hosts())
    world.hosts.fail("h0", HostUnavailable("gone"))
    world.hosts.fail("h1", HostUnavailable("gone"))

    with pytest.raises(HostUnavailable):
        await world.decide(a_call(options=RouteOptions(idempotent=False)))

    assert len(world.hosts.calls) == 1


@pytest.mark.parametrize("error", [ModelNotReady("unloaded"), Draining("stopping")])
async def test_what_a_host_refused_unseen_goes_elsewhere_even_if_not_idempotent(error: ModelNotReady) -> None:
    world = World(digits(), two_hosts())
    world.hosts.fail("h0", error)

    decisions = [
        await world.decide(a_call(request_id=str(number), options=RouteOptions(idempotent=False)))
        for number in range(10)
    ]

    assert {decision.host.host_id for decision in decisions if decision.host} == {"h1"}


async def test_a_wrong_request_is_not_sent_twice() -> None:
    world = World(digits(), two_hosts())
    for host in ("h0", "h1"):
        world.hosts.fail(host, InvalidRequest("NaN in input 'x'"))

    with pytest.raises(InvalidRequest):
        await world.decide(a_call())

    assert len(world.hosts.calls) == 1


async def test_attempts_end_at_the_routes_limit_and_the_error_says_what_was_tried() -> None:
    route = replace(a_single("hand", "digits"), max_attempts=2)
    world = World([*digits(), route], [a_host(f"h{number}", hosted("digits")) for number in range(4)])
    for number in range(4):
        world.hosts.fail(f"h{number}", ModelFailed("it broke"))

    with pytest.raises(ModelFailed) as caught:
        await world.decide(a_call("hand"))

    assert len(world.hosts.calls) == 2
    assert caught.value.metadata["attempts"] == "2"


async def test_the_only_host_is_tried_again_after_a_pause() -> None:
    world = World(digits(), [a_host("h0", hosted("digits"))])
    outcomes = iter([HostUnavailable("gone"), None])
    world.hosts.behaviour["h0"] = lambda: next(outcomes)

    decision = await world.decide(a_call())

    assert [attempt.host_id for attempt in decision.attempts] == ["h0", "h0"]


async def test_the_loss_of_a_host_with_many_calls_fails_none_of_them() -> None:
    world = World(digits(), two_hosts(), most_in_flight=1000)
    gone = asyncio.Event()
    answer = world.hosts.execute

    async def execute(
        host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
    ) -> HostAnswer:
        if host.host_id == "h0":
            world.hosts.calls.append((host.host_id, key))
            await gone.wait()
            raise AttemptFailed(HostUnavailable("gone"), None)
        await gone.wait()
        return await answer(host, key, payload, service_class=service_class, timeout_s=timeout_s)

    world.hosts.execute = execute  # type: ignore[method-assign]
    calls = [asyncio.ensure_future(world.decide(a_call(request_id=str(number)))) for number in range(300)]
    await asyncio.sleep(0)
    lost = Counter(host for host, _ in world.hosts.calls)["h0"]

    gone.set()
    decisions = await asyncio.gather(*calls)

    assert lost > 50  # far beyond the budget's burst
    assert {decision.host.host_id for decision in decisions if decision.host} == {"h1"}


async def test_a_total_failure_is_not_met_with_a_multiple_of_the_load() -> None:
    world = World(digits(), [a_host(f"h{number}", hosted("digits")) for number in range(3)])
    for number in range(3):
        world.hosts.fail(f"h{number}", HostUnavailable("gone"))

    for number in range(1000):
        with pytest.raises(HostUnavailable):
            await world.decide(a_call(request_id=str(number)))

    assert len(world.hosts.calls) < 1000 + 100 + 20 + 10


async def test_a_host_that_ran_out_of_ample_time_is_left_alone_for_a_while() -> None:
    world = World(digits(), two_hosts())
    await world.decide(a_call())

    async def hang(
        host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
    ) -> HostAnswer:
        world.hosts.calls.append((host.host_id, key))
        world.clock.advance(timeout_s)
        raise AttemptFailed(BudgetExhausted("no answer in time"), None)

    answer, world.hosts.execute = world.hosts.execute, hang  # type: ignore[method-assign]
    with pytest.raises(BudgetExhausted):
        await world.decide(a_call(), remaining_s=2.0)
    hung = world.hosts.calls[-1][0]
    world.hosts.execute = answer  # type: ignore[method-assign]

    served: Counter[str] = Counter()
    for number in range(40):
        decision = await world.decide(a_call(request_id=str(number)))
        assert decision.host is not None
        served[decision.host.host_id] += 1

    assert served[hung] <= 2


async def test_an_older_load_report_is_ignored() -> None:
    world = World(digits(), [a_host("h0", hosted("digits"))])
    key = ModelKey("digits", "1.0.0")
    reports = iter([(5, 0.010), (4, 9.0)])

    async def execute(
        host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
    ) -> HostAnswer:
        sequence, base_s = next(reports)
        load = HostLoad(host.host_id, sequence, (ModelLoad(key, 0, 0, 1, base_s, 0.0),), 0, 0.0, False)
        return HostAnswer(payload, 0.0, base_s, 1, load)

    world.hosts.execute = execute  # type: ignore[method-assign]
    await world.decide(a_call())
    await world.decide(a_call())
    world.clock.advance(1.0)

    view = world.pipeline.explain(a_call(), remaining_s=None).candidates[0]

    assert view.version.model_key == key
    assert view.predicted_s == pytest.approx(0.011, abs=0.001)


async def test_a_version_taken_away_during_a_call_ends_in_the_error_of_the_attempt() -> None:
    world = World(digits(), two_hosts())

    def vanish() -> HostUnavailable:
        world.catalog.current = a_snapshot([], [])
        return HostUnavailable("gone")

    world.hosts.behaviour = {"h0": vanish, "h1": vanish}

    with pytest.raises(HostUnavailable):
        await world.decide(a_call())


async def test_before_the_registry_was_heard_calls_are_unavailable() -> None:
    world = World(digits(), two_hosts())
    world.catalog.current = None

    with pytest.raises(NoReadyHost, match="not heard from the registry"):
        await world.decide(a_call())


async def test_options_with_different_schemas_are_filtered_one_by_one() -> None:
    wide = replace(
        a_model("wide"), inputs=(TensorSpec("x", "FP32", (-1, 4), optional=True), TensorSpec("z", "FP32", (-1, 4)))
    )
    objects: list[Object] = [
        a_model("small"),
        rated("small", quality=0.1),
        wide,
        rated("wide", quality=0.9),
        a_choice("both", "small", "wide"),
    ]
    world = World(objects, [a_host("h0", hosted("small"), hosted("wide"))])

    decision = await world.decide(a_call("both", options=RouteOptions(explain=True)))

    assert decision.version is not None
    assert decision.version.metadata.name == "small"
    assert "input 'z'" in decision.candidates[1].filtered


class Stuck:
    """Makes every host of a world keep its calls for ever."""

    def __init__(self, world: World) -> None:
        self.count = 0

        async def execute(
            host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
        ) -> HostAnswer:
            self.count += 1
            await asyncio.Event().wait()
            raise AssertionError("never reached")

        world.hosts.execute = execute  # type: ignore[method-assign]
