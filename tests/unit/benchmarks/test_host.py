"""What the model host's benchmark makes of what it measured, and that what it plants is what it says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import host_copies, host_fairness, host_overload, host_prediction
from benchmarks.host_figures import EXPLAINED, Figure, missed, unmeasured
from benchmarks.host_load import (
    LATE_MS,
    Outcomes,
    Plan,
    Source,
    Void,
    device_seconds,
    goodput_per_s,
    jain,
    late_share,
    poisson,
    share_in_time,
)
from benchmarks.host_models import waiting
from benchmarks.host_report import shown
from modelyard.type.v1 import model_pb2

KEY = model_pb2.ModelKey(model="m", version="1.0.0")


def a_source(name: str = "a", *, per_s: float = 100.0, timeout_s: float = 0.1, rows: int = 1) -> Source:
    return Source(name, per_s, timeout_s, KEY, [b""], rows=rows)


def outcomes_of(*calls: tuple[int, float, float | None], sources: tuple[Source, ...] = (a_source(),)) -> Outcomes:
    """Of calls with owner, time to leave, and time of the answer, None for a refusal; each left in time."""
    at_s = np.array([at for _, at, _ in calls])
    found = Outcomes(Plan(sources, at_s, np.array([who for who, _, _ in calls])))
    found.sent_s[:] = at_s
    for index, (_, at, ended) in enumerate(calls):
        found.ended_s[index] = at + 0.001 if ended is None else ended
        found.answered[index] = ended is not None
    return found


def test_arrivals_are_those_of_the_seed_and_of_about_the_rate() -> None:
    sources = [a_source("a", per_s=400.0), a_source("b", per_s=100.0)]
    plan, again, other = (poisson(sources, 20.0, seed=seed) for seed in (1, 1, 2))

    assert plan.at_s.tolist() == again.at_s.tolist()
    assert plan.at_s.tolist() != other.at_s.tolist()
    assert (np.diff(plan.at_s) >= 0).all()
    assert plan.at_s[-1] < 20.0
    assert (plan.who == 0).sum() == pytest.approx(8000, rel=0.05)
    assert (plan.who == 1).sum() == pytest.approx(2000, rel=0.1)


def test_calls_of_a_source_do_not_depend_on_who_else_calls() -> None:
    alone = poisson([a_source("a")], 5.0, seed=3)
    beside = poisson([a_source("a"), a_source("b", per_s=900.0)], 5.0, seed=3)

    assert beside.at_s[beside.who == 0].tolist() == alone.at_s.tolist()


def test_goodput_counts_answers_within_their_deadline_from_when_they_were_to_leave() -> None:
    found = outcomes_of((0, 1.0, 1.05), (0, 1.2, 1.31), (0, 1.4, None), (0, 1.9, 1.99), (0, 1.96, 2.01))

    assert found.in_time.tolist() == [True, False, False, True, True]
    assert goodput_per_s(found, from_s=1.0, until_s=2.0) == 2.0
    assert share_in_time(found, lambda _: True, from_s=1.0, until_s=2.0) == pytest.approx(0.6)


def test_device_time_is_late_that_went_into_answers_after_their_deadline() -> None:
    found = outcomes_of((0, 1.0, 1.05), (0, 1.0, 1.2), (0, 1.5, None))
    found.compute_s[:] = [0.03, 0.03, 0.0]
    found.batch_size[:] = [1, 2, 0]

    assert late_share(found) == pytest.approx(1 / 3)


def test_a_call_without_a_result_is_not_in_time() -> None:
    found = outcomes_of((0, 1.0, 1.05))
    found.ended_s[:] = np.nan

    assert not found.in_time.any()


def test_shares_are_of_the_sources_asked_for() -> None:
    sources = (a_source("gold-0"), a_source("bronze-0"))
    found = outcomes_of((0, 1.0, 1.05), (1, 1.1, None), (0, 1.2, 1.29), sources=sources)

    assert share_in_time(found, lambda each: each.name == "gold-0", from_s=0.0, until_s=2.0) == 1.0
    assert share_in_time(found, lambda each: each.name == "bronze-0", from_s=0.0, until_s=2.0) == 0.0


def test_a_run_whose_generator_was_late_is_void() -> None:
    found = outcomes_of((0, 1.0, 1.05), (0, 1.2, 1.25))
    found.check_generator()
    found.sent_s += 2e-3 * LATE_MS

    with pytest.raises(Void, match="late"):
        found.check_generator()


def test_a_run_whose_calls_were_not_all_sent_is_void() -> None:
    found = outcomes_of((0, 1.0, 1.05), (0, 1.2, 1.25))
    found.sent_s[1] = np.nan

    with pytest.raises(Void, match="1 calls unsent"):
        found.check_generator()


def test_a_batch_is_shared_out_by_rows() -> None:
    sources = (a_source("a", rows=1), a_source("b", rows=3))
    found = outcomes_of((0, 1.0, 1.1), (1, 1.0, 1.1), (0, 1.1, 1.2), (1, 1.2, None), sources=sources)
    found.compute_s[:] = [0.08, 0.08, 0.03, 0.0]

    assert device_seconds(found, from_s=0.0, until_s=2.0).tolist() == pytest.approx([0.02 + 0.03, 0.06])
    assert device_seconds(found, from_s=1.15, until_s=2.0).tolist() == pytest.approx([0.03, 0.0])


def test_jains_index() -> None:
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([]) == 0.0


def test_the_top_tier_asks_for_the_same_at_every_load_and_all_for_what_is_said() -> None:
    for scale in host_overload.SCALES.values():
        sources = host_overload.sources(waiting("m", batch=1), 300.0, scale)
        gold_per_s = sum(each.per_s for each in sources if each.name.startswith("gold"))

        assert gold_per_s == pytest.approx(60.0)
        assert sum(each.per_s for each in sources) == pytest.approx(300.0 * scale)


def test_errors_are_relative_and_the_first_batches_do_not_count() -> None:
    warming = [("m", 1, 9.0, 9.0, 1.0)] * host_prediction.SKIPPED
    found = host_prediction.errors_of([*warming, ("m", 2, 1.1, 1.5, 1.0), ("m", 4, 1.8, 2.0, 2.0)])

    assert found["predict_m_p50"] == pytest.approx(0.1)
    assert found["predict_line_m_p50"] == pytest.approx(0.25)
    assert found["predict_m_batches"] == 2


def test_goals_say_which_figures_miss_them() -> None:
    assert Figure("", least=0.9).is_missed(0.89)
    assert not Figure("", least=0.9).is_missed(0.9)
    assert Figure("", most=5.0).is_missed(5.1)
    assert not Figure("").is_missed(-1.0)
    assert missed({"goodput_host_10x": 0.5, "goodput_fifo_10x": 0.0, "rss_growth_mb": 1.0}) == ["goodput_host_10x"]
    assert EXPLAINED["gold_in_slo_host_10x"].least == 0.999


def test_goals_that_nothing_was_measured_of_are_named() -> None:
    goals = unmeasured({}, ["fairness"])

    assert goals == ["fair_modest_of_entitled", "fair_jain_8"]
    assert unmeasured({"fair_jain_8": 0.5}, ["fairness"]) == ["fair_modest_of_entitled"]


def test_a_share_near_1_is_shown_with_the_digits_that_its_goal_has() -> None:
    assert shown(0.9994) == "0.9994"
    assert shown(296.4) == "296"


def test_a_large_tensor_is_a_view_of_what_was_received_until_torch_needs_its_own() -> None:
    found = host_copies.measured()

    assert found["array_is_view"] == 1.0
    assert found["copies_decoded"] < 0.1
    assert found["copies_received_execute"] == pytest.approx(1.0, abs=0.1)


def test_what_is_planted_is_still_there_to_be_replaced() -> None:
    code = (
        "import json; from benchmarks import host_planted as planted;"
        "from services.model_host import lane; from services.model_host.entrance import Entrance;"
        "from services.model_host.flow import Flow; from services.policy.fairness import Shares;"
        "parts = lambda: [Entrance.admit, lane.form_batch, lane.Lane.take_expired, Shares.of, Flow.add];"
        "whole = parts(); planted.FAULTS['fifo'](); gone = parts();"
        "print(json.dumps([a is not b for a, b in zip(whole, gone)]))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == [True] * 5


def test_a_tenant_is_entitled_to_half_of_the_device_or_to_what_it_asked_for() -> None:
    of_entitled = host_fairness.of_entitled

    assert of_entitled(np.array([4.0, 6.0]), offered=100, answered=80) == pytest.approx(0.8)
    assert of_entitled(np.array([4.0, 6.0]), offered=80, answered=80) == pytest.approx(1.0)
    assert of_entitled(np.array([0.0, 9.0]), offered=80, answered=0) == 0.0
