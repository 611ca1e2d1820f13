"""One trace over caller, router and host, as a collector gets it."""

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from modelyard.inference.v1 import inference_pb2_grpc
from tests.integration.router.test_failover import known_hosts
from tests.integration.router.zoo import ECHO, VERSIONS, typed
from tests.support.otlp import otlp_sink
from tests.support.services import bench, eventually

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SILENT_TRACE = "1bf7651916cd43dd8448eb211c80319c"


def facts_of(span: Span) -> dict[str, Any]:
    """The attributes of a span."""
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


@pytest.mark.parametrize("dead_first", [False, True])
async def test_router_and_host_are_one_trace_with_right_parents(tmp_path: Path, dead_first: bool) -> None:
    with otlp_sink() as (sink, endpoint):
        arguments = ("--otlp-endpoint", endpoint, "--trace-ratio", "0")
        async with bench(tmp_path, hosts=0, router_arguments=arguments) as made:
            for host_id in ("host-0", "host-1") if dead_first else ("host-0",):
                await made.add_host(host_id, *arguments)
            (version, _) = VERSIONS["echo"]
            await made.apply(ECHO, version)
            for host_id in made.hosts:
                await made.load(host_id, ECHO, version)
            await eventually(lambda: known_hosts(made, len(made.hosts)), "the hosts")
            if dead_first:
                made.hosts["host-0"].kill()
            async with grpc.aio.insecure_channel(made.router.address) as channel:
                stub = inference_pb2_grpc.InferenceServiceStub(channel)
                silent = (("traceparent", f"00-{SILENT_TRACE}-{CALLER}-00"),)
                sampled = (("traceparent", f"00-{TRACE}-{CALLER}-01"),)
                attempts = 0
                for _ in range(20):  # until a call meets the dead host, if there is one
                    decision = (await stub.Infer(typed(), timeout=10.0, metadata=sampled)).decision
                    attempts = max(attempts, len(decision.attempts))
                    if attempts == 1 + dead_first:
                        break
                unsampled = (await stub.Infer(typed(), timeout=10.0, metadata=silent)).decision
        spans = [span for _, span in sink.wait_for(5) if span.trace_id.hex() == TRACE]
        everything = [span.trace_id.hex() for _, span in sink.spans]

    assert unsampled.trace_id == SILENT_TRACE
    assert SILENT_TRACE not in everything
    assert attempts == 1 + dead_first

    def named(name: str, parent: bytes) -> list[Span]:
        return [span for span in spans if span.name.endswith(name) and span.parent_span_id == parent]

    servers = named("InferenceService/Infer", bytes.fromhex(CALLER))
    assert servers
    tried = max(servers, key=lambda server: len(named("attempt", server.span_id)))
    assert len(named("choose", tried.span_id)) == 1
    made_attempts = named("attempt", tried.span_id)
    assert len(made_attempts) == 1 + dead_first
    assert {span.kind for span in made_attempts} == {Span.SPAN_KIND_CLIENT}
    answered = [attempt for attempt in made_attempts if named("ModelHostService/Dispatch", attempt.span_id)]
    assert len(answered) == 1
    said = facts_of(tried)
    assert {key: said[key] for key in ("route", "model", "version", "tenant", "tier", "outcome")} == {
        "route": "echo",
        "model": "echo",
        "version": "1.0.0",
        "tenant": "",
        "tier": "",
        "outcome": "OK",
    }
    assert (said["attempts"], said["retried"]) == (1 + dead_first, dead_first)
    of_hop = facts_of(answered[0])
    assert said["host"] == of_hop["host"]
    assert (said["queue_s"], said["compute_s"]) == (of_hop["queue_s"], of_hop["compute_s"])
    hop_s = (answered[0].end_time_unix_nano - answered[0].start_time_unix_nano) / 1e9
    # Of the hop nothing is left out or told twice, but for what the spans themselves take.
    assert said["queue_s"] + said["compute_s"] + said["network_s"] == pytest.approx(hop_s, abs=0.005)
    failed = [attempt for attempt in made_attempts if attempt not in answered]
    assert [attempt.status.code for attempt in failed] == [2] * dead_first
