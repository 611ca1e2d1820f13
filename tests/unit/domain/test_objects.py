"""How objects and versions are named and ordered."""

from hypothesis import given
from hypothesis import strategies as st

from services.domain.objects import ObjectKey
from services.domain.semver import semver_order


def test_semver_orders_as_its_section_11_says() -> None:
    ordered = [
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "1.2.0",
        "1.10.0",
        "2.0.0",
    ]

    shuffled = ordered[1::2] + ordered[::2]
    assert sorted(shuffled, key=semver_order) == ordered


@given(st.sampled_from(["Model", "Route"]), st.from_regex(r"[a-z0-9]{1,9}", fullmatch=True))
def test_object_keys_read_back(kind: str, name: str) -> None:
    assert ObjectKey.parse(str(ObjectKey(kind, name))) == ObjectKey(kind, name)
    assert ObjectKey.parse(str(ObjectKey("ModelVersion", name, "1.0.0-a"))) == ObjectKey(
        "ModelVersion", name, "1.0.0-a"
    )
