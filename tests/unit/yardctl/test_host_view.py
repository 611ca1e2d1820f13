import io

from rich.console import Console

from modelyard.host.v1 import host_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.chassis.codec import duration_to
from yardctl.host_view import headline, host_table

KEY = model_pb2.ModelKey(model="digits", version="1.0.0")


def a_status(*, answered: int, late: int, queue_s: float, wasted_s: float = 0.0) -> host_pb2.GetStatusResponse:
    band = host_pb2.BandStatistics(
        band=1,
        success_count=answered,
        drop_counts={"deadline": late} if late else {},
        queued=2,
        queue_total=duration_to(queue_s),
        compute_total=duration_to(0.010 * answered),
        device_total=duration_to(0.002 * answered),
        wasted_total=duration_to(wasted_s),
    )
    done = host_pb2.ModelStatistics(
        key=KEY,
        success_count=answered,
        dropped_count=late,
        execution_count=answered // 4,
        queue_total=band.queue_total,
        compute_total=band.compute_total,
        bands=[band],
        load_count=3,
        eviction_count=2,
        cold_count=7,
    )
    return host_pb2.GetStatusResponse(
        record=resources_pb2.HostRecord(
            host_id="h0",
            address="127.0.0.1:1",
            pid=7,
            device=resources_pb2.Device(kind=resources_pb2.DEVICE_KIND_CPU, memory_bytes=8 << 30, used_bytes=300 << 20),
            models=[resources_pb2.HostedModel(key=KEY, state=model_pb2.MODEL_STATE_READY, memory_bytes=300 << 20)],
        ),
        load=resources_pb2.HostLoad(
            utilization=0.25, cutoff=900, models=[resources_pb2.ModelLoad(key=KEY, queued=2, absent_s=1.5)]
        ),
        statistics=[done],
    )


def rows(
    status: host_pb2.GetStatusResponse, before: host_pb2.GetStatusResponse | None = None, passed_s: float = 0.0
) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=220).print(host_table(status, before, passed_s))
    return [" ".join(line.split()) for line in text.getvalue().splitlines()[1:]]


def test_each_version_is_shown_with_its_bands() -> None:
    version, band = rows(a_status(answered=400, late=3, queue_s=2.0, wasted_s=0.08))
    assert version == (
        "digits:1.0.0 2 400 5.00 ms 10.0 ms 4.0 3 10.0% 300 MiB, away (1.5 s to come) 3, 2 evictions, 7 waited"
    )
    assert band == "band 1 2 400 5.00 ms 10.0 ms 3 deadline 10.0%"


def test_two_looks_show_what_came_in_between() -> None:
    before = a_status(answered=400, late=3, queue_s=2.0, wasted_s=0.08)
    version, band = rows(a_status(answered=500, late=5, queue_s=2.1, wasted_s=0.08), before, passed_s=2.0)
    assert version.startswith("digits:1.0.0 2 50.0 100 1.00 ms 10.0 ms 4.0 2 300 MiB")
    assert band == "band 1 2 50.0 100 1.00 ms 10.0 ms 2 deadline"


def test_a_host_that_was_started_anew_counts_from_nothing() -> None:
    before = a_status(answered=400, late=3, queue_s=2.0)
    version, _ = rows(a_status(answered=8, late=0, queue_s=0.08), before, passed_s=2.0)
    assert version.startswith("digits:1.0.0 2 4.0 8 10.0 ms 10.0 ms 4.0 300 MiB")


def test_the_headline_says_what_the_device_does_and_what_is_refused() -> None:
    assert headline(a_status(answered=1, late=0, queue_s=0.0)) == (
        "h0 at 127.0.0.1:1, pid 7, CPU computes 25% of the time, 300 MiB of 8.0 GiB, refuses calls from level 900 on"
    )
