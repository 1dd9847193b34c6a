"""A figure below a menu, on a notebook's page, light or dark as the page is (extra `notebook`)."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import ipywidgets as widgets
import plotly.graph_objects as go

from planner.contracts.errors import DraftstreamError
from planner.figures.live import LiveFigure, Surroundings

T = TypeVar("T")


class MenuFigure(widgets.VBox):
    """Draws the option that `menu` names; where that cannot be, the place of the figure says why.

    What has one option has no menu to be seen.
    """

    def __init__(self, label: str, options: Mapping[str, T], draw: Callable[[T], go.Figure]) -> None:
        self.menu = widgets.Dropdown(options=list(options), description=label)
        self.surroundings = Surroundings()
        self.figure = LiveFigure("100%", self.surroundings)
        self._draw: Callable[[], go.Figure] = lambda: draw(options[self.menu.value])
        menus = (self.menu,) if len(options) > 1 else ()
        super().__init__(children=[*menus, self.figure.place, self.surroundings])
        self.menu.observe(lambda _: self._show(), names="value")
        self.surroundings.observe(lambda _: self._show(), names="is_dark")
        if options:
            self._show()

    def _show(self) -> None:
        try:
            figure = self._draw()
        except DraftstreamError as error:
            self.figure.refuse(error)
        else:
            self.figure.show(figure, "dark" if self.surroundings.is_dark else "light")
