"""Metrics and their port."""

import asyncio
import contextlib
import socket
import urllib.request
from collections.abc import Iterator

import pytest

from services.chassis import instruments
from services.chassis.instruments import REGISTRY, MetricsPortInUse, serve_metrics
from services.chassis.loop_lag import LAG_EVERY_S, LAG_WINDOW_S, watch_loop_lag
from services.domain.clock import ManualClock


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_every_metric_of_ours_is_prefixed_and_documented() -> None:
    ours = [m for m in REGISTRY.collect() if not m.name.startswith(("process_", "python_"))]

    assert len(ours) > 20
    for metric in ours:
        assert metric.name.startswith("modelyard_")
        assert metric.documentation.endswith(".")


def test_metrics_are_read_over_http_until_stopped(free_port: int) -> None:
    instruments.REGISTRY_HEAD_REVISION.set(42)
    url = f"http://127.0.0.1:{free_port}/metrics"
    stop = serve_metrics(free_port)

    with urllib.request.urlopen(url, timeout=5) as answer:
        text = answer.read().decode()
    stop()

    assert "modelyard_registry_head_revision 42.0" in text
    assert "process_resident_memory_bytes" in text
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)


def test_port_can_be_served_again_after_stop(free_port: int) -> None:
    serve_metrics(free_port)()
    serve_metrics(free_port)()


def test_port_in_use_is_said_with_what_to_do(taken_port: int) -> None:
    with pytest.raises(MetricsPortInUse, match=f"127.0.0.1:{taken_port} is in use: .*--metrics-port"):
        serve_metrics(taken_port)


def test_port_zero_serves_nothing() -> None:
    serve_metrics(0)()


class LateClock(ManualClock):
    """A clock whose sleeps end late by what is next in `late_s`; then never."""

    def __init__(self, late_s: list[float]) -> None:
        super().__init__()
        self.late_s = late_s
        self.used_up = asyncio.Event()

    async def sleep(self, duration_s: float) -> None:
        if not self.late_s:
            self.used_up.set()
            await asyncio.Event().wait()
        await super().sleep(duration_s + self.late_s.pop(0))


async def lag_after(late_s: list[float]) -> tuple[float | None, float]:
    stalls = REGISTRY.get_sample_value("modelyard_event_loop_stalls_total") or 0.0
    clock = LateClock(late_s)
    task = asyncio.create_task(watch_loop_lag(clock))
    await clock.used_up.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    after = REGISTRY.get_sample_value("modelyard_event_loop_stalls_total") or 0.0
    return REGISTRY.get_sample_value("modelyard_event_loop_lag_seconds"), after - stalls


async def test_lag_shows_the_worst_of_the_window() -> None:
    lag_s, stalls = await lag_after([0.0, 0.25, 0.01])

    assert lag_s == pytest.approx(0.25)
    assert stalls == 1


async def test_lag_is_forgotten_two_windows_later() -> None:
    per_window = int(LAG_WINDOW_S / LAG_EVERY_S) + 1

    lag_s, stalls = await lag_after([0.25, *[0.0] * (2 * per_window)])

    assert lag_s == pytest.approx(0.0)
    assert stalls == 1
