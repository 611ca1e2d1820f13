"""W3C trace context: who caused this work, carried across processes and tasks.

Owns the three headers (`traceparent`, `tracestate`, `baggage`), their limits, and the context
variable that holds the current one. Spans are built in `telemetry`.
"""

import random
import re
from collections.abc import Iterable
from contextvars import ContextVar, Token
from typing import NamedTuple

MAX_TRACESTATE_CHARS = 512
"""W3C Trace Context 3.3.1.1 asks for at least this much to be carried; more is dropped whole."""

MAX_TRACESTATE_MEMBERS = 32
"""W3C Trace Context 3.3.1.1: a list with more members is invalid."""

MAX_BAGGAGE_BYTES = 4096
"""Half of the 8 KiB of metadata that our servers accept; members beyond it are left behind."""

MAX_BAGGAGE_MEMBERS = 64
"""W3C Baggage 3.3.2: the number of members that must be carried; members beyond it are left behind."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
# Seeded by the system. Ids must differ, not be secret, and a system call for each costs several times as much.
_IDS = random.Random()  # noqa: S311
_NO_TRACE = "0" * 32
_LOWER_64 = 2**64 - 1
_NO_SPAN = "0" * 16


class TraceContext(NamedTuple):
    """Where in which trace the current work stands."""

    trace_id: str
    """32 lower-case hex digits, not all zero."""
    span_id: str
    """16 lower-case hex digits, not all zero: the span that children name as their parent."""
    sampled: bool
    """Whether the trace is recorded; decided once, at its root."""
    tracestate: str = ""
    """Other vendors' part, passed on as it came."""
    baggage: str = ""
    """The caller's own key-value pairs, passed on as they came."""

    @classmethod
    def new(cls, sampled: bool) -> "TraceContext":
        """Start a trace."""
        digits = f"{_IDS.getrandbits(192):048x}"
        return cls(digits[:32], digits[32:], sampled)

    @classmethod
    def root(cls, ratio: float) -> "TraceContext":
        """Start a trace, which is recorded if `sampled_at_root` says so."""
        bits = _IDS.getrandbits(192)
        digits = f"{bits:048x}"
        return cls(digits[:32], digits[32:], sampled_at_root(bits >> 64, ratio))

    @classmethod
    def from_metadata(cls, metadata: Iterable[tuple[str, str | bytes]] | None) -> "TraceContext | None":
        """Read the context that came with a call.

        Args:
            metadata: The call's metadata; keys are lower case, as gRPC makes them.

        Returns:
            None if there is no `traceparent`, or a malformed one, or several: the receiver then starts
            a trace of its own, as W3C Trace Context 4.3 asks.
        """
        traceparent: str | None = None
        tracestates: list[str] = []
        baggages: list[str] = []
        for key, value in metadata or ():
            if key == "traceparent":
                if traceparent is not None or not isinstance(value, str):
                    return None
                traceparent = value
            elif key == "tracestate" and isinstance(value, str):
                tracestates.append(value)
            elif key == "baggage" and isinstance(value, str):
                baggages.append(value)
        if traceparent is None:
            return None
        return cls.from_headers(
            traceparent,
            _tracestate(tracestates) if tracestates else "",
            _baggage(baggages) if baggages else "",
        )

    @classmethod
    def from_headers(cls, traceparent: str, tracestate: str = "", baggage: str = "") -> "TraceContext | None":
        """The context that the headers of another part of the mesh carry; None if `traceparent` is malformed or empty.

        Args:
            traceparent: As W3C Trace Context 3.2 has it.
            tracestate: A valid list, or nothing.
            baggage: A valid list, or nothing.
        """
        match = _TRACEPARENT.fullmatch(traceparent.strip())
        if match is None:
            return None
        version, trace_id, span_id, flags, rest = match.groups()
        if version == "ff" or (version == "00" and rest) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & 1), tracestate, baggage)

    @property
    def traceparent(self) -> str:
        """The header that makes a callee's spans children of this one."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    def child(self) -> "TraceContext":
        """The same trace with a span id of its own."""
        return TraceContext(self.trace_id, f"{_IDS.getrandbits(64):016x}", self.sampled, self.tracestate, self.baggage)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers for a call made from here."""
        if not self.tracestate and not self.baggage:
            return (("traceparent", self.traceparent),)
        headers = [("traceparent", self.traceparent)]
        if self.tracestate:
            headers.append(("tracestate", self.tracestate))
        if self.baggage:
            headers.append(("baggage", self.baggage))
        return tuple(headers)


def current() -> TraceContext | None:
    """The context of the work that this task does, if it has one."""
    return _CURRENT.get()


def attach(context: TraceContext | None) -> Token[TraceContext | None]:
    """Make `context` current in this task and in those that it starts.

    Returns:
        What `detach` takes to restore the one before.
    """
    return _CURRENT.set(context)


def detach(token: Token[TraceContext | None]) -> None:
    """Restore what was current before `attach`."""
    _CURRENT.reset(token)


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Headers that carry the current context on; empty if there is none."""
    context = _CURRENT.get()
    return () if context is None else context.metadata()


def sampled_at_root(trace_id: int, ratio: float) -> bool:
    """Decide on recording a new trace, from its id alone, so that every part would decide alike.

    Args:
        trace_id: The id; its lower 64 bits count, as in OpenTelemetry's `TraceIdRatioBased`.
        ratio: Share of traces wanted, in [0, 1].
    """
    return trace_id & _LOWER_64 < ratio * 2.0**64


def _tracestate(values: list[str]) -> str:
    """Several headers as one list; nothing if the list breaks a rule, which never breaks the trace."""
    joined = ",".join(value.strip() for value in values)
    members = [member.strip() for member in joined.split(",") if member.strip()]
    keys = [member.partition("=")[0] for member in members]
    valid = (
        len(joined) <= MAX_TRACESTATE_CHARS
        and len(members) <= MAX_TRACESTATE_MEMBERS
        and _PRINTABLE.fullmatch(joined) is not None
        and all("=" in member for member in members)
        and len(set(keys)) == len(keys)
    )
    return ",".join(members) if valid else ""


def _baggage(values: list[str]) -> str:
    """Several headers as one list, cut after the last whole member that fits."""
    kept: list[str] = []
    size_bytes = 0
    for member in ",".join(values).split(","):
        text = member.strip()
        if not text or "=" not in text or _PRINTABLE.fullmatch(text) is None:
            continue
        size_bytes += len(text) + (1 if kept else 0)
        if size_bytes > MAX_BAGGAGE_BYTES or len(kept) == MAX_BAGGAGE_MEMBERS:
            break
        kept.append(text)
    return ",".join(kept)


_CURRENT: ContextVar[TraceContext | None] = ContextVar("modelyard_trace_context", default=None)
