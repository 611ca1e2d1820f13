"""`yardctl` and `python -m yardctl`."""

from yardctl.cli import app


def main() -> None:
    """Run the command that the arguments name."""
    app(prog_name="yardctl")


if __name__ == "__main__":
    main()
