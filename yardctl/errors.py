"""What stops a command: one clear line, and the exit code that goes with it."""

FAILED = 1
USAGE = 2


class CommandError(Exception):
    """A command cannot do what it was asked; the message says what and what to do about it."""

    def __init__(self, message: str, *, exit_code: int = FAILED) -> None:
        """Carry the line that is printed, and the exit code."""
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
