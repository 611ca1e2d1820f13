"""A second run does nothing where nothing changed, and everything where something did."""

from pathlib import Path

import pytest

from examples.zoo import stamp


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "digits.yaml").write_text("kind: Model")
    stamp.write(tmp_path, "before", [tmp_path / "manifests" / "digits.yaml"])
    return tmp_path


def test_what_was_made_is_fresh_as_long_as_causes_and_results_are_the_same(made: Path) -> None:
    assert stamp.is_fresh(made, "before")
    assert not stamp.is_fresh(made, "after")


def test_a_changed_result_is_made_again(made: Path) -> None:
    (made / "manifests" / "digits.yaml").write_text("kind: Route")

    assert not stamp.is_fresh(made, "before")


def test_a_missing_result_is_made_again(made: Path) -> None:
    (made / "manifests" / "digits.yaml").unlink()

    assert not stamp.is_fresh(made, "before")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"fingerprint": "before"}', '{"fingerprint": "before", "files": []}'])
def test_a_broken_stamp_is_none(made: Path, text: str) -> None:
    (made / stamp.STAMP).write_text(text)

    assert not stamp.is_fresh(made, "before")


def test_a_folder_that_is_not_there_is_not_fresh(tmp_path: Path) -> None:
    assert not stamp.is_fresh(tmp_path / "none", "before")


def test_the_fingerprint_changes_with_code_data_and_names_but_not_with_other_files(tmp_path: Path) -> None:
    source = tmp_path / "zoo"
    source.mkdir()
    (source / "train.py").write_text("seed = 1")

    def fingerprint() -> str:
        return stamp.fingerprint_of([source], packages=["numpy"], root=tmp_path)

    first = fingerprint()
    (source / "notes.md").write_text("read me")
    assert fingerprint() == first

    (source / "train.py").write_text("seed = 2")
    second = fingerprint()
    (source / "train.py").rename(source / "fit.py")

    assert len({first, second, fingerprint()}) == 3
