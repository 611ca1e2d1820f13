from pathlib import Path

import pytest

from tests.support.etcd import EtcdProcess


def test_session_etcd_is_healthy(etcd: EtcdProcess) -> None:
    etcd.wait_healthy()


def test_etcd_comes_back_on_its_port_after_kill_and_pause(tmp_path: Path) -> None:
    etcd = EtcdProcess(tmp_path)
    etcd.start()
    endpoint = etcd.endpoint
    try:
        etcd.kill()
        assert not etcd.running
        etcd.start()
        etcd.pause()
        etcd.resume()
        etcd.wait_healthy()
        assert etcd.endpoint == endpoint
    finally:
        etcd.stop()
    assert not etcd.running


def test_etcd_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_BIN", "/bin/false")
    etcd = EtcdProcess(tmp_path)

    with pytest.raises(AssertionError, match="does not come up"):
        etcd.start()

    etcd.stop()
