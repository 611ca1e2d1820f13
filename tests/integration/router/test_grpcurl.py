"""grpcurl, through reflection: the way people look at a server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.services import Bench

BINARY = shutil.which("grpcurl") or str(Path(sys.executable).with_name("grpcurl"))
V2 = "inference.GRPCInferenceService"
NATIVE = "modelyard.inference.v1.InferenceService"


def grpcurl(yard: Bench, *arguments: str, data: dict[str, Any] | None = None) -> str:
    sent = [] if data is None else ["-d", json.dumps(data)]
    done = subprocess.run(
        [BINARY, "-plaintext", *sent, yard.router.address, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_list_shows_every_service(yard: Bench) -> None:
    assert set(grpcurl(yard, "list").split()) >= {V2, NATIVE, "grpc.health.v1.Health"}


@pytest.mark.parametrize(
    ("symbol", "line"),
    [
        (V2, "rpc ModelInfer ( .inference.ModelInferRequest ) returns ( .inference.ModelInferResponse );"),
        (NATIVE, "rpc Explain ( .modelyard.inference.v1.ExplainRequest )"),
        ("inference.ModelConfig", ".inference.ModelDynamicBatching dynamic_batching = 11;"),
    ],
)
def test_describe_knows_both_protocols(yard: Bench, symbol: str, line: str) -> None:
    assert line in grpcurl(yard, "describe", symbol)


@pytest.mark.parametrize("method", [f"{V2}/ModelInfer", f"{NATIVE}/Infer"])
def test_a_typed_call_is_answered_typed(yard: Bench, method: str) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [1, 2, 3, 4.5]}}

    answer = json.loads(grpcurl(yard, method, data={"model_name": "echo", "id": "7", "inputs": [tensor]}))

    assert answer["outputs"][0]["contents"] == {"fp32_contents": [1, 2, 3, 4.5]}
    assert answer["id"] == "7"
    assert "raw_output_contents" not in answer
    assert ("decision" in answer) == method.startswith(NATIVE)
