"""A mesh as its operator works on it: hosts ordered while calls flow, and the history from the command line."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.yard import Load, Yard, yard


async def yardctl(running: Yard, *arguments: str, code: int = 0, env: Mapping[str, str] | None = None) -> str:
    """What a command prints; its errors if it is to fail."""
    directory = str(running.mesh.layout.directory)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "yardctl", *arguments, "--dir", directory,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **(env or {})},
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == code, f"{arguments}: {out.decode()} {err.decode()}"
    return (err if code else out).decode()


async def listed(running: Yard, *arguments: str) -> Any:
    return json.loads(await yardctl(running, *arguments, "-o", "json"))


async def until_json(running: Yard, *arguments: str, within_s: float = 40.0, done: Any) -> Any:
    async with asyncio.timeout(within_s):
        while True:
            found = await listed(running, *arguments)
            if done(found):
                return found
            await asyncio.sleep(0.2)


async def test_hosts_are_cordoned_drained_and_remembered_and_no_call_is_lost(tmp_path: Path) -> None:
    async with yard(tmp_path / "mesh", hosts=2) as running:
        first, second = sorted(record["host_id"] for record in await listed(running, "hosts"))
        pids = {record["host_id"]: record["pid"] for record in await listed(running, "hosts")}
        assert "everything is as revision 2 wants it" in await yardctl(running, "drift")
        load = Load(running.mesh.addresses.router, callers=4)
        async with load.running():
            assert "cordoned" in await yardctl(running, "cordon", first, "--reason", "fan fails")
            await until_json(running, "hosts", done=lambda found: any(host.get("cordoned") for host in found))
            assert sorted(await running.ready()) == [first, second], "a cordon takes nothing away"
            shown = await yardctl(running, "host", second)
            assert f"{second} at 127.0.0.1" in shown
            assert "echo:1.0.0" in shown
            assert "band 4" in shown
            done = await listed(running, "host", second)
            assert int(done["statistics"][0]["bands"][0]["success_count"]) > 0
            assert "no host 'nobody' is listed" in await yardctl(running, "host", "nobody", code=1)

            await yardctl(running, "drain", first)
            gone = await until_json(running, "hosts", "--gone", done=lambda found: found.get("gone"))
            (ended,) = gone["gone"]
            assert (ended["record"]["host_id"], ended["record"]["pid"]) == (first, pids[first])
            assert ended["end"] == "SIGNED_OFF"
            # The pool's launcher starts another process of that name, which stays cordoned and not drained.
            back = await until_json(
                running, "hosts", done=lambda found: {host["host_id"] for host in found} == {first, second}
            )
            (again,) = [host for host in back if host["host_id"] == first]
            assert again["pid"] != pids[first]
            assert again["cordoned"]
            assert await running.ready() == [second]

            await yardctl(running, "uncordon", first)
            await running.wait_ready(2)
            os.kill(pids[second], signal.SIGKILL)
            found = await until_json(running, "hosts", "--gone", done=lambda found: len(found.get("gone", ())) == 2)
            assert found["gone"][0]["record"]["pid"] == pids[second]
            assert found["gone"][0]["end"] == "VANISHED"
            await running.wait_ready(2)

        assert (load.wrong, dict(load.failures)) == (0, {})
        assert load.answered > 100
        assert "never was; listed are" in await yardctl(running, "cordon", "nobody", code=1)


async def test_the_history_is_shown_compared_edited_rolled_back_and_moved(tmp_path: Path) -> None:
    async with yard(tmp_path / "mesh", hosts=1) as running:
        editor = {"EDITOR": f'{sys.executable} -c "{EDIT}"'}
        edited = await yardctl(running, "edit", "model", "echo", "--reason", "owned", env=editor)
        assert "model.owner" in edited
        history = await listed(running, "history")
        assert [each["number"] for each in history] == [3, 2, 1]
        assert history[0]["reason"] == "owned"
        shown = await yardctl(running, "show", "3")
        assert "model.owner" in shown
        assert "ann" in shown
        assert "revision 1 to 2: 2 created" in await yardctl(running, "diff", "1", "2")

        assert "revision 4: 1 updated" in await yardctl(running, "rollback", "2")
        assert "are the same" in await yardctl(running, "diff", "2", "4")
        await yardctl(running, "rollback", "9", code=1)
        state, again, past = tmp_path / "state", tmp_path / "again", tmp_path / "past"
        await yardctl(running, "export", str(state))
        await yardctl(running, "export", "--history", str(past))
        await yardctl(running, "delete", "model-version", "echo", "--version", "1.0.0")
        assert "revision 6: 1 created" in await yardctl(running, "import", str(state))
        await yardctl(running, "export", str(again))
        assert again.read_bytes() == state.read_bytes()
        assert "only where nothing is stored yet" in await yardctl(running, "import", str(past), code=1)
        state.write_bytes(again.read_bytes()[:-9])
        assert "nothing was changed" in await yardctl(running, "import", str(state), code=1)
        assert "whole from revision 6 back to 1" in await yardctl(running, "verify")
        manifests = await yardctl(running, "export", "--yaml", "-")
        assert "kind: ModelVersion" in manifests


EDIT = (
    "import pathlib, sys; file = pathlib.Path(sys.argv[1]); text = file.read_text(); "
    "file.write_text(text.replace('spec:', 'spec:' + chr(10) + '  owner: ann', 1))"
)
