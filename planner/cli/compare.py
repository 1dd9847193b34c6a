"""`planner compare`: predicted beside measured, component by component, and how good the predictions are overall."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.contracts.errors import BadInputError

if TYPE_CHECKING:
    from rich.console import Console

    from planner.compare import Accuracy, Comparison, KindTokens, Row

_COLUMNS_IN_A_FILE = 120
_COLUMNS_WITH_ENDS = 100  # from so many on, P10 and P90 have columns of their own
_MOST_TABLES = 3


def compare(
    reports: Annotated[list[Path], typer.Argument(help="What runtime generate --json wrote; one or more.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
) -> None:
    """Show for each component what was predicted, what was measured, and what it did to the speed."""
    from planner.compare import accuracies, tokens_by_kind

    comparisons = _compared(reports)
    every = [comparison for _, comparison in comparisons]
    summary, kinds = accuracies(every), tokens_by_kind(every)
    if as_json:
        _print_json(comparisons, summary, kinds)
    else:
        _print(comparisons, summary)
        if kinds:
            _print_kinds(kinds)


def _compared(paths: Sequence[Path]) -> list[tuple[Path, "Comparison"]]:
    """Each report compared. Raises: BadInputError, naming every file that cannot be."""
    from planner.compare import compare as compare_report
    from planner.contracts.report import Report

    found, failed = [], []
    for path in paths:
        try:
            found.append((path, compare_report(Report.read(path))))
        except BadInputError as error:
            failed.append((path, error))
    if failed:
        first = failed[0][1]
        raise BadInputError(
            f"cannot compare {', '.join(str(path) for path, _ in failed)}",
            why="; ".join(dict.fromkeys(f"{error.what}: {error.why}" for _, error in failed)),
            remedy=first.remedy,
        )
    return found


def _print_json(
    comparisons: Sequence[tuple[Path, "Comparison"]], summary: Sequence["Accuracy"], kinds: Sequence["KindTokens"]
) -> None:
    import json

    document = {
        "reports": [
            {
                "report": str(path),
                "components": {row.component.name: _row_document(row) for row in comparison.rows},
                "tokens_per_s_log": comparison.attribution.total_log,
                "unexplained_log": comparison.attribution.unexplained_log,
                "note": comparison.note,
            }
            for path, comparison in comparisons
        ],
        "summary": {entry.component.name: _accuracy_document(entry) for entry in summary},
        "tokens_per_round": {entry.draft_kind: _kind_document(entry) for entry in kinds},
    }
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def _row_document(row: "Row") -> dict[str, float | bool | None]:
    return {
        "predicted_p10": row.p10,
        "predicted": row.p50,
        "predicted_p90": row.p90,
        "measured": row.measured,
        "is_inside": row.is_inside,
        "error_frac": row.error_frac,
        "share_log": row.share_log,
    }


def _accuracy_document(entry: "Accuracy") -> dict[str, float]:
    return {
        "num_runs": entry.num_runs,
        "bias_frac": entry.bias_frac,
        "median_error_frac": entry.median_error_frac,
        "p90_error_frac": entry.p90_error_frac,
        "coverage_frac": entry.coverage_frac,
        "width_frac": entry.width_frac,
    }


def _kind_document(entry: "KindTokens") -> dict[str, float]:
    return {
        "num_runs": entry.num_runs,
        "predicted": entry.predicted,
        "measured": entry.measured,
        "median_error_frac": entry.median_error_frac,
    }


def _print(comparisons: Sequence[tuple[Path, "Comparison"]], summary: Sequence["Accuracy"]) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _COLUMNS_IN_A_FILE)
    if len(comparisons) <= _MOST_TABLES:
        for path, comparison in comparisons:
            console.print(str(path), style="bold", markup=False, soft_wrap=True)
            _print_rows(console, comparison)
            if comparison.note is not None:
                console.print(f"note: {comparison.note}", style="yellow", markup=False, soft_wrap=True)
            console.print()
        console.print(
            "error: measured above (+) or below (-) predicted\n"
            "on tok/s: what the component alone did to the speed, as logarithms, which add up\n",
            style="dim",
            soft_wrap=True,
        )
    _print_summary(console, summary)


def _print_rows(console: "Console", comparison: "Comparison") -> None:
    from rich.table import Table

    from planner.comparison_table import comparison_columns, comparison_rows

    has_ends = console.width >= _COLUMNS_WITH_ENDS
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for place, name in enumerate(comparison_columns(has_ends=has_ends)):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in comparison_rows(comparison, has_ends=has_ends):
        table.add_row(*row)
    console.print(table)


def _print_summary(console: "Console", summary: Sequence["Accuracy"]) -> None:
    from rich.table import Table

    from planner.comparison_table import percent

    num_runs = max(entry.num_runs for entry in summary)
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column(f"{num_runs} run" + "s" * (num_runs > 1), no_wrap=True)
    for name in ("bias", "median |error|", "P90 |error|", "inside", "P10-P90"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in summary:
        table.add_row(
            entry.component.label,
            percent(entry.bias_frac),
            f"{entry.median_error_frac:.1%}",
            f"{entry.p90_error_frac:.1%}",
            f"{entry.coverage_frac:.0%}",
            "" if entry.component.is_memory else f"{entry.width_frac:.1%}",
        )
    console.print(table)


def _print_kinds(kinds: Sequence["KindTokens"]) -> None:
    from rich.console import Console
    from rich.table import Table

    from planner.comparison_table import percent

    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("\ntokens per round", no_wrap=True)
    for name in ("runs", "predicted", "measured", "median error"):
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for entry in kinds:
        error = percent(entry.median_error_frac)
        table.add_row(entry.draft_kind, str(entry.num_runs), f"{entry.predicted:.2f}", f"{entry.measured:.2f}", error)
    Console(highlight=False, width=None if sys.stdout.isatty() else _COLUMNS_IN_A_FILE).print(table)
