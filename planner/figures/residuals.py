"""How far every run was off, component by component, in panels that share the runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from planner.compare import MOST_MEMORY, Comparison, Row
from planner.comparison_table import percent
from planner.contracts.components import COMPONENTS
from planner.figures.marks import INSIDE_NAMES, clipped, flat_intervals, inside_marker, ratio_axis
from planner.figures.style import BLUE, faded, figure, plain, rows

_NUM_COLUMNS = 3  # of panels
_GAP = 0.04  # between two of them, of the width
_MOST_NAMES = 40  # of runs in a panel; of more only every so many


def residuals_figure(comparisons: Mapping[str, Comparison]) -> go.Figure:
    """How far every component was off in each run, a panel for each component, and the interval that was predicted.

    Memory has a rule and no interval; it is left to `components_figure`.
    """
    names = list(comparisons)
    panels = []
    for component in COMPONENTS:
        of_runs = [
            (place, row)
            for place, comparison in enumerate(comparisons.values())
            for row in comparison.rows
            if row.component is component and row.error_frac is not None
        ]
        if of_runs and not component.is_memory:
            panels.append((component.label, of_runs))
    grid = _Grid(num_panels=len(panels), num_rows=len(names))
    traces: list[dict[str, object]] = []
    layout: dict[str, Mapping[str, object]] = {}
    marks = []
    for index, (label, of_runs) in enumerate(panels):
        traces += [{**trace, **grid.axes(index)} for trace in _residuals(of_runs, names, is_named=index == 0)]
        shown = [ratio_of(value, row) for _, row in of_runs for value in (row.p10, row.p90, row.measured)]
        across, up = grid.domains(index)
        layout[f"xaxis{grid.suffix(index)}"] = {
            **ratio_axis("error (%)" if grid.is_lowest(index) else "", shown, most_ticks=4),
            "domain": across,
            "anchor": f"y{grid.suffix(index)}",
        }
        layout[f"yaxis{grid.suffix(index)}"] = {
            **_run_names(names, is_shown=grid.is_first(index)),
            "domain": up,
            "anchor": f"x{grid.suffix(index)}",
        }
        place = {"x": across[0], "xref": "paper", "xanchor": "left", "y": up[1], "yref": "paper", "yanchor": "bottom"}
        marks.append({"text": f"<b>{label}</b>", **place})
    return figure(
        traces,
        title="How far each run was off",
        subtitle="measured above (+) or below (-) the predicted median, and P10 to P90",
        x_axis=layout.pop("xaxis", {}),
        y_axis=layout.pop("yaxis", {}),
        height=130 + grid.height,
        annotations=marks,
        **layout,
    )


def row_said(row: Row) -> str:
    """A component in words, for people who point at it."""
    shown = row.component.shown
    lines = [f"<b>{row.component.label}</b>: measured {shown(row.measured)}"]
    lines.append(f"predicted {shown(row.p50)} (P10-P90 {shown(row.p10)} to {shown(row.p90)})")
    if row.error_frac is not None:
        lines.append(f"error {percent(row.error_frac)}")
    if row.share_log is not None:
        lines.append(f"on tok/s {percent(row.share_log)}")
    return "<br>".join(lines)


def interval_of(row: Row) -> tuple[float, float]:
    """P10 to P90 of the median; of memory what the rule allows."""
    return (1 / MOST_MEMORY, 1.0) if row.component.is_memory else (ratio_of(row.p10, row), ratio_of(row.p90, row))


def ratio_of(value: float, row: Row) -> float:
    """Of the predicted median; what was not predicted stands at 1, and what is out of bounds at the bound."""
    return clipped(value / row.p50) if row.p50 else 1.0


def _residuals(of_runs: Sequence[tuple[int, Row]], names: Sequence[str], *, is_named: bool) -> list[dict[str, object]]:
    ends = [(ratio_of(row.p10, row), ratio_of(row.p90, row)) for _, row in of_runs]
    traces = [
        flat_intervals(
            ends,
            [place for place, _ in of_runs],
            name="predicted, P10 to P90",
            line={"width": 9, "color": faded(BLUE, 0.38)},
            legendgroup="interval",
            showlegend=is_named,
        )
    ]
    for is_inside in (True, False):
        of_kind = [(place, row) for place, row in of_runs if row.is_inside is is_inside]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": INSIDE_NAMES[is_inside],
                "x": [ratio_of(row.measured, row) for _, row in of_kind],
                "y": [place for place, _ in of_kind],
                "marker": {**inside_marker(is_inside), "size": 8},
                "customdata": [f"<b>{plain(names[place])}</b><br>{row_said(row)}" for place, row in of_kind],
                "hovertemplate": "%{customdata}<extra></extra>",
                "legendgroup": INSIDE_NAMES[is_inside],
                "showlegend": is_named,
            }
        )
    return traces


def _run_names(names: Sequence[str], *, is_shown: bool) -> dict[str, object]:
    step = max(1, -(-len(names) // _MOST_NAMES))
    places = range(0, len(names), step)
    shown = names[::step] if is_shown else [""] * len(places)
    return {**rows(places, shown), "range": [len(names) - 0.4, -0.6]}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Where panels stand: in columns, row by row from the top, each as high as its runs need."""

    num_panels: int
    num_rows: int

    @property
    def height(self) -> int:
        """Pixels of all rows of panels."""
        return self._num_lines * (70 + 19 * min(self.num_rows, _MOST_NAMES))

    @property
    def _num_lines(self) -> int:
        return max(1, -(-self.num_panels // _NUM_COLUMNS))

    def suffix(self, index: int) -> str:
        """What plotly appends to the names of a panel's axes."""
        return "" if index == 0 else str(index + 1)

    def axes(self, index: int) -> dict[str, str]:
        """The names of a panel's axes."""
        return {"xaxis": f"x{self.suffix(index)}", "yaxis": f"y{self.suffix(index)}"}

    def domains(self, index: int) -> tuple[list[float], list[float]]:
        """The panel's place across and up, as shares of the picture."""
        line, column = divmod(index, _NUM_COLUMNS)
        width = (1 - _GAP * (_NUM_COLUMNS - 1)) / _NUM_COLUMNS
        height = self.height / self._num_lines
        start, top = column * (width + _GAP), 1 - line / self._num_lines
        share = 1 / self._num_lines / height
        return [start, start + width], [top - (height - 42) * share, top - 24 * share]

    def is_first(self, index: int) -> bool:
        """Whether the panel is the first of its line."""
        return index % _NUM_COLUMNS == 0

    def is_lowest(self, index: int) -> bool:
        """Whether nothing stands below the panel."""
        return index + _NUM_COLUMNS >= self.num_panels
