"""One trace as a tree: who caused what, how long each part took, and the batches it shared.

A batch belongs to several requests, so its span hangs in the trace of one of them, or in one
of its own, and links to all: in each of their trees it is shown below the span it links to.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from yardctl.spans import SpanLink, StoredSpan


@dataclass
class TraceNode:
    """A span with what it caused, in order of time."""

    span: StoredSpan
    children: list["TraceNode"] = field(default_factory=list)
    linked: bool = False
    """True if it belongs to another trace, and is here because it links to its parent."""
    orphan: bool = False
    """True if its parent is not in the store."""

    def walk(self) -> Iterable["TraceNode"]:
        """This node and all below it, depth first."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class Trace:
    """All that the store has of one trace."""

    trace_id: str
    roots: tuple[TraceNode, ...]

    @property
    def start_ns(self) -> int:
        """When its first span began."""
        return min(node.span.start_ns for node in self.roots)

    @property
    def duration_s(self) -> float:
        """From its first span's begin to its last one's end; spans of other traces do not count."""
        ends = [node.span.end_ns for root in self.roots for node in root.walk() if not node.linked]
        return (max(ends) - self.start_ns) / 1e9


def find_trace(spans: Iterable[StoredSpan], trace_id: str = "") -> Trace | None:
    """The trace that has this id.

    Args:
        spans: Every span in the store. Gone through three times, so that of a large store only what
            belongs to the trace is ever held.
        trace_id: The id, or its beginning where that is enough; empty is the latest trace.

    Returns:
        The trace, or None if the store has no such. Where several begin alike, the latest.
    """
    found, latest_ns = "", -1
    for span in spans:
        if span.start_ns > latest_ns and span.trace_id.startswith(trace_id):
            found, latest_ns = span.trace_id, span.start_ns
    if not found:
        return None
    # Of other traces those that link here, and what their spans caused.
    wanted = {found}
    wanted |= {span.trace_id for span in spans if any(link.trace_id == found for link in span.links)}
    return build([span for span in spans if span.trace_id in wanted], found)


def build(spans: Sequence[StoredSpan], trace_id: str) -> Trace:
    """The tree of one trace.

    Args:
        spans: Its spans, and those of the traces that link to it.
        trace_id: Its full id; at least one span has it.
    """
    nodes = {span.span_id: TraceNode(span) for span in spans if span.trace_id == trace_id}
    roots = []
    for node in nodes.values():
        parent = nodes.get(node.span.parent_id)
        if parent is not None and parent is not node:
            parent.children.append(node)
        else:
            node.orphan = bool(node.span.parent_id)
            roots.append(node)
    for span in spans:
        if span.trace_id == trace_id:
            continue
        targets = (nodes.get(link.span_id) for link in span.links if link.trace_id == trace_id)
        if (target := next(filter(None, targets), None)) is not None:
            target.children.append(_linked(span, spans))
    reached = {id(each) for root in roots for each in root.walk()}
    # Parents that name each other in a circle, as only a broken sender would make them.
    roots += [TraceNode(node.span, orphan=True) for node in nodes.values() if id(node) not in reached]
    for root in roots:
        for node in root.walk():
            node.children.sort(key=lambda child: child.span.start_ns)
    return Trace(trace_id, tuple(sorted(roots, key=lambda root: root.span.start_ns)))


def _linked(span: StoredSpan, spans: Sequence[StoredSpan]) -> TraceNode:
    """A span of another trace with what it caused there."""
    root = TraceNode(span, linked=True)
    nodes = {span.span_id: root}
    # A span is stored when it ends, so after what it caused: looked at from its begin, parents come first.
    for other in sorted(spans, key=lambda each: each.start_ns):
        parent = nodes.get(other.parent_id)
        if other.trace_id == span.trace_id and parent is not None and other.span_id not in nodes:
            nodes[other.span_id] = TraceNode(other, linked=True)
            parent.children.append(nodes[other.span_id])
    return root


def links_elsewhere(span: StoredSpan, trace_id: str) -> list[SpanLink]:
    """The links of a span to spans of other traces than `trace_id`."""
    return [link for link in span.links if link.trace_id != trace_id]
