"""Predicted beside measured as the cells of a table."""

from rich.text import Text

from planner.compare import Comparison


def comparison_columns(*, has_ends: bool) -> tuple[str, ...]:
    """The heads of the columns, with or without P10 and P90."""
    predicted = ("P10", "P50", "P90") if has_ends else ("predicted",)
    return ("component", *predicted, "measured", "inside", "error", "on tok/s")


def comparison_rows(comparison: Comparison, *, has_ends: bool) -> list[tuple[str | Text, ...]]:
    """A row per component, and one for what none of them explains."""
    rows: list[tuple[str | Text, ...]] = []
    for row in comparison.rows:
        ends = (row.p10, row.p50, row.p90) if has_ends else (row.p50,)
        insides: dict[bool | None, str | Text] = {True: "yes", False: Text("no", style="red"), None: ""}
        values = [row.component.shown(value) for value in (*ends, row.measured)]
        rows.append(
            (row.component.label, *values, insides[row.is_inside], percent(row.error_frac), percent(row.share_log))
        )
    blanks = [""] * (len(comparison_columns(has_ends=has_ends)) - 2)
    return [*rows, ("unexplained", *blanks, percent(comparison.attribution.unexplained_log))]


def percent(share: float | None) -> str:
    """A signed share; nothing for what is unknown."""
    return "" if share is None else f"{share:+.1%}"
