"""The yardctl command: its groups put together."""

import typer

from yardctl import (
    cascade_commands,
    feedback_commands,
    gate_commands,
    history_commands,
    host_commands,
    infer_commands,
    mesh_commands,
    registry_commands,
    replay_commands,
    rollout_commands,
)

app = typer.Typer(
    name="yardctl",
    help="Run a modelyard mesh, say what it should be, and call it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
mesh_commands.add_to(app)
registry_commands.add_to(app)
history_commands.add_to(app)
host_commands.add_to(app)
gate_commands.add_to(app)
rollout_commands.add_to(app)
infer_commands.add_to(app)
feedback_commands.add_to(app)
replay_commands.add_to(app)
cascade_commands.add_to(app)
