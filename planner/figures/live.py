"""A figure on a notebook's page that is updated in place, so that it does not flicker and zoom stays."""

import html
from pathlib import Path

import anywidget
import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets

from planner.contracts.errors import DraftstreamError
from planner.figures.style import TEMPLATES, VERMILLION, Theme, themed

_CONFIG = {"responsive": True, "displaylogo": False}


class Surroundings(anywidget.AnyWidget):
    """Invisible: makes figures as wide as their places, and knows whether the page around is dark."""

    _esm = Path(__file__).with_name("surroundings.js")
    is_dark = traitlets.Bool(default_value=False).tag(sync=True)


def refusal(error: DraftstreamError) -> str:
    """What stands in the way, why, and what to try, as HTML."""
    lines = (f"<b>{html.escape(error.what)}</b>", html.escape(error.why), f"try: {html.escape(error.remedy)}")
    return f"<span style='color:{VERMILLION}'>{'<br>'.join(lines)}</span>"


class LiveFigure:
    """A place for a figure, or for what stands in its way; empty until one of them is shown."""

    def __init__(self, width: str = "440px", surroundings: Surroundings | None = None) -> None:
        """`width` is the least, in CSS: places beside each other share what there is. A page has its `surroundings`."""
        self._around = (Surroundings(),) if surroundings is None else ()
        self.message = widgets.HTML()
        self.place = widgets.VBox(self._around, layout=widgets.Layout(flex=f"1 1 {width}", min_width="0"))
        self.place.layout.display = "none"
        self.widget: go.FigureWidget | None = None
        self._theme: Theme = "light"

    def show(self, figure: go.Figure, theme: Theme) -> None:
        """Draw it, in one message where the place holds a figure of as many traces."""
        if self.widget is None or len(self.widget.data) != len(figure.data):
            self.widget = go.FigureWidget(themed(figure, theme))
            self.widget._config = _CONFIG  # plotly has no public name for it
        else:
            layout = figure.layout.to_plotly_json()
            del layout["template"]  # takes as long to send as all the rest, and only another theme has another
            if theme != self._theme:
                layout["template"] = TEMPLATES[theme]
            with self.widget.batch_update():
                for old, new in zip(self.widget.data, figure.data, strict=True):
                    old.update({**new.to_plotly_json(), "uid": old.uid}, overwrite=True)
                self.widget.layout.update(layout, overwrite=True)
        self._theme = theme
        self.message.value = ""
        self._fill(self.widget)

    def refuse(self, error: DraftstreamError) -> None:
        """Say what stands in the way of the figure, where it would be."""
        self.message.value = refusal(error)
        self._fill(self.message)

    def hide(self) -> None:
        """Show nothing, until the next figure."""
        self.place.layout.display = "none"

    def _fill(self, widget: widgets.Widget) -> None:
        children = (*self._around, widget)
        if self.place.children != children:
            self.place.children = children
        self.place.layout.display = "flex"
