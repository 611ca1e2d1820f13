"""W3C trace context in and out."""

import asyncio

import pytest

from services.chassis.trace_context import (
    MAX_BAGGAGE_BYTES,
    MAX_BAGGAGE_MEMBERS,
    MAX_TRACESTATE_MEMBERS,
    TraceContext,
    attach,
    current,
    detach,
    outgoing_metadata,
    sampled_at_root,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def read(*metadata: tuple[str, str | bytes]) -> TraceContext | None:
    return TraceContext.from_metadata(metadata)


def test_what_goes_out_comes_in_again() -> None:
    sent = TraceContext(TRACE, SPAN, True, "vendor=1,other=2", "user=ann,plan=gold;ttl=3")

    assert TraceContext.from_metadata(sent.metadata()) == sent


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_only_the_lowest_flag_says_sampled(flags: str, sampled: bool) -> None:
    context = read(("traceparent", f"00-{TRACE}-{SPAN}-{flags}"))

    assert context is not None
    assert context.sampled is sampled
    assert context.traceparent == f"00-{TRACE}-{SPAN}-{'01' if sampled else '00'}"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        PARENT.upper(),
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"{PARENT}-more",
        f"00-{TRACE}-{SPAN}-0g",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE}-{SPAN}-01\n00-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",
    ],
)
def test_malformed_parent_is_no_parent(header: str) -> None:
    assert read(("traceparent", header)) is None


def test_later_version_is_read_by_what_it_has_in_common() -> None:
    context = read(("traceparent", f"cc-{TRACE}-{SPAN}-01-what-the-future-holds"))

    assert context is not None
    assert (context.trace_id, context.span_id, context.sampled) == (TRACE, SPAN, True)
    assert context.traceparent == PARENT


def test_two_parents_are_no_parent() -> None:
    assert read(("traceparent", PARENT), ("traceparent", PARENT)) is None


def test_no_metadata_is_no_parent() -> None:
    assert TraceContext.from_metadata(None) is None
    assert read(("tracestate", "a=1"), ("user-agent", "x"), ("blob-bin", b"\x00")) is None


def test_several_tracestate_headers_are_one_list_in_order() -> None:
    context = read(("tracestate", "a=1, b=2"), ("traceparent", PARENT), ("tracestate", "c=3"))

    assert context is not None
    assert context.tracestate == "a=1,b=2,c=3"


@pytest.mark.parametrize(
    "state",
    [
        "no-equals-sign",
        "a=1,a=2",
        "a=\x07",
        "a=é",
        ",".join(f"k{n}=v" for n in range(MAX_TRACESTATE_MEMBERS + 1)),
        "a=" + "x" * 512,
    ],
)
def test_bad_tracestate_is_dropped_and_the_trace_kept(state: str) -> None:
    context = read(("traceparent", PARENT), ("tracestate", state))

    assert context is not None
    assert context.tracestate == ""
    assert context.trace_id == TRACE


def test_baggage_is_cut_after_the_last_member_that_fits() -> None:
    member = "k=" + "x" * 998

    context = read(("traceparent", PARENT), ("baggage", ",".join([member] * 10)))

    assert context is not None
    assert context.baggage == ",".join([member] * 4)
    assert len(context.baggage) <= MAX_BAGGAGE_BYTES


def test_baggage_has_a_bounded_number_of_members() -> None:
    context = read(("traceparent", PARENT), ("baggage", ",".join(f"k{n}=v" for n in range(200))))

    assert context is not None
    assert context.baggage.count("=") == MAX_BAGGAGE_MEMBERS


def test_malformed_baggage_member_is_left_behind_alone() -> None:
    context = read(("traceparent", PARENT), ("baggage", "good=1,nonsense,bad=\x01,also=2"))

    assert context is not None
    assert context.baggage == "good=1,also=2"


def test_child_keeps_all_but_the_span() -> None:
    parent = TraceContext(TRACE, SPAN, True, "a=1", "b=2")

    child = parent.child()

    assert child.span_id != SPAN
    assert (child.trace_id, child.sampled, child.tracestate, child.baggage) == (TRACE, True, "a=1", "b=2")


def test_new_traces_differ_and_are_well_formed() -> None:
    made = [TraceContext.new(True) for _ in range(1000)]

    assert len({context.trace_id for context in made}) == 1000
    assert all(TraceContext.from_metadata(context.metadata()) == context for context in made)


def test_sampling_follows_the_ratio_and_the_trace_id_alone() -> None:
    ids = [TraceContext.new(False).trace_id for _ in range(4000)]

    kept = [trace_id for trace_id in ids if sampled_at_root(int(trace_id, 16), 0.25)]

    assert 800 < len(kept) < 1200
    assert kept == [trace_id for trace_id in ids if sampled_at_root(int(trace_id, 16), 0.25)]
    assert all(sampled_at_root(int(trace_id, 16), 0.5) for trace_id in kept)


def test_ratio_one_takes_all_and_zero_none() -> None:
    for trace_id in ("f" * 32, "0" * 31 + "1", TRACE):
        assert sampled_at_root(int(trace_id, 16), 1.0)
        assert not sampled_at_root(int(trace_id, 16), 0.0)


def test_nothing_goes_out_without_a_context() -> None:
    assert current() is None
    assert outgoing_metadata() == ()


async def test_attached_context_reaches_tasks_started_from_it_and_no_other() -> None:
    context = TraceContext.new(False)

    async def look() -> TraceContext | None:
        await asyncio.sleep(0)
        return current()

    before = asyncio.create_task(look())
    token = attach(context)
    inside = asyncio.create_task(look())
    detach(token)

    assert await inside == context
    assert await before is None
    assert current() is None
