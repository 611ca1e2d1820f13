from pathlib import Path

from yardctl.logs import Follower, last_words, readable, tail


def test_the_last_lines_of_a_long_file_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"line {number} {'x' * 100}\n" for number in range(5_000)))

    assert [line.split()[1] for line in tail(path, 3)] == ["4997", "4998", "4999"]
    assert len(tail(path, 10_000)) == 5_000
    assert tail(path, 0) == []
    assert tail(tmp_path / "absent", 3) == []


def test_following_gives_whole_new_lines_and_finds_new_files(tmp_path: Path) -> None:
    old = tmp_path / "old.log"
    old.write_text("before\n")
    follower = Follower(tmp_path)
    follower.skip()

    with old.open("a") as file:
        file.write("one\ntw")
    first = list(follower.new_lines())
    with old.open("a") as file:
        file.write("o\n")
    (tmp_path / "new.log").write_text("hello\n")

    assert first == [("old", "one")]
    assert list(follower.new_lines()) == [("new", "hello"), ("old", "two")]
    assert list(follower.new_lines()) == []


def test_json_lines_are_made_readable_and_others_left_as_they_are() -> None:
    line = '{"time":"2026-01-02T03:04:05.678901Z","level":"info","message":"loaded","service":"x","model":"a"}'

    assert readable(line) == "03:04:05.678 info loaded model=a"
    assert readable("plain [text]") == "plain [text]"
    assert readable("{broken") == "{broken"


def test_last_words_are_the_cause_not_the_chatter(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(
        '{"level":"info","message":"starting"}\n'
        '{"level":"error","message":"cannot start","exception":"Traceback\\nOSError: no room"}\n'
        '{"level":"info","message":"stopping"}\n\n'
    )

    assert last_words(path) == "cannot start: OSError: no room"
    path.write_text("registry: cannot start: port 1 is in use\n")
    assert last_words(path) == "registry: cannot start: port 1 is in use"
    assert last_words(tmp_path / "absent") == ""
