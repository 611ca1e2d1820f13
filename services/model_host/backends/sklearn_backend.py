"""scikit-learn estimators from skops files, which name every type they hold before any is made.

Types beyond skops' own list of safe ones must be in `TRUSTED`. What the estimator is asked for
each output follows from the output's datatype (`predict` for integers, booleans and bytes,
`predict_proba` for floats of a classifier, `predict` or `transform` for floats of others), or is said by
the option `outputs`, such as `label=predict,scores=decision_function`.
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from services.domain.errors import ArtifactRejected, NotSupported
from services.domain.host import DeviceKind
from services.domain.model import TensorSpec
from services.domain.objects import Model, ModelVersion
from services.model_host.backends.formats import Format, format_of
from services.model_host.backends.tree_check import check_trees
from services.model_host.devices.base import ComputeDevice
from services.model_host.tensors import FLOATS, NUMPY, NDArray

TRUSTED = frozenset(
    {
        "numpy.dtype",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
        "sklearn.utils._bunch.Bunch",
    }
)
"""What a file may hold beyond skops' own list: parts of scikit-learn's estimators that hold data and
run nothing of the file's choosing."""

MAX_SCHEMA_BYTES = 64 << 20
"""Longest description of an estimator; a forest of 1,000 trees has about 10 MB."""

METHODS = ("decision_function", "predict", "predict_log_proba", "predict_proba", "score_samples", "transform")
"""What an estimator may be asked."""


class SklearnModel:
    """A fitted estimator."""

    def __init__(self, estimator: object, model: Model, methods: Mapping[str, str]) -> None:
        """Ask `estimator` for each output by the method that `methods` names."""
        self._inputs = model.inputs
        self._outputs = model.outputs
        self._methods = methods
        self._calls: dict[str, Callable[[Any], Any]] = {name: getattr(estimator, name) for name in methods.values()}

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Ask for each output; inputs are columns side by side, or texts."""
        features = _features(self._inputs, inputs)
        answers = {name: call(features) for name, call in self._calls.items()}
        return {spec.name: _as_declared(answers[self._methods[spec.name]], spec) for spec in self._outputs}


class SklearnBackend:
    """Loads skops files and nothing else."""

    def prepare(self, device: ComputeDevice) -> None:
        """Import scikit-learn.

        Raises:
            NotSupported: The device is not the CPU.
        """
        import skops.io  # noqa: F401, PLC0415

        if device.kind is not DeviceKind.CPU:
            raise NotSupported("sklearn computes on CPU hosts only; set device_kind: CPU or a CPU pool")

    def load(
        self,
        artifact: Path | None,
        files: Mapping[str, Path],
        version: ModelVersion,
        model: Model,
        device: ComputeDevice,
    ) -> SklearnModel:
        """Read a skops file whose every type is trusted.

        Raises:
            ArtifactRejected: It is another format, holds a type that is not trusted, or lacks a method.
        """
        from skops import io as skops_io  # noqa: PLC0415

        del files, device
        assert artifact is not None
        found = format_of(artifact)
        if found is not Format.SKOPS:
            raise ArtifactRejected(
                f"sklearn takes skops files (skops.io.dump); {artifact.name} is {found.value}"
                + (", and pickle can run code when it is read" if found in (Format.PICKLE, Format.COMPRESSED) else "")
            )
        _check_schema_size(artifact)
        try:
            unknown = set(skops_io.get_untrusted_types(file=artifact)) - TRUSTED
        except Exception as error:  # a broken schema makes it raise anything
            raise ArtifactRejected(f"{artifact.name} is a broken skops file ({type(error).__name__})") from error
        if unknown:
            raise ArtifactRejected(
                f"{artifact.name} holds types that are not trusted: {', '.join(sorted(unknown))}"[:500]
            )
        try:
            estimator = skops_io.load(artifact, trusted=sorted(TRUSTED))
        except Exception as error:
            raise ArtifactRejected(
                f"{artifact.name} cannot be loaded ({type(error).__name__}: {error})"[:500]
            ) from error
        check_trees(estimator)
        return SklearnModel(estimator, model, _methods(estimator, model, version.backend.options))


def _check_schema_size(artifact: Path) -> None:
    """A schema becomes Python objects many times its size before any type in it is looked at.

    Raises:
        ArtifactRejected: It is too large.
    """
    with zipfile.ZipFile(artifact) as archive:
        size_bytes = max(member.file_size for member in archive.infolist() if member.filename.endswith("schema.json"))
    if size_bytes > MAX_SCHEMA_BYTES:
        raise ArtifactRejected(
            f"{artifact.name} describes itself in {size_bytes} bytes, and {MAX_SCHEMA_BYTES} are the most"
        )


def _methods(estimator: object, model: Model, options: Mapping[str, str]) -> dict[str, str]:
    """Method by output.

    Raises:
        ArtifactRejected: The option is wrong, or the estimator lacks a method.
    """
    said: dict[str, str] = {}
    for part in filter(None, options.get("outputs", "").split(",")):
        name, _, method = part.strip().partition("=")
        said[name] = method
    faults = [f"'{name}' is no output of the model" for name in said if name not in {s.name for s in model.outputs}]
    chosen: dict[str, str] = {}
    for spec in model.outputs:
        method = said.get(spec.name) or _default_method(estimator, spec)
        if method not in METHODS:
            faults.append(f"output '{spec.name}': '{method}' is none of {', '.join(METHODS)}")
        elif not callable(getattr(estimator, method, None)):
            faults.append(f"output '{spec.name}': {type(estimator).__name__} has no {method}")
        chosen[spec.name] = method
    if faults:
        raise ArtifactRejected("sklearn: " + "; ".join(faults))
    return chosen


def _default_method(estimator: object, spec: TensorSpec) -> str:
    if spec.datatype in FLOATS:
        for method in ("predict_proba", "predict", "transform"):
            if callable(getattr(estimator, method, None)):
                return method
    return "predict"


def _features(specs: tuple[TensorSpec, ...], inputs: Mapping[str, NDArray]) -> Any:
    given = [inputs[spec.name] for spec in specs if spec.name in inputs]
    if len(given) == 1 and given[0].dtype.kind == "O":
        return [text.decode("utf-8", errors="replace") for text in given[0].ravel()]
    columns = [array if array.ndim == 2 else array.reshape(array.shape[0], -1) for array in given]
    return columns[0] if len(columns) == 1 else np.hstack(columns)


def _as_declared(answer: Any, spec: TensorSpec) -> NDArray:
    if hasattr(answer, "toarray"):  # a transform may answer a sparse matrix
        answer = answer.toarray()
    array = np.asarray(answer)
    if spec.datatype == "BYTES":
        texts: NDArray = np.empty(array.size, np.object_)
        texts[:] = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel().tolist()]
        array = texts.reshape(array.shape)
    else:
        array = array.astype(NUMPY[spec.datatype], casting="same_kind", copy=False)
    if array.ndim == 1 and len(spec.shape) == 2 and spec.shape[1] in (1, -1):
        array = array[:, None]
    return array
