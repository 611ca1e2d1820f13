import hashlib
import json
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.domain.artifact_uri import ArtifactUri, BadUri
from services.domain.clock import SystemClock
from services.domain.errors import ArtifactRejected
from services.domain.objects import Artifact
from services.model_host.artifacts import ArtifactStore
from services.model_host.config import Config
from services.model_host.fetching import sources_of
from services.model_host.sources import Places, Sources, Stream
from services.model_host.web_source import Patience
from tests.support.https_server import Exchange, HttpsServer

BODY = b"weights" * 100_000
HURRIED = Patience(connect_s=5.0, head_s=0.4, idle_s=0.4, least_bytes_per_s=1 << 20)
CALM = Patience(connect_s=5.0, head_s=10.0, idle_s=10.0)


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpsServer]:
    with HttpsServer(tmp_path) as running:
        yield running


@pytest.fixture
def store(server: HttpsServer, tmp_path: Path) -> ArtifactStore:
    return store_of(tmp_path, server, server.url)


def store_of(
    tmp_path: Path, server: HttpsServer, *places: str, netrc: Path | None = None, patience: Patience = CALM
) -> ArtifactStore:
    config = Config("h", "p", artifact_sources=places, ca_file=server.ca_file, netrc_file=netrc)
    made = ArtifactStore(
        tmp_path / "cache", sources=sources_of(config, SystemClock(), patience), max_bytes=2 * len(BODY)
    )
    made.prepare()
    return made


def nothing_is_kept(tmp_path: Path) -> bool:
    return not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or "incoming" in path.name]


# --- files ---------------------------------------------------------------------------------------


def fetch_file(tmp_path: Path, place: str, path: Path) -> bytes:
    config = Config("h", "p", artifact_sources=(place,))
    fresh = Path(tempfile.mkdtemp(dir=tmp_path))  # what is cached is not read again
    store = ArtifactStore(fresh, sources=sources_of(config, SystemClock()), max_bytes=1 << 20)
    store.prepare()
    return store.fetch(Artifact(f"file:{path}", sha256(b"w"))).read_bytes()


def test_an_allowed_folder_is_not_left_by_links(tmp_path: Path) -> None:
    inside, outside = tmp_path / "models" / "a", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
        (folder / "w.bin").write_bytes(b"w")
    (tmp_path / "models" / "way-out").symlink_to(outside)
    (inside / "link.bin").symlink_to(inside / "w.bin")
    place = f"file:{tmp_path}/models"

    assert fetch_file(tmp_path, place, inside / "w.bin") == b"w"
    for path, said in (
        (outside / "w.bin", "is not in what this host may fetch from"),
        (tmp_path / "models" / "way-out" / "w.bin", "'way-out' below .* is a link or no folder"),
        (inside / "w.bin" / "x", "'w.bin' below .* is a link or no folder"),
        (inside / "link.bin", "is a link"),
        (inside, "not a plain file"),
    ):
        with pytest.raises(ArtifactRejected, match=said):
            fetch_file(tmp_path, place, path)
    with pytest.raises(ArtifactRejected, match="No such file"):
        fetch_file(tmp_path, place, inside / "none")


def test_an_allowed_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "w.bin").write_bytes(b"w")
    (tmp_path / "models").symlink_to(tmp_path / "real")
    assert fetch_file(tmp_path, f"file:{tmp_path}/models", tmp_path / "models" / "w.bin") == b"w"


def test_a_single_file_can_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"w")
    (tmp_path / "x.bin").write_bytes(b"w")
    assert fetch_file(tmp_path, f"file:{tmp_path}/w.bin", tmp_path / "w.bin") == b"w"
    with pytest.raises(ArtifactRejected, match="may fetch from"):
        fetch_file(tmp_path, f"file:{tmp_path}/w.bin", tmp_path / "x.bin")


class Growing:
    """A file that is longer than it was when it was opened."""

    @contextmanager
    def open(self, uri: ArtifactUri) -> Iterator[Stream]:
        chunks = iter([b"a" * 10, b"b" * 10, b"c" * 10])
        yield Stream(lambda most: next(chunks, b""), 15)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "cache", sources=Sources(Places(("file:",)), {"file": Growing()}), max_bytes=100)
    store.prepare()
    with pytest.raises(ArtifactRejected, match="gives more than 15 bytes"):
        store.fetch(Artifact("file:/x", sha256(b"a" * 10 + b"b" * 5)))
    assert nothing_is_kept(tmp_path)


def test_the_same_bytes_under_two_names_do_not_take_each_other_away(tmp_path: Path) -> None:
    config = Config("h", "p")
    store = ArtifactStore(tmp_path / "cache", sources=sources_of(config, SystemClock()), max_bytes=100)
    store.prepare()
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_bytes(b"w")
    first = store.fetch(Artifact(f"file:{tmp_path}/a.json", sha256(b"w")))
    second = store.fetch(Artifact(f"file:{tmp_path}/b.json", sha256(b"w")))
    assert (first.name, second.name) == ("a.json", "b.json")
    assert first.read_bytes() == second.read_bytes() == b"w"


def test_places_that_are_none_are_faults_of_the_settings() -> None:
    config = Config("h", "p", artifact_sources=("file:", "http://x", "https://u:p@x"), remote_addresses=("unix:/x",))
    faults = config.faults()
    assert [fault.split(":")[0] for fault in faults] == ["artifact_sources", "artifact_sources", "remote_addresses"]
    assert not any("u:p" in fault for fault in faults)
    with pytest.raises(BadUri):
        Places(("ftp://x",))


# --- https ---------------------------------------------------------------------------------------


def test_a_file_comes_over_https_and_is_kept(server: HttpsServer, store: ArtifactStore, tmp_path: Path) -> None:
    url = server.file("/models/w%20x.bin", BODY)
    copy = store.fetch(Artifact(url, sha256(BODY)))
    assert copy.read_bytes() == BODY
    assert copy.name == "artifact"  # its own name is no plain one
    assert store.fetch(Artifact(url, sha256(BODY))) == copy
    (request,) = server.seen
    assert request.target == "/models/w%20x.bin"
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" not in request.headers


def test_a_body_in_chunks_of_unknown_length_is_fetched(server: HttpsServer, store: ArtifactStore) -> None:
    def chunked(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(BODY), 50_000):
            part = BODY[start : start + 50_000]
            exchange.send(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        exchange.send(b"0\r\n\r\n")

    server.routes["/w"] = chunked
    assert store.fetch(Artifact(f"{server.url}/w", sha256(BODY))).read_bytes() == BODY


def test_what_is_not_allowed_is_not_even_asked_for(server: HttpsServer, tmp_path: Path) -> None:
    store = store_of(tmp_path, server, f"{server.url}/models", "file:")
    for url in (
        f"{server.url}/other/w",
        f"{server.url}/models-too/w",
        f"https://127.0.0.1:{server.port}/models/w",
        f"https://localhost.evil.example:{server.port}/models/w",
        f"https://localhost:{server.port + 1}/models/w",
        "https://169.254.169.254/latest/meta-data",
    ):
        with pytest.raises(ArtifactRejected, match="may fetch from"):
            store.fetch(Artifact(url, sha256(BODY)))
    assert server.seen == []


def test_a_host_fetches_files_alone_unless_it_is_told_otherwise(server: HttpsServer, tmp_path: Path) -> None:
    store = store_of(tmp_path, server, *Config("h", "p").artifact_sources)
    with pytest.raises(ArtifactRejected, match="may fetch from: file:"):
        store.fetch(Artifact(server.file("/w", BODY), sha256(BODY)))
    assert server.seen == []


def test_plain_http_is_refused(tmp_path: Path) -> None:
    with HttpsServer(tmp_path, plain=True) as server:
        store = store_of(tmp_path, server, f"https://localhost:{server.port}")
        with pytest.raises(ArtifactRejected, match="must begin with"):
            store.fetch(Artifact(server.file("/w", BODY), sha256(BODY)))
        with pytest.raises(ArtifactRejected, match="SSL"):  # a server that speaks no TLS where TLS is asked for
            store.fetch(Artifact(f"https://localhost:{server.port}/w", sha256(BODY)))


def test_a_certificate_that_nobody_vouches_for_is_refused(server: HttpsServer, tmp_path: Path) -> None:
    config = Config("h", "p", artifact_sources=(server.url,))
    store = ArtifactStore(tmp_path / "cache", sources=sources_of(config, SystemClock(), CALM), max_bytes=1 << 20)
    store.prepare()
    with pytest.raises(ArtifactRejected, match="certificate verify failed"):
        store.fetch(Artifact(server.file("/w", BODY), sha256(BODY)))
    assert server.seen == []


def test_a_certificate_of_another_name_is_refused(tmp_path: Path) -> None:
    with HttpsServer(tmp_path, names=("other.example",)) as server:
        store = store_of(tmp_path, server, server.url)
        with pytest.raises(ArtifactRejected, match="certificate verify failed"):
            store.fetch(Artifact(server.file("/w", BODY), sha256(BODY)))


def redirect(location: str) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(b"", "302 Found", Location=location)


def test_redirects_within_the_place_are_followed(server: HttpsServer, store: ArtifactStore) -> None:
    server.file("/models/w", BODY)
    server.routes["/a"] = redirect("/b?x=1%202")
    server.routes["/b"] = redirect(f"{server.url}/models/w?signature=s")
    assert store.fetch(Artifact(f"{server.url}/a", sha256(BODY))).read_bytes() == BODY
    assert [request.target for request in server.seen] == ["/a", "/b?x=1%202", "/models/w?signature=s"]


def test_redirects_to_elsewhere_are_refused(server: HttpsServer, tmp_path: Path) -> None:
    store = store_of(tmp_path, server, f"{server.url}/models", "https://good.example")
    for location, said in (
        (f"http://localhost:{server.port}/models/w", "must begin with"),
        (f"https://127.0.0.1:{server.port}/models/w", "another server"),
        ("https://good.example/models/w", "another server"),
        ("//evil.example/models/w", "another server"),
        ("file:/etc/passwd", "another server"),
        ("ftp://localhost/models/w", "must begin with"),
        (f"https://u:p@localhost:{server.port}/models/w", "user or a password"),
        ("/other/w", "may fetch from"),
        ("/models/../other/w", "may fetch from"),
        ("/models/%2e%2e/w", "must not contain"),
        ("", "4 redirects"),
        ("/models/a", "4 redirects"),
    ):
        server.routes["/models/a"] = redirect(location)
        with pytest.raises(ArtifactRejected, match=said):
            store.fetch(Artifact(f"{server.url}/models/a", sha256(BODY)))
    assert nothing_is_kept(tmp_path)


def raw(head: str, body: bytes = b"") -> Callable[[Exchange], None]:
    return lambda exchange: exchange.send(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (raw("HTTP/1.1 200 OK\nContent-Length: 4000000"), "has 4000000 bytes, and 1400000 are the most"),
        (raw(f"HTTP/1.1 200 OK\nContent-Length: {len(BODY)}", BODY[:-1]), "ended after 699999 of 700000"),
        (raw("HTTP/1.1 200 OK\nContent-Length: 6", BODY), "has sha256"),
        (raw("HTTP/1.1 200 OK", BODY + b"x"), "has sha256"),
        (raw("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"ffffff\r\n" + BODY), "IncompleteRead|ended"),
        (raw("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"zz\r\n"), "cannot fetch"),
        (raw("HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: 3", b"abc"), "compressed"),
        (raw("HTTP/1.1 404 Not Found\nContent-Length: 0"), "answers 404"),
        (raw("HTTP/1.1 206 Partial Content\nContent-Length: 3", b"abc"), "answers 206"),
        (raw("HTTP/1.1 500 Oh\nContent-Length: 0"), "answers 500"),
        (raw("HTTP/1.1 401 No\nContent-Length: 0"), "answers 401"),
        (raw("SSH-2.0-OpenSSH_9.2"), "BadStatusLine"),
        (raw("HTTP/1.1 200 OK\n" + "\n".join(f"x-{n}: y" for n in range(500))), "more than 100 headers"),
        (raw("HTTP/1.1 200 OK\nx: " + "y" * 100_000), "more than 65536 bytes"),
        (lambda exchange: None, "RemoteDisconnected"),
    ],
)
def test_what_a_server_gets_wrong_is_refused(
    server: HttpsServer, store: ArtifactStore, tmp_path: Path, handler: Callable[[Exchange], None], said: str
) -> None:
    server.routes["/w"] = handler
    with pytest.raises(ArtifactRejected, match=said):
        store.fetch(Artifact(f"{server.url}/w", sha256(BODY)))
    assert nothing_is_kept(tmp_path)
    assert store.fetch(Artifact(server.file("/good", BODY), sha256(BODY))).read_bytes() == BODY


def test_a_body_without_an_end_is_cut_at_the_most_that_is_fetched(
    server: HttpsServer, store: ArtifactStore, tmp_path: Path
) -> None:
    gone = threading.Event()

    def endless(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                exchange.send(BODY)
        except OSError:
            gone.set()

    server.routes["/w"] = endless
    with pytest.raises(ArtifactRejected, match="gives more than 1400000 bytes"):
        store.fetch(Artifact(f"{server.url}/w", sha256(BODY)))
    assert gone.wait(10.0)
    assert nothing_is_kept(tmp_path)


def dripping(head: bytes, drop: bytes) -> Callable[[Exchange], None]:
    """Sends a drop every now and then, often enough that no timeout of a socket sees it."""

    def handler(exchange: Exchange) -> None:
        exchange.send(head)
        while not exchange.ending.wait(0.05):
            exchange.send(drop)

    return handler


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (lambda exchange: exchange.ending.wait(20.0), "takes too long"),
        (dripping(b"HTTP/1.1 200 OK\r\n", b"x"), "takes too long"),
        (dripping(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"), "takes too long"),
        (dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n", b""), "takes too long"),
        (dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n", b"x"), "too slow"),
        (dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1", b"1"), "takes too long|cannot fetch"),
    ],
)
def test_a_server_that_takes_its_time_is_given_up(
    server: HttpsServer, tmp_path: Path, handler: Callable[[Exchange], None], said: str
) -> None:
    store = store_of(tmp_path, server, server.url, patience=HURRIED)
    server.routes["/w"] = handler
    with pytest.raises(ArtifactRejected, match=said):
        store.fetch(Artifact(f"{server.url}/w", sha256(BODY)))
    assert nothing_is_kept(tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name == "fetch watchdog"]


def test_a_name_that_leads_to_a_metadata_service_is_refused(
    server: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is allowed; what it resolves to, somebody else decides."""
    store = store_of(tmp_path, server, "https://rebound.example", "https://[::1]")
    for address in ("169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1"):
        found = [(2, 1, 6, "", (address, 443))]
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, found=found, **__: found)
        with pytest.raises(ArtifactRejected, match="no server's address"):
            store.fetch(Artifact("https://rebound.example/w", sha256(BODY)))


@pytest.mark.parametrize(
    ("login", "sent"), [("ann", "Basic YW5uOnMzY3IzdA=="), ("bearer", "Bearer s3cr3t"), ("", "Basic OnMzY3IzdA==")]
)
def test_secrets_come_from_a_file_and_go_to_their_host_alone(
    server: HttpsServer, tmp_path: Path, login: str, sent: str
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f'machine localhost login "{login}" password s3cr3t\n')
    store = store_of(tmp_path, server, server.url, f"https://127.0.0.1:{server.port}", netrc=netrc)
    store.fetch(Artifact(server.file("/w", BODY), sha256(BODY)))
    with pytest.raises(ArtifactRejected):
        store.fetch(Artifact(f"https://127.0.0.1:{server.port}/x", sha256(b"x")))
    assert [request.headers.get("authorization") for request in server.seen] == [sent, None]
    netrc.write_text("machine localhost password s3cr3t nonsense")
    with pytest.raises(ArtifactRejected, match="cannot be read") as refused:
        store.fetch(Artifact(f"{server.url}/y", sha256(b"y")))
    assert "s3cr3t" not in str(refused.value)


def test_a_broken_file_of_certificates_stops_the_host_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        sources_of(Config("h", "p", ca_file=tmp_path / "ca.pem"), SystemClock())


# --- mlflow --------------------------------------------------------------------------------------

FOUND = "/api/2.0/mlflow/model-versions/get-download-uri"


def lies_at(server: HttpsServer, where: object) -> None:
    server.routes[FOUND] = lambda exchange: exchange.answer(json.dumps({"artifact_uri": where}).encode())


def test_a_version_of_mlflow_is_fetched_by_way_of_its_server(server: HttpsServer, tmp_path: Path) -> None:
    lies_at(server, "mlflow-artifacts:/0/models/m-1/artifacts")
    server.file("/api/2.0/mlflow-artifacts/artifacts/0/models/m-1/artifacts/w.bin", BODY)
    store = store_of(tmp_path, server, f"mlflow://localhost:{server.port}/models/fraud model")
    artifact = Artifact(f"mlflow://localhost:{server.port}/models/fraud%20model/3/w.bin", sha256(BODY))
    assert store.fetch(artifact).read_bytes() == BODY
    assert server.seen[0].target == f"{FOUND}?name=fraud+model&version=3"


def test_what_mlflow_passes_on_can_be_named_itself(server: HttpsServer, tmp_path: Path) -> None:
    server.file("/api/2.0/mlflow-artifacts/artifacts/0/run/w.bin", BODY)
    store = store_of(tmp_path, server, f"mlflow://localhost:{server.port}")
    uri = f"mlflow://localhost:{server.port}/artifacts/0/run/w.bin"
    assert store.fetch(Artifact(uri, sha256(BODY))).read_bytes() == BODY


def test_where_mlflow_leads_must_be_allowed_too(server: HttpsServer, tmp_path: Path) -> None:
    uri = f"mlflow://localhost:{server.port}/models/m/1/w.bin"
    lies_at(server, f"{server.url}/elsewhere")
    server.file("/elsewhere/w.bin", BODY)
    place = f"mlflow://localhost:{server.port}"
    with pytest.raises(ArtifactRejected, match="may fetch from"):
        store_of(tmp_path, server, place, "file:").fetch(Artifact(uri, sha256(BODY)))
    store = store_of(tmp_path, server, place, "file:", f"{server.url}/elsewhere")
    assert store.fetch(Artifact(uri, sha256(BODY))).read_bytes() == BODY


def test_a_server_of_mlflow_cannot_lead_anywhere_else(server: HttpsServer, tmp_path: Path) -> None:
    store = store_of(tmp_path, server, f"mlflow://localhost:{server.port}", "file:")
    uri = f"mlflow://localhost:{server.port}/models/m/1/w.bin"
    for where, said in (
        ("file:/etc", "lies at file:"),
        ("mlflow-artifacts://other.example/0/run", "where it cannot"),
        ("mlflow-artifacts:/0/../../secrets", "where it cannot"),
        ("http://localhost/x", "where it cannot"),
        (7, "does not say where"),
        ("runs:/1/model", "where it cannot"),
    ):
        lies_at(server, where)
        with pytest.raises(ArtifactRejected, match=said):
            store.fetch(Artifact(uri, sha256(BODY)))
    for body, said in (
        (b"<html>", "as an MLflow server"),
        (b"[" * 100_000, "as an MLflow"),
        (b" " * (2 << 20), "says"),
    ):
        server.file(FOUND, body)
        with pytest.raises(ArtifactRejected, match=said):
            store.fetch(Artifact(uri, sha256(BODY)))
    for path in ("models/m/1", "models/m", "artifacts", "other/x"):
        with pytest.raises(ArtifactRejected, match="must be mlflow://HOST"):
            store.fetch(Artifact(f"mlflow://localhost:{server.port}/{path}", sha256(BODY)))
    assert nothing_is_kept(tmp_path)


# --- s3 ------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(server: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HttpsServer:
    """The server as an object store, found and signed for as every other program would."""
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = id\naws_secret_access_key = s3cr3t\n")
    for name, value in {
        "AWS_ENDPOINT_URL_S3": server.url,
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_CA_BUNDLE": str(server.ca_file),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return server


def s3_object(server: HttpsServer, path: str, body: bytes) -> None:
    def handler(exchange: Exchange) -> None:
        wanted = exchange.request.headers.get("range")
        if wanted is None:
            exchange.answer(body, Accept_Ranges="bytes", ETag='"1"')
            return
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        part = body[first : last + 1]
        given = f"bytes {first}-{first + len(part) - 1}/{len(body)}"
        exchange.answer(part, "206 Partial Content", Content_Range=given, ETag='"1"')

    server.routes[path] = handler


def test_an_object_is_fetched_from_its_bucket(bucket: HttpsServer, tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    s3_object(bucket, "/my-bucket/models/w.bin", BODY)
    store = store_of(tmp_path, bucket, "s3://my-bucket/models")
    copy = store.fetch(Artifact("s3://my-bucket/models/w.bin", sha256(BODY)))
    assert copy.read_bytes() == BODY
    assert all("Credential=id/" in request.headers["authorization"] for request in bucket.seen)
    assert not any("s3cr3t" in str(request) for request in bucket.seen)


def test_an_object_that_is_not_right_is_refused(bucket: HttpsServer, tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    s3_object(bucket, "/my-bucket/models/w.bin", BODY)
    s3_object(bucket, "/my-bucket/models/large.bin", BODY * 3)
    store = store_of(tmp_path, bucket, "s3://my-bucket/models")
    for key, said in (
        ("my-bucket/models/w.bin", "has sha256"),
        ("my-bucket/models/large.bin", "has 2100000 bytes, and 1400000 are the most"),
        ("my-bucket/models/none.bin", "cannot fetch .*FileNotFoundError"),
        ("my-bucket/other/w.bin", "may fetch from"),
        ("my-bucket-2/models/w.bin", "may fetch from"),
    ):
        with pytest.raises(ArtifactRejected, match=said):
            store.fetch(Artifact(f"s3://{key}", "0" * 64))
    assert nothing_is_kept(tmp_path)


def test_without_what_s3_takes_the_host_says_what_to_install(
    bucket: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    store = store_of(tmp_path, bucket, "s3://my-bucket")
    with pytest.raises(ArtifactRejected, match=r"pip install 'modelyard\[s3\]'"):
        store.fetch(Artifact("s3://my-bucket/w.bin", "0" * 64))
