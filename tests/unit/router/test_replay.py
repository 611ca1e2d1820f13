"""A log is decided again, bit for bit, by the code that decided; by another one the first difference is named."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.registry.v1 import registry_pb2
from services.chassis.delimited import framed
from services.chassis.object_codec import object_to
from services.domain.objects import Metadata, Tenant
from services.domain.tenancy import RateLimit
from services.policy import balancing, circuit, escalating, exploring, learning
from services.policy.scoring import VersionState
from services.router import replay, replaying
from services.router.destination import Option
from services.router.log_states import unknown
from services.router.snapshot import Objects
from tests.unit.router.logged import LoggedWorld


def export(path: Path, objects: Objects) -> Path:
    """A file as `yardctl export` writes it."""
    items = [registry_pb2.Bundle(object=object_to(item).SerializeToString()) for item in objects.all()]
    header = registry_pb2.Bundle(header=registry_pb2.BundleHeader(format="modelyard.bundle/1"))
    end = registry_pb2.Bundle(end=registry_pb2.BundleEnd(records=len(items) + 1))
    path.write_bytes(b"".join(map(framed, (header, *items, end))))
    return path


@pytest.mark.parametrize("zone", ["", "a"])
@pytest.mark.parametrize("hosts", [3, 9, 40])
async def test_fleets_of_any_size_are_replayed(tmp_path: Path, zone: str, hosts: int) -> None:
    world = LoggedWorld(tmp_path, hosts=hosts, zone=zone)

    await world.run(1500)

    found = world.replay()
    assert found.first is None
    assert found.choices > 1500
    assert found.calls == found.outcomes == 1500


async def test_calls_that_kept_answers_were_given_for_are_replayed_though_nothing_was_chosen_for_them(
    tmp_path: Path,
) -> None:
    world = LoggedWorld(tmp_path, hosts=9)
    world.names = ("kept", "kept-canary", "pick")

    await world.run(1500)

    found = world.replay()
    assert found.first is None
    assert found.calls == found.outcomes == 1500
    ended = Counter(entry.outcome.cache for entry in world.entries() if entry.HasField("outcome"))
    assert min(ended[pb.CACHE_STATUS_HIT], ended[pb.CACHE_STATUS_COALESCED], ended[pb.CACHE_STATUS_MISS]) > 50
    assert found.choices < 1500


async def test_an_answer_that_a_route_could_not_have_kept_is_found(tmp_path: Path) -> None:
    world = LoggedWorld(tmp_path, hosts=9)
    world.names = ("kept",)
    await world.run(60)
    for revision, objects in world.objects.items():
        route = replace(objects.routes["kept"], cache=None)
        world.objects[revision] = objects.changed(revision, [route])

    found = world.replay()

    assert found.first is not None
    assert [field.path for field in found.first.fields] == ["cache"]


async def test_what_speaks_against_hosts_and_who_is_let_through_are_replayed(tmp_path: Path) -> None:
    world = LoggedWorld(tmp_path, hosts=9)

    await world.run(3000, pause_s=0.5)

    choices = [entry.choice for entry in world.entries() if entry.HasField("choice")]
    states = [state for choice in choices for state in choice.states]
    assert any(state.hold_s > 5.0 for state in states)
    assert any(state.probing or state.host_probing for state in states)
    assert any(state.ejected_for_s for state in states)
    assert any(attempt.status == "CANCELLED" for entry in world.entries() for attempt in entry.outcome.attempts)
    assert world.replay().first is None


async def test_another_time_to_a_probe_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = LoggedWorld(tmp_path, hosts=9)
    await world.run(1000, pause_s=0.5)

    monkeypatch.setattr(circuit, "FADE_HOLDS", 3.0)

    assert world.replay().differences > 0


@pytest.mark.alone
@pytest.mark.timeout(300)
async def test_twenty_thousand_decisions_are_made_again(tmp_path: Path) -> None:
    world = LoggedWorld(tmp_path, hosts=9)

    await world.run(20_000)  # `benchmarks.router_replay` does five times as many

    found = world.replay()
    assert found.first is None
    assert found.choices > 20_000
    assert len(world.objects) > 1


async def test_calls_that_are_not_let_in_are_not_written_and_the_rest_is_replayed(tmp_path: Path) -> None:
    world = LoggedWorld(tmp_path, hosts=4)
    revision = len(world.objects) + 1
    acme = Tenant(Metadata("acme"), policy="default", tier="silver", rate_limit=RateLimit(1.0, 5))
    world.objects[revision] = world.objects[revision - 1].changed(revision, [acme])
    world.move()

    await world.run(400)

    found = world.replay()
    assert found.first is None
    assert found.calls == found.outcomes
    assert 200 < found.calls < 370  # a sixth was of the tenant
    asked = [entry.profile.options.tenant for entry in world.entries() if entry.WhichOneof("entry") == "profile"]
    assert "acme" in asked


async def test_another_constant_of_a_policy_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = LoggedWorld(tmp_path)
    await world.run(600)
    assert world.replay().first is None

    monkeypatch.setattr(balancing, "TIE_SHARE", 0.2)

    found = world.replay()
    assert found.differences > 0
    assert found.first is not None
    assert found.first.what == "choice"
    assert any(field.path.endswith("host") for field in found.first.fields)


async def test_what_was_learned_is_a_fact_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = LoggedWorld(tmp_path)
    await world.run(600)
    learned = [each for entry in world.entries() for each in entry.choice.evidence if each.cell.time.weight > 1.0]
    assert len(learned) > 50
    assert world.replay().first is None

    monkeypatch.setattr(learning, "SHRINKAGE", 40.0)

    first = world.replay().first
    assert first is not None
    assert any(field.path.endswith(("service_s", "score")) for field in first.fields)


async def test_what_was_tried_by_chance_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = LoggedWorld(tmp_path)
    world.names = ("pick", "one")
    await world.run(1500)
    results = [entry.choice.result for entry in world.entries() if entry.WhichOneof("entry") == "choice"]
    assert sum(result.reason.startswith("explored") for result in results) > 5
    assert sum(result.candidates[0].HasField("propensity") for result in results if result.candidates) > 100
    assert world.replay().first is None

    monkeypatch.setattr(exploring, "SLACK", 1.0)

    first = world.replay().first
    assert first is not None
    assert any(field.path.endswith("propensity") for field in first.fields)


async def test_what_differs_is_named_field_by_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = LoggedWorld(tmp_path)
    await world.run(300)

    monkeypatch.setattr(learning, "LATE_SPREAD", 0.25)

    first = world.replay().first
    assert first is not None
    assert first.name
    field = next(field for field in first.fields if field.path.endswith("score"))
    assert float(field.logged) != float(field.now)


async def test_the_command_reads_exports_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = LoggedWorld(tmp_path / "log")
    await world.run(100)
    world.apply()
    await world.run(100)
    logs = [str(path) for path in world.files.kept()]
    one, two = (export(tmp_path / f"{number}.bundle", world.objects[number]) for number in (1, 2))

    assert replay.main(["--objects", f"1={one}", "--objects", f"2={two}", *logs]) == replay.SAME
    found = json.loads(capsys.readouterr().out)
    assert found["calls"] == 200
    assert found["differences"] == 0

    assert replay.main(["--objects", f"2={two}", *logs]) == replay.DIFFERENT
    found = json.loads(capsys.readouterr().out)
    assert found["unknown_revisions"]["1"] > 100
    assert found["calls"] == 100

    assert replay.main(["--objects", str(two), *logs]) == replay.DIFFERENT
    found = json.loads(capsys.readouterr().out)
    assert found["first"]["revision"] == 1
    assert found["first"]["file"] == logs[0]


@pytest.mark.parametrize("content", [b"", b"\x05hello", b"\x00\x00"])
def test_what_is_no_log_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)

    assert replay.main([str(path)]) == replay.UNUSABLE
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("zone", ["", "a"])
async def test_no_state_is_read_that_was_not_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    world = LoggedWorld(tmp_path, hosts=40, zone=zone)
    await world.run(1500)

    def unreadable(option: Option, at: int) -> VersionState:
        state = unknown(option, at)
        del state.host, state.prior, state.batch_cap
        return state

    monkeypatch.setattr(replaying, "unknown", unreadable)

    assert world.replay().first is None


async def test_money_and_escalations_are_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = LoggedWorld(tmp_path)
    await world.run(1500)
    logged = [entry.escalation for entry in world.entries() if entry.HasField("escalation")]
    choices = [entry.choice for entry in world.entries() if entry.HasField("choice")]

    assert any(each.HasField("agreed") for each in logged)
    assert {each.escalated for each in logged if not each.HasField("agreed")} == {True, False}
    assert any(each.HasField("cost_weight") and "p = " in each.reason for each in logged)
    assert any("and tenant 'acme' has" in view.filtered for each in choices for view in each.result.candidates)
    assert len({each.cost_weight for each in choices if each.HasField("cost_weight")}) > 1
    assert world.replay().first is None

    monkeypatch.setattr(escalating, "chance", lambda _, sure: 0.99 * sure)
    first = world.replay().first

    assert first is not None
    assert (first.what, first.name) == ("escalation", "careful")
    assert [field.path for field in first.fields][-1] == "reason"
