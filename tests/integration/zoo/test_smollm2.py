"""SmolLM2, a real language model: made ready from its package, and asked on a real host."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from rich.console import Console

from examples.progress import Progress
from examples.zoo import manifesting, smollm2
from modelyard.host.v1 import host_pb2
from modelyard.registry.v1 import objects_pb2
from tests.support.host import HostProcess, running_host
from tests.support.llama import stream_request, text_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

CAPITAL = "The capital of France is"
STORY = "Once upon a time there was"


@pytest.fixture(scope="module")
def objects() -> list[objects_pb2.Object]:
    """Model and version; made ready anew only where something has changed."""
    manifests = smollm2.prepare(smollm2.DEFAULT_FOLDER, Progress(Console(quiet=True)))
    return manifesting.objects_in(manifests)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(
    tmp_path_factory: pytest.TempPathFactory, objects: list[objects_pb2.Object]
) -> AsyncIterator[HostProcess]:
    """A host with the model."""
    model, version = objects
    async with running_host(tmp_path_factory.mktemp("host"), "--memory-bytes", str(3 << 30)) as running:
        await running.load(version, model)
        yield running


async def ask(host: HostProcess, text: str, **wishes: int | float | str) -> list[host_pb2.ExecuteStreamResponse]:
    """Every message of an answer."""
    request = stream_request(text, model="smollm2", version="0.1.2", **wishes)
    return [message async for message in host.stub.ExecuteStream(request, timeout=60)]


def text(messages: list[host_pb2.ExecuteStreamResponse]) -> str:
    return "".join(text_of(message.response) for message in messages)


async def test_it_knows_the_capital_of_france(host: HostProcess) -> None:
    messages = await ask(host, CAPITAL, max_tokens=2)

    assert [text_of(message.response) for message in messages] == [" Paris", "."]
    assert messages[-1].totals.prompt_tokens == 5


async def test_two_callers_at_once_get_what_each_gets_alone(host: HostProcess) -> None:
    alone = [text(await ask(host, prompt, max_tokens=16)) for prompt in (CAPITAL, STORY)]

    together = await asyncio.gather(*(ask(host, prompt, max_tokens=16) for prompt in (CAPITAL, STORY)))

    assert [text(messages) for messages in together] == alone
    assert max(messages[-1].totals.beside for messages in together) == 2


async def test_a_caller_that_vanishes_frees_its_slot(host: HostProcess) -> None:
    call = host.stub.ExecuteStream(stream_request(STORY, model="smollm2", version="0.1.2", max_tokens=400), timeout=60)
    await call.read()
    await host.busy(queued=0, running=1, name="smollm2")

    call.cancel()

    await host.busy(queued=0, running=0, name="smollm2")


async def test_what_it_takes_was_measured_and_declared(host: HostProcess, objects: list[objects_pb2.Object]) -> None:
    hosted = await host.hosted("smollm2", "0.1.2")
    artifact = Path(objects[1].model_version.artifact.uri.removeprefix("file:"))

    assert hosted is not None
    assert artifact.stat().st_size < hosted.memory_bytes <= objects[1].model_version.resources.memory_bytes
