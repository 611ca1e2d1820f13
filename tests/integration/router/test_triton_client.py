"""tritonclient, unmodified, against the router."""

from typing import Any

import pytest

from tests.support import clients
from tests.support.services import Bench

pytestmark = pytest.mark.timeout(700)  # the first run installs the clients

TENSOR = {"datatype": "FP32", "shape": ["-1", "4"]}


@pytest.fixture(scope="module")
def got(yard: Bench) -> dict[str, Any]:
    """What the clients got."""
    found: dict[str, Any] = clients.run("triton_client.py", yard.router.address, "echo", "embed", "text")
    return found


def test_the_server_is_live_and_ready(got: dict[str, Any]) -> None:
    for client in ("sync", "aio"):
        assert got[client]["live"]
        assert got[client]["ready"]
        assert got[client]["model_ready"]


def test_only_what_can_be_used_is_ready(got: dict[str, Any]) -> None:
    sync = got["sync"]

    assert (sync["version_ready"], sync["route_ready"]) == (True, True)
    assert (sync["unknown_ready"], sync["unknown_version_ready"]) == (False, False)


def test_the_server_says_what_it_is(got: dict[str, Any]) -> None:
    server = got["sync"]["server"]

    assert server["name"] == "modelyard"
    assert "statistics" in server["extensions"]
    assert not any("shared_memory" in extension for extension in server["extensions"])


def test_metadata_tells_versions_and_schema(got: dict[str, Any]) -> None:
    for client in ("sync", "aio"):
        metadata = got[client]["metadata"]
        assert metadata["name"] == "echo"
        assert metadata["versions"] == ["1.0.0", "1.1.0"]
        assert metadata["platform"] == "identity"
        assert metadata["inputs"] == [{"name": "x", **TENSOR}]
        assert metadata["outputs"] == [{"name": "y", **TENSOR}]
    assert got["sync"]["route_metadata"]["name"] == "embed"


def test_the_configuration_leaves_out_the_batch_dimension(got: dict[str, Any]) -> None:
    for client in ("sync", "aio"):
        config = got[client]["config"]
        assert (config["name"], config["backend"], config["max_batch_size"]) == ("echo", "identity", 8)
        assert [(one["name"], one["data_type"], one["dims"]) for one in config["input"]] == [("x", "TYPE_FP32", ["4"])]
        assert [(one["name"], one["data_type"], one["dims"]) for one in config["output"]] == [("y", "TYPE_FP32", ["4"])]
        assert config["instance_group"] == [{"name": "cpu", "kind": "KIND_CPU", "count": 2}]
    assert got["sync"]["route_config"]["name"] == "embed"


def test_statistics_count_what_was_done(got: dict[str, Any]) -> None:
    before, after = (
        {one["version"]: one for one in got[client]["statistics"]["model_stats"]} for client in ("sync", "aio")
    )

    grown = int(after["1.1.0"]["inference_count"]) - int(before["1.1.0"]["inference_count"])
    assert grown >= 20
    stats = after["1.1.0"]["inference_stats"]
    assert int(stats["success"]["ns"]) >= int(stats["queue"]["ns"]) + int(stats["compute_infer"]["ns"]) > 0
    assert int(stats["success"]["count"]) == int(after["1.1.0"]["inference_count"])
    assert {one["name"] for one in got["sync"]["route_statistics"]["model_stats"]} == {"embed"}
    assert {"echo", "small", "large"} <= {one["name"] for one in got["sync"]["all_statistics"]["model_stats"]}


def test_the_index_lists_every_version_with_its_state(got: dict[str, Any]) -> None:
    for client in ("sync", "aio"):
        states = {(one["name"], one["version"]): one for one in got[client]["index"]["models"]}
        assert states["echo", "1.0.0"]["state"] == "READY"
        assert states["nowhere", "1.0.0"]["state"] == "UNAVAILABLE"
        assert states["nowhere", "1.0.0"]["reason"] == "not placed yet"


def test_raw_is_answered_raw(got: dict[str, Any]) -> None:
    sync = got["sync"]

    assert sync["raw"] == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    assert (sync["raw_id"], sync["raw_version"], sync["pinned_version"]) == ("raw", "1.1.0", "1.0.0")
    assert sync["text"] == ["café", ""]
    assert sync["prioritised"] == sync["raw"]
    assert got["aio"]["right"]
    assert got["aio"]["ids"] == [str(number) for number in range(20)]


def test_typed_is_answered_typed(got: dict[str, Any]) -> None:
    assert got["sync"]["typed"] == [1.0, 2.0, 3.0, 4.0]
    assert got["sync"]["typed_raw"] == 0


def test_a_route_chooses_also_by_parameters(got: dict[str, Any]) -> None:
    assert (got["sync"]["route_model"], got["sync"]["route_cheap"]) == ("large", "small")


def test_a_stream_answers_each_request_in_order_and_an_error_is_an_answer(got: dict[str, Any]) -> None:
    first, second, error, fourth, fifth = got["sync"]["stream"]

    assert [first, second, fourth, fifth] == ["0", "1", "3", "4"]
    assert "no route or model 'no-such-model'" in error


def test_an_unknown_model_is_not_found(got: dict[str, Any]) -> None:
    for client in ("sync", "aio"):
        error = got[client]["unknown"]
        assert error["status"] == "StatusCode.NOT_FOUND"
        assert "no route or model 'no-such-model'; there are:" in error["message"]
    assert got["sync"]["wrong_shape"]["status"] == "StatusCode.INVALID_ARGUMENT"


def test_loading_is_the_registrys_business(got: dict[str, Any]) -> None:
    sync = got["sync"]

    assert sync["load_ready"] is None
    assert "raise min_replicas" in sync["load"]["message"]
    assert "set min_replicas" in sync["unload"]["message"]


@pytest.mark.parametrize("rpc", ["shared_memory", "cuda_shared_memory", "trace", "log"])
def test_what_is_not_offered_says_so(got: dict[str, Any], rpc: str) -> None:
    error = got["sync"][rpc]

    assert error["status"] == "StatusCode.UNIMPLEMENTED"
    assert len(error["message"]) > 30
