"""A figure on a notebook's page that is updated in place, so that it does not flicker and zoom stays."""

import ipywidgets as widgets
import plotly.graph_objects as go

from planner.figures.style import TEMPLATES, Theme, themed


class LiveFigure:
    """A place for a figure; empty until one is shown."""

    def __init__(self, width: str = "440px") -> None:
        """`width` is the least, in CSS; places beside each other share what there is."""
        self.place = widgets.Box(layout=widgets.Layout(flex=f"1 1 {width}", min_width="0", display="none"))
        self.widget: go.FigureWidget | None = None
        self._theme: Theme = "light"

    def show(self, figure: go.Figure, theme: Theme) -> None:
        """Draw it, in one message where the place holds a figure of as many traces."""
        if self.widget is None or len(self.widget.data) != len(figure.data):
            self.widget = go.FigureWidget(themed(figure, theme))
            self.place.children = (self.widget,)
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
        self.place.layout.display = "flex"

    def hide(self) -> None:
        """Show nothing, until the next figure."""
        self.place.layout.display = "none"
