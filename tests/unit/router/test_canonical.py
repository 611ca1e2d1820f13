"""Two calls have one key if, and only if, one may have the other's answer: no framing, form or name tricks it."""

from collections import Counter

import pytest

from benchmarks.cache_pairs import Asked, Pair, across_tenants, within_tenants
from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.layouts import Layouts
from services.domain.objects import Metadata, Route, RouteTarget, Single
from services.domain.request import InferCall
from services.domain.service_class import ORDINARY
from services.router.answer_scope import Stem, about_of, framed
from services.router.canonical import Canonical
from services.router.frames import Payload, Received
from services.router.streaming import Streamed
from services.router.wire import call_from

STEM = Stem(b"ready", b"all", shared=False, chooses=False, kept_of=frozenset())
CANONICAL = Canonical(b"of the test")


def a_call(request: pb.InferRequest) -> InferCall:
    received = Received.FromString(request.SerializeToString())
    return call_from(received, (), trace_id="", made_up_id="made-up", dry=True)


def key(asked: Asked, canonical: Canonical = CANONICAL, stem: Stem = STEM) -> bytes | None:
    call = a_call(asked.request())
    under = Route(Metadata(asked.route), Single(RouteTarget("m")))
    return canonical.key(call, framed(stem.of_ready, about_of(under, stem, call, ORDINARY)))


def mistaken(pair: Pair) -> bool:
    one, other = key(pair.one), key(pair.other)
    return one is None or other is None or (one == other) is not pair.same


def test_no_call_has_the_key_of_another_tenants_however_alike_they_are() -> None:
    pairs = list(across_tenants(4000, seed=6))

    assert [pair for pair in pairs if mistaken(pair)] == []
    assert len({pair.how for pair in pairs}) == 17


def test_calls_of_one_tenant_have_one_key_if_and_only_if_they_are_the_same() -> None:
    pairs = list(within_tenants(4000, seed=6))

    assert [pair for pair in pairs if mistaken(pair)] == []
    assert min(Counter(pair.same for pair in pairs).values()) > 1000
    assert len({pair.how for pair in pairs}) == 20


def test_where_answers_may_be_shared_the_tenant_alone_makes_no_difference() -> None:
    shared = STEM._replace(shared=True)
    for pair in across_tenants(500, seed=7):
        same = pair.how == "tenant"
        assert (key(pair.one, stem=shared) == key(pair.other, stem=shared)) is same or "route" in pair.how


def test_keys_are_another_processes_secret() -> None:
    asked = next(across_tenants(1, seed=1)).one

    assert key(asked) != key(asked, Canonical(b"of another one"))


def test_a_known_kind_of_request_has_the_key_that_it_had_before_it_was_known() -> None:
    request = pb.InferRequest(model_name="m", raw_input_contents=[bytes(16)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.outputs.add(name="y")
    request.parameters["top_k"].int64_param = 3
    raw = request.SerializeToString()
    layouts = Layouts()
    known = next(layout for _ in range(9) if (layout := layouts.of(raw)) is not None)
    call = a_call(request)

    plain = CANONICAL.key(call._replace(payload=Payload(raw)), b"s")

    assert plain is not None
    for _ in range(2):
        assert CANONICAL.key(call._replace(payload=Payload(raw, "", known)), b"s") == plain


@pytest.mark.parametrize("size", [100, 1000, 100_000])
def test_large_requests_have_the_keys_of_their_elements(size: int) -> None:
    def keyed(last: int) -> bytes | None:
        request = pb.InferRequest(model_name="m", raw_input_contents=[bytes(4 * size - 1) + bytes([last])])
        request.inputs.add(name="x", datatype="FP32", shape=[size])
        return CANONICAL.key(a_call(request), b"s")

    assert keyed(0) == keyed(0) != keyed(1)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [("sequence_id", 0, True), ("sequence_id", 5, False), ("sequence_start", 1, False), ("sequence_end", 0, False)],
)
def test_a_call_of_a_sequence_has_no_key(name: str, value: int, kept: bool) -> None:
    request = pb.InferRequest(model_name="m")
    request.parameters[name].int64_param = value

    assert (CANONICAL.key(a_call(request), b"s") is not None) is kept


def test_a_call_that_is_answered_in_pieces_has_no_key() -> None:
    async def piece(response: object) -> None:
        """Take it."""

    call = a_call(pb.InferRequest(model_name="m"))
    assert isinstance(call.payload, Payload)

    assert CANONICAL.key(call._replace(payload=Streamed(call.payload, piece)), b"s") is None


def test_elements_that_do_not_fit_their_type_have_no_key() -> None:
    request = pb.InferRequest(model_name="m")
    request.inputs.add(name="x", datatype="INT8", shape=[1]).contents.int_contents.append(1000)

    assert CANONICAL.key(a_call(request), b"s") is None


@pytest.mark.parametrize("wish", ["max_cost_microusd", "min_quality", "zone", "prefer"])
def test_wishes_that_decide_who_answers_are_in_the_key(wish: str) -> None:
    request = pb.InferRequest(model_name="m")
    plain = a_call(request)
    setattr(request.route, wish, {"zone": "b", "prefer": pb.PREFERENCE_COST}.get(wish, 1))
    wishing = a_call(request)
    under = Route(Metadata("m"), Single(RouteTarget("m")))

    assert about_of(under, STEM, plain, ORDINARY) != about_of(under, STEM, wishing, ORDINARY)


def test_an_answer_is_kept_without_its_id_wherever_that_stands() -> None:
    response = pb.InferResponse(model_name="m", id="secret", raw_output_contents=[b"1234"])
    response.decision.request_id = "secret"
    response.outputs.add(name="y", datatype="FP32", shape=[1])
    rest = pb.InferResponse.FromString(response.SerializeToString())
    rest.ClearField("id")
    rest.ClearField("decision")
    twice = pb.InferResponse(id="secret").SerializeToString() + response.SerializeToString()

    for raw in (response.SerializeToString(), twice, memoryview(twice)):
        assert CANONICAL.kept(raw) == rest.SerializeToString()
