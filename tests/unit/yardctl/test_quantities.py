import pytest
from hypothesis import given
from hypothesis import strategies as st

from yardctl.quantities import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("30s", 30 * 10**9),
        ("250ms", 250 * 10**6),
        ("1m30s", 90 * 10**9),
        ("1.5s", 1_500_000_000),
        ("2h", 7200 * 10**9),
        ("7ns", 7),
        ("-5us", -5000),
        ("0s", 0),
    ],
)
def test_durations_are_read_exactly(text: str, nanos: int) -> None:
    assert parse_duration(text) == nanos


@pytest.mark.parametrize("text", ["", "30", "s", "30 s", "1.s", "30sec", "1s-", "0.1ns", "--1s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|nanosecond"):
        parse_duration(text)


@given(st.integers(min_value=-(10**20), max_value=10**20))
def test_every_duration_is_written_so_that_it_reads_back(nanos: int) -> None:
    assert parse_duration(format_duration(nanos)) == nanos


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("512MiB", 512 << 20), ("2GB", 2 * 10**9), ("1.5KiB", 1536), ("3 GiB", 3 << 30), ("9B", 9)]
)
def test_sizes_are_read_exactly(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "512", "MiB", "1mib", "0.3B", "1e3MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|whole number"):
        parse_size(text)


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_every_size_is_written_so_that_it_reads_back(size_bytes: int) -> None:
    written = format_size(size_bytes)

    assert (written if isinstance(written, int) else parse_size(written)) == size_bytes
