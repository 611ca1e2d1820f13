"""How decisions look in a terminal: how an answer came about, and whom else it could have come from."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelyard.inference.v1 import inference_pb2
from yardctl.render import seconds, span_of_time

HOSTS_SHOWN = 8
"""Hosts of each version that are listed, the soonest first; `-o json` has all of them."""


def stages(decision: inference_pb2.Decision) -> dict[str, float]:
    """Seconds of each stage that happened, the total last."""
    times = decision.stages
    return {spec.name: seconds(value) for spec, value in times.ListFields()}


def decision(found: inference_pb2.Decision) -> Table:
    """How an answer came about, a fact a line."""
    times = stages(found)
    total_s = times.pop("total", None)
    parts = " + ".join(f"{name} {span_of_time(value)}" for name, value in times.items())
    made = Table(box=None, pad_edge=False, show_header=False)

    def row(name: str, value: str | Text) -> None:
        made.add_row(Text(name, style="dim"), value if isinstance(value, Text) else Text(value))

    row("route", _chosen(found))
    how = f"{found.strategy}, revision {found.registry_revision}"
    row("reason", f"{found.reason} ({how})" if found.reason else how)
    if found.arm:
        row("part", f"{found.arm}, {100.0 * found.propensity:.4g} % of the calls")
    elif found.HasField("propensity"):
        row("chance", f"{100.0 * found.propensity:.4g} %" + (", tried to learn of it" if found.explored else ""))
    if found.degraded_reason:
        row("degraded", Text(found.degraded_reason, style="yellow"))
    if found.refusal:
        row("refused now", Text(found.refusal, style="yellow"))
    for step in found.steps:
        row("step", _step(step))
    if total_s is not None:
        batch = f", batch of {found.batch_size}" if found.batch_size else ""
        row("time", f"{span_of_time(total_s)} = {parts}{batch}")
    if found.model:
        quality = f", quality {found.quality:.3f}" if found.HasField("quality") else ""
        row("cost", f"{found.cost_microusd} µ$ a call{quality}")
    if found.HasField("cost_weight"):
        row("price", f"a µ$ is worth {found.cost_weight:.4g} of quality")
    if found.HasField("service_class"):
        of = found.service_class
        whom = " of ".join(part for part in (of.tenant, of.tier) if part)
        row("for", f"{whom or 'nobody in particular'}, band {of.band}")
    if found.HasField("deadline"):
        source = inference_pb2.DeadlineSource.Name(found.deadline_source).removeprefix("DEADLINE_SOURCE_")
        row("deadline", f"{span_of_time(seconds(found.deadline))} ({source.lower().replace('_', ' ')})")
    if len(found.attempts) > 1:
        tries = (f"{each.host} {each.status} {span_of_time(seconds(each.duration))}" for each in found.attempts)
        row("attempts", ", ".join(tries))
    if found.trace_id:
        row("trace", found.trace_id)
    return made


def _chosen(found: inference_pb2.Decision) -> Text:
    if found.model:
        return Text(f"{found.route} → {found.model}:{found.version}@{found.host}", style="bold")
    if found.steps:
        return Text(f"{found.route} → {found.strategy}", style="bold")
    return Text.assemble((f"{found.route} → ", "bold"), ("no host", "bold yellow"))


def _step(step: inference_pb2.DecisionStep) -> str:
    asked = f" → {step.model}:{step.version}@{step.host}" if step.model else ""
    ended = " ".join(
        part
        for part in (step.status, span_of_time(seconds(step.duration)) if step.HasField("duration") else "")
        if part
    )
    return f"{step.name}{asked}" + (f" {ended}" if ended else "") + (f": {step.reason}" if step.reason else "")


def candidates(found: Sequence[inference_pb2.Candidate], chosen: inference_pb2.Decision) -> RenderableType:
    """The versions that were looked at, best first; why some could not be chosen; and the hosts of each.

    Each has lines of its own: what is filtered and why is a sentence, and does not fit into a column.
    """
    ordered = sorted(found, key=lambda each: (not _is(each, chosen), bool(each.filtered), -each.score))
    if not ordered:
        return Text("no version was looked at", style="dim")
    scored = any(each.score for each in ordered)
    parts: list[RenderableType] = [Text(), _versions(ordered, chosen, scored=scored)]
    filtered = [each for each in ordered if each.filtered]
    if filtered:
        parts.append(Text("\nNOT CHOSEN BECAUSE", style="bold"))
    for each in filtered:
        parts.append(Text(_name(each), style="yellow"))
        parts.append(Padding(Text(each.filtered), (0, 0, 0, 4)))
    hosts = [each for each in ordered if each.hosts]
    if hosts:
        parts += [Text(), _hosts(hosts, chosen)]
    return Group(*parts)


def _versions(found: Iterable[inference_pb2.Candidate], chosen: inference_pb2.Decision, *, scored: bool) -> Table:
    found = list(found)
    learned = any(each.HasField("service_time") for each in found)
    more = ("compute p95", "late", "seen") if learned else ()
    made = _table("candidate", *(("score",) if scored else ()), "quality", "cost", "predicted", *more, right=True)
    made.add_column("")
    for each in found:
        if _is(each, chosen):
            word = Text("chosen", style="green")
        else:
            word = Text("filtered", style="yellow") if each.filtered else Text("")
        cells = [
            Text("-" if each.filtered else f"{each.score:.4f}"),
            Text(f"{each.quality:.3f}" if each.HasField("quality") else "-"),
            Text(f"{each.cost_microusd} µ$"),
            Text(span_of_time(seconds(each.predicted)) if each.HasField("predicted") else "-"),
            *(_learned(each) if learned else ()),
        ]
        made.add_row(Text(_name(each), style="bold"), *(cells if scored else cells[1:]), word)
    return made


def _standing(host: inference_pb2.HostScore, *, chosen: bool) -> Text:
    """Whether it was chosen, and what speaks against it."""
    said = Text("chosen" if chosen else "", style="green")
    if host.trouble:
        state = inference_pb2.CircuitState.Name(host.circuit).removeprefix("CIRCUIT_STATE_").lower().replace("_", " ")
        said.append(" " if chosen else "").append(
            f"{'ejected' if host.ejected else state}: {host.trouble}", style="red"
        )
    return said


def _learned(each: inference_pb2.Candidate) -> Iterator[Text]:
    """What is known of its times and quality for such calls, and from how many answers and labels."""
    yield Text(span_of_time(seconds(each.service_time_p95)) if each.HasField("service_time_p95") else "-")
    yield Text(f"{each.late:.1%}" if each.HasField("late") else "-")
    yield Text(f"{each.answers:.0f} answers, {each.labels:.0f} labels")


def _hosts(found: Iterable[inference_pb2.Candidate], chosen: inference_pb2.Decision) -> Table:
    made = _table("host", "predicted", "ahead", "penalty", right=True)
    made.add_column("ZONE", header_style="bold")
    made.add_column("")
    for each in found:
        made.add_row(Text(_name(each), style="bold"))
        soonest = sorted(each.hosts, key=lambda host: seconds(host.predicted) + seconds(host.penalty))
        for host in soonest[:HOSTS_SHOWN]:
            penalty_s = seconds(host.penalty)
            made.add_row(
                Text(f"  {host.host}"),
                Text(span_of_time(seconds(host.predicted))),
                Text(str(host.backlog)),
                Text(f"+{span_of_time(penalty_s)}", style="red") if penalty_s else Text("-"),
                Text(host.zone or "-"),
                _standing(host, chosen=_is(each, chosen) and host.host == chosen.host),
            )
        if len(soonest) > HOSTS_SHOWN:
            made.add_row(Text(f"  and {len(soonest) - HOSTS_SHOWN} more", style="dim"))
    return made


def _table(first: str, *others: str, right: bool) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    made.add_column(first.upper(), overflow="fold")
    for name in others:
        made.add_column(name.upper(), justify="right" if right else "left", no_wrap=True)
    return made


def _name(candidate: inference_pb2.Candidate) -> str:
    return f"{candidate.model}:{candidate.version}"


def _is(candidate: inference_pb2.Candidate, chosen: inference_pb2.Decision) -> bool:
    return not candidate.filtered and (candidate.model, candidate.version) == (chosen.model, chosen.version)
