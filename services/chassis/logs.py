"""Log lines: JSON on one line each, with the trace they belong to.

Owns the format and where other libraries' records go. What is worth a line is decided where it happens.
"""

import contextlib
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO, cast

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from services.chassis.trace_context import current

Level = Literal["debug", "info", "warning", "error"]

LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
"""The names that `--log-level` takes."""


def setup_logging(service: str, instance: str, *, level: str = "info", stream: TextIO | None = None) -> None:
    """Send every log line of this process to `stream` as JSON.

    Records of libraries that use the standard `logging` (grpc, asyncio, warnings) come out in the same
    form, from warnings upwards; with level debug, all of them.

    Args:
        service: Name of the service, on every line.
        instance: Name of this process among its replicas, on every line.
        level: Least level that is written: one of `LEVELS`.
        stream: Where to; None is standard error.

    Raises:
        ValueError: The level is unknown.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is unknown: use one of {', '.join(LEVELS)}")
    target = sys.stderr if stream is None else stream
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _Origin(service, instance),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Enduring(target))),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _ToStructlog)]:
        root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    root.setLevel(logging.DEBUG if level == "debug" else max(logging.WARNING, LEVELS[level]))
    logging.captureWarnings(True)


def logger() -> FilteringBoundLogger:
    """The process's logger; good to keep in a module, before or after `setup_logging`."""
    return cast(FilteringBoundLogger, structlog.get_logger())


class _Origin:
    """Adds which service wrote the line and for which trace."""

    def __init__(self, service: str, instance: str) -> None:
        self._service = service
        self._instance = instance

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = self._service
        event["instance"] = self._instance
        context = current()
        event["trace_id"] = "" if context is None else context.trace_id
        event["span_id"] = "" if context is None else context.span_id
        return event


class _Enduring:
    """A stream whose loss costs lines and nothing else: a log reader that went must not fail a call or a shutdown."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class _ToStructlog(logging.Handler):
    """Writes a standard record as one of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write = logger()
            level = max(logging.DEBUG, min(logging.ERROR, record.levelno // 10 * 10))
            exc_info = record.exc_info if record.exc_info and record.exc_info[0] is not None else None
            write.log(level, record.getMessage(), logger=record.name, exc_info=exc_info)
        except Exception:
            self.handleError(record)


def _render(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """One line; a value that JSON cannot hold is written as its `repr`."""
    return msgspec.json.encode(event, enc_hook=repr).decode()


def _before_setup() -> None:
    """Until `setup_logging`, warnings go to standard error: standard output belongs to a tool's answer."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


if not structlog.is_configured():
    _before_setup()
