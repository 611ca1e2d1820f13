import json
import socket
from pathlib import Path

import pytest

from yardctl import layout as layout_module
from yardctl.errors import CommandError
from yardctl.layout import (
    Addresses,
    Layout,
    MeshInfo,
    free_base_port,
    locked,
    read_mesh_info,
    refuse_ports_in_use,
    write_mesh_info,
)
from yardctl.parts import parts_of, ports_of


def test_addresses_follow_from_the_base_port() -> None:
    addresses = Addresses.from_base(7600)

    assert addresses == Addresses(
        router="127.0.0.1:7600",
        registry="127.0.0.1:7601",
        resource_manager="127.0.0.1:7602",
        collector="127.0.0.1:7604",
        etcd="127.0.0.1:7679",
        etcd_peer="127.0.0.1:7680",
        host_base_port=7610,
    )
    for wrong in (0, 80, 64_999, 65_536):
        with pytest.raises(CommandError, match="--base-port"):
            Addresses.from_base(wrong)


def test_no_two_parts_of_a_mesh_share_a_port() -> None:
    addresses = Addresses.from_base(7600)
    parts = parts_of(Layout.of(Path("mesh")), addresses, etcd=Path("etcd"), trace_ratio=0.0)

    ports = ports_of(parts, addresses, hosts=69)

    assert len(set(ports.values())) == len(ports) == 3 * 2 + 1 + 2 + 69 * 2


def test_what_a_mesh_directory_says_reads_back(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    info = MeshInfo(7600, 2, 0.5, Addresses.from_base(7600))

    write_mesh_info(layout, info)

    assert read_mesh_info(layout) == info
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.json"]


def test_a_missing_and_a_broken_mesh_file_say_what_to_do(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    with pytest.raises(CommandError, match=r"no mesh in .*yardctl up"):
        read_mesh_info(layout)
    for broken in ("", "{", "[]", json.dumps({"base_port": 1}), json.dumps({"base_port": 1, "addresses": 3})):
        layout.mesh_file.write_text(broken)
        with pytest.raises(CommandError, match="cannot be read"):
            read_mesh_info(layout)


def test_a_second_holder_of_a_directory_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path / "new")

    with locked(layout), pytest.raises(CommandError, match="already up"), locked(layout):
        pass
    with locked(layout):
        pass


def test_a_port_in_use_is_named_with_what_it_is_for_and_who_has_it(free_port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen()

        with pytest.raises(CommandError, match=rf"port {free_port} \(registry\) is in use by pid \d+ .*--base-port"):
            refuse_ports_in_use({"registry": free_port})

    refuse_ports_in_use({"registry": free_port})


def test_hosts_share_the_processors_only_where_that_is_asked() -> None:
    addresses = Addresses.from_base(7600)
    for asked in (False, True):
        parts = parts_of(Layout.of(Path("mesh")), addresses, etcd=Path("etcd"), trace_ratio=0.0, share_cpus=asked)
        assert [part.name for part in parts.values() if "--share-cpus" in part.argv] == ["resource-manager"] * asked


def test_a_free_base_port_has_a_free_range() -> None:
    base_port = free_base_port()
    addresses = Addresses.from_base(base_port)

    refuse_ports_in_use(
        ports_of(parts_of(Layout.of(Path("mesh")), addresses, etcd=Path("etcd"), trace_ratio=0.0), addresses, hosts=4)
    )


def test_a_free_base_port_is_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    base_port = free_base_port()
    monkeypatch.setattr(layout_module, "_BASE_PORTS", [base_port])

    with pytest.raises(CommandError, match="no free range"):
        free_base_port()
