"""Drives an address with an unmodified tritonclient, sync and aio, and prints what it got as JSON.

Runs in the clients' venv. Arguments: ADDRESS MODEL ROUTE TEXT_MODEL. MODEL takes FP32 [-1, 4] as `x` and answers
`y`; ROUTE leads to a model like it; TEXT_MODEL takes BYTES [-1, 2].
"""
# mypy: ignore-errors

import asyncio
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

ADDRESS, MODEL, ROUTE, TEXT = sys.argv[1:]
VALUES = np.arange(8, dtype=np.float32).reshape(2, 4)
WORDS = np.array([["café", ""]], dtype=object)


def inputs(values=VALUES, datatype="FP32"):
    """One input, raw, as tritonclient always sends it."""
    tensor = triton.InferInput("x", list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return [tensor]


def error_of(call):
    """What a call that must fail fails with."""
    try:
        call()
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    return None


def sync():
    """The synchronous client."""
    with triton.InferenceServerClient(ADDRESS) as client:
        typed = service_pb2.ModelInferRequest(model_name=MODEL, id="typed")
        tensor = typed.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        tensor.contents.fp32_contents.extend([1.0, 2.0, 3.0, 4.0])
        typed_answer = client._client_stub.ModelInfer(typed)
        raw_answer = client.infer(MODEL, inputs(), request_id="raw")
        text_answer = client.infer(TEXT, inputs(WORDS, "BYTES"))
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(MODEL),
            "version_ready": client.is_model_ready(MODEL, "1.0.0"),
            "route_ready": client.is_model_ready(ROUTE),
            "unknown_ready": client.is_model_ready("no-such-model"),
            "unknown_version_ready": client.is_model_ready(MODEL, "9.9.9"),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(MODEL, as_json=True),
            "route_metadata": client.get_model_metadata(ROUTE, as_json=True),
            "config": client.get_model_config(MODEL, as_json=True)["config"],
            "route_config": client.get_model_config(ROUTE, as_json=True)["config"],
            "statistics": client.get_inference_statistics(MODEL, as_json=True),
            "route_statistics": client.get_inference_statistics(ROUTE, as_json=True),
            "all_statistics": client.get_inference_statistics(as_json=True),
            "index": client.get_model_repository_index(as_json=True),
            "raw": raw_answer.as_numpy("y").tolist(),
            "raw_id": raw_answer.get_response().id,
            "raw_version": raw_answer.get_response().model_version,
            "pinned_version": client.infer(MODEL, inputs(), model_version="1.0.0").get_response().model_version,
            "route_model": client.infer(ROUTE, inputs()).get_response().model_name,
            "route_cheap": client.infer(ROUTE, inputs(), parameters={"max_cost_microusd": 20})
            .get_response()
            .model_name,
            "prioritised": client.infer(MODEL, inputs(), priority=1, timeout=5_000_000).as_numpy("y").tolist(),
            "text": [word.decode() for word in text_answer.as_numpy("y").ravel()],
            "typed": list(typed_answer.outputs[0].contents.fp32_contents),
            "typed_raw": len(typed_answer.raw_output_contents),
            "stream": stream(client),
            "unknown": error_of(lambda: client.infer("no-such-model", inputs())),
            "wrong_shape": error_of(lambda: client.infer(MODEL, inputs(VALUES.reshape(4, 2)))),
            "load_ready": client.load_model(MODEL),
            "load": error_of(lambda: client.load_model("nowhere")),
            "unload": error_of(lambda: client.unload_model(MODEL)),
            "shared_memory": error_of(client.get_system_shared_memory_status),
            "cuda_shared_memory": error_of(client.get_cuda_shared_memory_status),
            "trace": error_of(client.get_trace_settings),
            "log": error_of(client.get_log_settings),
        }


def stream(client):
    """Five requests of one stream, the third for a model that does not exist."""
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number in range(5):
        name = "no-such-model" if number == 2 else MODEL
        client.async_stream_infer(name, inputs(), request_id=str(number))
    found = []
    for _ in range(5):
        result, error = answers.get(timeout=20)
        found.append(str(error) if error is not None else result.get_response().id)
    client.stop_stream()
    return found


async def aio():
    """The asyncio client."""
    async with triton_aio.InferenceServerClient(ADDRESS) as client:
        try:
            await client.infer("no-such-model", inputs())
            unknown = None
        except InferenceServerException as error:
            unknown = {"status": error.status(), "message": error.message()}
        answers = await asyncio.gather(*(client.infer(MODEL, inputs(), request_id=str(n)) for n in range(20)))
        statistics = await client.get_inference_statistics(MODEL, as_json=True)
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready(MODEL),
            "metadata": await client.get_model_metadata(MODEL, as_json=True),
            "config": (await client.get_model_config(MODEL, as_json=True))["config"],
            "statistics": statistics,
            "index": await client.get_model_repository_index(as_json=True),
            "ids": [answer.get_response().id for answer in answers],
            "right": all((answer.as_numpy("y") == VALUES).all() for answer in answers),
            "unknown": unknown,
        }


print(json.dumps({"sync": sync(), "aio": asyncio.run(aio())}))
