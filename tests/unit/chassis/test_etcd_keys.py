"""Ranges and conditions as etcd wants them."""

import pytest

from modelyard.etcd.v3 import rpc_pb2 as pb
from services.chassis.etcd import EtcdClient, compare_create, compare_mod, prefix_end


@pytest.mark.parametrize(
    ("prefix", "end"), [("a", b"b"), ("/modelyard/v1/", b"/modelyard/v10"), ("az", b"a{"), ("", b"\0")]
)
def test_prefix_ends_before_the_first_key_without_it(prefix: str, end: bytes) -> None:
    assert prefix_end(prefix) == end


def test_condition_names_what_it_compares() -> None:
    assert compare_create("k", 7) == pb.Compare(target=pb.Compare.CREATE, key=b"k", create_revision=7)
    assert compare_mod("k", 7) == pb.Compare(target=pb.Compare.MOD, key=b"k", mod_revision=7)


async def test_watch_without_a_start_revision_is_refused() -> None:
    client = EtcdClient(["127.0.0.1:1"])

    with pytest.raises(ValueError, match="list first"):
        await anext(client.watch("/a/", start_revision=0))
