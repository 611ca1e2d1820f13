"""Readers get one object, or pages in order, and are told what is near what they missed."""

from dataclasses import replace

import pytest

from services.domain.errors import InvalidRequest, ObjectNotFound
from services.domain.objects import Metadata, Object, ObjectKey
from services.policy.tree_diff import Action, Change
from services.registry import layout, lookup
from services.registry.layout import State
from services.registry.ports import Note
from tests.fakes.objects import a_model, a_pool, a_version


def state_of(*items: Object) -> State:
    entries = {item.key: layout.entry_to(item) for item in items}
    changes = [Change(Action.CREATE, key) for key in entries]
    return layout.draft(State(), entries, changes, Note("", "", "r", 0.0)).state


STATE = state_of(
    a_pool(),
    a_model("minilm"),
    replace(a_model("vad"), metadata=Metadata("vad", {"team": "audio", "tier": "gold"})),
    *(a_version("minilm", version) for version in ("1.10.0", "1.9.0", "1.9.0-rc.1")),
)


def names(state: State, **asked: object) -> list[str]:
    query = {"kind": "", "labels": {}, "revision": 0, "page_size": 0, "page_token": ""} | asked
    return [str(entry.item.key) for entry in lookup.page(state, lookup.query(**query)).entries]  # type: ignore[arg-type]


def test_objects_come_in_order_of_kind_name_and_semver() -> None:
    assert names(STATE) == [
        "Model/minilm",
        "Model/vad",
        "ModelVersion/minilm/1.9.0-rc.1",
        "ModelVersion/minilm/1.9.0",
        "ModelVersion/minilm/1.10.0",
        "Pool/cpu",
    ]


def test_kind_and_labels_filter() -> None:
    assert names(STATE, kind="Model") == ["Model/minilm", "Model/vad"]
    assert names(STATE, labels={"team": "audio"}) == ["Model/vad"]
    assert names(STATE, labels={"team": "audio", "tier": "silver"}) == []


def test_a_label_that_only_looks_alike_does_not_count() -> None:
    annotated = replace(a_model("a"), metadata=Metadata("a", {"tier": "golden"}, {"tier": "gold"}))
    state = state_of(annotated, replace(a_model("b"), metadata=Metadata("b", {"tier": "gold", "empty": ""})))

    assert names(state, labels={"tier": "gold"}) == ["Model/b"]
    assert names(state, labels={"tier": "gol"}) == []
    assert names(state, labels={"empty": ""}) == ["Model/b"]


def test_pages_leave_nothing_out_and_repeat_nothing() -> None:
    found: list[str] = []
    token = ""
    for _ in range(10):
        page = lookup.page(STATE, lookup.query("", {}, 0, 4, token))
        found += [str(entry.item.key) for entry in page.entries]
        token = page.next_token
        if not token:
            break

    assert found == names(STATE)


def test_a_page_names_the_revision_of_the_first_one() -> None:
    page = lookup.page(STATE, lookup.query("", {}, 0, 1, ""))

    assert lookup.query("", {}, 0, 1, page.next_token).revision == STATE.revision


def test_a_page_ends_early_when_its_objects_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "PAGE_BYTES", 1)

    assert len(names(STATE)) == 1


@pytest.mark.parametrize("token", ["nonsense", "bm9uc2Vuc2U", "WzFd"])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest, match="page_token"):
        lookup.query("", {}, 0, 0, token)


def test_a_token_of_another_query_is_refused() -> None:
    token = lookup.page(STATE, lookup.query("", {}, 0, 1, "")).next_token

    with pytest.raises(InvalidRequest, match="another kind or other labels"):
        lookup.query("Model", {}, 0, 1, token)


def test_every_fault_of_a_query_comes_at_once() -> None:
    with pytest.raises(InvalidRequest) as refused:
        lookup.query("Secret", {}, -1, -2, "")

    assert [fault.path for fault in refused.value.faults] == ["kind", "revision", "page_size"]


def test_what_is_near_a_missing_object_is_named() -> None:
    with pytest.raises(ObjectNotFound, match="revision 1 has no Model/minilmm; near it: minilm"):
        lookup.get(STATE, ObjectKey("Model", "minilmm"))
    with pytest.raises(ObjectNotFound, match=r"'minilm' has 1\.10\.0, 1\.9\.0, 1\.9\.0-rc\.1"):
        lookup.get(STATE, ObjectKey("ModelVersion", "minilm", "2.0.0"))


def test_among_very_many_those_around_a_missing_object_are_named() -> None:
    state = state_of(*(a_model(f"m-{number:04}") for number in range(3 * lookup.LOOKED_AT)))

    with pytest.raises(ObjectNotFound, match="near it: m-0700"):
        lookup.get(state, ObjectKey("Model", "m-0700x"))
