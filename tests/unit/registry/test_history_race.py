"""The import of a history beside a first apply: one of them comes to be, and nothing is left in its way."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence

import pytest

from modelyard.etcd.v3 import rpc_pb2 as etcd
from services.domain.errors import RevisionMoved, YardError
from services.registry import history, layout
from tests.fakes.etcd import FakeEtcd
from tests.fakes.objects import a_model
from tests.unit.registry.test_history import Yard

REVISIONS = 5


class Racing(FakeEtcd):
    """Lets something else happen before a transaction of an import that writes revisions or the head, after `skip`."""

    def __init__(self) -> None:
        super().__init__()
        self.race: Callable[[], Awaitable[object]] | None = None
        self.skip = 0

    async def txn(
        self,
        compares: Sequence[etcd.Compare],
        success: Sequence[etcd.RequestOp],
        failure: Sequence[etcd.RequestOp] = (),
        *,
        timeout_s: float = 0.0,
    ) -> etcd.TxnResponse:
        keys = {op.request_put.key.decode() for op in success}
        imports = any(key.startswith(layout.REVISIONS) for key in keys) and not any(
            layout.REQUESTS in key for key in keys
        )
        if (imports or keys & {layout.HEAD} == keys != set()) and self.race is not None:
            self.skip -= 1
            if self.skip < 0:
                race, self.race = self.race, None
                await race()
        return await super().txn(compares, success, failure, timeout_s=timeout_s)


async def lived(oldest: int) -> bytes:
    """The history of a registry that keeps its revisions from `oldest` on."""
    yard = Yard(FakeEtcd())
    for number in range(1, REVISIONS + 1):
        await yard.apply([a_model(f"m-{number}")])
    if oldest > 1:
        await yard.etcd.put(layout.OLDEST, str(oldest).encode())
        for number in range(1, oldest):
            del yard.etcd.keys[layout.revision_key(number)]
    return await yard.history_file()


@pytest.mark.parametrize("oldest", [1, 3])
@pytest.mark.parametrize("before", range(4))
async def test_a_first_apply_during_an_import_leaves_a_registry_that_goes_on(
    oldest: int, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "TXN_OPS", 2)
    file = await lived(oldest)
    yard = Yard(Racing())
    assert isinstance(yard.etcd, Racing)
    applied: list[int] = []

    async def first() -> None:
        with contextlib.suppress(YardError):  # the import came first
            applied.append((await yard.apply([a_model("first")], request_id="first")).revision)

    yard.etcd.race, yard.etcd.skip = first, before
    try:
        imported = (await yard.take(file)).revisions
    except RevisionMoved:
        imported = 0

    assert bool(imported) != bool(applied), "both, or neither"
    head = (await yard.store.head(timeout_s=1.0)).revision
    assert head == (REVISIONS if imported else 1)
    assert not (await yard.verify()).HasField("broken")
    for number in range(1, REVISIONS + 1):
        assert (await yard.apply([a_model(f"n-{number}")])).revision == head + number
    assert not (await yard.verify()).HasField("broken")


@pytest.mark.parametrize("before", range(4))
async def test_an_import_after_one_that_was_cut_off_does_not_write_over_a_first_apply(
    before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "TXN_OPS", 2)
    file = await lived(1)
    source, yard = Yard(FakeEtcd()), Yard(Racing())
    assert isinstance(yard.etcd, Racing)
    await source.take(file)
    for number in (REVISIONS - 1, REVISIONS):  # what an import had written when it was cut off
        left = await source.etcd.get(layout.revision_key(number))
        assert left is not None
        await yard.etcd.put(layout.revision_key(number), left)

    async def first() -> None:
        with contextlib.suppress(YardError):  # the import came first
            await yard.apply([a_model("first")], request_id="first")

    yard.etcd.race, yard.etcd.skip = first, before
    with contextlib.suppress(RevisionMoved):  # the apply did
        await yard.take(file)

    assert (await yard.store.head(timeout_s=1.0)).revision in (1, REVISIONS)
    assert not (await yard.verify()).HasField("broken")
