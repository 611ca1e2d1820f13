"""Spans without a collector, and log lines."""

import asyncio
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from services.chassis import logs, span_export
from services.chassis.logs import logger, setup_logging
from services.chassis.span_export import FinishedSpan
from services.chassis.telemetry import Span, Telemetry
from services.chassis.trace_context import TraceContext, attach, current, detach, outgoing_metadata
from services.domain.clock import ManualClock
from services.domain.errors import Overloaded


class KeptSpans(Telemetry):
    """Telemetry whose finished spans stay here."""

    def __init__(self, *, sample_ratio: float = 1.0) -> None:
        self.clock = ManualClock()
        super().__init__(
            service="test", instance="test-0", otlp_endpoint=None, sample_ratio=sample_ratio, clock=self.clock
        )
        self.finished: list[FinishedSpan] = []

    def emit(self, span: FinishedSpan) -> None:
        self.finished.append(span)


SAMPLED = TraceContext.new(True)
UNSAMPLED = TraceContext.new(False)


def test_new_trace_is_decided_at_its_root() -> None:
    assert KeptSpans(sample_ratio=1.0).span("a").context.sampled
    assert not KeptSpans(sample_ratio=0.0).span("a").context.sampled


def test_parents_flag_is_respected_whatever_the_ratio() -> None:
    never, always = KeptSpans(sample_ratio=0.0), KeptSpans(sample_ratio=1.0)

    never.span("a", parent=SAMPLED).end()
    always.span("a", parent=UNSAMPLED).end()

    assert len(never.finished) == 1
    assert always.finished == []


def test_span_is_a_child_of_its_parent() -> None:
    telemetry = KeptSpans()
    other = TraceContext.new(True)

    with telemetry.span("outer", parent=SAMPLED, kind="server") as outer, telemetry.span("inner", links=[other]):
        pass

    inner, finished_outer = telemetry.finished
    assert inner.parent == outer.context
    assert inner.links == [other]
    assert finished_outer.parent == SAMPLED
    assert {inner.context.trace_id, finished_outer.context.trace_id} == {SAMPLED.trace_id}
    assert len({inner.context.span_id, finished_outer.context.span_id, SAMPLED.span_id}) == 3


def test_span_is_current_inside_and_only_there() -> None:
    telemetry = KeptSpans()

    with telemetry.span("a") as span:
        assert current() == span.context
        assert outgoing_metadata() == (("traceparent", span.context.traceparent),)

    assert current() is None


def test_unsampled_span_still_carries_its_trace_on() -> None:
    with KeptSpans(sample_ratio=0.0).span("a") as span:
        assert dict(outgoing_metadata())["traceparent"].endswith("-00")
        assert current() == span.context
        assert not span.recording


def test_span_lasts_from_begin_to_end() -> None:
    telemetry = KeptSpans()
    begin_s = telemetry.clock.wall_s()

    with telemetry.span("a"):
        telemetry.clock.advance(1.5)

    (span,) = telemetry.finished
    assert (span.start_wall_s, span.end_wall_s) == (begin_s, begin_s + 1.5)


def test_second_end_counts_nothing() -> None:
    telemetry = KeptSpans()
    span = telemetry.span("a")

    span.end()
    span.set("late", 1)
    span.end()

    (finished,) = telemetry.finished
    assert finished.attributes is None


def fail_in(telemetry: Telemetry, error: BaseException) -> None:
    with telemetry.span("a"):
        raise error


def test_domain_error_marks_the_span_with_its_reason() -> None:
    telemetry = KeptSpans()

    with pytest.raises(Overloaded):
        fail_in(telemetry, Overloaded("queue is full"))

    (span,) = telemetry.finished
    assert span.failure == "queue is full"
    assert span.attributes == {"error.type": "OVERLOADED"}


def test_text_of_an_unexpected_error_is_not_kept() -> None:
    telemetry = KeptSpans()

    with pytest.raises(ValueError, match="secret"):
        fail_in(telemetry, ValueError("secret payload"))

    (span,) = telemetry.finished
    assert "secret" not in repr(span)
    assert span.failure == "ValueError"


def test_cancelled_work_is_said_to_be_cancelled_and_not_failed() -> None:
    telemetry = KeptSpans()

    with pytest.raises(asyncio.CancelledError):
        fail_in(telemetry, asyncio.CancelledError())

    (span,) = telemetry.finished
    assert span.failure is None
    assert span.attributes == {"cancelled": True}


def test_record_reports_known_times_for_sampled_parents_only() -> None:
    telemetry = KeptSpans()

    child = telemetry.record("queue", parent=SAMPLED, start_wall_s=10.0, end_wall_s=12.0, attributes={"n": 3})
    same = telemetry.record("queue", parent=UNSAMPLED, start_wall_s=10.0, end_wall_s=12.0)

    (span,) = telemetry.finished
    assert (span.context, span.parent, span.start_wall_s, span.end_wall_s) == (child, SAMPLED, 10.0, 12.0)
    assert span.attributes == {"n": 3}
    assert same == UNSAMPLED


def test_a_span_is_described_from_within_as_long_as_it_goes_on() -> None:
    telemetry = KeptSpans()

    with telemetry.span("work") as span:
        with telemetry.span("part") as part:
            telemetry.describe(span.context, {"route": "digits", "queue_s": 0.5})
        telemetry.describe(part.context, {"late": True})

    assert [(each.name, each.attributes) for each in telemetry.finished] == [
        ("part", None),
        ("work", {"route": "digits", "queue_s": 0.5}),
    ]
    assert not telemetry.entered


def test_what_is_not_sampled_is_not_described() -> None:
    telemetry = KeptSpans(sample_ratio=0.0)

    with telemetry.span("work") as span:
        telemetry.describe(span.context, {"route": "digits"})

        assert not telemetry.entered
    assert telemetry.finished == []


def test_attributes_given_are_copied() -> None:
    telemetry = KeptSpans()
    given: dict[str, Any] = {"a": 1}
    span: Span = telemetry.span("a", attributes=given)

    span.set("b", 2)
    span.end()

    assert given == {"a": 1}
    assert telemetry.finished[0].attributes == {"a": 1, "b": 2}


async def test_without_a_collector_nothing_begins() -> None:
    telemetry = Telemetry(service="test", instance="test-0", otlp_endpoint="", sample_ratio=1.0)

    telemetry.span("a").end()
    await telemetry.shutdown()

    assert telemetry.span("b").context.sampled


async def test_collector_that_is_away_is_said_once_a_minute(log: "Lines") -> None:
    clock = ManualClock()
    exporter = span_export.SpanExport("127.0.0.1:1", service="test", instance="test-0", clock=clock)

    for _ in range(50):
        exporter._lost(7, "away")
    clock.advance(span_export.WARN_EVERY_S)
    exporter._lost(7, "away")
    await exporter.close()

    assert [line["message"] for line in log.read()] == ["spans are lost"] * 2


class Lines:
    """What was logged."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def log() -> Iterator[Lines]:
    lines = Lines()
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    setup_logging("router", "router-0", stream=lines.stream)
    yield lines
    logs._before_setup()
    logging.captureWarnings(False)
    root.setLevel(level)
    root.handlers = handlers


def test_line_says_what_when_who_and_for_which_trace(log: Lines) -> None:
    token = attach(SAMPLED)
    logger().info("hello", model="m", count=3)
    detach(token)

    (line,) = log.read()
    assert line.pop("time").endswith("Z")
    assert line == {
        "message": "hello",
        "model": "m",
        "count": 3,
        "level": "info",
        "service": "router",
        "instance": "router-0",
        "trace_id": SAMPLED.trace_id,
        "span_id": SAMPLED.span_id,
    }


def test_line_outside_of_a_trace_says_so(log: Lines) -> None:
    logger().info("hello")

    assert log.read()[0]["trace_id"] == ""


def test_lines_below_the_level_are_left_out(log: Lines) -> None:
    setup_logging("router", "router-0", level="warning", stream=log.stream)

    logger().info("no")
    logger().warning("yes")

    assert [line["message"] for line in log.read()] == ["yes"]


def test_tool_that_sets_up_no_logging_keeps_its_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    logger().info("chatter")
    logger().warning("odd")

    said = capsys.readouterr()
    assert said.out == ""
    assert "odd" in said.err
    assert "chatter" not in said.err


def test_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of debug, info, warning, error"):
        setup_logging("router", "router-0", level="loud")


def test_libraries_records_come_out_in_the_same_form(log: Lines) -> None:
    logging.getLogger("grpc._cython").warning("lost %s", "it")
    logging.getLogger("grpc._cython").info("chatter")
    logging.getLogger("asyncio").critical("bad")

    lines = log.read()
    assert [(line["message"], line["level"], line["logger"]) for line in lines] == [
        ("lost it", "warning", "grpc._cython"),
        ("bad", "error", "asyncio"),
    ]


def test_set_up_twice_writes_each_record_once(log: Lines) -> None:
    setup_logging("router", "router-0", stream=log.stream)

    logging.getLogger("grpc").warning("once")

    assert len(log.read()) == 1


def test_traceback_is_part_of_the_line(log: Lines) -> None:
    try:
        raise KeyError("k")
    except KeyError:
        logger().exception("broke")
        logging.getLogger("asyncio").exception("broke too")

    first, second = log.read()
    assert "KeyError: 'k'" in first["exception"]
    assert "KeyError: 'k'" in second["exception"]


def test_value_that_json_cannot_hold_is_written_all_the_same(log: Lines) -> None:
    logger().info("odd", value=object(), number=float("nan"), key={1, 2}, exc=ValueError("v"), big=1 << 80)

    assert "object object" in log.read()[0]["value"]


def test_python_warning_becomes_a_line(log: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        # `catch_warnings` has put the original back; this is what set-up does in a process.
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    assert "DeprecationWarning: old" in log.read()[0]["message"]


def test_a_log_reader_that_went_costs_the_line_and_nothing_else(log: Lines) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as broken:
        setup_logging("router", "router-0", stream=broken)
        logger().warning("nobody reads this")
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), write)  # closing flushes once more
