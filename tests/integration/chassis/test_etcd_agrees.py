"""Our part of etcd's API beside etcd's own, and what we write beside what another client reads."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from modelyard.etcd.v3 import rpc_pb2 as pb
from services.chassis.election import ELECTIONS, Election
from services.chassis.etcd import EtcdClient, compare_create, put_op
from services.domain.clock import SystemClock
from tests.support.etcd3 import etcd3_client, etcd_descriptors

NEWER = {
    ("WatchRequest", "progress_request"),
    ("WatchCreateRequest", "watch_id"),
    ("WatchCreateRequest", "fragment"),
    ("WatchResponse", "fragment"),
}
"""Fields that etcd got after the copy of its contract inside the etcd3 package was made (3.3 and 3.4)."""

ETCD_PACKAGES = {"KeyValue": "mvccpb", "Event": "mvccpb"}
NEWER_MESSAGES = {"WatchProgressRequest"}


def ours() -> list[Descriptor]:
    return [m for name, m in pb.DESCRIPTOR.message_types_by_name.items() if name not in NEWER_MESSAGES]


def theirs(name: str) -> Descriptor:
    return etcd_descriptors().FindMessageTypeByName(f"{ETCD_PACKAGES.get(name, 'etcdserverpb')}.{name}")


def numbers(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


def plain(field: FieldDescriptor) -> str:
    return field.name.replace("_", "").lower()


@pytest.mark.parametrize("message", ours(), ids=lambda m: m.name)
def test_every_field_has_the_number_and_type_that_etcd_gives_it(message: Descriptor) -> None:
    known = {field.number: field for field in theirs(message.name).fields}

    for field in message.fields:
        if (message.name, field.name) in NEWER:
            assert field.number not in known
            continue
        other = known[field.number]
        assert plain(field) == plain(other)
        assert (field.type, field.is_repeated) == (other.type, other.is_repeated)
        if field.message_type is not None and other.message_type is not None:
            assert field.message_type.name == other.message_type.name
        if field.enum_type is not None and other.enum_type is not None:
            assert numbers(field.enum_type) == numbers(other.enum_type)


@pytest.fixture
def other_client(etcd_endpoint: str) -> Iterator[Any]:
    made = etcd3_client(etcd_endpoint)
    yield made
    made.close()


_names = itertools.count()


@pytest.fixture
def prefix() -> str:
    return f"/test_etcd_agrees/{next(_names)}/"


async def test_another_client_reads_what_we_wrote(etcd_endpoint: str, other_client: Any, prefix: str) -> None:
    client = EtcdClient([etcd_endpoint])
    lease = await client.lease_grant(60)
    values = {f"{prefix}{n}": bytes(range(256)) * n for n in range(5)}
    made = await client.txn(
        [compare_create(prefix + "0", 0)], [put_op(key, value, lease) for key, value in values.items()]
    )
    changed = await client.put(prefix + "1", b"changed", lease=lease)

    read = {meta.key.decode(): (value, meta) for value, meta in other_client.get_prefix(prefix)}

    assert {key: value for key, (value, _) in read.items()} == {**values, prefix + "1": b"changed"}
    assert {meta.create_revision for _, meta in read.values()} == {made.header.revision}
    assert read[prefix + "1"][1].mod_revision == changed
    assert read[prefix + "1"][1].version == 2
    assert {meta.lease_id for _, meta in read.values()} == {lease}
    assert sorted(other_client.get_lease_info(lease).keys) == sorted(key.encode() for key in values)
    await client.lease_revoke(lease)
    assert list(other_client.get_prefix(prefix)) == []
    await client.close()


async def test_we_read_what_another_client_wrote(etcd_endpoint: str, other_client: Any, prefix: str) -> None:
    client = EtcdClient([etcd_endpoint])
    lease = other_client.lease(60)
    other_client.put(prefix + "a", b"one", lease=lease)
    other_client.put(prefix + "b", b"two")
    other_client.delete(prefix + "b")
    kv = await client.get(prefix + "a")

    assert kv is not None
    assert (kv.value, kv.lease) == (b"one", lease.id)
    batches = client.watch(prefix, start_revision=kv.create_revision)
    seen: list[tuple[bytes, int]] = []
    while len(seen) < 3:
        seen += [(event.kv.key[-1:], event.type) for event in (await anext(batches)).events]
    assert seen == [(b"a", 0), (b"b", 0), (b"b", 1)]
    assert await client.lease_keep_alive(lease.id) == 60
    await batches.aclose()
    await client.close()


async def test_another_client_sees_who_leads(etcd_endpoint: str, other_client: Any) -> None:
    name = f"agrees-{next(_names)}"
    election = Election(endpoints=[etcd_endpoint], name=name, candidate="me", clock=SystemClock())
    leadership = await election.campaign()

    ((value, meta),) = other_client.get_prefix(f"{ELECTIONS}/{name}/")

    assert (value, meta.key.decode(), meta.create_revision) == (b"me", leadership.key, leadership.fencing_token)
    assert leadership.key.endswith(f"/{meta.lease_id:016x}")
    await election.close()
    assert list(other_client.get_prefix(f"{ELECTIONS}/{name}/")) == []
