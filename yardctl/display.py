"""Progress of a start and an end, as it is seen: a line per part, with a spinner on a terminal."""

from types import TracebackType
from typing import Self

from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from yardctl import console

_DONE = "healthy"


def print_warning(message: str) -> None:
    """Print one line that asks for attention and stops nothing."""
    console.err().print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


class UpDisplay:
    """Shows how far each part is; once finished, prints what else is reported line by line."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._console = console.out()
        self._tasks: dict[str, TaskID] = {}
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(finished_text="[green]✓"),
                TextColumn("{task.description}"),
                TextColumn("{task.fields[state]}", style="dim"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._progress.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()

    def report(self, part: str, state: str) -> None:
        """Show a part's state."""
        if self._progress is None:
            self._console.print(f"{part}: {state}", markup=False)
            return
        if part not in self._tasks:
            self._tasks[part] = self._progress.add_task(part, total=1, state=state)
        done = state == _DONE or part == "pools"
        self._progress.update(self._tasks[part], state=state, completed=1 if done else 0)

    def finish(self) -> None:
        """Leave what is shown, and print from now on."""
        if self._progress is not None:
            progress, self._progress = self._progress, None
            progress.stop()
