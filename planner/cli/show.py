"""`planner show`: a plan, a profile, a report or a recommendation as readable tables."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def show(
    file: Annotated[
        Path,
        typer.Argument(help="A plan, profile, report or recommendation, told apart by its content; - reads stdin."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the checked file as JSON instead.")] = False,
) -> None:
    """Show a file as tables: memory bar, layer map, predicted and measured, what was accepted."""
    from planner.contracts.recognise import read_shown

    record = read_shown(file)
    if as_json:
        sys.stdout.write(record.to_json())
        return
    from planner.render import console_for_stdout
    from planner.show import show as show_record

    show_record(console_for_stdout(), record)
