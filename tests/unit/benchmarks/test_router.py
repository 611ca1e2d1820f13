"""What the router's benchmark makes of what it measured, and that its parts, rules and scenarios are what they say."""

import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks import router_faults
from benchmarks.conditions import Conditions
from benchmarks.host_load import Void
from benchmarks.router_host import FAIL, Broken, planted
from benchmarks.router_load import (
    Done,
    Load,
    Sent,
    arrivals,
    attempts_of,
    diverted_after_s,
    p_ms,
    recovered_after_s,
)
from benchmarks.router_parts import TITLES, PartMissing, part, part_of
from benchmarks.router_report import flat, part_of_page
from benchmarks.router_scenarios import scenarios
from benchmarks.router_variants import ALL, VARIANTS, objects_of
from modelyard.inference.v1 import inference_pb2
from services.chassis.object_codec import object_from
from services.domain.objects import Policy, Route
from services.model_host.backends.identity import IdentityModel
from services.model_host.tensors import NDArray

CONDITIONS = Conditions(
    day="2026-01-01",
    commit="abc",
    cores=2,
    processor="p",
    system="s",
    python="3",
    packages={"grpcio": "1", "protobuf": "2", "uvloop": "3"},
    envoy=None,
    envoy_concurrency=1,
    generator="grpc.aio",
    lead="aio",
    repetitions=1,
    seconds=0.0,
    quick=False,
    others_share=0.0,
)


def a_call(at_s: float, *hosts: str, took_s: float = 0.02, failure: str = "") -> Done:
    """One that was on these hosts, all at once."""
    return Done(at_s, at_s, at_s + took_s, tuple(Sent(at_s, host) for host in hosts), failure)


def steady(until_s: float, *, per_s: int = 100, victim_until_s: float) -> list[Done]:
    """Calls that go to `a` and `b` in turn, and from then on to `b` alone."""
    times = [number / per_s for number in range(int(until_s * per_s))]
    return [a_call(at, "a" if number % 2 and at < victim_until_s else "b") for number, at in enumerate(times)]


# --- what calls say -----------------------------------------------------------------------------


def test_arrivals_are_those_of_the_seed_and_of_about_the_rate() -> None:
    times, again, other = (arrivals(200.0, 20.0, seed=seed) for seed in (1, 1, 2))

    assert times == again
    assert times != other
    assert (np.diff(times) >= 0).all()
    assert times[-1] < 20.0
    assert len(times) == pytest.approx(4000, rel=0.05)


def test_calls_are_off_a_host_from_the_last_that_it_got() -> None:
    calls = steady(8.0, victim_until_s=3.2)

    assert diverted_after_s(calls, "a", fault_s=2.0, until_s=8.0, hosts=2) == pytest.approx(1.2, abs=0.1)


def test_a_single_probe_does_not_count_as_traffic() -> None:
    calls = [*steady(8.0, victim_until_s=2.0), a_call(6.0, "a")]

    assert diverted_after_s(calls, "a", fault_s=2.0, until_s=8.0, hosts=2) < 0.1


def test_a_lull_before_calls_return_does_not_count_as_off() -> None:
    calls = [*steady(3.0, victim_until_s=2.0), *(a_call(3.0 + number / 100, "a") for number in range(500))]

    assert diverted_after_s(calls, "a", fault_s=2.0, until_s=8.0, hosts=2) == 6.0


def test_a_host_that_always_gets_its_share_is_never_off() -> None:
    assert diverted_after_s(steady(8.0, victim_until_s=9.0), "a", fault_s=2.0, until_s=8.0, hosts=2) == 6.0


def test_a_call_of_which_nobody_told_where_it_was_counts_as_on_the_host() -> None:
    calls = [a_call(number / 100, "") for number in range(800)]

    assert diverted_after_s(calls, "a", fault_s=2.0, until_s=8.0, hosts=2) == 6.0


@pytest.mark.parametrize(("status", "lost"), [("OK", False), ("CANCELLED", False), ("UNAVAILABLE", True)])
def test_an_attempt_that_another_answer_made_needless_was_not_lost(status: str, lost: bool) -> None:
    assert Sent(0.0, "a", status).lost is lost


def test_attempts_are_counted_by_call() -> None:
    assert attempts_of([a_call(0.0, "a"), a_call(0.1, "a", "b", "c"), a_call(0.2)]) == pytest.approx(4 / 3)


def test_a_call_that_failed_at_once_took_its_whole_deadline() -> None:
    calls = [*(a_call(0.0, "a") for _ in range(98)), *(a_call(0.0, "a", failure="INTERNAL") for _ in range(2))]

    assert p_ms(calls, 0.5, timeout_s=1.0) == pytest.approx(20.0)
    assert p_ms(calls, 0.99, timeout_s=1.0) == 1000.0


def test_recovery_is_there_when_calls_are_answered_and_stay_so() -> None:
    def calls(failing: Mapping[float, float]) -> list[Done]:
        return [
            a_call(at, "a", failure="x" if any(begin <= at < end for begin, end in failing.items()) else "")
            for at in (number / 100 for number in range(1000))
        ]

    assert recovered_after_s(calls({0.0: 5.0}), healed_s=3.0, until_s=10.0, goodput=0.95) == pytest.approx(2.0, abs=0.1)
    assert recovered_after_s(calls({0.0: 5.0, 8.0: 10.0}), healed_s=3.0, until_s=10.0, goodput=0.95) == 7.0
    assert recovered_after_s(calls({}), healed_s=3.0, until_s=10.0, goodput=0.95) == 0.0


def test_a_run_without_calls_is_void() -> None:
    with pytest.raises(Void, match="0 calls"):
        Load("nowhere", inference_pb2.InferRequest(), 1.0).check_generator()


# --- what is planted ----------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "waits"), [("1", []), ("10", [9.0])])
def test_a_planted_host_answers_as_the_file_says(tmp_path: Path, state: str, waits: list[float]) -> None:
    file = tmp_path / "state"
    file.write_text(state)
    now_s = iter((100.0, 101.0))  # a batch takes one second
    waited: list[float] = []
    model = IdentityModel({"y": "x"}, base_s=0.0, per_row_s=0.0)
    predict = planted(IdentityModel.predict, file, now_s=lambda: next(now_s), wait=waited.append)

    assert predict(model, {"x": np.ones((1, 2))})["y"].tolist() == [[1.0, 1.0]]
    assert waited == waits


def test_a_planted_host_fails_as_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "state"
    file.write_text(FAIL)
    asked = threading.Event()

    def predict(model: IdentityModel, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        del model, inputs
        asked.set()
        return {}

    with pytest.raises(Broken):
        planted(predict, file, now_s=lambda: 0.0, wait=lambda _: None)(
            IdentityModel({}, base_s=0.0, per_row_s=0.0), {"x": np.ones((1, 2))}
        )
    assert not asked.is_set()


# --- rules and scenarios ------------------------------------------------------------------------


def test_the_rules_of_today_can_be_said(tmp_path: Path) -> None:
    for name in (ALL, "no_retries", "no_hedges"):
        policy, route = (object_from(item) for item in objects_of(VARIANTS[name], "m", tmp_path))
        assert isinstance(policy, Policy)
        assert isinstance(route, Route)
        assert route.policy == policy.metadata.name
        assert policy.hedge.enabled is (name != "no_hedges")
        assert route.max_attempts == policy.retry.max_attempts == (1 if name == "no_retries" else 3)


def test_every_scenario_has_names_of_its_own_and_rules_that_there_are() -> None:
    found = scenarios()
    names = [name for each in found for name, _, _ in each.figures]

    assert len(names) == len(set(names))
    assert {each.variant.name for each in found} == set(VARIANTS)
    assert {each.load for each in found if each.is_full} == {"light", "full"}


def test_goals_are_those_of_the_product_as_it_is() -> None:
    goals = router_faults.GOALS

    assert goals["slow_light_divert_s"] == ("<=", 3.0)
    assert goals["sinkhole_full_error_share"] == ("<=", 0.002)
    assert goals["killed_full_errors"] == ("<=", 0.0)
    assert goals["outage_attempts_per_call"] == ("<=", 1.10)
    assert not [name for name in goals if any(rules in name for rules in ("random", "robin", "no_"))]


# --- parts --------------------------------------------------------------------------------------


def a_part(**more: object) -> ModuleType:
    module = ModuleType("benchmarks.router_cache")
    module.__dict__.update({"figures": None, "EXPLAINED": {"hit_us": "a hit", "leaks": "pairs"}, "GOALS": {}, **more})
    return module


def test_the_faults_are_a_part() -> None:
    assert part("faults").table is not None
    assert "faults" in TITLES


def test_a_part_that_lacks_something_is_refused() -> None:
    with pytest.raises(PartMissing, match="hit"):
        part_of("cache", a_part(GOALS={"hit": ("<=", 1.0)}))
    with pytest.raises(PartMissing, match="leaks"):
        part_of("cache", a_part(GOALS={"leaks": ("<", 1.0)}))
    with pytest.raises(PartMissing, match="lacks figures, EXPLAINED, GOALS"):
        part_of("cache", ModuleType("benchmarks.router_cache"))


def test_goals_are_missed_on_the_wrong_side_only() -> None:
    found = part_of("cache", a_part(GOALS={"hit_us": ("<=", 5.0), "leaks": (">=", 1.0)}))

    assert found.missed({"hit_us": 5.0, "leaks": 1.0}) == []
    assert found.missed({"hit_us": 5.1, "leaks": 0.9}) == ["hit_us", "leaks"]
    assert found.unmeasured({"hit_us": 9.0}) == ["leaks"]


def test_the_page_says_what_was_missed_and_shows_a_parts_own_table() -> None:
    plain = part_of("cache", a_part(GOALS={"leaks": ("<=", 0.0)}))
    shown = part_of("faults", a_part(GOALS={"leaks": ("<=", 0.0)}, table=lambda figures: f"| {len(figures)} |"))
    figures = {"cache": {"hit_us": 2.0, "leaks": 1.0}, "faults": {"hit_us": 3.0, "leaks": 0.0}}

    page = "\n".join(part_of_page(CONDITIONS, [plain, shown], figures, notes=["x"], seed=1, seconds=2.0))

    assert "| `hit_us` | 2.00 |  | a hit |" in page
    assert "| `leaks` | 1.000 **missed** | ≤ 0 | pairs |" in page
    assert "| 2 |" in page
    assert "`hit_us` | 3.00" not in page
    assert "Goals that were missed: `leaks`." in page
    assert page.endswith("- x")
    assert flat({"cache": {"a": 1.23456}}) == {"a": 1.235}
