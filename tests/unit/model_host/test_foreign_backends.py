"""Models that others bring: plug-ins of installed packages, and models of other servers."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from modelyard.openinference.v2 import grpc_service_pb2 as v2
from services.domain.errors import (
    ArtifactRejected,
    BudgetExhausted,
    InvalidRequest,
    ModelFailed,
    ModelNotReady,
    Overloaded,
    YardError,
)
from services.domain.model import TensorSpec
from services.domain.objects import Artifact, Backend, Metadata, Model, ModelVersion
from services.model_host.backends.plugin_backend import PluginBackend, PluginModel
from services.model_host.backends.remote_backend import RemoteBackend, RemoteModel
from services.model_host.devices.cpu import CpuDevice
from tests.fakes.v2_server import FakeV2Server, tensor

CPU = CpuDevice(name="test", memory_bytes=1 << 30)
X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4))
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def version_of(backend: Backend, name: str = "doubler") -> ModelVersion:
    return ModelVersion(Metadata(name), "1.0.0", backend, Artifact("file:/x", "0" * 64), max_batch_size=8)


# --- plug-ins ------------------------------------------------------------------------------------

PLUGIN = """
import numpy as np

class Scaler:
    def load(self, artifact, files, options):
        self.factor = float(artifact.read_text()) * float(options["times"])
        self.offset = float(files["offset"].read_text())

    def predict(self, inputs):
        return {"y": inputs["x"] * np.float32(self.factor) + np.float32(self.offset)}

class Failing(Scaler):
    def load(self, artifact, files, options):
        raise RuntimeError("no licence")

class HalfOne:
    def load(self, artifact, files, options):
        pass

a_function = Scaler().predict if False else len
"""

ENTRY_POINTS = """
[modelyard.models]
scaler = yard_plugin:Scaler
failing = yard_plugin:Failing
half = yard_plugin:HalfOne
function = yard_plugin:a_function
absent = yard_plugin:Absent
twice = yard_plugin:Scaler
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that brings plug-ins."""
    for name, points in (("yard_plugin", ENTRY_POINTS), ("other", "[modelyard.models]\ntwice = yard_plugin:HalfOne\n")):
        info = tmp_path / "site" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
    (tmp_path / "site" / "yard_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path


def load_plugin(folder: Path, name: str, *, trusts: bool = True, executes: bool = True) -> PluginModel:
    (folder / "weights").write_text("3")
    (folder / "offset").write_text("0.5")
    backend = PluginBackend(trusts_artifacts=trusts)
    backend.prepare(CPU)
    version = version_of(Backend("plugin", name, {"times": "2"}, executes_code=executes))
    model = Model(Metadata("doubler"), (X,), (Y,))
    return backend.load(folder / "weights", {"offset": folder / "offset"}, version, model, CPU)


def test_a_plugin_gets_artifact_files_and_options_and_computes(package: Path) -> None:
    assert np.array_equal(load_plugin(package, "scaler").predict({"x": ROWS})["y"], ROWS * 6 + 0.5)


@pytest.mark.parametrize(("trusts", "executes"), [(False, True), (True, False), (False, False)])
def test_a_plugin_needs_a_pool_that_trusts_and_a_version_that_says_so(
    package: Path, trusts: bool, executes: bool
) -> None:
    with pytest.raises(ArtifactRejected, match="is code"):
        load_plugin(package, "scaler", trusts=trusts, executes=executes)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody", "no package .* there are: absent, failing, function, half, scaler, twice"),
        ("half", "a class with the methods load and predict"),
        ("function", "a class with the methods load and predict"),
        ("twice", "several packages bring a plug-in 'twice'"),
    ],
)
def test_what_is_no_plugin_is_refused(package: Path, name: str, said: str) -> None:
    with pytest.raises(ArtifactRejected, match=said):
        load_plugin(package, name)


def test_what_a_plugin_raises_is_its_own(package: Path) -> None:
    with pytest.raises(RuntimeError, match="no licence"):
        load_plugin(package, "failing")
    with pytest.raises(AttributeError):
        load_plugin(package, "absent")


# --- remote --------------------------------------------------------------------------------------


def connect(
    server: FakeV2Server,
    options: Mapping[str, str] | None = None,
    *,
    inputs: tuple[TensorSpec, ...] = (X,),
    outputs: tuple[TensorSpec, ...] = (Y,),
    addresses: tuple[str, ...] | None = None,
    ca_file: Path | None = None,
    name: str = "doubler",
) -> RemoteModel:
    allowed = (server.address,) if addresses is None else addresses
    backend = RemoteBackend(addresses=allowed, ca_file=ca_file)
    backend.prepare(CPU)
    version = version_of(Backend("remote", options={"address": server.address, **(options or {})}), name)
    return backend.load(None, {}, version, Model(Metadata(name), inputs, outputs), CPU)


@pytest.mark.parametrize("typed", [False, True])
def test_a_remote_model_answers_in_whichever_form_its_server_chooses(typed: bool) -> None:
    with FakeV2Server(typed=typed) as server:
        assert np.array_equal(connect(server).predict({"x": ROWS})["y"], ROWS * 2)
        (request,) = server.seen
        assert (request.model_name, request.model_version, [each.name for each in request.outputs]) == (
            "doubler",
            "",
            ["y"],
        )


@pytest.mark.parametrize("typed", [False, True])
def test_texts_travel_too(typed: bool) -> None:
    schema = {"inputs": [tensor("x", "BYTES", -1)], "outputs": [tensor("y", "BYTES", -1)]}
    with FakeV2Server(typed=typed, **schema) as server:  # type: ignore[arg-type]
        ours = {"inputs": (TensorSpec("x", "BYTES", (-1,)),), "outputs": (TensorSpec("y", "BYTES", (-1,)),)}
        answer = connect(server, **ours).predict({"x": np.array([b"ab", b""], np.object_)})  # type: ignore[arg-type]
        assert answer["y"].tolist() == [b"abab", b""]


def test_model_version_and_names_may_differ_there() -> None:
    with FakeV2Server(
        model="m", inputs=[tensor("IN", "FP32", -1, 4)], outputs=[tensor("OUT", "FP32", -1, 4)]
    ) as server:
        options = {"model": "m", "version": "7", "input.x": "IN", "output.y": "OUT", "timeout_ms": "5000"}
        assert np.array_equal(connect(server, options).predict({"x": ROWS})["y"], ROWS * 2)
        assert (server.seen[0].model_version, server.seen[0].inputs[0].name) == ("7", "IN")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, ModelNotReady),
        (grpc.StatusCode.UNAVAILABLE, ModelNotReady),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.DEADLINE_EXCEEDED, BudgetExhausted),
        (grpc.StatusCode.UNIMPLEMENTED, ModelFailed),
        (grpc.StatusCode.INTERNAL, ModelFailed),
        (grpc.StatusCode.UNKNOWN, ModelFailed),
    ],
)
def test_what_a_server_says_becomes_an_error_of_ours(code: grpc.StatusCode, kind: type[YardError]) -> None:
    with FakeV2Server(failure=(code, "says\nwhy")) as server:
        remote = connect(server)
        with pytest.raises(kind, match=f"remote model 'doubler' at {server.address}: {code.name}: says why") as caught:
            remote.predict({"x": ROWS})
        assert type(caught.value) is kind


def test_a_server_that_has_gone_is_an_error_that_others_may_not_have() -> None:
    with FakeV2Server() as server:
        remote = connect(server)
    with pytest.raises(ModelNotReady, match="UNAVAILABLE"):
        remote.predict({"x": ROWS})


def broken_count(answer: v2.ModelInferResponse) -> None:
    answer.raw_output_contents.append(b"")


def broken_length(answer: v2.ModelInferResponse) -> None:
    answer.raw_output_contents[0] = b"abc"


def broken_type(answer: v2.ModelInferResponse) -> None:
    answer.outputs[0].datatype = "FP64"


def broken_shape(answer: v2.ModelInferResponse) -> None:
    answer.outputs[0].shape[0] = -1


def broken_form(answer: v2.ModelInferResponse) -> None:
    answer.ClearField("raw_output_contents")


@pytest.mark.parametrize("changed", [broken_count, broken_length, broken_type, broken_shape, broken_form])
def test_an_answer_that_is_none_is_the_models_failure(changed: object) -> None:
    with FakeV2Server(changed=changed) as server:  # type: ignore[arg-type]
        remote = connect(server)
        with pytest.raises(ModelFailed):
            remote.predict({"x": ROWS})


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (FakeV2Server(ready=False), "is not ready there"),
        (FakeV2Server(model="other"), "NOT_FOUND: unknown model 'doubler'"),
        (FakeV2Server(inputs=[tensor("z", "FP32", -1, 4)]), "has no input 'x', but z; its input 'z' is not in"),
        (FakeV2Server(inputs=[tensor("x", "FP64", -1, 4)]), "'x' is FP32 in the schema, FP64 there"),
        (FakeV2Server(inputs=[tensor("x", "FP32", -1, 5)]), r"'x' is \[-1, 4\] in the schema, \[-1, 5\] there"),
        (FakeV2Server(outputs=[tensor("y", "FP32", -1)]), r"'y' is \[-1, 4\] in the schema, \[-1\] there"),
        (FakeV2Server(outputs=[tensor("y", "INT64", -1, 4)]), "'y' is FP32 in the schema, INT64 there"),
        (FakeV2Server(inputs=[tensor("x", "FP32", -1, 4), tensor("z", "BOOL", 1)]), "input 'z' is not in the schema"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_at_the_load(server: FakeV2Server, said: str) -> None:
    with server, pytest.raises(ArtifactRejected, match=said):
        connect(server)


def test_what_the_server_leaves_open_or_can_do_without_fits() -> None:
    with FakeV2Server(inputs=(), outputs=()) as server:
        connect(server)
    inputs = [tensor("x", "FP32", -1, -1), tensor("z", "BOOL", 1)]
    with FakeV2Server(inputs=inputs, optional=["z"]) as server:
        assert np.array_equal(connect(server).predict({"x": ROWS})["y"], ROWS * 2)


def test_only_addresses_that_are_allowed_are_asked() -> None:
    with FakeV2Server() as server:
        with pytest.raises(ArtifactRejected, match=r"may ask: none \(remote_addresses\)"):
            connect(server, addresses=())
        for address in (
            f"localhost:{server.port}",
            f"127.0.0.1:{server.port},evil.example:1",
            f"127.0.0.1:{server.port}@evil.example:1",
            "unix:/run/x.sock",
            f"dns:///127.0.0.1:{server.port}",
            f"ipv4:127.0.0.1:{server.port}",
            "127.0.0.1",
            "127.0.0.1:0",
            "",
        ):
            with pytest.raises(ArtifactRejected, match="remote: "):
                connect(server, {"address": address})
        assert server.seen == []


@pytest.mark.parametrize(
    "options",
    [{"timeout_ms": "soon"}, {"timeout_ms": "0"}, {"tls": "yes"}, {"retries": "3"}],
)
def test_options_that_mean_nothing_are_refused(options: Mapping[str, str]) -> None:
    with FakeV2Server() as server, pytest.raises(ArtifactRejected, match=f"option '{next(iter(options))}'"):
        connect(server, options)


def test_a_server_with_a_certificate_is_believed_by_it(tmp_path: Path) -> None:
    with FakeV2Server(certificates=tmp_path) as server:
        remote = connect(server, {"tls": "true"}, ca_file=tmp_path / "ca.pem")
        assert np.array_equal(remote.predict({"x": ROWS})["y"], ROWS * 2)
        with pytest.raises(ArtifactRejected, match="cannot be asked: UNAVAILABLE"):
            connect(server, {"tls": "true"})
        with pytest.raises(ArtifactRejected, match="cannot be asked: UNAVAILABLE"):
            connect(server)
        with pytest.raises(ArtifactRejected, match="is not there"):
            connect(server, {"tls": "true"}, ca_file=tmp_path / "none.pem")


def test_a_model_that_is_dropped_lets_go_of_its_connection() -> None:
    with FakeV2Server() as server:
        remote = connect(server)
        channel = remote._server._channel
        del remote
        gc.collect()
        call: Any = channel.unary_unary("/x/y")
        with pytest.raises(ValueError, match="closed channel"):
            call(b"")
