"""A tiny decoder of Llama's kind with weights by chance: it answers nonsense, quickly, and always the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from modelyard.host.v1 import host_pb2
from modelyard.inference.v1 import inference_pb2
from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.model_host.backends.architectures import llama_decoder
from services.model_host.tensors import to_raw
from tests.support.host import artifact_of, model_object, spec

END = "<end>"
OPTIONS = {
    "layers": "2",
    "heads": "4",
    "kv_heads": "2",
    "hidden": "32",
    "intermediate": "64",
    "vocabulary": "257",
    "end_tokens": END,
}


@dataclass(frozen=True)
class TinyLlama:
    """Its files."""

    weights: Path
    tokenizer: Path

    @property
    def files(self) -> dict[str, Path]:
        """The further files of a version."""
        return {"tokenizer.json": self.tokenizer}


def write_tokenizer(path: Path) -> Path:
    """A tokenizer whose tokens are bytes, and an end."""
    vocabulary = {name: number for number, name in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    tokenizer.save(str(path))
    return path


def write_llama(folder: Path, *, seed: int = 5, scale: float = 0.5) -> TinyLlama:
    """Weights and tokenizer in `folder`; it never ends by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder / "tokenizer.json")
    torch.manual_seed(seed)
    module = llama_decoder.build(OPTIONS, {"tokenizer.json": tokenizer}).module
    state = {name: torch.randn(value.shape) * scale for name, value in module.state_dict().items()}
    state["model.embed_tokens.weight"][256] = 0.0  # the end scores 0, which something always beats
    save_file(state, folder / "tiny.safetensors")
    return TinyLlama(folder / "tiny.safetensors", tokenizer)


def llama_model(name: str = "tiny") -> objects_pb2.Object:
    """The Model: a text in, pieces of text and tokens out."""
    return model_object(
        name, inputs=[spec("text", "BYTES", [1])], outputs=[spec("text", "BYTES", [1]), spec("tokens", "INT64", [-1])]
    )


def llama_version(
    made: TinyLlama,
    name: str = "tiny",
    *,
    options: Mapping[str, str] = OPTIONS,
    memory_bytes: int = 0,
    **generation: int,
) -> objects_pb2.Object:
    """The ModelVersion; `generation` by the fields of Generation."""
    settings = {"sequences": 4, "max_tokens": 256, "prefill_tokens": 16, **generation}
    return objects_pb2.Object(
        metadata=objects_pb2.Metadata(name=name),
        model_version=objects_pb2.ModelVersionSpec(
            version="1.0.0",
            artifact=artifact_of(made.weights),
            files={"tokenizer.json": artifact_of(made.tokenizer)},
            backend=objects_pb2.Backend(name="torch", architecture="llama_decoder", options=options),
            resources=resources_pb2.ResourceNeed(memory_bytes=memory_bytes),
            generation=objects_pb2.Generation(**settings),
        ),
    )


def infer_request(text: str, *, model: str = "tiny", request_id: str = "", **wishes: Any) -> inference_pb2.InferRequest:
    """A raw request; `wishes` are its parameters."""
    request = inference_pb2.InferRequest(model_name=model, id=request_id)
    request.inputs.add(name="text", datatype="BYTES", shape=[1])
    array: NDArray[Any] = np.array([text.encode()], np.object_)
    request.raw_input_contents.append(to_raw(array))
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in wishes.items():
        setattr(request.parameters[name], kinds[type(value)], value)
    return request


def stream_request(
    text: str, *, model: str = "tiny", version: str = "1.0.0", **wishes: Any
) -> host_pb2.ExecuteStreamRequest:
    """The same for a host."""
    key = model_pb2.ModelKey(model=model, version=version)
    return host_pb2.ExecuteStreamRequest(key=key, request=infer_request(text, model=model, **wishes))


def text_of(response: inference_pb2.InferResponse) -> str:
    """The text of a raw answer or piece; empty without one."""
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == "text":
            return raw[4:].decode()
    return ""
