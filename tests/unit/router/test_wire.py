"""Calls in, decisions out."""

from dataclasses import replace
from typing import Any

import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.codec import seconds_from
from services.domain.caching import CachePolicy
from services.domain.errors import HostUnavailable, InvalidRequest
from services.domain.model import TensorMeta
from services.domain.request import InferCall, Preference, RouteOptions
from services.policy.admission import DeadlineSource
from services.policy.circuit import CircuitState
from services.policy.scoring import HostScore
from services.router import decision_wire, wire
from services.router.decision import Attempt, CandidateView, Decision, Stages
from services.router.frames import Payload, Received
from tests.fakes.objects import a_host
from tests.unit.router.yards import rated

Metadata = tuple[tuple[str, str | bytes], ...]


def read(request: pb.InferRequest, metadata: Metadata = (), *, dry: bool = False) -> InferCall:
    received = Received.FromString(request.SerializeToString())
    return wire.call_from(received, metadata, trace_id="t", made_up_id="made-up", dry=dry)


def sent(request: pb.InferRequest) -> Payload:
    """What goes to a host, whatever kind of request it is known to be."""
    payload = read(request).payload
    assert isinstance(payload, Payload)
    return payload._replace(layout=None)


def faults(request: pb.InferRequest, metadata: Metadata = ()) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        read(request, metadata)
    return [str(fault) for fault in caught.value.faults]


def typed() -> pb.InferRequest:
    request = pb.InferRequest(model_name="m", id="mine")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1.0, 2.0])
    return request


def raw(*sizes: int) -> pb.InferRequest:
    request = pb.InferRequest(model_name="m")
    for number, size in enumerate(sizes):
        request.inputs.add(name=f"x{number}", datatype="UINT8", shape=[size])
        request.raw_input_contents.append(bytes(size))
    return request


def test_a_typed_input_counts_the_elements_of_its_own_field() -> None:
    assert read(typed()).inputs == (TensorMeta("x", "FP32", (1, 2), None, 2),)


def test_elements_in_the_field_of_another_datatype_do_not_count() -> None:
    request = typed()
    request.inputs[0].datatype = "INT64"

    assert read(request).inputs[0].typed_count == 0


def test_a_raw_input_counts_its_bytes() -> None:
    assert [tensor.raw_bytes for tensor in read(raw(3, 0, 20_000)).inputs] == [3, 0, 20_000]


def test_raw_and_typed_contents_do_not_mix() -> None:
    request = typed()
    request.raw_input_contents.append(b"\0" * 8)

    assert faults(request) == [
        "inputs[0].contents: input 'x' has contents beside raw_input_contents: a request is all typed or all raw"
    ]


def test_a_missing_raw_entry_names_its_input() -> None:
    request = raw(1, 2)
    del request.raw_input_contents[1]

    assert faults(request) == ["raw_input_contents: 1 entries for 2 inputs: input 'x1' has none"]


def test_a_raw_entry_too_many_is_named() -> None:
    request = raw(1)
    request.raw_input_contents.append(b"")

    assert faults(request) == ["raw_input_contents: 2 entries for 1 inputs: entry 1 belongs to no input"]


def test_an_input_without_contents_has_no_elements() -> None:
    request = typed()
    request.inputs[0].ClearField("contents")

    assert read(request).inputs[0].typed_count == 0
    assert read(request, dry=True).inputs[0].typed_count is None


def test_the_callers_id_is_kept_and_a_missing_one_made_up() -> None:
    assert read(typed()).request_id == "mine"
    assert sent(typed()) == Payload(typed().SerializeToString())
    call = read(raw(1))
    assert call.request_id == "made-up"
    assert sent(raw(1)) == Payload(raw(1).SerializeToString(), "made-up")
    assert read(raw(1), (("x-request-id", "from-header"),)).request_id == "from-header"


def test_an_id_of_a_novels_length_is_refused() -> None:
    request = typed()
    request.id = "x" * 300

    assert faults(request) == ["id: has 300 characters, more than 256"]


def test_callers_of_other_meshes_may_name_the_model_in_metadata() -> None:
    request = raw(1)
    request.model_name = ""

    assert read(request, (("mm-model-id", "a"), ("seldon-model", "b"))).name == "a"
    assert read(raw(1), (("mm-model-id", "a"),)).name == "m"


def test_no_wishes_are_the_defaults() -> None:
    assert read(typed()).options == RouteOptions()
    assert read(typed()).timeout_s is None


def test_wishes_come_from_field_before_metadata_before_parameters() -> None:
    request = typed()
    request.parameters["max_cost_microusd"].int64_param = 1
    request.parameters["min_quality"].double_param = 0.1
    request.parameters["timeout"].int64_param = 1500
    header = pb.RouteOptions(max_cost_microusd=2, prefer=pb.PREFERENCE_COST, zone="z").SerializeToString()
    request.route.max_cost_microusd = 3
    request.route.idempotent = False

    call = read(request, ((wire.ROUTE_KEY, header),))

    assert call.options == RouteOptions(
        max_cost_microusd=3, min_quality=0.1, prefer=Preference.COST, zone="z", idempotent=False
    )
    assert call.timeout_s == pytest.approx(0.0015)


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("timeout", {"int64_param": -1}, "parameters[timeout]"),
        ("timeout", {"double_param": 1.5}, "parameters[timeout]"),
        ("timeout", {"string_param": "soon"}, "parameters[timeout]"),
        ("timeout", {"bool_param": True}, "parameters[timeout]"),
        ("timeout", {"double_param": float("inf")}, "parameters[timeout]"),
        ("max_cost_microusd", {"int64_param": -5}, "parameters[max_cost_microusd]"),
        ("max_cost_microusd", {"double_param": 1e300}, "parameters[max_cost_microusd]"),
        ("min_quality", {"double_param": float("nan")}, "parameters[min_quality]"),
        ("min_quality", {"double_param": 1.5}, "route.min_quality"),
    ],
)
def test_parameters_that_make_no_sense_are_named(name: str, value: dict[str, Any], path: str) -> None:
    request = typed()
    request.parameters[name].CopyFrom(pb.InferParameter(**value))

    assert faults(request)[0].startswith(path)


@pytest.mark.parametrize("value", [{"int64_param": 2000}, {"uint64_param": 2000}, {"string_param": "2000"}])
def test_a_timeout_may_be_any_kind_of_whole_number(value: dict[str, Any]) -> None:
    request = typed()
    request.parameters["timeout"].CopyFrom(pb.InferParameter(**value))

    assert read(request).timeout_s == pytest.approx(0.002)


def test_a_timeout_of_zero_is_none() -> None:
    request = typed()
    request.parameters["timeout"].int64_param = 0

    assert read(request).timeout_s is None


def test_unknown_parameters_are_ignored() -> None:
    request = typed()
    request.parameters["binary_data_output"].bool_param = True

    assert read(request).options == RouteOptions()


def test_a_session_comes_by_field_or_by_parameter() -> None:
    request = typed()
    request.parameters["sequence_id"].int64_param = 7
    assert read(request).options.session == "7"
    request.parameters["session"].string_param = "mine"
    assert read(request).options.session == "mine"
    request.route.session = "ours"
    assert read(request).options.session == "ours"


def test_what_is_wanted_of_kept_answers_comes_by_field_or_by_parameter() -> None:
    request = typed()
    assert read(request).options.cache is CachePolicy.DEFAULT
    request.parameters["cache"].string_param = "refresh"
    assert read(request).options.cache is CachePolicy.REFRESH
    request.route.cache = pb.CACHE_POLICY_BYPASS
    assert read(request).options.cache is CachePolicy.BYPASS


def test_what_nobody_can_want_of_kept_answers_is_refused() -> None:
    request = typed()
    request.parameters["cache"].string_param = "sometimes"
    with pytest.raises(InvalidRequest, match=r"parameters\[cache\]: must be one of default, bypass, refresh"):
        read(request)

    del request.parameters["cache"]
    request.route.cache = 77  # type: ignore[assignment]
    with pytest.raises(InvalidRequest, match=r"route.cache: 77 is no CachePolicy"):
        read(request)


def test_sequence_zero_is_no_session() -> None:
    request = typed()
    request.parameters["sequence_id"].uint64_param = 0

    assert read(request).options.session == ""


def test_a_session_has_a_bound() -> None:
    request = typed()
    request.route.session = "s" * 257

    with pytest.raises(InvalidRequest, match=r"route.session: has 257 characters"):
        read(request)


def test_options_that_make_no_sense_are_all_named() -> None:
    request = typed()
    request.route.min_quality = 2.0
    request.route.max_cost_microusd = -1
    request.route.prefer = 77  # type: ignore[assignment]

    assert [fault.split(":")[0] for fault in faults(request)] == [
        "route.min_quality",
        "route.max_cost_microusd",
        "route.prefer",
    ]


def test_a_header_that_is_no_message_is_named() -> None:
    assert faults(typed(), ((wire.ROUTE_KEY, b"\xff\xff"),))[0].startswith(wire.ROUTE_KEY)


def a_decision() -> Decision:
    return Decision(
        route="embed",
        request_id="r1",
        trace_id="t1",
        deadline_s=1.5,
        deadline_source=DeadlineSource.CALLER,
        strategy="choose",
        registry_revision=7,
        version=rated("small", "1.2.0", quality=0.8, cost=10),
        host=a_host("h1", zone="z"),
        reason="because",
        attempts=[Attempt("h0", 0.25, HostUnavailable("gone")), Attempt("h1", 0.5, None)],
        stages=Stages(0.001, 0.002, 0.003, 0.004, 0.010),
        batch_size=4,
    )


def test_a_decision_is_told_completely() -> None:
    message = decision_wire.decision_to(a_decision())

    assert (message.route, message.model, message.version, message.host, message.zone) == (
        "embed", "small", "1.2.0", "h1", "z",
    )  # fmt: skip
    assert (message.registry_revision, message.strategy, message.reason) == (7, "choose", "because")
    assert (message.batch_size, message.cost_microusd, message.quality) == (4, 10, 0.8)
    assert message.deadline_source == pb.DEADLINE_SOURCE_CALLER
    assert (message.trace_id, message.request_id) == ("t1", "r1")
    assert [(made.host, made.status, made.message) for made in message.attempts] == [
        ("h0", "UNAVAILABLE", "gone"),
        ("h1", "OK", ""),
    ]
    assert not message.probe
    stages = message.stages
    parts = [stages.choose, stages.queue, stages.compute, stages.network, stages.total]
    assert [seconds_from(part) for part in parts] == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.010])
    assert seconds_from(message.deadline) == 1.5


def test_a_refusal_of_a_dry_run_is_told() -> None:
    assert decision_wire.decision_to(replace(a_decision(), refusal="too many")).refusal == "too many"


def test_a_race_and_a_probe_are_told() -> None:
    decision = a_decision()
    decision.attempts = [Attempt("h1", 0.25, None, hedge=True), Attempt("h0", 0.5, None, cancelled=True)]
    decision.probe = True

    message = decision_wire.decision_to(decision)

    assert message.probe
    assert [(made.host, made.status, made.hedge) for made in message.attempts] == [
        ("h1", "OK", True),
        ("h0", "CANCELLED", False),
    ]


def test_what_did_not_happen_is_absent() -> None:
    decision = a_decision()
    decision.version = decision.host = None
    decision.stages = Stages()

    message = decision_wire.decision_to(decision)

    assert not message.HasField("quality")
    assert not message.HasField("stages")
    assert message.model == message.host == ""


def test_candidates_are_told_with_their_hosts() -> None:
    decision = a_decision()
    decision.candidates = (
        CandidateView(
            rated("small"), "", 0.5, 0.25, (HostScore("h1", "z", 0.25, 3, 5.0, True, CircuitState.OPEN, "failed"),)
        ),
        CandidateView(rated("large", quality=0.9), "too dear", 0.0, None, ()),
    )

    small, large = decision_wire.decision_to(decision).candidates

    assert (small.model, small.score, small.hosts[0].host, small.hosts[0].backlog) == ("small", 0.5, "h1", 3)
    assert seconds_from(small.hosts[0].penalty) == 5.0
    assert (small.hosts[0].ejected, small.hosts[0].circuit) == (True, pb.CIRCUIT_STATE_OPEN)
    assert small.hosts[0].trouble == "failed"
    assert not small.HasField("quality")
    assert (large.filtered, large.quality) == ("too dear", 0.9)
    assert not large.HasField("predicted")


def test_the_essentials_fit_into_a_line_of_metadata() -> None:
    assert decision_wire.trailing_metadata(a_decision()) == (
        (
            "x-modelyard-decision",
            "embed/small:1.2.0@h1; strategy=choose; attempts=2; cost_microusd=10; deadline=CALLER; trace=t1",
        ),
    )
