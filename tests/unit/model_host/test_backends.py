import importlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skops import io as skops_io

from services.domain.errors import ArtifactRejected
from services.domain.model import TensorSpec
from services.domain.objects import Artifact, Backend, Metadata, Model, ModelVersion
from services.model_host.backends import onnx_backend
from services.model_host.backends.base import LoadedModel
from services.model_host.backends.formats import Format, format_of
from services.model_host.backends.identity import IdentityBackend
from services.model_host.backends.onnx_backend import OnnxBackend
from services.model_host.backends.sklearn_backend import SklearnBackend
from services.model_host.backends.torch_backend import EXPORTED, TorchBackend, TorchModel
from services.model_host.devices.cpu import CpuDevice
from tests.support.onnx_file import endless_onnx, linear_onnx

CPU = CpuDevice(name="test", memory_bytes=1 << 30)
X = TensorSpec("x", "FP32", (-1, 4))
WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)
ROWS = np.array([[1, 0, 0, 0], [0, 2, 0, 0]], np.float32)

planted: list[str] = []


def plant(word: str) -> None:
    planted.append(word)


class Planted:
    """Unpickling it calls a function, as an attacker's would."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (plant, ("ran",))


def model_of(*outputs: TensorSpec, inputs: tuple[TensorSpec, ...] = (X,)) -> Model:
    return Model(Metadata("m"), inputs, outputs)


def version_of(backend: str, options: Mapping[str, str] | None = None, **more: object) -> ModelVersion:
    fields = {"architecture": "", "executes_code": False, **more}
    made = Backend(backend, options=options or {}, **fields)  # type: ignore[arg-type]
    return ModelVersion(Metadata("m"), "1.0.0", made, Artifact("file:/x", "0" * 64), max_batch_size=8)


def torch_backend(*, trusts: bool = False) -> TorchBackend:
    backend = TorchBackend(trusts_artifacts=trusts, threads=1)
    backend.prepare(CPU)
    return backend


def load_mlp(path: Path, *, outputs: tuple[TensorSpec, ...] = (TensorSpec("logits", "FP32", (-1, 3)),)) -> LoadedModel:
    version = version_of("torch", {"sizes": "4,3", "input": "x"}, architecture="mlp")
    loaded = torch_backend().load(path, {}, version, model_of(*outputs), CPU)
    assert isinstance(loaded, TorchModel)
    return loaded


@pytest.fixture
def mlp_state() -> dict[str, torch.Tensor]:
    from services.model_host.backends import architectures

    module = architectures.build("mlp", {"sizes": "4,3"}, {}).module
    return {name: torch.full_like(value, 0.5) for name, value in module.state_dict().items()}


# --- torch ---------------------------------------------------------------------------------------


def test_safetensors_and_state_dicts_give_the_same_answers(mlp_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    safe, plain, old = tmp_path / "w.safetensors", tmp_path / "w.pt", tmp_path / "old.pt"
    safetensors.torch.save_file(mlp_state, safe)
    torch.save(mlp_state, plain)
    torch.save(mlp_state, old, _use_new_zipfile_serialization=False)
    answers = [load_mlp(path).predict({"x": ROWS})["logits"] for path in (safe, plain, old)]
    assert answers[0].shape == (2, 3)
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[0], answers[2])


def test_read_only_inputs_are_no_trouble(mlp_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(mlp_state, tmp_path / "w.safetensors")
    rows = np.frombuffer(ROWS.tobytes(), np.float32).reshape(2, 4)
    load_mlp(tmp_path / "w.safetensors").predict({"x": rows})


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_that_runs_code_is_refused_and_does_not_run(
    mlp_state: dict[str, torch.Tensor], tmp_path: Path, zipped: bool
) -> None:
    path = tmp_path / "w.pt"
    torch.save({**mlp_state, "x": Planted()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ArtifactRejected, match="weights_only"):
        load_mlp(path)
    assert planted == []


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(4, 3), tmp_path / "module.pt")
    with pytest.raises(ArtifactRejected, match="weights_only"):
        load_mlp(tmp_path / "module.pt")


def test_weights_that_do_not_fit_are_refused_by_name(mlp_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    name, value = mlp_state.popitem()
    safetensors.torch.save_file({**mlp_state, "other": value}, tmp_path / "w.safetensors")
    with pytest.raises(ArtifactRejected, match=f"do not fit 'mlp'.*{name}"):
        load_mlp(tmp_path / "w.safetensors")


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ArtifactRejected, match="no state dict"):
        load_mlp(tmp_path / "list.pt")
    (tmp_path / "noise").write_bytes(b"\x08noise" * 100)
    with pytest.raises(ArtifactRejected, match="unknown format"):
        load_mlp(tmp_path / "noise")
    (tmp_path / "broken.safetensors").write_bytes((100).to_bytes(8, "little") + b"{" + b"x" * 200)
    with pytest.raises(ArtifactRejected, match="broken safetensors"):
        load_mlp(tmp_path / "broken.safetensors")


def test_bf16_comes_in_as_bits_and_goes_out_as_bits(mlp_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(mlp_state, tmp_path / "w.safetensors")
    version = version_of("torch", {"sizes": "4,3", "input": "x"}, architecture="mlp")
    model = model_of(TensorSpec("logits", "BF16", (-1, 3)), inputs=(TensorSpec("x", "BF16", (-1, 4)),))
    loaded = torch_backend().load(tmp_path / "w.safetensors", {}, version, model, CPU)
    assert isinstance(loaded, TorchModel)
    bits = torch.from_numpy(ROWS).to(torch.bfloat16).view(torch.uint16).numpy()
    answer = loaded.predict({"x": bits})["logits"]
    exact = load_mlp(tmp_path / "w.safetensors").predict({"x": ROWS})["logits"]
    assert answer.dtype == np.uint16
    assert torch.allclose(torch.from_numpy(answer).view(torch.bfloat16).float(), torch.from_numpy(exact), rtol=2**-7)


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_is_read_only_where_code_is_allowed_and_trusted(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    linear = torch.nn.Linear(4, 3)
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(linear, (torch.from_numpy(ROWS),), dynamic_shapes=({0: batch},)), path)
    assert format_of(path) is Format.TORCH_EXPORT
    model = model_of(TensorSpec("y", "FP32", (-1, 3)))
    for trusts, executes in ((False, True), (True, False), (False, False)):
        version = version_of("torch", architecture=EXPORTED, executes_code=executes)
        with pytest.raises(ArtifactRejected, match="can run code"):
            torch_backend(trusts=trusts).load(path, {}, version, model, CPU)
    version = version_of("torch", architecture=EXPORTED, executes_code=True)
    loaded = torch_backend(trusts=True).load(path, {}, version, model, CPU)
    assert isinstance(loaded, TorchModel)
    expected = linear(torch.from_numpy(ROWS)).detach().numpy()
    assert np.allclose(loaded.predict({"x": ROWS})["y"], expected)


# --- onnxruntime ---------------------------------------------------------------------------------


def load_onnx(
    path: Path,
    model: Model,
    options: Mapping[str, str] | None = None,
) -> LoadedModel:
    backend = OnnxBackend()
    backend.prepare(CPU)
    return backend.load(path, {}, version_of("onnxruntime", options), model, CPU)


Y = TensorSpec("y", "FP32", (-1, 3))


def test_an_onnx_file_computes(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(linear_onnx(WEIGHTS))
    answer = load_onnx(tmp_path / "m.onnx", model_of(Y)).predict({"x": ROWS})
    assert np.array_equal(answer["y"], ROWS @ WEIGHTS)


def test_names_in_the_schema_may_differ_from_the_files(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(linear_onnx(WEIGHTS))
    model = model_of(TensorSpec("scores", "FP32", (-1, 3)), inputs=(TensorSpec("features", "FP32", (-1, 4)),))
    with pytest.raises(ArtifactRejected, match=r"no output scores; it has y: say which with .*output\.<name>"):
        load_onnx(tmp_path / "m.onnx", model)
    options = {"input.features": "x", "output.scores": "y"}
    answer = load_onnx(tmp_path / "m.onnx", model, options).predict({"features": ROWS})
    assert np.array_equal(answer["scores"], ROWS @ WEIGHTS)


def test_a_schema_that_does_not_fit_the_graph_is_refused_with_every_fault(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(linear_onnx(WEIGHTS))
    model = model_of(Y, inputs=(TensorSpec("x", "BF16", (-1, 4)), TensorSpec("z", "FP32", (-1,))))
    with pytest.raises(ArtifactRejected) as refused:
        load_onnx(tmp_path / "m.onnx", model, {"constant.k": "1"})
    for said in ("'x' is BF16, the ONNX file takes tensor(float)", "no input 'z'", "no input 'k' for its constant"):
        assert said in refused.value.message


def test_a_constant_feeds_an_input_that_callers_do_not_set(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(linear_onnx(np.ones((1, 3), np.float32)))
    model = model_of(Y, inputs=(TensorSpec("unused", "FP32", (-1,), optional=True),))
    with pytest.raises(ArtifactRejected, match="input 'x' is not in the schema"):
        load_onnx(tmp_path / "m.onnx", model)


def test_a_graph_without_an_end_is_ended_in_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_backend, "LONGEST_RUN_S", 0.2)
    (tmp_path / "m.onnx").write_bytes(endless_onnx())
    loaded = load_onnx(tmp_path / "m.onnx", model_of(TensorSpec("y", "FP32", (-1, 4))))
    with pytest.raises(Exception, match="terminate flag"):
        loaded.predict({"x": ROWS})


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x08\x08noise" * 50)
    with pytest.raises(ArtifactRejected, match=r"noise\.onnx is no ONNX model that can be run"):
        load_onnx(tmp_path / "noise.onnx", model_of(Y))
    (tmp_path / "pickle.onnx").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ArtifactRejected, match=r"pickle\.onnx is a pickle"):
        load_onnx(tmp_path / "pickle.onnx", model_of(Y))
    assert planted == []


@pytest.mark.parametrize("external", ["../secret.bin", "/etc/passwd"])
def test_an_onnx_file_cannot_read_other_files(tmp_path: Path, external: str) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHTS.tobytes())
    inside = tmp_path / "cache"
    inside.mkdir()
    (inside / "m.onnx").write_bytes(linear_onnx(WEIGHTS, external=external))
    with pytest.raises(ArtifactRejected):
        load_onnx(inside / "m.onnx", model_of(Y))


# --- scikit-learn --------------------------------------------------------------------------------


def load_sklearn(path: Path, model: Model, options: Mapping[str, str] | None = None) -> LoadedModel:
    backend = SklearnBackend()
    backend.prepare(CPU)
    return backend.load(path, {}, version_of("sklearn", options), model, CPU)


CLASSES = (TensorSpec("label", "INT64", (-1,)), TensorSpec("probabilities", "FP64", (-1, 3)))
IRIS, SPECIES = load_iris(return_X_y=True)
DOUBLES = (TensorSpec("x", "FP64", (-1, 4)),)


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(max_iter=1000),
        HistGradientBoostingClassifier(max_iter=3),
        RandomForestClassifier(3, random_state=1),
    ],
)
def test_estimators_answer_as_they_did_before_they_were_saved(estimator: LogisticRegression, tmp_path: Path) -> None:
    estimator.fit(IRIS, SPECIES)
    skops_io.dump(estimator, tmp_path / "m.skops")
    answer = load_sklearn(tmp_path / "m.skops", model_of(*CLASSES, inputs=DOUBLES)).predict({"x": IRIS})
    assert np.array_equal(answer["label"], estimator.predict(IRIS))
    assert np.allclose(answer["probabilities"], estimator.predict_proba(IRIS))


def test_columns_may_be_inputs_of_their_own_and_a_regression_one_output(tmp_path: Path) -> None:
    regression = LinearRegression().fit(IRIS[:, :3], IRIS[:, 3])
    skops_io.dump(regression, tmp_path / "m.skops")
    inputs = (TensorSpec("ab", "FP64", (-1, 2)), TensorSpec("c", "FP64", (-1,)))
    loaded = load_sklearn(tmp_path / "m.skops", model_of(TensorSpec("y", "FP32", (-1, 1)), inputs=inputs))
    answer = loaded.predict({"ab": IRIS[:, :2], "c": IRIS[:, 2]})["y"]
    assert answer.shape == (150, 1)
    assert answer.dtype == np.float32
    assert np.allclose(answer[:, 0], regression.predict(IRIS[:, :3]), rtol=1e-5)


def test_texts_go_in_and_names_come_out(tmp_path: Path) -> None:
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["good", "fine", "bad", "poor"], list("++--"))
    skops_io.dump(pipeline, tmp_path / "m.skops")
    model = model_of(TensorSpec("mood", "BYTES", (-1,)), inputs=(TensorSpec("text", "BYTES", (-1,)),))
    answer = load_sklearn(tmp_path / "m.skops", model).predict({"text": np.array([b"good", b"poor"], np.object_)})
    assert answer["mood"].tolist() == [b"+", b"-"]


def test_which_method_answers_an_output_can_be_said(tmp_path: Path) -> None:
    estimator = LogisticRegression(max_iter=1000).fit(IRIS, SPECIES)
    skops_io.dump(estimator, tmp_path / "m.skops")
    model = model_of(TensorSpec("scores", "FP64", (-1, 3)), inputs=DOUBLES)
    loaded = load_sklearn(tmp_path / "m.skops", model, {"outputs": "scores=decision_function"})
    assert np.allclose(loaded.predict({"x": IRIS})["scores"], estimator.decision_function(IRIS))
    for said in ("scores=fit", "scores=transform", "other=predict"):
        with pytest.raises(ArtifactRejected):
            load_sklearn(tmp_path / "m.skops", model, {"outputs": said})


def test_pickle_and_joblib_are_refused_and_do_not_run(tmp_path: Path) -> None:
    joblib = importlib.import_module("joblib")

    for name, protocol in (("p0", 0), ("p2", 2), ("p5", 5)):
        (tmp_path / name).write_bytes(pickle.dumps(Planted(), protocol=protocol))
    joblib.dump(Planted(), tmp_path / "joblib")
    joblib.dump(Planted(), tmp_path / "squeezed", compress=3)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ArtifactRejected, match="pickle can run code"):
            load_sklearn(path, model_of(*CLASSES))
    assert planted == []


def test_a_skops_file_with_a_foreign_type_is_refused_by_name(tmp_path: Path) -> None:
    import os

    skops_io.dump(make_pipeline(FunctionTransformer(os.system)), tmp_path / "m.skops")
    with pytest.raises(ArtifactRejected, match=r"not trusted: .*system"):
        load_sklearn(tmp_path / "m.skops", model_of(*CLASSES))


def test_the_planted_code_would_run_if_it_were_unpickled() -> None:
    pickle.loads(pickle.dumps(Planted()))
    assert planted.pop() == "ran"


# --- archives, identity --------------------------------------------------------------------------


def test_archives_that_lead_out_of_themselves_or_swell_are_refused(tmp_path: Path) -> None:
    def archive(name: str, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as written:
            for member, content in members:
                written.writestr(member, content)
        return tmp_path / name

    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    for path, said in (
        (archive("up", ("../schema.json", b"{}")), "leads out"),
        (archive("root", ("/schema.json", b"{}")), "leads out"),
        (archive("link", (link, b"/etc/passwd")), "a link"),
        (archive("bomb", ("schema.json", b"\0" * 50_000_000)), "unpacks to"),
    ):
        with pytest.raises(ArtifactRejected, match=said):
            format_of(path)
    (tmp_path / "cut").write_bytes((tmp_path / "up").read_bytes()[:20])
    with pytest.raises(ArtifactRejected, match="broken archive"):
        format_of(tmp_path / "cut")


def test_identity_pairs_outputs_with_inputs_by_name_then_by_place() -> None:
    a, b = TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,))
    swapped = model_of(TensorSpec("b", "FP32", (-1,)), TensorSpec("z", "FP32", (-1,)), inputs=(a, b))
    loaded = IdentityBackend().load(None, {}, version_of("identity"), swapped, CPU)
    inputs = {"a": np.array([1.0], np.float32), "b": np.array([2.0], np.float32)}
    assert {name: array.tolist() for name, array in loaded.predict(inputs).items()} == {"b": [2.0], "z": [2.0]}
    with pytest.raises(ArtifactRejected, match="output 'c' has no input"):
        IdentityBackend().load(None, {}, version_of("identity"), model_of(a, TensorSpec("c", "FP32", (-1,))), CPU)
    with pytest.raises(ArtifactRejected, match="'base_ms' must be milliseconds"):
        IdentityBackend().load(None, {}, version_of("identity", {"base_ms": "soon"}), model_of(a), CPU)
