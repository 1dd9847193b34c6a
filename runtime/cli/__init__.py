"""The command `runtime`: runs a model by a plan, a profile or a budget.

The text alone goes to stdout; progress, statistics and errors go to stderr. Nothing heavy is imported before a command
runs, so that help is instant.
"""

import typer

from runtime.cli.generate import generate

EPILOG = (
    "Exit codes: 0 ok, 1 internal error, 2 usage, 3 bad input, 4 no feasible plan, 5 plan of another machine or model, "
    "6 resource failure, 7 self-check failed, 130 and 143 interrupted.\n\n"
    "Memory: --device-memory is for target and draft together; --target-memory and --draft-memory cap each within it; "
    "--headroom stays free for others (1GiB unless --device-memory is given). What does not fit is refused before "
    "anything is loaded."
)

app = typer.Typer(
    help="Run a model that is larger than its device's memory.", epilog=EPILOG, pretty_exceptions_enable=False
)


@app.callback()
def _commands() -> None:
    """Run a model that is larger than its device's memory."""


app.command(epilog=EPILOG)(generate)


def main() -> None:
    """The console script."""
    from planner.console import run

    run(app)
