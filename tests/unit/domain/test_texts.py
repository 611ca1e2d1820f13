"""Names, labels and notes: what they may hold, and that what they may not is shown harmlessly."""

import pytest

from services.domain.texts import (
    MAX_LABELS,
    annotation_faults,
    is_dns_label,
    label_faults,
    line_faults,
    name_faults,
    note_faults,
    shown,
)


@pytest.mark.parametrize("name", ["", "A", "a.b", "..", "a/b", "-a", "a-", "a\n", "a\x00", "ä", "a" * 64, "a b"])
def test_what_is_no_dns_label_names_nothing(name: str) -> None:
    (fault,) = name_faults(name, "metadata.name")

    assert fault.path == "metadata.name"
    assert "must be 1 to 63 lower-case letters, digits and hyphens" in fault.message
    assert fault.message.isprintable()


def test_dns_labels_name_objects() -> None:
    assert all(is_dns_label(name) for name in ("a", "0", "a-0", "a" * 63))
    assert name_faults("a-0", "metadata.name") == []


def test_a_text_is_shown_on_one_line_and_cut() -> None:
    assert shown("a\nb\x1b[31m\u202e") == r"'a\nb\x1b[31m\u202e'"
    assert shown("x" * 1_000_000) == f"'{'x' * 64}...'"


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("", "v", "labels: the key '' must be 1 to 128 letters"),
        ("a..b", "v", "labels: the key 'a..b' must be"),
        ("../etc", "v", "labels: the key '../etc' must be"),
        ("a b", "v", "labels: the key 'a b' must be"),
        ("a\x00", "v", r"labels: the key 'a\x00' must be"),
        ("k" * 129, "v", "labels: the key 'kkk"),
        ("team", "a\nb", r"labels[team]: 'a\nb' must be one line of printable characters"),
        ("team", "v" * 129, "labels[team]: has 129 characters, at most 128"),
    ],
)
def test_a_label_that_is_not_well_formed_is_named(key: str, value: str, fault: str) -> None:
    (found,) = label_faults({key: value}, "labels")

    assert str(found).startswith(fault)


def test_labels_and_annotations_that_are_well_formed_pass() -> None:
    assert label_faults({"team": "vision", "example.com/cost-centre": "4711 / ä", "a": ""}, "labels") == []
    assert annotation_faults({"why": "first line\n\tsecond line"}, "annotations") == []


def test_a_million_labels_are_one_fault() -> None:
    crowd = {f"key-{number}": "" for number in range(1_000_000)}

    assert [str(fault) for fault in label_faults(crowd, "labels")] == [
        f"labels: has 1000000 entries, at most {MAX_LABELS}"
    ]
    assert len(annotation_faults(crowd, "annotations")) == 1


def test_an_annotation_is_longer_than_a_label_but_not_endless() -> None:
    assert annotation_faults({"why": "x" * 4096}, "annotations") == []
    assert "at most 4096" in str(annotation_faults({"why": "x" * 4097}, "annotations")[0])
    assert "must be printable" in str(annotation_faults({"why": "\x07"}, "annotations")[0])


def test_a_line_has_no_breaks_and_a_note_may() -> None:
    assert line_faults("one line", "owner") == []
    assert len(line_faults("two\nlines", "owner")) == 1
    assert [str(fault) for fault in line_faults("", "owner", needed=True)] == ["owner: must not be empty"]
    assert note_faults("two\nlines", "description") == []
    assert len(note_faults("a\x00b", "description")) == 1
