from yardctl.spans import SpanLink, StoredSpan
from yardctl.trace import TraceNode, find_trace

TRACE, OTHER = "a" * 32, "b" * 32


def span(
    name: str, start_ms: int, end_ms: int, parent: str = "", *, trace: str = TRACE, links: tuple[str, ...] = ()
) -> StoredSpan:
    return StoredSpan(
        trace_id=trace,
        span_id=name,
        parent_id=parent,
        name=name,
        start_ns=start_ms * 1_000_000,
        end_ns=end_ms * 1_000_000,
        links=[SpanLink(TRACE, link) for link in links],
    )


def shape(nodes: list[TraceNode] | tuple[TraceNode, ...]) -> list[object]:
    return [[node.span.name, shape(node.children)] if node.children else node.span.name for node in nodes]


def test_spans_hang_below_their_parents_in_order_of_time() -> None:
    spans = [
        span("compute", 5, 8, "host"),
        span("queue", 3, 5, "host"),
        span("host", 3, 9, "root"),
        span("root", 1, 10),
    ]

    found = find_trace(spans)

    assert found is not None
    assert shape(found.roots) == [["root", [["host", ["queue", "compute"]]]]]
    assert found.duration_s == 0.009


def test_without_an_id_the_latest_trace_is_found_and_with_one_its_beginning_is_enough() -> None:
    spans = [span("old", 1, 90), span("new", 2, 3, trace=OTHER)]

    latest, named = find_trace(spans), find_trace(spans, "aaaa")

    assert latest is not None
    assert latest.trace_id == OTHER
    assert named is not None
    assert named.trace_id == TRACE
    assert find_trace(spans, "cc") is None
    assert find_trace([]) is None


def test_a_batch_of_another_trace_is_shown_below_the_request_it_links_to_with_what_it_caused() -> None:
    spans = [
        span("root", 1, 10),
        span("queue", 2, 4, "root"),
        span("compute", 5, 20, "batch", trace=OTHER),
        span("batch", 4, 21, "their-root", trace=OTHER, links=("queue",)),
        span("their-root", 1, 30, trace=OTHER),
        span("unrelated", 6, 7, "their-root", trace=OTHER),
    ]

    found = find_trace(spans, TRACE)

    assert found is not None
    assert shape(found.roots) == [["root", [["queue", [["batch", ["compute"]]]]]]]
    assert [node.span.name for root in found.roots for node in root.walk() if node.linked] == ["batch", "compute"]
    assert found.duration_s == 0.009, "the other trace's spans do not make this one longer"


def test_spans_whose_parent_is_missing_or_that_go_in_circles_are_shown_as_orphans() -> None:
    spans = [span("lost", 3, 4, "gone"), span("a", 1, 2, "b"), span("b", 1, 2, "a")]

    found = find_trace(spans)

    assert found is not None
    assert {(root.span.name, root.orphan) for root in found.roots} == {("lost", True), ("a", True), ("b", True)}
