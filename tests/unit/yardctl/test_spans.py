from pathlib import Path

from yardctl.spans import CURRENT, PREVIOUS, SpanLink, SpanWriter, StoredSpan, read_spans


def span(number: int) -> StoredSpan:
    return StoredSpan(
        trace_id="a" * 32,
        span_id=f"{number:016x}",
        name="work",
        start_ns=number,
        end_ns=number + 1,
        attributes={"rows": 3, "names": ["x"], "ratio": 0.5, "ok": True},
        links=[SpanLink("b" * 32, "c" * 16)],
    )


def test_spans_read_back_as_they_were_written(tmp_path: Path) -> None:
    writer = SpanWriter(tmp_path)

    writer.write([span(1), span(2)])
    writer.write([])
    writer.write([span(3)])

    assert list(read_spans(tmp_path)) == [span(1), span(2), span(3)]


def test_the_store_keeps_two_files_of_bounded_size(tmp_path: Path) -> None:
    writer = SpanWriter(tmp_path, file_bytes=2_000)

    for number in range(100):
        writer.write([span(number)])

    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, CURRENT]
    assert all(path.stat().st_size <= 2_000 for path in tmp_path.iterdir())
    kept = [each.start_ns for each in read_spans(tmp_path)]
    assert kept == list(range(kept[0], 100)), "the newest are kept, in order"
    assert len(kept) > 6


def test_a_half_written_line_hides_no_other(tmp_path: Path) -> None:
    SpanWriter(tmp_path).write([span(1)])
    with (tmp_path / CURRENT).open("ab") as file:
        file.write(b'{"trace_id": "a\n[]\n')
    SpanWriter(tmp_path).write([span(2)])

    assert list(read_spans(tmp_path)) == [span(1), span(2)]
    assert list(read_spans(tmp_path / "absent")) == []
