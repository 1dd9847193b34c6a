"""The page of the what-if notebook: controls above, and the figures that follow them (extra `notebook`).

Every number comes from `planner.notebook`; here is only what is connected with what.
"""

import html

import ipywidgets as widgets
import plotly.graph_objects as go

from planner.cli import menus
from planner.contracts.errors import DraftstreamError
from planner.figures.controls import ROW, ChangeControls, SubjectControls
from planner.figures.live import LiveFigure, Surroundings, refusal
from planner.figures.style import MUTED, Theme
from planner.figures.view import here_figure, plan_figures
from planner.figures.what_if import lengths_figure, machines_figure, prices_figure
from planner.notebook import COMPARED_MACHINES, FromCatalogue, FromProfile, Session, answer, grounds

ALWAYS = ("lengths", "round", "memory", "timeline")  # drawn with every move
WHEN_OPEN = ("map", "prices", "machines")  # slower: drawn while their section is open
_MACHINES = WHEN_OPEN.index("machines")
_TITLES = ("The map: memory and link", "What would a little more give?", "Which card should I buy for this model?")


class WhatIfPage:
    """The page. `subject` and `controls` hold what a hand moves, and a cell can; `figures` what follows."""

    def __init__(self, subject: FromCatalogue) -> None:
        """Raises: DraftstreamError, where nothing can be said of the subject that it starts with."""
        self.session = Session(subject)
        self.message = widgets.HTML()
        self.surroundings = Surroundings()
        self.figures = {name: LiveFigure(surroundings=self.surroundings) for name in (*ALWAYS, *WHEN_OPEN)}
        self.subject = SubjectControls(subject, self.open)
        self.controls = ChangeControls(self.draw)
        self.machines = widgets.SelectMultiple(
            options=menus.machine_names(), value=COMPARED_MACHINES, rows=8, description="machines"
        )
        self.compare = widgets.Button(description="compare", icon="bar-chart")
        asked = widgets.HBox([self.machines, self.compare])
        places = {name: self.figures[name].place for name in self.figures}
        self.sections = widgets.Accordion(
            children=[places["map"], places["prices"], widgets.VBox([asked, places["machines"]])], titles=_TITLES
        )
        self.always = widgets.Box([places[name] for name in ALWAYS], layout=ROW)
        parts = [self.subject.root, self.controls.root, self.message, self.always, self.sections, self.surroundings]
        self.root = widgets.VBox(parts)
        self.controls.offer(self.session.menus)
        self.draw()
        self.surroundings.observe(lambda _: self.draw(), names="is_dark")
        self.sections.observe(lambda _: self._draw_section(), names="selected_index")
        self.compare.on_click(lambda _: self._draw_section())

    @property
    def theme(self) -> Theme:
        """The page's."""
        return "dark" if self.surroundings.is_dark else "light"

    def open(self, subject: FromCatalogue | FromProfile) -> None:
        """Ask about something else. What stands in the way is said, and nothing is shown."""
        self._say("planning ...")
        try:
            self.session = Session(subject)
        except DraftstreamError as error:
            self._refuse(error)
            return
        self.controls.offer(self.session.menus)
        self.draw()
        if self.sections.selected_index == _MACHINES:
            self._draw_section()

    def draw(self) -> None:
        """Draw what the controls say; the curve first, as it is what one looks at."""
        change = self.controls.change()
        try:
            curve = self.session.curve(change)
            if curve is None:
                self.figures["lengths"].hide()
            else:
                self.figures["lengths"].show(lengths_figure(curve, change.num_nodes), self.theme)
            case = self.session.case(change)
        except DraftstreamError as error:
            self._refuse(error)
            return
        below = f"<span style='color:{MUTED}'>{html.escape(grounds(case, change))}</span>"
        self._say(f"<b>{html.escape(answer(case, change.codec))}</b><br>{below}")
        for name, figure in plan_figures(case).items():
            self.figures[name].show(figure, self.theme)
        self._show_all(True)
        if self.sections.selected_index != _MACHINES:
            self._draw_section()  # other machines keep their own memory and link, whatever is moved here

    def _draw_section(self) -> None:
        """Draw the section that is open; what stands in its way is said there, and hides nothing else."""
        place = self.sections.selected_index
        if place is None:
            return
        name = WHEN_OPEN[place]
        try:
            figure = {"map": self._map, "prices": self._prices, "machines": self._machines}[name]()
        except DraftstreamError as error:
            self.figures[name].refuse(error)
        else:
            self.figures[name].show(figure, self.theme)

    def _map(self) -> go.Figure:
        change = self.controls.change()
        device_bytes, rate = self.session.here(change)
        return here_figure(self.session.map(change), device_bytes, rate)

    def _prices(self) -> go.Figure:
        return prices_figure(self.session.case(self.controls.change()).prices)

    def _machines(self) -> go.Figure:
        return machines_figure(self.session.machines(self.machines.value))

    def _say(self, text: str) -> None:
        self.message.value = text

    def _refuse(self, error: DraftstreamError) -> None:
        """Say what stands in the way, and show no figure of anything else."""
        self._say(refusal(error))
        self._show_all(False)

    def _show_all(self, is_shown: bool) -> None:
        for place in (self.always, self.sections):
            place.layout.visibility = "visible" if is_shown else "hidden"
