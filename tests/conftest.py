"""Fixtures shared by all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.etcd import EtcdProcess
from tests.support.ports import free_ports

settings.register_profile("busy machine", deadline=None)  # nothing is judged by how long it takes
settings.load_profile("busy machine")

ALONE = ("chaos", "e2e")
"""Folders whose tests bring up whole meshes and load them: `make test` runs these one by one, with nothing beside."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the machine for itself."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in ALONE:
            item.add_marker(pytest.mark.alone)


@pytest.fixture
def free_port() -> int:
    """A loopback port nobody listens on."""
    return free_ports(1)[0]


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """A real etcd for the whole session of this process. Tests that break one start their own `EtcdProcess`."""
    process = EtcdProcess(tmp_path_factory.mktemp("etcd"))
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="session")
def etcd_endpoint(etcd: EtcdProcess) -> str:
    """`HOST:PORT` of the session's etcd; keys of other tests are in it, so use a prefix of your own."""
    return etcd.endpoint
