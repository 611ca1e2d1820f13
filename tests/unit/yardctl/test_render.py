from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, RenderableType

from modelyard.inference.v1 import inference_pb2
from modelyard.registry.v1 import objects_pb2, registry_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from yardctl import render, render_decision
from yardctl.spans import SpanLink, StoredSpan
from yardctl.trace import build


def text_of(item: RenderableType) -> list[str]:
    console = Console(width=400, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(item)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_times_and_sizes_keep_the_digits_that_count() -> None:
    assert [render.span_of_time(each) for each in (5e-6, 0.00123, 0.0456, 2.34, 75, 4000, 200_000)] == [
        "5 µs",
        "1.23 ms",
        "45.6 ms",
        "2.3 s",
        "1 min 15 s",
        "1 h 6 min",
        "2 d 7 h",
    ]
    assert [render.size(each) for each in (17, 2048, 5 << 20, 3 << 30)] == ["17 B", "2 KiB", "5 MiB", "3.0 GiB"]


def test_messages_become_plain_values_that_say_their_units() -> None:
    decision = inference_pb2.Decision(
        cost_microusd=1 << 40,
        deadline=Duration(seconds=1, nanos=500_000_000),
        deadline_source=inference_pb2.DEADLINE_SOURCE_CALLER,
    )

    plain = render.to_dict(decision)

    assert plain["cost_microusd"] == 1 << 40
    assert plain["deadline_s"] == 1.5
    assert plain["deadline_source"] == "CALLER"
    assert plain["attempts"] == []
    assert "quality" not in plain
    assert render.to_dict(registry_pb2.Revision(time=Timestamp(seconds=0)))["time"] == "1970-01-01T00:00:00Z"
    assert render.to_dict(objects_pb2.WarmupTensor(raw=b"\x00"))["raw"] == "AA=="


def test_a_decision_says_who_answered_why_how_long_and_at_what_price() -> None:
    decision = inference_pb2.Decision(
        route="embed",
        model="minilm",
        version="1.0.0",
        host="local-1",
        strategy="choose",
        reason="best utility",
        registry_revision=7,
        batch_size=3,
        cost_microusd=12,
        quality=0.81,
        trace_id="abc",
        stages=inference_pb2.StageTimes(
            choose=Duration(nanos=200_000), compute=Duration(nanos=9_000_000), total=Duration(nanos=11_000_000)
        ),
        attempts=[
            inference_pb2.Attempt(host="local-0", status="UNAVAILABLE", duration=Duration(nanos=1_000_000)),
            inference_pb2.Attempt(host="local-1", status="OK", duration=Duration(nanos=9_500_000)),
        ],
    )

    assert text_of(render_decision.decision(decision)) == [
        "route     embed → minilm:1.0.0@local-1",
        "reason    best utility (choose, revision 7)",
        "time      11.0 ms = choose 200 µs + compute 9.00 ms, batch of 3",
        "cost      12 µ$ a call, quality 0.810",
        "attempts  local-0 UNAVAILABLE 1.00 ms, local-1 OK 9.50 ms",
        "trace     abc",
    ]


def test_a_decision_of_several_says_each_step_and_what_was_not_as_it_should_be() -> None:
    decision = inference_pb2.Decision(
        route="council",
        strategy="ensemble",
        reason="mean of 1 of 2 members",
        registry_revision=7,
        degraded_reason="1 of 2 members answered; b: late",
        steps=[
            inference_pb2.DecisionStep(
                name="a",
                model="a",
                version="1.0.0",
                host="local-1",
                status="OK",
                duration=Duration(nanos=9_500_000),
                reason="newest version",
            ),
            inference_pb2.DecisionStep(name="b", status="CANCELLED", reason="late"),
        ],
    )

    assert text_of(render_decision.decision(decision)) == [
        "route     council → ensemble",
        "reason    mean of 1 of 2 members (ensemble, revision 7)",
        "degraded  1 of 2 members answered; b: late",
        "step      a → a:1.0.0@local-1 OK 9.50 ms: newest version",
        "step      b CANCELLED: late",
    ]


def test_the_part_of_a_split_is_said() -> None:
    decision = inference_pb2.Decision(route="r", model="m", version="1.0.0", host="h", arm="m:1.0.0", propensity=0.005)

    assert "part    m:1.0.0, 0.5 % of the calls" in text_of(render_decision.decision(decision))


def test_candidates_are_listed_best_first_then_why_others_are_left_out_then_their_hosts() -> None:
    why = "predicted 12.3 ms, over the 10 ms left " * 3
    host = inference_pb2.HostScore(host="local-1", zone="a", predicted=Duration(nanos=1_500_000), backlog=2)
    found = [
        inference_pb2.Candidate(model="a", version="1.0.0", filtered=why),
        inference_pb2.Candidate(model="b", version="1.0.0", score=0.2),
        inference_pb2.Candidate(model="c", version="1.0.0", score=0.9, quality=0.95, hosts=[host]),
    ]
    chosen = inference_pb2.Decision(model="c", version="1.0.0", host="local-1")

    assert text_of(render_decision.candidates(found, chosen)) == [
        "",
        "CANDIDATE   SCORE  QUALITY  COST  PREDICTED",
        "c:1.0.0    0.9000    0.950  0 µ$          -  chosen",
        "b:1.0.0    0.2000        -  0 µ$          -",
        "a:1.0.0         -        -  0 µ$          -  filtered",
        "",
        "NOT CHOSEN BECAUSE",
        "a:1.0.0",
        f"    {why.rstrip()}",
        "",
        "HOST       PREDICTED  AHEAD  PENALTY  ZONE",
        "c:1.0.0",
        "  local-1    1.50 ms      2        -  a     chosen",
    ]


def test_a_decision_that_finds_nobody_says_so_and_why() -> None:
    decision = inference_pb2.Decision(route="embed", strategy="choose", reason="no host is ready", registry_revision=7)

    assert text_of(render_decision.decision(decision)) == [
        "route   embed → no host",
        "reason  no host is ready (choose, revision 7)",
    ]


def test_a_decision_of_a_route_over_others_says_its_part_and_its_steps() -> None:
    step = inference_pb2.DecisionStep(
        name="big",
        model="b",
        version="1",
        host="h",
        status="UNAVAILABLE",
        duration=Duration(nanos=2_000_000),
        reason="gone",
    )
    decision = inference_pb2.Decision(
        route="r", model="a", version="1", host="h", strategy="split", reason="why", arm="a:1", propensity=0.25,
        degraded_reason="big: gone", refusal="too many", steps=[step],
    )  # fmt: skip

    assert text_of(render_decision.decision(decision))[2:6] == [
        "part         a:1, 25 % of the calls",
        "degraded     big: gone",
        "refused now  too many",
        "step         big → b:1@h UNAVAILABLE 2.00 ms: gone",
    ]


def test_hosts_show_each_version_with_its_state_and_what_went_wrong() -> None:
    record = resources_pb2.HostRecord(
        host_id="local-0",
        address="127.0.0.1:7610",
        pool="local",
        device=resources_pb2.Device(kind=resources_pb2.DEVICE_KIND_CPU, memory_bytes=1 << 30, used_bytes=1 << 20),
        models=[
            resources_pb2.HostedModel(
                key=model_pb2.ModelKey(model="digits", version="1.0.0"),
                state=model_pb2.MODEL_STATE_FAILED,
                message="sha256 differs [really]",
            )
        ],
    )

    lines = text_of(render.hosts([record]))

    assert lines[1].split() == ["local-0", "127.0.0.1:7610", "local", "CPU", "1", "MiB", "of", "1.0", "GiB", "healthy"]
    assert lines[2].split() == ["digits:1.0.0", "FAILED", "sha256", "differs", "[really]"]


def test_changes_are_listed_field_by_field_and_counted() -> None:
    changes = [
        registry_pb2.Change(
            action=registry_pb2.CHANGE_ACTION_UPDATE,
            key=objects_pb2.ObjectKey(kind="Pool", name="local"),
            fields=[registry_pb2.FieldChange(path="pool.min_hosts", before="2", after="3")],
        ),
        registry_pb2.Change(
            action=registry_pb2.CHANGE_ACTION_DELETE, key=objects_pb2.ObjectKey(kind="Route", name="a")
        ),
    ]

    lines = [line.split() for line in text_of(render.changes(changes))]

    assert lines[1:] == [["update", "Pool/local"], ["pool.min_hosts", "2", "3"], ["delete", "Route/a"]]
    assert render.change_counts(changes) == "1 updated, 1 deleted"


def test_a_trace_is_a_tree_with_times_services_errors_and_shared_batches() -> None:
    trace, other = "a" * 32, "b" * 32
    spans = [
        StoredSpan(trace, "1", "yardctl infer", 0, 10_000_000, service="yardctl"),
        StoredSpan(trace, "2", "x.v1.Service/Infer", 1_000_000, 9_000_000, parent_id="1", service="router", error="no"),
        StoredSpan(
            other, "3", "batch", 2_000_000, 5_000_000, service="model_host", instance="local-0",
            links=[SpanLink(trace, "2"), SpanLink(other, "9")], attributes={"modelyard.batch_size": 2, "rpc.x": 1},
        ),
    ]  # fmt: skip

    lines = text_of(render.trace(build(spans, trace)))

    assert lines == [
        f"trace {trace}  10.0 ms",
        "└── yardctl infer  10.0 ms  +0 µs  yardctl",
        "    └── Service/Infer  8.00 ms  +1.00 ms  router  no",
        "        └── batch  3.00 ms  +2.00 ms  model_host@local-0  ⇠ in trace bbbbbbbb  "
        "⇢ links 1 of this trace and 1 of others  batch_size=2",
    ]
