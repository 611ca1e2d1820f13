"""ONNX models in onnxruntime, on one thread.

Inputs and outputs go by the names in the ONNX file; where the model's schema calls one differently, the
option `input.<schema name>` or `output.<schema name>` says the file's name. `constant.<file's name>` gives an
input that callers never set a value. For text models the option `tokenizer` names the version's file
with the tokenizer, `text_input` the input that holds the texts, `max_length` the most tokens; with
`pooling: mean` the model's first output, states of tokens, becomes one embedding per text.
"""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from services.domain.errors import ArtifactRejected
from services.domain.host import DeviceKind
from services.domain.model import TensorSpec
from services.domain.objects import Model, ModelVersion
from services.model_host.backends.formats import Format, format_of
from services.model_host.backends.onnx_scan import check_onnx
from services.model_host.devices.base import ComputeDevice
from services.model_host.tensors import NUMPY, NDArray

if TYPE_CHECKING:
    from services.model_host.backends.text import TextEncoder

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(double)": "FP64",
    "tensor(float)": "FP32",
    "tensor(float16)": "FP16",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(int8)": "INT8",
    "tensor(string)": "BYTES",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(uint8)": "UINT8",
}
"""Our datatype by onnxruntime's. BF16 is not among them: numpy, its only way in, has none."""

DEFAULT_MAX_LENGTH = 256

LONGEST_RUN_S = 120.0
"""A run in warm-up is ended after this."""


class _Watched:
    """A session whose runs in warm-up end: a graph may have a loop that does not."""

    def __init__(self, session: Any) -> None:
        """Watch runs on the thread that is here now; a computing thread that hangs is found by its host."""
        self._session = session
        self._loads_on = threading.get_ident()

    def run(self, fetched: list[str], feeds: Mapping[str, NDArray]) -> list[Any]:
        if threading.get_ident() != self._loads_on:
            answers: list[Any] = self._session.run(fetched, feeds)
            return answers
        import onnxruntime  # noqa: PLC0415

        options = onnxruntime.RunOptions()
        watch = threading.Timer(LONGEST_RUN_S, setattr, (options, "terminate", True))
        watch.start()
        try:
            answers = self._session.run(fetched, feeds, options)
        finally:
            watch.cancel()
        return answers


class OnnxModel:
    """A session, and how the schema's names are those of the file."""

    def __init__(
        self,
        session: Any,
        *,
        inputs: Mapping[str, str],
        outputs: Mapping[str, TensorSpec],
        constants: Mapping[str, NDArray],
    ) -> None:
        """Pair names.

        Args:
            session: An onnxruntime.InferenceSession.
            inputs: File's name by schema name.
            outputs: Schema's output by file's name, in the order they are fetched.
            constants: Inputs that callers do not set, by file's name.
        """
        self._session = _Watched(session)
        self._inputs = inputs
        self._outputs = outputs
        self._fetched = list(outputs)
        self._constants = constants

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Run the graph."""
        feeds = {self._inputs[name]: _fed(array) for name, array in inputs.items()}
        answers = self._session.run(self._fetched, {**feeds, **self._constants})
        return {
            spec.name: _as_bytes(answer) if spec.datatype == "BYTES" else answer
            for spec, answer in zip(self._outputs.values(), answers, strict=True)
        }


class OnnxTextModel:
    """A session that takes tokens, fed with texts."""

    def __init__(
        self,
        session: Any,
        encoder: "TextEncoder",
        *,
        text_input: str,
        outputs: Mapping[str, TensorSpec],
        takes: frozenset[str],
        pools: bool,
    ) -> None:
        """Encode the input `text_input`; feed of the encoder's arrays those that the graph `takes`."""
        self._session = _Watched(session)
        self._encoder = encoder
        self._text_input = text_input
        self._outputs = outputs
        self._fetched = list(outputs)
        self._takes = takes
        self._pools = pools

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Tokenize, run the graph, pool."""
        tokens = self._encoder.encode(inputs[self._text_input].ravel().tolist())
        answers = self._session.run(self._fetched, {name: tokens[name] for name in self._takes})
        if self._pools:
            from services.model_host.backends.text import mean_pool  # noqa: PLC0415

            answers = [mean_pool(answers[0], tokens["attention_mask"]), *answers[1:]]
        return {spec.name: answer for spec, answer in zip(self._outputs.values(), answers, strict=True)}


class OnnxBackend:
    """Loads ONNX files."""

    def __init__(self, *, threads: int = 1) -> None:
        """Compute one graph with `threads` threads."""
        self._threads = threads

    def prepare(self, device: ComputeDevice) -> None:
        """Import onnxruntime."""
        # Else it tells its maker the names and hashes of models, and keeps an id of the machine in the home folder.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime  # noqa: PLC0415

        onnxruntime.disable_telemetry_events()
        onnxruntime.set_default_logger_severity(3)

    def load(
        self,
        artifact: Path | None,
        files: Mapping[str, Path],
        version: ModelVersion,
        model: Model,
        device: ComputeDevice,
    ) -> OnnxModel | OnnxTextModel:
        """Read the graph and pair its inputs and outputs with the schema's.

        Raises:
            ArtifactRejected: It is no ONNX file, or it does not fit the schema.
        """
        assert artifact is not None
        found = format_of(artifact)
        if found is not Format.OTHER:
            raise ArtifactRejected(f"onnxruntime takes ONNX files; {artifact.name} is {found.value}")
        check_onnx(artifact)
        session = _session(artifact, device, self._threads)
        options = version.backend.options
        outputs = _outputs(session, model, options)
        if "tokenizer" in options:
            return _text_model(session, files, model, options, outputs)
        return _plain_model(session, model, options, outputs)


def _session(artifact: Path, device: ComputeDevice, threads: int) -> Any:
    import onnxruntime  # noqa: PLC0415

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    # Else a name that ends in .ort makes it read another format, which nothing here has looked at.
    settings.add_session_config_entry("session.load_model_format", "ONNX")
    providers = ["CPUExecutionProvider"]
    if device.kind is DeviceKind.CUDA and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    try:
        # By path: tensors that the graph keeps in other files must lie beside it, where the cache has none.
        return onnxruntime.InferenceSession(str(artifact), settings, providers=providers)
    except Exception as error:  # its errors have no base of their own
        if device.is_out_of_memory(error):
            raise
        said = str(error).replace(str(artifact), artifact.name)
        raise ArtifactRejected(f"{artifact.name} is no ONNX model that can be run: {said}"[:500]) from error


def _outputs(session: Any, model: Model, options: Mapping[str, str]) -> dict[str, TensorSpec]:
    """The schema's outputs by the file's names.

    Raises:
        ArtifactRejected: The file lacks one.
    """
    has = {output.name for output in session.get_outputs()}
    paired = {options.get(f"output.{spec.name}", spec.name): spec for spec in model.outputs}
    missing = sorted(paired.keys() - has)
    if missing:
        raise ArtifactRejected(
            f"the ONNX file has no output {', '.join(missing)}; it has {', '.join(sorted(has))}: "
            "say which with the option 'output.<name>'"
        )
    return paired


def _plain_model(
    session: Any, model: Model, options: Mapping[str, str], outputs: Mapping[str, TensorSpec]
) -> OnnxModel:
    has = {node.name: node.type for node in session.get_inputs()}
    inputs = {spec.name: options.get(f"input.{spec.name}", spec.name) for spec in model.inputs}
    constants = {name.removeprefix("constant."): text for name, text in options.items() if name.startswith("constant.")}
    faults = []
    for spec in model.inputs:
        kind = has.get(inputs[spec.name])
        if kind is None:
            faults.append(f"the ONNX file has no input '{inputs[spec.name]}'")
        elif DATATYPES.get(kind) != spec.datatype:
            faults.append(f"input '{spec.name}' is {spec.datatype}, the ONNX file takes {kind}")
    faults += [f"the ONNX file has no input '{name}' for its constant" for name in constants if name not in has]
    optional = {inputs[spec.name] for spec in model.inputs if spec.optional}
    unfed = sorted(has.keys() - {*inputs.values(), *constants} - optional)
    faults += [f"the ONNX file's input '{name}' is not in the schema" for name in unfed]
    if faults:
        raise ArtifactRejected("; ".join(faults) + f"; its inputs are {', '.join(sorted(has))}")
    return OnnxModel(
        session,
        inputs=inputs,
        outputs=outputs,
        constants={name: _constant(text, has[name], name) for name, text in constants.items()},
    )


def _text_model(
    session: Any,
    files: Mapping[str, Path],
    model: Model,
    options: Mapping[str, str],
    outputs: Mapping[str, TensorSpec],
) -> OnnxTextModel:
    from services.model_host.backends.text import TextEncoder  # noqa: PLC0415

    name = options["tokenizer"]
    tokenizer = files.get(name)
    if tokenizer is None:
        raise ArtifactRejected(f"option 'tokenizer' is '{name}', which is not among the version's files")
    text_input = options.get("text_input", model.inputs[0].name)
    if {spec.name: spec.datatype for spec in model.inputs}.get(text_input) != "BYTES":
        raise ArtifactRejected(f"option 'text_input' is '{text_input}', which is no BYTES input of the model")
    pooling = options.get("pooling", "")
    if pooling not in ("", "mean"):
        raise ArtifactRejected(f"option 'pooling' is '{pooling}'; only mean is known")
    try:
        max_length = int(options.get("max_length", DEFAULT_MAX_LENGTH))
    except ValueError:
        raise ArtifactRejected(f"option 'max_length' is '{options['max_length']}', no integer") from None
    takes = frozenset(node.name for node in session.get_inputs())
    encoder = TextEncoder(tokenizer, max_length)
    unknown = sorted(takes - encoder.encode([b""]).keys())
    if unknown:
        raise ArtifactRejected(f"the ONNX file takes {', '.join(unknown)}, which no tokenizer gives")
    return OnnxTextModel(session, encoder, text_input=text_input, outputs=outputs, takes=takes, pools=pooling == "mean")


def _constant(text: str, kind: str, name: str) -> NDArray:
    datatype = DATATYPES.get(kind, "BYTES")
    try:
        if datatype == "BYTES":
            raise ValueError(kind)
        return np.array(float(text) if "float" in kind or "double" in kind else int(text), NUMPY[datatype])
    except ValueError:
        raise ArtifactRejected(f"option 'constant.{name}' is '{text}', which is no {kind}") from None


def _fed(array: NDArray) -> NDArray:
    if array.dtype.kind != "O":
        return array
    texts: NDArray = np.empty(array.size, np.object_)
    texts[:] = [item.decode("utf-8", errors="replace") for item in array.ravel()]
    return texts.reshape(array.shape)


def _as_bytes(array: NDArray) -> NDArray:
    texts: NDArray = np.empty(array.size, np.object_)
    texts[:] = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel().tolist()]
    return texts.reshape(array.shape)
