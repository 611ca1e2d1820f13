"""Labels find the version that answered, count once, and change later choices."""

from pathlib import Path

import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.errors import CallNotFound, InvalidRequest, ModelNotFound, VersionNotFound
from services.domain.request import RouteOptions
from services.policy.complexity import Kind
from services.router.label_wire import label_from
from services.router.labelling import KEPT_AT_FIRST, Label, Labelling
from tests.unit.router.logged import LoggedWorld
from tests.unit.router.test_learned_choice import a_world
from tests.unit.router.yards import World, a_call, rated


def labelling(world: World) -> Labelling:
    """Who takes labels."""
    return world.pipeline.labelling


async def ask(world: World, name: str, request_id: str, options: RouteOptions | None = None) -> str:
    """A call; the model that answered."""
    decision = await world.decide(a_call(name, request_id=request_id, options=options), remaining_s=5.0)
    assert decision.version is not None
    return decision.version.metadata.name


async def test_labels_of_a_domain_change_the_choice_for_it_and_for_no_other() -> None:
    world = a_world()
    law = RouteOptions(domain="law")
    for number in range(20):
        if await ask(world, "best", f"r{number}", law) == "large":
            labelling(world).take(Label(f"r{number}", 0.2))

    assert await ask(world, "best", "after", law) == "small"
    assert await ask(world, "best", "other") == "large"


async def test_a_label_says_what_it_was_learned_for() -> None:
    world = a_world()
    await ask(world, "best", "r1", RouteOptions(domain="law", complexity="hard"))

    found = labelling(world).take(Label("r1", 0.3))

    assert (found.key.model, found.kind, found.reason) == ("large", Kind("law", "hard"), "")
    assert found.quality is not None
    assert found.quality < 0.9
    assert world.notes.labels == ["learned"]


async def test_the_same_label_counts_once_and_the_first_one_holds() -> None:
    world = a_world()
    await ask(world, "best", "r1")

    first = labelling(world).take(Label("r1", 0.3))
    again = [labelling(world).take(Label("r1", quality)) for quality in (0.3, 1.0)]

    assert [each.quality for each in again] == [first.quality] * 2
    assert all("the first label holds" in each.reason for each in again)
    assert world.notes.labels == ["learned", "repeated", "repeated"]


async def test_a_label_of_another_metric_is_not_learned() -> None:
    world = a_world()
    await ask(world, "best", "r1")

    found = labelling(world).take(Label("r1", 0.1, metric="politeness"))

    assert "'politeness' is not what the version's quality is measured by" in found.reason
    assert found.quality == 0.9
    assert world.notes.labels == ["kept"]


async def test_an_answer_of_a_route_to_one_model_is_labelled_too() -> None:
    world = a_world()
    await ask(world, "one", "r1")

    found = labelling(world).take(Label("r1", 0.1))

    assert found.key.model == "large"
    assert found.kind == Kind()


async def test_an_unknown_call_is_refused_with_what_to_do() -> None:
    world = a_world()

    with pytest.raises(CallNotFound, match="name model, version, domain and complexity"):
        labelling(world).take(Label("never", 0.5))
    with pytest.raises(ModelNotFound):
        labelling(world).take(Label("never", 0.5, model="nobody", version="1.0.0"))
    with pytest.raises(VersionNotFound):
        labelling(world).take(Label("never", 0.5, model="large", version="9.9.9"))
    assert world.notes.labels == ["unknown"] * 3


async def test_a_call_of_another_process_is_labelled_by_what_its_decision_said_once() -> None:
    world = a_world()
    label = Label("theirs", 0.3, model="large", version="1.0.0", domain="law", complexity="4x1")

    first, second = labelling(world).take(label), labelling(world).take(label)

    assert first.kind == Kind("law", "4x1")
    assert first.reason == ""
    assert second.reason
    with pytest.raises(InvalidRequest, match=r"was answered by large:1\.0\.0"):
        labelling(world).take(label._replace(model="small"))


async def test_only_the_last_answers_are_known() -> None:
    world = a_world(rated("small", "2.0.0"))
    world.pipeline.labelling = kept = Labelling(
        tables=labelling(world)._tables, views=world.catalog, feedback=world.notes, clock=world.clock, log=None, kept=3
    )
    for number in range(5):
        await ask(world, "one", f"r{number}")

    assert kept.take(Label("r2", 0.5)).reason == ""
    with pytest.raises(CallNotFound):
        kept.take(Label("r1", 0.5))


async def test_labels_are_written_down_and_the_choices_after_them_are_replayed(tmp_path: Path) -> None:
    world = LoggedWorld(tmp_path)
    for number in range(300):
        await world._ask(world.call(number))
        try:
            world.pipeline.labelling.take(Label(f"r{number}", world.chance.random(), segment="vip"))
        except CallNotFound:
            continue
    world.log.close()

    found = world.replay()

    assert found.first is None
    assert found.labels > 100
    learned = [each for entry in world.entries() for each in entry.choice.evidence if each.domain.quality.weight > 1.0]
    assert learned
    label = next(entry.label for entry in world.entries() if entry.WhichOneof("entry") == "label")
    assert (label.segment, label.learned) == ("vip", True)


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        (pb.FeedbackRequest(quality=0.5), "request_id: must be that of the call"),
        (pb.FeedbackRequest(request_id="r"), "quality: is missing, and so is cost_microusd"),
        (pb.FeedbackRequest(request_id="r", quality=1.5), "quality: 1.5 must be in [0, 1]"),
        (pb.FeedbackRequest(request_id="r", quality=float("nan")), "quality: nan must be in [0, 1]"),
        (pb.FeedbackRequest(request_id="r", cost_microusd=-1.0), "cost_microusd: -1.0 must be finite"),
        (pb.FeedbackRequest(request_id="r", quality=1, model="m"), "version: stands together with model"),
        (pb.FeedbackRequest(request_id="r", quality=1, domain="d"), "model: is missing"),
        (pb.FeedbackRequest(request_id="r", quality=1, metric="x" * 65), "metric: has a text of 65 characters"),
    ],
)
def test_what_is_no_label_is_refused(request_: pb.FeedbackRequest, fault: str) -> None:
    with pytest.raises(InvalidRequest, match=r".") as refused:
        label_from(request_)

    assert fault in str(refused.value)


def test_a_label_comes_as_it_was_sent() -> None:
    request = pb.FeedbackRequest(
        request_id="r", quality=0.5, metric="f1", segment="vip", cost_microusd=3.0, model="m", version="1.0.0",
        domain="law", complexity="hard",
    )  # fmt: skip

    assert label_from(request) == Label("r", 0.5, "f1", "vip", 3.0, "m", "1.0.0", "law", "hard")


async def test_few_answers_are_known_until_somebody_labels_one() -> None:
    world = a_world()
    for number in range(KEPT_AT_FIRST + 1):
        await ask(world, "best", f"r{number}")

    with pytest.raises(CallNotFound, match=f"among the last {KEPT_AT_FIRST} "):
        labelling(world).take(Label("r0", 1.0))

    labelling(world).take(Label("r1", 1.0))
    for number in range(KEPT_AT_FIRST + 1):
        await ask(world, "best", f"s{number}")
    assert not labelling(world).take(Label("s0", 1.0)).reason
