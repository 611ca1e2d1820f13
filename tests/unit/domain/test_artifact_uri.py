import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.domain.artifact_uri import BadUri, parse_place, parse_uri

HOSTILE = [
    "",
    "/models/x",
    "file:relative/x",
    "file://elsewhere/x",
    "file:/a/../b",
    "file:/a/%2e%2e/b",
    "file:/a/b/",
    "file:/a%00b",
    "file:/a\0b",
    "file:/a?x=1",
    "file:/a#x",
    " file:/a",
    "FILE:/a",
    "http://good.example/x",
    "ftp://good.example/x",
    "gopher://good.example/x",
    "data:text/plain,x",
    "unix:/run/x.sock",
    "https:/good.example/x",
    "https:good.example/x",
    "https:///x",
    "https://good.example",
    "https://good.example/",
    "https://good.example/x/",
    "https://user@good.example/x",
    "https://user:pw@good.example/x",
    "https://good.example@evil.example/x",
    "https://good.example\\@evil.example/x",
    "https://good.example\t.evil.example/x",
    "https://good.example\n/x",
    "https://good.example:port/x",
    "https://good.example:99999/x",
    "https://good.example./x",
    "https://good..example/x",
    "https://g\u043e\u043ed.example/x",
    "https://%67ood.example/x",
    "https://[::1/x",
    "https://[fe80::1%25eth0]/x",
    "https://[good.example]/x",
    "https://good.example/../x",
    "https://good.example/a/%2e%2E/x",
    "https://good.example/a/..;v=1/x",
    "https://good.example/a/..%2fx",
    "https://good.example/a%5cx",
    "https://good.example/%252e%252e/x",
    "https://good.example/a//x",
    "https://good.example/a/./x",
    "https://good.example/x?token=secret",
    "https://good.example/x#part",
    "https://good.example/a%0d%0aHost:%20evil",
    "s3:///key",
    "s3://b/key",
    "s3://Bucket/key",
    "s3://user@bucket/key",
    "s3://bucket/../other/key",
    "s3://bucket/a//key",
    "s3://bucket",
    "mlflow:/models/m/1/f",
    "mlflow://user:pw@server/models/m/1/f",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_can_be_read_in_two_ways_is_no_uri(text: str) -> None:
    with pytest.raises(BadUri) as refused:
        parse_uri(text)
    assert str(refused.value).isprintable()
    assert "pw@" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("file:/a/b c", "file:/a/b c"),
        ("file:///a//./b%20c", "file:/a/b c"),
        ("file://localhost/a", "file:/a"),
        ("https://Good.Example:443/a/b%20c", "https://good.example/a/b%20c"),
        ("https://good.example:8443/~x/v1.0+cpu", "https://good.example:8443/~x/v1.0%2Bcpu"),
        ("https://[0:0::1]/x", "https://[::1]/x"),
        ("s3://my-bucket/a/100%/b c", "s3://my-bucket/a/100%/b c"),
        ("mlflow://server:5000/models/m/1/w.onnx", "mlflow://server:5000/models/m/1/w.onnx"),
    ],
)
def test_a_uri_has_one_normal_spelling(text: str, normal: str) -> None:
    assert str(parse_uri(text)) == normal
    assert parse_uri(str(parse_uri(text))) == parse_uri(text)


@pytest.mark.parametrize(
    ("text", "place", "within"),
    [
        ("file:/models/a", "file:", True),
        ("file:/models/a", "file:/models", True),
        ("file:/models/a", "file:/models/", True),
        ("file:/models-of-others/a", "file:/models", False),
        ("file:/a", "file:/a", True),
        ("https://good.example/models/a", "https://good.example", True),
        ("https://good.example/models/a", "https://GOOD.example:443/models/", True),
        ("https://good.example/%6dodels/a", "https://good.example/models", True),
        ("https://good.example/models-x/a", "https://good.example/models", False),
        ("https://good.example.evil.example/a", "https://good.example", False),
        ("https://evil.example/good.example/a", "https://good.example", False),
        ("https://good.example:8443/a", "https://good.example", False),
        ("https://good.example/a", "file:", False),
        ("s3://bucket/models/a", "s3://bucket/models", True),
        ("s3://bucket-2/models/a", "s3://bucket", False),
        ("mlflow://good.example/models/m/1/f", "https://good.example", False),
    ],
)
def test_places_are_compared_part_by_part(text: str, place: str, within: bool) -> None:
    assert parse_uri(text).within(parse_place(place)) is within


@given(st.text(max_size=60), st.sampled_from(["file:/", "https://good.example/", "s3://bucket/", ""]))
def test_every_text_is_a_uri_or_refused_in_one_line(text: str, begins: str) -> None:
    try:
        parsed = parse_uri(begins + text)
    except BadUri as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert not {"..", ".", ""} & set(parsed.segments)
        assert "\0" not in parsed.path
