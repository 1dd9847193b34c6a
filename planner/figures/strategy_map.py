"""A map of tok/s over memory and link bandwidth, with the region in which each strategy is the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from planner.contracts.quantities import bytes_unit, format_bytes, format_bytes_per_s, format_tokens_per_s
from planner.figures.style import KIND_NAMES, decimal_ticks, figure, logarithmic, plain
from planner.what_if import Cell, StrategyMap

Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

_GBYTES_PER_S = 1e9
_SCALE = "Cividis"  # made for colour-blind readers: Nuñez et al., PLOS ONE 2018
_DARK = "rgba(20,24,31,0.72)"
_NARROW_FRAC = 0.25  # of the map's width, which names of strategies take


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """Where a machine lies on the map."""

    device_bytes: int
    link_bytes_per_s: float
    label: str = "here"


def map_figure(strategies: StrategyMap, here: Here | None = None) -> go.Figure:
    """tok/s by colour, lines around the region of each best strategy with its name, and a mark where one is."""
    unit, size_bytes = bytes_unit(strategies.device_bytes[-1])
    memories = [num_bytes / size_bytes for num_bytes in strategies.device_bytes]
    rates = [rate / _GBYTES_PER_S for rate in strategies.link_bytes_per_s]
    names = [[strategy_name(cell) for cell in row] for row in strategies.cells]
    columns, lines = _edges(memories), _edges(rates)
    traces = [
        _heat(strategies, names, columns, lines),
        _borders(names, columns, lines, {"color": _DARK, "width": 5}),
        _borders(names, columns, lines, {"color": "white", "width": 2}),
        _mark(here, size_bytes),
    ]
    return figure(
        traces,
        title="Speed by memory and link",
        subtitle="lines: where another strategy becomes the best",
        x_axis=logarithmic(f"device memory ({unit})", columns[0], columns[-1], showgrid=False),
        y_axis=logarithmic("link bandwidth (GB/s)", lines[0], lines[-1], showgrid=False),
        height=440,
        showlegend=False,
        annotations=[*_labels(names, memories, rates, _cell_of(here, strategies)), *_mark_label(here, size_bytes)],
    )


def strategy_name(cell: Cell | None) -> str:
    """What a region of the map is called."""
    if cell is None:
        return "does not fit"
    return f"{KIND_NAMES[cell.kind]}, {'streamed' if cell.is_streaming else 'all resident'}"


def _heat(
    strategies: StrategyMap, names: list[list[str]], columns: Sequence[float], lines: Sequence[float]
) -> dict[str, object]:
    speeds = [None if cell is None else math.log10(cell.tokens_per_s) for row in strategies.cells for cell in row]
    known = [speed for speed in speeds if speed is not None] or [0.0, 1.0]
    ticks = decimal_ticks(10 ** min(known), 10 ** max(known))
    width = len(strategies.device_bytes)
    return {
        "type": "heatmap",
        "x": list(columns),
        "y": list(lines),
        "z": [speeds[start : start + width] for start in range(0, len(speeds), width)],
        "colorscale": _SCALE,
        "colorbar": {
            "title": {"text": "tok/s", "side": "top"},
            "tickvals": [math.log10(tick) for tick in ticks],
            "ticktext": [f"{tick:g}" for tick in ticks],
            "thickness": 14,
            "outlinewidth": 0,
        },
        "customdata": [
            [
                [name, format_bytes(num_bytes), format_bytes_per_s(rate), _speed(cell)]
                for name, num_bytes, cell in zip(row_names, strategies.device_bytes, row, strict=True)
            ]
            for row_names, rate, row in zip(names, strategies.link_bytes_per_s, strategies.cells, strict=True)
        ],
        "hovertemplate": "<b>%{customdata[3]}</b>: %{customdata[0]}<br>%{customdata[1]}, %{customdata[2]}"
        "<extra></extra>",
        "hoverongaps": True,
    }


def _speed(cell: Cell | None) -> str:
    return "nothing fits" if cell is None else format_tokens_per_s(cell.tokens_per_s)


def _edges(values: Sequence[float]) -> list[float]:
    """Where cells around these ascending values begin and end, halfway between them as factors."""
    logs = np.log(np.asarray(values, dtype=float))
    if len(logs) == 1:
        return [values[0] / math.sqrt(2), values[0] * math.sqrt(2)]
    middles = (logs[1:] + logs[:-1]) / 2
    ends = np.concatenate([[2 * logs[0] - middles[0]], middles, [2 * logs[-1] - middles[-1]]])
    return [float(edge) for edge in np.exp(ends)]


def _borders(
    names: list[list[str]], columns: Sequence[float], lines: Sequence[float], line: dict[str, object]
) -> dict[str, object]:
    """The edges between cells of different strategies, as one broken line."""
    x: list[float | None] = []
    y: list[float | None] = []
    for row, row_names in enumerate(names):
        for column, name in enumerate(row_names):
            if column + 1 < len(row_names) and row_names[column + 1] != name:
                x += [columns[column + 1], columns[column + 1], None]
                y += [lines[row], lines[row + 1], None]
            if row + 1 < len(names) and names[row + 1][column] != name:
                x += [columns[column], columns[column + 1], None]
                y += [lines[row + 1], lines[row + 1], None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "borders",
        "x": x,
        "y": y,
        "line": line,
        "hoverinfo": "skip",
    }


def _cell_of(here: Here | None, strategies: StrategyMap) -> tuple[int, int] | None:
    """Row and column of the cell that the mark lies in."""
    if here is None:
        return None
    rates = np.log(strategies.link_bytes_per_s) - math.log(here.link_bytes_per_s)
    memories = np.log(strategies.device_bytes) - math.log(here.device_bytes)
    return int(np.abs(rates).argmin()), int(np.abs(memories).argmin())


def _labels(
    names: list[list[str]], memories: Sequence[float], rates: Sequence[float], marked: tuple[int, int] | None
) -> list[dict[str, object]]:
    """The name of the strategy in the depth of each region and off the mark, upright where that is narrow."""
    table = np.array(names)
    labels = []
    for inside in _regions(table):
        free = inside.copy()
        if marked is not None and inside.sum() > 1:
            free[marked] = False
        row, column = _deepest(free)
        is_narrow = inside[row].sum() < _NARROW_FRAC * len(memories)
        is_tall = inside[:, column].sum() > inside[row].sum()
        angle = -90 if is_narrow and is_tall else 0
        labels.append(_label(str(table[row, column]), memories[column], rates[row], textangle=angle))
    return labels


def _regions(names: np.ndarray[tuple[int, ...], np.dtype[np.str_]]) -> list[Mask]:
    """The cells of each region: neighbours of the same name."""
    found: list[Mask] = []
    left = np.ones(names.shape, dtype=bool)
    while left.any():
        inside, size = np.zeros_like(left), 0
        inside[tuple(np.argwhere(left)[0])] = True
        same = names == names[inside][0]
        while inside.sum() > size:
            size = int(inside.sum())
            around = np.pad(inside, 1)
            inside = same & (inside | around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:])
        left &= ~inside
        found.append(inside)
    return found


def _label(text: str, memory: float, rate: float, **more: object) -> dict[str, object]:
    """A name on the map; plotly counts its place on logarithmic axes in powers of ten."""
    return {
        "text": text,
        "x": math.log10(memory),
        "y": math.log10(rate),
        "showarrow": False,
        "font": {"color": "white", "size": 12},
        "bgcolor": _DARK,
        "borderpad": 3,
        **more,
    }


def _deepest(inside: Mask) -> tuple[int, int]:
    """The cell of a region that is farthest from what lies outside; of several, the nearest to their middle."""
    around = np.pad(inside, 1)  # a name must not run over the edge of the map either
    cells, outside = np.argwhere(around), np.argwhere(~around)
    depth = np.abs(cells[:, None] - outside[None]).max(axis=-1).min(axis=1)
    deepest = cells[depth == depth.max()]
    row, column = deepest[np.abs(deepest - deepest.mean(axis=0)).sum(axis=1).argmin()]
    return int(row) - 1, int(column) - 1


def _mark(here: Here | None, size_bytes: int) -> dict[str, object]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "here",
        "x": [] if here is None else [here.device_bytes / size_bytes],
        "y": [] if here is None else [here.link_bytes_per_s / _GBYTES_PER_S],
        "marker": {"symbol": "star", "size": 18, "color": "white", "line": {"color": "black", "width": 1.5}},
        "hoverinfo": "skip",
    }


def _mark_label(here: Here | None, size_bytes: int) -> list[dict[str, object]]:
    if here is None:
        return []
    memory, rate = here.device_bytes / size_bytes, here.link_bytes_per_s / _GBYTES_PER_S
    return [_label(plain(here.label), memory, rate, yshift=26)]  # above the star
