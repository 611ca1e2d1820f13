"""Run files, and who may change them."""

from pathlib import Path

import pytest

from services.domain.errors import StaleFencingToken
from services.resource_manager.launchers.run_directory import LauncherBusy, RunDirectory, RunFile


def an_entry(name: str = "cpu-0", *, pid: int = 12, pool: str = "cpu") -> RunFile:
    return RunFile(name=name, pid=pid, create_time=1.5, argv=["a", "b"], address="127.0.0.1:7610", pool=pool)


def test_what_is_written_is_read_back_and_removed(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    with files.guarded(1):
        files.write(an_entry())

    assert files.hosts() == {"cpu-0": an_entry()}
    assert files.hosts()["cpu-0"].port == 7610
    files.remove("cpu-0")
    files.remove("cpu-0")
    assert files.hosts() == {}


def test_files_of_other_processes_and_broken_ones_are_left_alone(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    with files.guarded(1):
        files.write(an_entry("router", pool=""))
    (tmp_path / "run" / "half.json").write_text('{"name": "half", "pid"')
    (tmp_path / "run" / "other.json").write_text('{"name": "other", "pid": 3, "started": "yesterday"}')

    assert files.hosts() == {}


def test_only_one_may_change_things_at_a_time(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).guarded(1), pytest.raises(LauncherBusy), RunDirectory(tmp_path).guarded(1):
        pass


def test_an_earlier_leader_is_refused_once_a_later_one_was_here(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    with files.guarded(7):
        pass
    with files.guarded(12):
        pass

    with pytest.raises(StaleFencingToken, match="token 7 is below 12"), files.guarded(7):
        pass
    with files.guarded(12):
        pass


def test_a_new_election_begins_anew_where_nothing_of_the_old_one_runs(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    with files.guarded(900):
        pass

    with files.guarded(3, seize=True):
        pass

    with files.guarded(3):
        pass
