"""Figures on a notebook's page: live ones, and where widgets are not installed pictures that say what to install."""

import base64
import html
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import plotly.graph_objects as go

from planner.extras import without_widgets
from planner.figures.marks import nothing_to_see
from planner.figures.static import svg_of

if TYPE_CHECKING:
    from planner.figures.menu import MenuFigure

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StillFigure:
    """A picture, which notebooks show as HTML, below what there is to say of it."""

    figure: go.Figure
    notice: str

    def _repr_html_(self) -> str:
        return pictures_of([self.figure], self.notice)


def pictures_of(figures: Iterable[go.Figure], notice: str, said: str | None = None) -> str:
    """The figures as HTML that needs nothing else, below a notice and what is said of them."""
    texts = [html.escape(notice)] + ([] if said is None else [f"<b>{html.escape(said)}</b>"])
    drawn = (base64.b64encode(svg_of(figure).encode()).decode() for figure in figures)
    return "".join(
        [f"<p>{text}</p>" for text in texts]
        + [f'<img style="max-width:100%" src="data:image/svg+xml;base64,{picture}">' for picture in drawn]
    )


def shown(figure: go.Figure) -> "MenuFigure | StillFigure":
    """The figure, alive: one can zoom, and point at what is in it."""
    return under_menu("figure", {"": figure}, lambda made: made)


def under_menu(label: str, options: Mapping[str, T], draw: Callable[[T], go.Figure]) -> "MenuFigure | StillFigure":
    """A figure of the option that a menu chooses, the first one to start with; without widgets, of that alone.

    Raises: as `draw` does, without widgets; with them the page says it.
    """
    notice = without_widgets()
    if notice is None:
        from planner.figures.menu import MenuFigure

        return MenuFigure(label, options, draw)
    if not options:
        return StillFigure(figure=nothing_to_see(label, "there is none"), notice=notice)
    first, option = next(iter(options.items()))
    chosen = f"; {label}: {first}, one of {len(options)}" if len(options) > 1 else ""
    return StillFigure(figure=draw(option), notice=notice + chosen)
