"""Figures on a notebook's page: live ones follow their menu, and without widgets a picture says what to install."""

import importlib.util
from importlib.machinery import ModuleSpec

import plotly.graph_objects as go
import pytest

from planner.contracts.errors import BadInputError
from planner.figures.menu import MenuFigure
from planner.figures.shown import StillFigure, shown, under_menu
from planner.figures.style import INKS, figure


def drawn(height: int) -> go.Figure:
    """A line that ends so high, and cannot be drawn below 0."""
    if height < 0:
        raise BadInputError("nothing <lies> there", why="it is below 0", remedy="look higher")
    line = {"type": "scatter", "x": [0, 1], "y": [0, height]}
    return figure([line], title=f"up to {height}", x_axis={}, y_axis={})


@pytest.fixture
def without_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "anywidget" else real(name, package)

    monkeypatch.setattr("planner.extras.find_spec", find_spec)


def test_a_figure_is_alive_and_has_the_ink_of_its_page() -> None:
    made = shown(drawn(1))
    assert isinstance(made, MenuFigure)
    assert made.menu not in made.children
    assert made.figure.widget is not None
    assert made.figure.widget.layout.template.layout.font.color == INKS["light"]
    made.surroundings.is_dark = True
    assert made.figure.widget.layout.template.layout.font.color == INKS["dark"]
    assert list(made.figure.widget.data[0].y) == [0, 1]


def test_a_menu_draws_the_first_option_then_the_chosen_one_in_place() -> None:
    made = under_menu("height", {"low": 1, "high": 5}, drawn)
    assert isinstance(made, MenuFigure)
    assert made.menu in made.children
    widget = made.figure.widget
    assert widget is not None
    assert list(widget.data[0].y) == [0, 1]
    made.menu.value = "high"
    assert id(made.figure.widget) == id(widget)
    assert list(widget.data[0].y) == [0, 5]
    assert widget.layout.title.text == "up to 5"


def test_what_cannot_be_drawn_says_why_until_something_can() -> None:
    made = under_menu("height", {"low": 1, "none": -1}, drawn)
    assert isinstance(made, MenuFigure)
    made.menu.value = "none"
    assert "nothing &lt;lies&gt; there" in made.figure.message.value
    assert "try: look higher" in made.figure.message.value
    assert made.figure.place.children == (made.figure.message,)
    made.menu.value = "low"
    assert made.figure.message.value == ""
    assert made.figure.place.children == (made.figure.widget,)


def test_a_menu_of_nothing_draws_nothing() -> None:
    made = under_menu("height", {}, drawn)
    assert isinstance(made, MenuFigure)
    assert made.figure.widget is None


@pytest.mark.usefixtures("without_widgets")
def test_without_widgets_a_picture_says_what_to_install() -> None:
    made = shown(drawn(1))
    assert isinstance(made, StillFigure)
    page = made._repr_html_()
    assert "anywidget missing" in page
    assert "pip install &#x27;draftstream[notebook]&#x27;" in page
    assert '<img style="max-width:100%" src="data:image/svg+xml;base64,' in page


@pytest.mark.usefixtures("without_widgets")
def test_without_widgets_a_menu_shows_its_first_option_and_names_it() -> None:
    made = under_menu("run", {"first": 1, "second": 5}, drawn)
    assert isinstance(made, StillFigure)
    assert isinstance(made.figure, go.Figure)
    assert list(made.figure.to_plotly_json()["data"][0]["y"]) == [0, 1]
    assert made.notice.endswith("run: first, one of 2")


@pytest.mark.usefixtures("without_widgets")
def test_without_widgets_a_menu_of_nothing_says_so() -> None:
    made = under_menu("run", {}, drawn)
    assert isinstance(made, StillFigure)
    assert isinstance(made.figure, go.Figure)
    assert made.figure.layout.title.subtitle.text == "there is none"
