"""Keys are listed by kind, name and semver."""

from services.domain.objects import ObjectKey
from services.registry.key_order import first_of, key_order


def test_versions_stand_as_semver_orders_them() -> None:
    versions = ["1.10.0", "1.9.0", "1.9.0-rc.1", "1.9.0-rc.1+b", "1.9.0+b"]

    order = key_order(ObjectKey("ModelVersion", "m", version) for version in versions)

    assert [key.version for key in order] == ["1.9.0-rc.1", "1.9.0-rc.1+b", "1.9.0", "1.9.0+b", "1.10.0"]


def test_a_kind_begins_where_the_one_before_ends() -> None:
    order = key_order([ObjectKey("Model", "z"), ObjectKey("ModelVersion", "a", "1.0.0"), ObjectKey("Pool", "a")])

    assert next(order.following(first_of("ModelVersion"))).kind == "ModelVersion"
    assert next(order.following(first_of("Pool"))).kind == "Pool"
    assert list(order.following(first_of("Route"))) == []
