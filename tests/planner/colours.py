"""Colours as colour-blind people see them, and which traces of a figure they could not tell apart."""

import itertools
import re
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from planner.figures.style import PALETTE

LEAST = 0.08  # of a channel's range, by which two colours must differ to be told apart

# Viénot, Brettel and Mollon 1999, for linear RGB: what people without L or M cones see of a colour.
BLIND = {
    "protanopia": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "deuteranopia": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
}


def seen(colour: str, blindness: str) -> NDArray[np.float64]:
    """Red, green and blue from 0 to 1 of a colour on white paper."""
    seen_linear = BLIND[blindness] @ (_on_white(colour) ** 2.2)
    found: NDArray[np.float64] = np.clip(seen_linear, 0, 1) ** (1 / 2.2)
    return found


def brightness(colour: str, blindness: str) -> float:
    """Relative luminance from 0 to 1."""
    return float(np.array([0.2126, 0.7152, 0.0722]) @ seen(colour, blindness) ** 2.2)


def is_apart(one: str, other: str, blindness: str) -> bool:
    """Whether the colours differ."""
    return float(np.abs(seen(one, blindness) - seen(other, blindness)).max()) > LEAST


def alike(figure: go.Figure, blindness: str) -> list[tuple[str, str]]:
    """Names of traces that differ neither in colour nor in the shape of marks, dashes or hatching."""
    looks: dict[tuple[str, str, str], tuple[str, str]] = {}
    for trace in figure.to_plotly_json()["data"]:
        colour, shape = _look(trace)
        if colour is not None and trace.get("name") and trace.get("showlegend") is not False:
            place = (trace["name"], trace.get("xaxis", "x"), trace.get("mode", trace["type"]))
            looks.setdefault(place, (colour, shape))
    return [
        (one[0], other[0])
        for (one, (colour, shape)), (other, (other_colour, other_shape)) in itertools.combinations(looks.items(), 2)
        if one[0] != other[0]
        and one[1:] == other[1:]
        and shape == other_shape
        and not is_apart(colour, other_colour, blindness)
    ]


def is_of_palette(colour: str) -> bool:
    """Whether it is one of the palette, however pale."""
    return colour in PALETTE or any(np.allclose(_rgb(colour), _rgb(known)) for known in PALETTE)


def _look(trace: dict[str, dict[str, str]]) -> tuple[str | None, str]:
    marker, line = trace.get("marker", {}), trace.get("line", {})
    pattern = marker.get("pattern")
    shape = f"{marker.get('symbol')} {line.get('dash')} {'hatched' if pattern else ''}"
    colour: str | Sequence[str] | None = marker.get("color") or line.get("color")
    return (colour if colour is None or isinstance(colour, str) else colour[-1]), shape


def _on_white(colour: str) -> NDArray[np.float64]:
    share = float(colour.rstrip(")").split(",")[3]) if colour.startswith("rgba") else 1.0
    return share * _rgb(colour) + (1 - share)


def _rgb(colour: str) -> NDArray[np.float64]:
    if colour.startswith("#"):
        return np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.array([float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]])
