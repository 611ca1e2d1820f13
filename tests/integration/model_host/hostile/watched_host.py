"""A model host like any other, whose interpreter writes down what it does to its surroundings.

Each line of the file that `AUDIT_FILE` names is one event: a process begun, a file opened to be written, moved or
removed, a connection made, a name looked up by a pickle.
"""

import gc
import importlib
import json
import os
import runpy
import sys
from typing import Any

AUDIT_FILE = "MODELYARD_TEST_AUDIT_FILE"

PROCESSES = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.system",
        "pty.spawn",
        "subprocess.Popen",
    }
)
"""Events that begin a process."""

CHANGES = frozenset(
    {
        "os.chmod",
        "os.chown",
        "os.link",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.symlink",
        "os.truncate",
        "os.unlink",
    }
)
"""Events that change files, beside `open`."""

BESIDE = frozenset({"os.chmod", "os.mkdir", "os.remove", "os.rmdir", "os.unlink"})
"""Those whose last argument is an open folder that the path may begin at."""

LOOKED_UP = "pickle.find_class"
CONNECTED = "socket.connect"

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _main() -> None:
    log = os.open(os.environ[AUDIT_FILE], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def named(path: object, folder: object) -> str:
        """The whole path, where it is given beside an open folder."""
        if isinstance(folder, int) and folder >= 0 and not os.path.isabs(str(path)):
            return f"{os.readlink(f'/proc/self/fd/{folder}')}/{path}"
        return str(path)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & _WRITES or isinstance(path, int):
                return
        elif event in BESIDE:
            arguments = (named(arguments[0], arguments[-1]), *arguments[1:])
        elif event not in PROCESSES | CHANGES | {LOOKED_UP, CONNECTED}:
            return
        os.write(log, (json.dumps([event, *map(str, arguments)]) + "\n").encode())

    for framework in ("safetensors.torch", "skops.io", "services.model_host.backends.architectures"):
        importlib.import_module(framework)
    gc.freeze()  # what a host collects after each load is then what that load left
    sys.addaudithook(note)
    runpy.run_module("services.model_host", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
