"""`yardctl` and `python -m yardctl`."""

import os
import sys

from yardctl.cli import app


def main() -> None:
    """Run the command that the arguments name."""
    try:
        app(prog_name="yardctl")
    except BrokenPipeError:
        # Whoever read the output has seen enough, as `head` does. What is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
