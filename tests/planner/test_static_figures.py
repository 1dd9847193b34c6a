"""Static pictures: the same figures without a browser, as text that can be searched, in light and in dark."""

import os
import re
from pathlib import Path

import plotly.graph_objects as go
import pytest
from made_up import MB, profile, request

from planner.changes import Situation
from planner.contracts.errors import ResourceFailureError, UsageError
from planner.figures.pictures import write_pictures
from planner.figures.static import write_static
from planner.figures.static_marks import colour_of, written
from planner.figures.style import figure, from_zero
from planner.figures.what_if import (
    Here,
    lengths_figure,
    machines_figure,
    map_figure,
    memory_figure,
    prices_figure,
    round_figure,
    timeline_figure,
)
from planner.what_if import WhatIf, compared

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
NAMES = ("lengths", "round", "memory", "timeline", "map", "prices", "machines")


@pytest.fixture(scope="module")
def figures() -> dict[str, go.Figure]:
    situation = Situation(profile=profile(), request=request(80 * MB))
    what_if = WhatIf(situation)
    case = what_if.case()
    curve = case.curve
    assert curve is not None
    strategies = what_if.map([40 * MB, 80 * MB, 400 * MB], [0.5e9, 1e9])
    return {
        "lengths": lengths_figure(curve, chosen=4),
        "round": round_figure(case.parts()),
        "memory": memory_figure(case.plan),
        "timeline": timeline_figure(case.spans()),
        "map": map_figure(strategies, Here(device_bytes=80 * MB, link_bytes_per_s=1e9)),
        "prices": prices_figure(case.prices),
        "machines": machines_figure(compared({"one": what_if})),
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_figure_becomes_a_small_picture_whose_text_is_text(
    figures: dict[str, go.Figure], name: str, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.svg"
    write_static(figures[name], path)
    text = path.read_text()
    layout = figures[name].layout
    wanted = [layout.title.text, layout.xaxis.title.text, layout.yaxis.title.text]
    wanted += [each.name for each in figures[name].data if each.showlegend]
    wanted += [note.text.strip() for note in layout.annotations]
    assert all(f">{entry}" in text or f"> {entry}" in text for entry in wanted if entry)
    assert len(text) < 60_000


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_svg_takes_on_the_readers_theme(figures: dict[str, go.Figure], theme: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    write_static(figures["lengths"], path, theme="light" if theme == "light" else "dark")
    text = path.read_text()
    other = "dark" if theme == "light" else "light"
    assert f"@media (prefers-color-scheme: {other})" in text
    assert "system-ui" in text


def test_what_is_white_upon_a_picture_stays_so_on_a_dark_page(figures: dict[str, go.Figure], tmp_path: Path) -> None:
    write_static(figures["map"], tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    style = text[text.index("<style>") : text.index("</style>")]
    assert "#ffffff" in text
    assert "#ffffff" not in style


@pytest.mark.parametrize("name", ["lengths", "map"])
def test_pictures_of_the_readme_are_small_and_follow_the_theme(name: str) -> None:
    text = (PICTURES / f"{name}.svg").read_text()
    assert len(text) < 60_000
    assert "prefers-color-scheme: dark" in text


def test_pictures_of_the_readme_are_those_that_the_project_makes(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    for name in ("lengths", "map"):
        kept, made = (parts_of((folder / f"{name}.svg").read_text()) for folder in (PICTURES, tmp_path))
        stale = f"{name}.svg is stale: make pictures"
        assert kept[0] == made[0], stale
        # another processor rounds otherwise: a little in what is written, half a pixel in what is drawn
        assert kept[1] == pytest.approx(made[1], rel=5e-3), stale
        assert kept[2] == pytest.approx(made[2], rel=1e-3, abs=0.5), stale


def parts_of(svg: str) -> tuple[str, list[float], list[float]]:
    """A picture without its numbers, those that it writes, and those that it draws with; names of parts are hashes."""
    svg = re.sub(r"\b[a-z]?[0-9a-f]{10}\b", "part", svg)
    texts = re.findall(r">([^<>]+)</text>", svg)
    drawn = re.sub(r">[^<>]+</text>", "></text>", svg)
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    skeleton = re.sub(number, "0", drawn) + "".join(re.sub(number, "0", text) for text in texts)
    written_numbers = [float(found) for text in texts for found in re.findall(number, text)]
    return skeleton, written_numbers, [float(found) for found in re.findall(number, drawn)]


def test_picture_is_the_same_each_time(figures: dict[str, go.Figure], tmp_path: Path) -> None:
    texts = set()
    for name in ("one", "other"):
        write_static(figures["map"], tmp_path / f"{name}.svg")
        texts.add((tmp_path / f"{name}.svg").read_text())
    assert len(texts) == 1


def test_png_is_as_wide_as_asked(figures: dict[str, go.Figure], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    write_static(figures["prices"], path, width=500)
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert int.from_bytes(header[16:20]) == 1000  # two pixels each, for sharp screens


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    suffix: str, figures: dict[str, go.Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"picture.{suffix}"
    path.write_text("old")

    def fail(_: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceFailureError, match="no space"):
        write_static(figures["prices"], path)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [(path.name, "old")]


def test_other_kinds_of_files_are_refused(figures: dict[str, go.Figure], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no picture picture\.pdf"):
        write_static(figures["prices"], tmp_path / "picture.pdf")


def drawn(trace: dict[str, object]) -> go.Figure:
    return figure([trace], title="", x_axis=from_zero("x"), y_axis=from_zero("y"))


@pytest.mark.parametrize(
    ("trace", "what"),
    [
        ({"type": "box", "y": [1, 2]}, "a trace of type box"),
        ({"type": "scatter", "mode": "markers", "x": [1], "y": [1], "marker": {"symbol": "hourglass"}}, "hourglass"),
        ({"type": "scatter", "x": [1], "y": [1], "fill": "tozeroy"}, "a fill tozeroy"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(trace: dict[str, object], what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=what):
        write_static(drawn(trace), tmp_path / "picture.svg")


def test_text_loses_its_html() -> None:
    assert written("<b>a</b> &lt; b<br>c") == "a < b\nc"


@pytest.mark.parametrize(
    ("text", "colour"), [("#FF0000", (1, 0, 0, 1)), ("rgba(0,255,0,0.5)", (0, 1, 0, 0.5)), ("white", (1, 1, 1, 1))]
)
def test_colours_are_read(text: str, colour: tuple[float, ...]) -> None:
    assert colour_of(text) == pytest.approx(colour)
