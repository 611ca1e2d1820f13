"""A tree is a mapping, is the same for the same objects, and shares with others what they have alike."""

import hashlib
import random
from collections.abc import Iterable, Mapping

import pytest

from modelyard.registry.v1 import registry_pb2 as pb
from services.domain.objects import ObjectKey
from services.registry import tree
from services.registry.tree import Line, Reading, Tree


def key_of(number: int) -> ObjectKey:
    return ObjectKey("Model", f"m-{number}")


def some(numbers: Iterable[int], what: str = "x") -> dict[ObjectKey, Line]:
    digests = {key_of(number): hashlib.sha256(f"{number} {what}".encode()).hexdigest() for number in numbers}
    return {key: Line(digest, tree.line_of(key, digest)) for key, digest in digests.items()}


class Store:
    """Stored nodes, and which of them were read."""

    def __init__(self) -> None:
        self.nodes: dict[str, bytes] = {}
        self.read: list[str] = []

    def put(self, made: tuple[Tree[Line], dict[str, bytes]]) -> Tree[Line]:
        self.nodes.update(made[1])
        return made[0]

    def reading(self, digest: str, base: Tree[Line]) -> Reading[Line]:
        reading = Reading(digest, base)
        while reading.nodes:
            self.read += reading.nodes
            reading.take([self.nodes[digest] for digest in reading.nodes])
        return reading


@pytest.fixture(params=[64, 4], ids=["split at 64", "split at 4"])
def split(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(tree, "SPLIT", request.param)
    return int(request.param)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("seed", range(4))
def test_any_way_to_the_same_objects_leads_to_the_same_tree(seed: int) -> None:
    rng = random.Random(seed)
    store, plain = Store(), dict[ObjectKey, Line]()
    grown: Tree[Line] = Tree()
    for step in range(60):
        puts = some(rng.sample(range(3000), rng.choice([0, 1, 30, 400])), str(rng.randrange(3)))
        drops = [key for key in rng.sample(sorted(plain), min(len(plain), rng.randrange(300))) if key not in puts]
        before, kept = grown, dict(plain)

        grown = store.put(grown.changed(puts, drops))
        for key in drops:
            del plain[key]
        plain.update(puts)

        assert (dict(grown), len(grown)) == (plain, len(plain))
        assert dict(before) == kept
        upserts, deletes = grown.differing(before)
        assert sorted(upserts) == sorted(key for key, entry in plain.items() if kept.get(key) != entry)
        assert sorted(deletes) == sorted(set(kept) - set(plain))
        if step % 10 == 0:
            assert grown.digest == store.put(Tree[Line]().changed(plain)).digest
            assert tree.digest_of({key: entry.digest for key, entry in plain.items()}) == (
                grown.digest if plain else ""
            )
            reading = store.reading(grown.digest, before)
            assert set(reading.objects) == set(upserts)
            assert dict(reading.finish({key: plain[key] for key in reading.objects})) == plain


def test_a_small_tree_is_a_root_with_shards() -> None:
    objects = some(range(300))
    shards: dict[int, dict[str, str]] = {}
    for key, entry in objects.items():
        shards.setdefault(hashlib.sha256(str(key).encode()).digest()[0], {})[str(key)] = entry.digest
    refs = []
    for number, digests in sorted(shards.items()):
        shard = pb.TreeShard(entries=[pb.TreeEntry(key=key, digest=digests[key]) for key in sorted(digests)])
        raw = shard.SerializeToString(deterministic=True)
        refs.append(pb.TreeShardRef(number=number, digest=hashlib.sha256(raw).hexdigest()))
    root = pb.Tree(shards=refs, object_count=300).SerializeToString(deterministic=True)

    made, stored = Tree[Line]().changed(objects)

    assert stored[made.digest] == root
    assert len(stored) == 1 + len(shards)


@pytest.mark.usefixtures("split")
def test_a_node_names_what_is_stored_and_nothing_else_is(split: int) -> None:
    store = Store()
    large = store.put(Tree[Line]().changed(some(range(3000))))
    small, made = large.changed({}, [key_of(number) for number in range(20, 3000)])

    for whole, nodes in ((large, store.nodes), (small, made)):
        named, rest = set(), [(whole.digest, True)]
        while rest:
            digest, is_tree = rest.pop()
            named.add(digest)
            found = tree.listed(({**store.nodes, **made})[digest], split=is_tree)
            rest += [(ref.digest, ref.split) for ref in found.nodes.values()]
            assert len(found.objects) <= split
        assert named == set(nodes)


def test_one_change_among_many_writes_little_and_is_read_back_by_little() -> None:
    store = Store()
    before = store.put(Tree[Line]().changed(some(range(40_000))))

    after, made = before.changed(some([7], "changed"))
    store.nodes.update(made)

    assert len(made) == 3  # the root, the shard that was split, and the one in it
    assert sum(map(len, made.values())) < 25_000
    reading = store.reading(after.digest, before)
    assert sorted(store.read) == sorted(made)
    assert list(reading.objects) == [key_of(7)]


def test_a_change_of_many_among_very_many_does_not_write_all() -> None:
    before = Tree[Line]().changed(some(range(60_000)))[0]

    _, made = before.changed(some(range(0, 60_000, 60), "changed"))

    assert sum(map(len, made.values())) < 3_000_000  # all of it would be more than 6 MB


def test_what_is_not_there_is_missed() -> None:
    tree_of_one: Mapping[ObjectKey, Line] = Tree[Line]().changed(some([1]))[0]

    assert tree_of_one[key_of(1)] == some([1])[key_of(1)]
    assert key_of(2) not in tree_of_one
    assert tree_of_one.get(key_of(3)) is None
    assert key_of(1) not in Tree[Line]()
