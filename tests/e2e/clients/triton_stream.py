"""Reads a decoupled stream with an unmodified tritonclient, sync and aio, and prints what it got as JSON.

Runs in the clients' venv. Arguments: ADDRESS MODEL TEXT. MODEL takes BYTES [1] as `text` and answers `text` in pieces.
"""
# mypy: ignore-errors

import asyncio
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

ADDRESS, MODEL, TEXT = sys.argv[1:]
WISHES = {"max_tokens": 10}


def inputs():
    """One text."""
    tensor = triton.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([TEXT.encode()], dtype=object))
    return [tensor]


def piece_of(result):
    """Text of one response, and whether it is the last one."""
    response = result.get_response()
    text = result.as_numpy("text")
    return ("" if text is None else text[0].decode(), response.parameters["triton_final_response"].bool_param)


def sync():
    """The synchronous client."""
    answers = queue.Queue()
    found = []
    with triton.InferenceServerClient(ADDRESS) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        client.async_stream_infer(MODEL, inputs(), request_id="1", parameters=WISHES, enable_empty_final_response=True)
        while not found or not found[-1][1]:
            result, error = answers.get(timeout=30)
            if error is not None:
                raise error
            found.append(piece_of(result))
        client.stop_stream()
        whole = client.infer(MODEL, inputs(), parameters=WISHES).as_numpy("text")[0].decode()
        config = client.get_model_config(MODEL, as_json=True)["config"]
    return found, whole, config["model_transaction_policy"]["decoupled"]


async def aio():
    """The asyncio client."""
    async with triton_aio.InferenceServerClient(ADDRESS) as client:

        async def requests():
            yield {
                "model_name": MODEL,
                "inputs": inputs(),
                "request_id": "1",
                "parameters": WISHES,
                "enable_empty_final_response": True,
            }

        found = []
        async for result, error in client.stream_infer(requests()):
            if error is not None:
                raise error
            found.append(piece_of(result))
        return found


def told(found):
    """As JSON."""
    return {"pieces": [text for text, _ in found], "final": [final for _, final in found]}


by_sync, answer, is_decoupled = sync()
print(json.dumps({"sync": told(by_sync), "aio": told(asyncio.run(aio())), "whole": answer, "decoupled": is_decoupled}))
