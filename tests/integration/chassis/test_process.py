"""Signals, drain and exit codes of real processes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.chassis.channels import call, open_channel
from services.domain.errors import BudgetExhausted, HostUnavailable
from tests.integration.chassis.notes import Note, Stub
from tests.support.signals import freeze

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0


class Noted:
    """A running `noted_process`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            return (await self.process.stdout.readline()).decode().strip()

    async def port(self) -> int:
        word, _, port = (await self.line()).partition(" ")
        assert word == "serving"
        return int(port)

    async def end(self) -> tuple[int, list[str], list[str]]:
        """Exit code, and the lines of stdout and stderr that were left."""
        async with asyncio.timeout(PATIENCE_S):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode().splitlines(), err.decode().splitlines()


@asynccontextmanager
async def noted(*flags: str) -> AsyncIterator[Noted]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.chassis.noted_process", *flags),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Noted(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def messages(lines: list[str]) -> list[str]:
    return [json.loads(line)["message"] for line in lines if line.startswith("{")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_drains_in_order_and_finishes_the_call_in_progress(number: signal.Signals) -> None:
    async with noted() as running:
        async with open_channel(f"127.0.0.1:{await running.port()}") as channel:
            waiting = asyncio.ensure_future(call(Stub(channel).One, Note(text="wait", number=1), timeout_s=30))
            await call(Stub(channel).One, Note(), timeout_s=30)  # so the one before has arrived
            running.process.send_signal(number)
            answer = await waiting
        code, out, err = await running.end()

    assert answer == Note(text="wait", number=2)
    assert out == ["draining", "drained", "watch cancelled", "store closed"]
    assert code == 0
    steps = [json.loads(line)["step"] for line in err if '"stopped"' in line]
    assert steps == ["server", "store"]
    assert messages(err)[-1] == "ended"


async def test_second_signal_ends_at_once() -> None:
    async with noted("--trouble", "hang") as running:
        await running.port()
        running.process.send_signal(signal.SIGTERM)
        assert await running.line() == "hanging"
        running.process.send_signal(signal.SIGINT)
        code, out, err = await running.end()

    assert code == 128 + signal.SIGINT
    assert out == []
    assert err[-1] == "noted: second signal (SIGINT), ending at once"


async def test_signal_in_the_middle_of_start_undoes_what_was_begun() -> None:
    async with noted("--trouble", "slow-start") as running:
        assert await running.line() == "starting"
        running.process.send_signal(signal.SIGTERM)
        code, out, _ = await running.end()

    assert (code, out) == (0, ["watch cancelled", "store closed"])


async def test_crashed_task_stops_the_process_in_order_with_code_1() -> None:
    async with noted("--trouble", "crash") as running:
        async with open_channel(f"127.0.0.1:{await running.port()}") as channel:
            await call(Stub(channel).One, Note(text="wait"), timeout_s=30)
        code, out, err = await running.end()

    assert (code, out) == (1, ["draining", "drained", "watch cancelled", "store closed"])
    (crashed,) = [json.loads(line) for line in err if '"task crashed"' in line]
    assert crashed["task"] == "crash"
    assert "ValueError: the task is broken" in crashed["exception"]


async def test_start_that_fails_for_a_known_cause_says_one_line() -> None:
    async with noted("--trouble", "no-store") as running:
        code, out, err = await running.end()

    assert (code, out) == (1, ["watch cancelled", "store closed"])
    assert err == ["noted: cannot start: etcd at 127.0.0.1:7679 does not answer; start it or change --etcd"]


async def test_start_that_fails_for_a_bug_logs_its_traceback() -> None:
    async with noted("--trouble", "bug") as running:
        code, _, err = await running.end()

    assert code == 1
    assert "KeyError: 'a bug'" in json.loads(err[0])["exception"]
    assert err[-1] == "noted: cannot start: 'a bug'"


async def test_port_in_use_is_one_line_that_names_address_and_flag() -> None:
    async with noted() as first:
        port = await first.port()
        async with noted("--address", f"127.0.0.1:{port}") as second:
            code, _, err = await second.end()

    assert code == 1
    assert err == [
        f"noted: cannot start: 127.0.0.1:{port} is in use: stop what listens there, "
        "or choose another --address (a whole mesh: --base-port)"
    ]


async def test_faults_of_the_configuration_are_all_printed_with_code_2() -> None:
    async with noted("--addres", "x:1", "--trouble", "much", "--address", "nowhere") as running:
        code, out, err = await running.end()

    assert (code, out) == (2, [])
    assert err == [
        "python -m services.noted: --addres: not known; --address is",
        "python -m services.noted: --trouble: 'much' is none of none, crash, hang, no-store, bug, slow-start "
        "(from flag --trouble)",
        "python -m services.noted: --address must be HOST:PORT (--address from flag --address)",
        "python -m services.noted: --help lists what can be set",
    ]


async def test_frozen_server_is_noticed_long_before_the_deadline() -> None:
    """Keepalive and ping timeout: without them this call would last to its deadline."""
    async with noted() as running, open_channel(f"127.0.0.1:{await running.port()}") as channel:
        stub = Stub(channel)
        await call(stub.One, Note(), timeout_s=30)
        freeze(running.pid)
        try:
            with pytest.raises(HostUnavailable):
                await call(stub.One, Note(), timeout_s=30)
        finally:
            running.process.send_signal(signal.SIGCONT)


async def test_channel_reconnects_to_a_server_that_came_back(free_port: int) -> None:
    address = f"127.0.0.1:{free_port}"
    async with noted("--address", address) as first:
        await first.port()
        async with open_channel(address) as channel:
            stub = Stub(channel)
            await call(stub.One, Note(), timeout_s=30)
            first.process.kill()
            await first.end()
            with pytest.raises(HostUnavailable):
                await call(stub.One, Note(), timeout_s=5)
            async with noted("--address", address) as second:
                await second.port()
                async with asyncio.timeout(PATIENCE_S):
                    while not await answers(stub):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)


async def answers(stub: Stub) -> bool:
    try:
        await call(stub.One, Note(), timeout_s=5)
    except (HostUnavailable, BudgetExhausted):
        return False
    return True
