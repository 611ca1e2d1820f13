import errno
import hashlib
import os
from pathlib import Path

import pytest

from services.domain.artifact_uri import parse_uri
from services.domain.errors import ArtifactRejected
from services.domain.objects import Artifact
from services.model_host.artifacts import ArtifactStore
from services.model_host.sources import FileSource, Places, Sources


def store_at(directory: Path, *places: str, max_bytes: int = 10_000_000) -> ArtifactStore:
    allowed = Places(places or ("file:",))
    made = ArtifactStore(directory, sources=Sources(allowed, {"file": FileSource(allowed)}), max_bytes=max_bytes)
    made.prepare()
    return made


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return store_at(tmp_path / "cache")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"w" * 3_000_000)
    return path


def artifact_of(path: Path, sha256: str | None = None) -> Artifact:
    return Artifact(f"file:{path}", sha256 or hashlib.sha256(path.read_bytes()).hexdigest())


def cached_files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_a_file_is_copied_under_its_digest_and_found_again(store: ArtifactStore, weights: Path, tmp_path: Path) -> None:
    artifact = artifact_of(weights)
    copy = store.fetch(artifact)
    assert copy == tmp_path / "cache" / artifact.sha256 / "weights.bin"
    assert copy.read_bytes() == weights.read_bytes()
    weights.unlink()
    assert store.fetch(artifact) == copy


def test_another_digest_is_refused_and_nothing_is_kept(store: ArtifactStore, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactRejected, match="and " + "0" * 64 + " is declared"):
        store.fetch(artifact_of(weights, "0" * 64))
    assert cached_files(tmp_path) == []


def test_a_cached_copy_that_was_changed_is_fetched_anew(store: ArtifactStore, weights: Path) -> None:
    artifact = artifact_of(weights)
    copy = store.fetch(artifact)
    copy.chmod(0o600)
    copy.write_bytes(b"evil")
    assert store.fetch(artifact).read_bytes() == weights.read_bytes()


def test_a_link_is_refused(store: ArtifactStore, weights: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.bin"
    link.symlink_to(weights)
    with pytest.raises(ArtifactRejected, match="is a link"):
        store.fetch(artifact_of(link))


def test_directories_pipes_and_devices_are_refused(store: ArtifactStore, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, Path("/dev/zero")):
        with pytest.raises(ArtifactRejected, match="not a plain file"):
            store.fetch(Artifact(f"file:{path}", "0" * 64))


def test_a_file_that_is_too_large_or_absent_is_refused(tmp_path: Path, weights: Path) -> None:
    store = store_at(tmp_path / "cache", max_bytes=2_999_999)
    with pytest.raises(ArtifactRejected, match="has 3000000 bytes, and 2999999 are the most"):
        store.fetch(artifact_of(weights))
    with pytest.raises(ArtifactRejected, match="No such file"):
        store.fetch(Artifact(f"file:{tmp_path}/none", "0" * 64))
    assert cached_files(tmp_path) == []


@pytest.mark.parametrize(
    "uri",
    [
        "http://example.org/x",
        "file:relative/x",
        "file://elsewhere/x",
        "file:/a/../b",
        "file:/a/%2e%2e/b",
        "file:/a/b/",
        "file:/a%00b",
        "file:/a?x=1",
        "/a/b",
    ],
)
def test_uris_that_are_not_plain_paths_are_refused(store: ArtifactStore, uri: str) -> None:
    with pytest.raises(ArtifactRejected):
        store.fetch(Artifact(uri, "0" * 64))


def test_a_uri_names_its_path_in_every_spelling() -> None:
    for uri in ("file:/a/b c", "file:///a/b%20c", "file://localhost/a/b%20c"):
        assert parse_uri(uri).path == "/a/b c"


def test_what_a_crash_left_half_done_is_removed_at_start(tmp_path: Path) -> None:
    half = tmp_path / "cache" / "incoming-1-1"
    half.mkdir(parents=True)
    (half / "x").write_bytes(b"half")
    store_at(tmp_path / "cache")
    assert not half.exists()


def test_a_full_disk_evicts_what_is_not_pinned_and_else_refuses(
    store: ArtifactStore, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "kept").write_bytes(b"kept")
    old, kept = artifact_of(tmp_path / "old"), artifact_of(tmp_path / "kept")
    old_copy, kept_copy = store.fetch(old), store.fetch(kept)
    full = True
    sync = os.fsync

    def fsync(fd: int) -> None:
        if full and old_copy.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert store.fetch(artifact_of(weights), pinned=[kept.sha256]).exists()
    assert kept_copy.exists()
    assert not old_copy.exists()

    def always_full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", always_full)
    (tmp_path / "more").write_bytes(b"more")
    with pytest.raises(ArtifactRejected, match="no room for"):
        store.fetch(artifact_of(tmp_path / "more"), pinned=[kept.sha256])
    assert kept_copy.exists()
