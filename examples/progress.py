"""Progress of long steps: a spinner while one runs, a line when it is over."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from services.domain.clock import Clock, SystemClock

WIDTH = 100
"""Columns that everything here fits into."""
_CLOCK = SystemClock()


@dataclass
class Step:
    """One step while it runs."""

    title: str
    result: str = ""
    """What came of it, for its line."""


class Progress:
    """Shows the steps of one program."""

    def __init__(self, console: Console, *, clock: Clock = _CLOCK) -> None:
        """Write to `console`."""
        self._console = console
        self._clock = clock
        self._status: Status | None = None
        self._title = ""

    def note(self, text: str) -> None:
        """How far the running step is; seen on a terminal only."""
        if self._status is not None:
            self._status.update(escape(f"{self._title}: {text}"))

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """A step; its line says how long it took and, if it fails, that it did."""
        step = Step(title)
        start_s = self._clock.now_s()
        mark = "[red]✗[/red]"
        try:
            with self._console.status(escape(title)) as self._status:
                self._title = title
                yield step
            mark = "[green]✓[/green]"
        finally:
            self._status = None
            took_s = self._clock.now_s() - start_s
            result = f" [dim]{escape(step.result)}[/dim]" if step.result else ""
            self._console.print(f"  {mark} {escape(title)}{result} [dim]({took_s:.1f} s)[/dim]", highlight=False)


def console() -> Console:
    """The terminal, at most `WIDTH` columns wide; as wide as that where there is none."""
    found = Console(highlight=False)
    return Console(highlight=False, width=min(WIDTH, found.width) if found.is_terminal else WIDTH)
