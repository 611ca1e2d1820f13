"""Spans put together by hand are those that protobuf would have made."""

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from services.chassis.span_export import FinishedSpan, _Encoder, _nanoseconds
from services.chassis.trace_context import TraceContext

KINDS = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}
REMOTE = 0x301

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def hexes(digits: int) -> st.SearchStrategy[str]:
    return st.integers(1, 16**digits - 1).map(lambda value: f"{value:0{digits}x}")


contexts = st.builds(TraceContext, hexes(32), hexes(16), st.just(True), st.just("") | texts)
spans = st.builds(
    FinishedSpan,
    name=texts,
    context=contexts,
    parent=st.none() | contexts,
    kind=st.sampled_from(sorted(KINDS)),
    links=st.lists(contexts, max_size=3),
    attributes=st.none() | st.dictionaries(texts, texts | st.booleans() | st.integers(-(2**62), 2**62), max_size=3),
    failure=st.none() | texts,
    start_wall_s=st.floats(0, 4e9),
    end_wall_s=st.floats(0, 4e9),
)


@settings(deadline=None, max_examples=200)
@given(spans)
def test_an_encoded_span_says_what_it_was_made_of(span: FinishedSpan) -> None:
    encoder = _Encoder()
    encoder.encode(span)
    found = Span.FromString(encoder.encode(span))  # the second time from what is kept

    wanted = Span(
        trace_id=bytes.fromhex(span.context.trace_id),
        span_id=bytes.fromhex(span.context.span_id),
        trace_state=span.context.tracestate,
        name=span.name,
        kind=KINDS[span.kind],  # type: ignore[arg-type]
        start_time_unix_nano=_nanoseconds(span.start_wall_s),
        end_time_unix_nano=max(_nanoseconds(span.start_wall_s), _nanoseconds(span.end_wall_s)),
        flags=1 if span.parent is None else REMOTE,
    )
    if span.parent is not None:
        wanted.parent_span_id = bytes.fromhex(span.parent.span_id)
    for link in span.links:
        wanted.links.add(
            trace_id=bytes.fromhex(link.trace_id),
            span_id=bytes.fromhex(link.span_id),
            trace_state=link.tracestate,
            flags=REMOTE,
        )
    if span.failure is not None:
        wanted.status.code = Status.STATUS_CODE_ERROR
        wanted.status.message = span.failure
    for key, value in (span.attributes or {}).items():
        attribute = wanted.attributes.add(key=key)
        if isinstance(value, bool):
            attribute.value.bool_value = value
        elif isinstance(value, int):
            attribute.value.int_value = value
        else:
            attribute.value.string_value = str(value)
    assert found == wanted
