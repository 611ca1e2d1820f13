"""Which processors a host's threads may run on, so that hosts on one machine do not take turns on each other's."""

import os
import re
from pathlib import Path

from services.domain.errors import NotSupported

_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_TASKS = Path("/proc/self/task")


def processors_of(text: str) -> frozenset[int]:
    """The processors that a list such as `0-3,8` names; none for an empty text.

    Raises:
        ValueError: It is no such list.
    """
    named: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _RANGE.fullmatch(part)
        first = int(match[1]) if match else 1
        last = int(match[2] or match[1]) if match else 0
        if last < first:
            raise ValueError(f"'{part}' is no processor and no range such as 0-3")
        named.update(range(first, last + 1))
    return frozenset(named)


def pin(processors: frozenset[int]) -> None:
    """Keep every thread of this process, and all that they start, on `processors`; on all if there are none.

    Call before frameworks start threads of their own: those take after the thread that starts them.

    Raises:
        NotSupported: A processor is not there, or the operating system has no such setting.
    """
    if not processors:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise NotSupported("cpus: this operating system cannot keep a process on certain processors")
    allowed = os.sched_getaffinity(0)
    if beyond := sorted(processors - allowed):
        text = ", ".join(map(str, beyond))
        raise NotSupported(f"cpus: {text} is not among those this process may use: {processor_list(allowed)}")
    for task in _TASKS.iterdir() if _TASKS.is_dir() else ():
        try:
            os.sched_setaffinity(int(task.name), processors)
        except ProcessLookupError:
            continue  # it has ended meanwhile
    os.sched_setaffinity(0, processors)


def processor_list(processors: frozenset[int] | set[int]) -> str:
    """As `processors_of` reads it."""
    parts: list[list[int]] = []
    for number in sorted(processors):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
