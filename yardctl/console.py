"""What every command shares: its options, where it prints, and how it fails."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console

from services.domain.errors import InvalidRequest, YardError
from yardctl.errors import FAILED, CommandError
from yardctl.layout import DEFAULT_DIRECTORY, Addresses, Layout, read_mesh_info

T = TypeVar("T")

_PIPE_COLUMNS = 4096
"""Width of what is not a terminal: nothing is cut for the program that reads it."""

INTERRUPTED = 130


class Output(StrEnum):
    """Forms that data is printed in."""

    TABLE = "table"
    JSON = "json"


class TextOutput(StrEnum):
    """Forms that objects are printed in."""

    YAML = "yaml"
    JSON = "json"


DirOption = Annotated[Path, typer.Option("--dir", help="Directory of the mesh.")]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How to print.")]
RegistryOption = Annotated[
    str, typer.Option("--address", metavar="HOST:PORT", help="The registry, instead of the one of --dir.")
]
RouterOption = Annotated[
    str, typer.Option("--address", metavar="HOST:PORT", help="The router, instead of the one of --dir.")
]
DEFAULT_DIR = DEFAULT_DIRECTORY


def out() -> Console:
    """Where data goes."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def err() -> Console:
    """Where progress, warnings and errors go."""
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _PIPE_COLUMNS)


def print_json(content: Any) -> None:
    """Print data for programs."""
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def addresses_of(directory: Path) -> Addresses:
    """The addresses of the mesh in a directory.

    Raises:
        CommandError: There is none.
    """
    return read_mesh_info(Layout.of(directory)).addresses


def registry_of(directory: Path, address: str) -> str:
    """The registry to talk to: the one at `address`, or that of the mesh in a directory.

    Raises:
        CommandError: There is none.
    """
    return address or addresses_of(directory).registry


def fail(message: str, exit_code: int = FAILED) -> NoReturn:
    """Print one line, and end the command."""
    err().print(f"yardctl: {message}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(exit_code)


def guarded(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; what it refuses or meets becomes lines and an exit code."""
    try:
        return asyncio.run(main)
    except CommandError as error:
        fail(error.message, error.exit_code)
    except InvalidRequest as error:
        fail_with_faults(error)
    except YardError as error:
        fail(_with_retry(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def checked(read: Callable[[], T]) -> T:
    """What `read` makes of the command's arguments; what is wrong with them becomes a line and an exit code."""
    try:
        return read()
    except CommandError as error:
        fail(error.message, error.exit_code)


def fail_with_faults(error: InvalidRequest) -> NoReturn:
    """Print every fault on a line of its own, and end the command."""
    if not error.faults:
        fail(error.message)
    for fault in error.faults:
        err().print(str(fault), markup=False, soft_wrap=True)
    count = len(error.faults)
    fail(f"{count} fault{'s' if count > 1 else ''}, nothing was done")


def _with_retry(error: YardError) -> str:
    if error.retry_after_s is None:
        return error.message
    return f"{error.message} (try again in {error.retry_after_s:.1f} s)"
