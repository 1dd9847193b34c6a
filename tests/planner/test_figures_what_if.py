"""Figures of what-if: their data is the planner's, axes start where they must, colours differ, unknown is said."""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
from colours import BLIND, alike, brightness, is_apart
from made_up import MB, profile, request
from plotly.colors import sample_colorscale

from planner.changes import Situation
from planner.contracts.recommendation import Crossover, Price
from planner.contracts.timeline import Span
from planner.figures.lanes import link_gaps
from planner.figures.strategy_map import _regions
from planner.figures.style import (
    IDLE_COLOUR,
    KIND_COLOURS,
    KIND_NAMES,
    LANE_COLOURS,
    MUTED,
    PALETTE,
    TEMPLATES,
    decimal_ticks,
    faded,
    themed,
    tint,
)
from planner.figures.what_if import (
    Here,
    last_round,
    lengths_figure,
    machines_figure,
    map_figure,
    memory_figure,
    prices_figure,
    round_figure,
    timeline_figure,
)
from planner.what_if import Advice, Band, Case, Cell, LengthBand, LengthCurve, RoundParts, StrategyMap, WhatIf, compared

TIGHT = 80 * MB
UNITS = ("TiB", "GiB", "MiB", "KiB", "s", "ms", "GB/s", "tok/s", "tokens in a round")


@pytest.fixture(scope="module")
def what_if() -> WhatIf:
    return WhatIf(Situation(profile=profile(), request=request(TIGHT)))


@pytest.fixture(scope="module")
def case(what_if: WhatIf) -> Case:
    return what_if.case()


@pytest.fixture(scope="module")
def strategies(what_if: WhatIf) -> StrategyMap:
    return what_if.map([MB, 40 * MB, TIGHT, 400 * MB], [0.5e9, 1e9, 2e9])


@pytest.fixture(scope="module")
def advice() -> list[Advice]:
    made = Situation(profile=profile(), request=request(TIGHT))
    return compared({"tight": WhatIf(made), "small": WhatIf(replace(made, request=request(MB)))})


@pytest.fixture(scope="module")
def figures(case: Case, strategies: StrategyMap, advice: list[Advice]) -> dict[str, go.Figure]:
    curve = case.curve
    assert curve is not None
    return {
        "lengths": lengths_figure(curve),
        "round": round_figure(case.parts()),
        "memory": memory_figure(case.plan),
        "timeline": timeline_figure(case.spans()),
        "map": map_figure(strategies, Here(device_bytes=TIGHT, link_bytes_per_s=1e9)),
        "prices": prices_figure(case.prices),
        "machines": machines_figure(advice),
    }


def curve_of(speeds: dict[int, float], plain: float = 1.0, **changes: object) -> LengthCurve:
    """A curve with these medians, bands of a tenth around them, and lengths that pay where they exceed `plain`."""
    paying = [length for length, speed in speeds.items() if speed > plain]
    made = LengthCurve(
        draft="draft",
        points=tuple(
            LengthBand(
                draft_len=length,
                tokens_per_s=Band(p10=0.9 * speed, p50=speed, p90=1.1 * speed),
                tokens_per_round=2.0,
                round_s=2.0 / speed,
            )
            for length, speed in speeds.items()
        ),
        plain=Band(p10=0.9 * plain, p50=plain, p90=1.1 * plain),
        crossover=Crossover(
            draft="draft",
            first_draft_len=min(paying, default=None),
            last_draft_len=max(paying, default=None),
            points=(),
        ),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def parts_of(label: str, **seconds: float) -> RoundParts:
    given = {"round_s": 0.1, "link_s": 0.09, "disk_s": 0.0, "compute_s": 0.03, "draft_s": 0.02, "host_s": 0.001}
    return RoundParts(label=label, **{**given, **seconds})


def trace(figure: go.Figure, name: str) -> go.Figure:
    (found,) = (each for each in figure.data if each.name == name)
    return found


def axes(figure: go.Figure) -> list[go.layout.XAxis]:
    return [figure.layout.xaxis, figure.layout.yaxis]


# --- the data is the planner's ---


def test_curve_is_drawn_with_its_band_its_best_and_no_draft() -> None:
    figure = lengths_figure(curve_of({1: 1.5, 4: 3.0, 8: 2.0}))
    assert trace(figure, "median (P50)").x == (1, 4, 8)
    assert trace(figure, "median (P50)").y == (1.5, 3.0, 2.0)
    # up along P10 and back along P90
    assert trace(figure, "P10 to P90").x == (1, 4, 8, 8, 4, 1)
    assert trace(figure, "P10 to P90").y == pytest.approx((1.35, 2.7, 1.8, 2.2, 3.3, 1.65))
    assert (trace(figure, "best: 4").x, trace(figure, "best: 4").y) == ((4,), (3.0,))
    assert set(trace(figure, "no draft").y) == {1.0}
    assert figure.layout.title.text == "Best chain: 4 tokens a round, 3.00 tok/s"
    assert "3.00 times no draft (1.00 tok/s)" in figure.layout.title.subtitle.text


def test_every_drawn_speed_is_the_planners(case: Case, figures: dict[str, go.Figure]) -> None:
    curve = case.curve
    assert curve is not None
    line = trace(figures["lengths"], "median (P50)")
    assert list(line.y) == [point.tokens_per_s.p50 for point in curve.points]
    assert list(line.x) == [point.draft_len for point in curve.points]


@pytest.mark.parametrize(
    ("speeds", "marks"),
    [
        ({1: 0.8, 2: 1.2, 4: 1.3, 8: 0.9}, ["pays from 2", "pays up to 4"]),
        ({1: 0.8, 2: 1.2, 4: 0.9}, ["pays from 2, pays up to 2"]),
        ({1: 1.1, 2: 1.2}, []),
        ({1: 0.5, 2: 0.4}, []),
    ],
)
def test_crossovers_are_marked_only_where_something_crosses(speeds: dict[int, float], marks: list[str]) -> None:
    crossings = trace(lengths_figure(curve_of(speeds)), "where it pays")
    assert list(crossings.text) == marks
    assert list(crossings.y) == [speeds[length] for length in crossings.x]


def test_a_draft_that_never_pays_is_said_in_the_title() -> None:
    assert lengths_figure(curve_of({1: 0.5, 2: 0.4})).layout.title.text == "A chain pays at no length"


def test_chosen_length_is_ringed() -> None:
    figure = lengths_figure(curve_of({1: 1.5, 4: 3.0}), chosen=1)
    assert (trace(figure, "chosen: 1").x, trace(figure, "chosen: 1").y) == ((1,), (1.5,))


def test_parts_of_a_round_add_up_to_it() -> None:
    figure = round_figure([parts_of("no draft"), parts_of("chain of 4", round_s=0.2)])
    above = ("compute", "draft", "host", "waiting for weights")
    for row, round_ms in enumerate((100, 200)):
        assert sum(trace(figure, name).x[row] for name in above) == pytest.approx(round_ms)
        assert sum(trace(figure, name).x[row] for name in ("copy over the link", "link idle")) == pytest.approx(
            round_ms
        )
    assert list(figure.layout.yaxis.ticktext) == ["no draft", "chain of 4"]
    assert figure.layout.xaxis.title.text == "time of a round (ms)"
    assert trace(figure, "disk read").showlegend is False


def test_disk_has_a_bar_of_its_own() -> None:
    figure = round_figure([parts_of("no draft", disk_s=0.1)])
    places = [trace(figure, name).y[0] for name in ("compute", "copy over the link", "disk read")]
    assert places == sorted(set(places))


def test_memory_fills_the_budget_exactly(case: Case, figures: dict[str, go.Figure]) -> None:
    figure, plan = figures["memory"], case.plan
    mib = 2**20
    on_device = sum(bar.x[0] for bar in figure.data if bar.y[0] == 0)
    on_host = sum(bar.x[0] for bar in figure.data if bar.y[0] == 1)
    assert on_device == pytest.approx(plan.devices[0].budget_bytes / mib)
    assert on_host == pytest.approx(plan.memory.host_bytes / mib)
    assert trace(figure, "resident weights").x[0] == plan.memory.residents_bytes / mib
    (line,) = figure.layout.shapes
    assert line.x0 == line.x1 == plan.devices[0].budget_bytes / mib


def test_timeline_is_of_the_last_round_and_shows_the_idle_link(case: Case) -> None:
    spans = case.spans()
    start_s, stop_s = last_round(spans)
    assert stop_s - start_s == pytest.approx(case.best.round_s, rel=0.01)
    figure = timeline_figure(spans)
    (copies,) = (each for each in figure.data if each.name == "copy")
    (idle,) = (each for each in figure.data if each.name == "link idle")
    assert sum(copies.x) + sum(idle.x) == pytest.approx((stop_s - start_s) * 1e3)
    assert all(0 <= base <= (stop_s - start_s) * 1e3 for each in figure.data for base in each.base)


def test_gaps_lie_between_spans_and_at_both_ends() -> None:
    spans = [Span(lane="link", label="x", start_s=start_s, stop_s=start_s + 1) for start_s in (1.0, 2.0, 4.0)]
    gaps = [(gap.start_s, gap.stop_s) for gap in link_gaps(spans, 6.0)]
    assert gaps == [(0.0, 1.0), (3.0, 4.0), (5.0, 6.0)]


def test_round_without_transfer_says_so() -> None:
    spans = [Span(lane="compute", label="layer 0", start_s=0.0, stop_s=0.5)]
    assert "nothing travels" in timeline_figure(spans).layout.title.subtitle.text


def test_map_colours_each_cell_by_its_speed(strategies: StrategyMap, figures: dict[str, go.Figure]) -> None:
    heat = figures["map"].data[0]
    for row, cells in zip(heat.z, strategies.cells, strict=True):
        assert list(row) == [None if cell is None else math.log10(cell.tokens_per_s) for cell in cells]
    assert len(heat.x) == len(strategies.device_bytes) + 1
    assert all(
        low < size / 2**20 < high
        for (low, high), size in zip(itertools.pairwise(heat.x), strategies.device_bytes, strict=True)
    )


def test_map_outlines_and_names_the_region_of_each_strategy() -> None:
    chain, fits = (Cell(tokens_per_s=1.0, kind=kind, is_streaming=kind == "chain") for kind in ("chain", "none"))
    made = StrategyMap(
        device_bytes=(10 * 2**30, 20 * 2**30), link_bytes_per_s=(1e9, 4e9), cells=((None, fits), (chain, fits))
    )
    figure = map_figure(made, Here(device_bytes=20 * 2**30, link_bytes_per_s=4e9))
    names = {note.text: (10**note.x, 10**note.y) for note in figure.layout.annotations}
    assert names == {
        "does not fit": pytest.approx((10, 1)),
        "chain, streamed": pytest.approx((10, 4)),
        "no draft, all resident": pytest.approx((20, 1), rel=4),  # either cell of its column
        "here": pytest.approx((20, 4)),
    }
    # One edge between the two cells on the left, two between the columns, each of two points and a gap.
    assert len(figure.data[1].x) == 3 * 3
    assert {round(x, 3) for x in figure.data[1].x if x} >= {round(math.sqrt(200), 3)}


def test_no_name_lies_on_the_mark() -> None:
    cell = Cell(tokens_per_s=1.0, kind="tree", is_streaming=True)
    made = StrategyMap(
        device_bytes=tuple(size * 2**30 for size in (1, 2, 4)),
        link_bytes_per_s=(1e9, 2e9, 4e9),
        cells=((cell,) * 3,) * 3,
    )
    middle = (2.0, 2.0)
    (alone,) = map_figure(made).layout.annotations
    assert (10**alone.x, 10**alone.y) == pytest.approx(middle)
    name, mark = map_figure(made, Here(device_bytes=2 * 2**30, link_bytes_per_s=2e9)).layout.annotations
    assert (10**name.x, 10**name.y) != pytest.approx(middle)
    assert (10**mark.x, 10**mark.y) == pytest.approx(middle)
    star = map_figure(made, Here(device_bytes=1, link_bytes_per_s=1.0)).data[-1]
    assert mark.yshift > 1.4 * star.marker.size / 2 + 11  # from the middle of a star to its tip; half a name's height


def test_a_strategy_that_is_best_in_two_places_is_named_in_both() -> None:
    names = [["a", "b", "a"], ["a", "b", "a"]]
    assert sorted(int(region.sum()) for region in _regions(np.array(names))) == [2, 2, 2]


def test_prices_are_sorted_by_what_they_give() -> None:
    figure = prices_figure([Price(what="a", gain_tokens_per_s=0.1), Price(what="b", gain_tokens_per_s=0.3)])
    assert (list(figure.data[0].x), list(figure.layout.yaxis.ticktext)) == ([0.3, 0.1], ["b", "a"])


def test_machines_are_drawn_with_the_ends_of_their_plans(advice: list[Advice]) -> None:
    figure = machines_figure(advice)
    said = advice[0].recommendation
    assert said is not None
    assert said.plan.predicted_p90 is not None
    (bars,) = (each for each in figure.data if each.type == "bar" and len(each.x))
    assert bars.name == KIND_NAMES[said.choice.draft_kind]  # type: ignore[index]
    assert list(bars.x) == [said.choice.tokens_per_s]
    assert bars.x[0] + bars.error_x.array[0] == pytest.approx(said.plan.predicted_p90.generated_tokens_per_s)


# --- unknown is said, and is never zero ---


def test_machine_that_cannot_run_it_has_a_reason_and_no_bar(advice: list[Advice]) -> None:
    figure = machines_figure(advice)
    assert sum(len(each.x) for each in figure.data if each.type == "bar") == 1
    reasons = trace(figure, "cannot")
    assert list(reasons.y) == [1]
    assert "does not fit" in reasons.text[0]
    assert list(figure.layout.yaxis.ticktext) == ["tight", "small"]


def test_interval_that_nobody_predicted_is_not_drawn(advice: list[Advice]) -> None:
    said = advice[0].recommendation
    assert said is not None
    bare = said.model_copy(update={"plan": said.plan.model_copy(update={"predicted_p10": None})})
    (bars,) = (
        each
        for each in machines_figure([replace(advice[0], recommendation=bare)]).data
        if each.type == "bar" and each.x
    )
    assert list(bars.error_x.array) == [None]
    assert "P10-P90 unknown" in bars.customdata[0][1]


def test_cell_in_which_nothing_fits_has_no_colour() -> None:
    made = StrategyMap(device_bytes=(2**30,), link_bytes_per_s=(1e9,), cells=((None,),))
    figure = map_figure(made)
    assert figure.data[0].z[0][0] is None
    assert figure.data[0].customdata[0][0][3] == "nothing fits"


# --- how figures look ---


@pytest.mark.parametrize("name", ["lengths", "round", "memory", "timeline", "map", "prices", "machines"])
def test_numbers_on_axes_have_units(figures: dict[str, go.Figure], name: str) -> None:
    titles = [axis.title.text for axis in axes(figures[name]) if axis.title.text]
    assert titles
    for title in titles:
        assert re.fullmatch(r".+ \((.+)\)", title), title
        assert title.rpartition("(")[2].rstrip(")") in UNITS


@pytest.mark.parametrize("name", ["lengths", "round", "memory", "timeline", "prices", "machines"])
def test_axes_of_quantities_with_a_zero_start_there(figures: dict[str, go.Figure], name: str) -> None:
    measured = [axis for axis in axes(figures[name]) if axis.title.text]
    assert measured
    assert all(axis.rangemode == "tozero" and axis.type != "log" for axis in measured)
    assert all(axis.range is None or axis.range[0] == 0 for axis in measured)


def test_memory_and_bandwidth_of_the_map_are_logarithmic(figures: dict[str, go.Figure]) -> None:
    assert [axis.type for axis in axes(figures["map"])] == ["log", "log"]


def colours(thing: object) -> Iterator[str]:
    """Every colour that a figure's JSON names."""
    if isinstance(thing, dict):
        for key, value in thing.items():
            if key.endswith("color"):
                yield from (
                    [value] if isinstance(value, str) else [entry for entry in value or () if isinstance(entry, str)]
                )
            else:
                yield from colours(value)
    elif isinstance(thing, list | tuple):
        for entry in thing:
            yield from colours(entry)


@pytest.mark.parametrize("name", ["lengths", "round", "memory", "timeline", "prices", "machines"])
def test_traces_take_their_colours_from_the_palette(figures: dict[str, go.Figure], name: str) -> None:
    allowed = set(PALETTE) | {MUTED, IDLE_COLOUR, "#5a3d00", "rgba(140,140,140,0.45)"}
    allowed |= {faded(colour, share) for colour in PALETTE for share in (0.2, 0.7)}
    allowed |= {tint(colour, share) for colour in PALETTE for share in (0.6, 0.7)}
    used = set(colours(figures[name].to_plotly_json()["data"]))
    assert used
    assert used <= allowed


@pytest.mark.parametrize("blindness", BLIND)
@pytest.mark.parametrize("named", [KIND_COLOURS, LANE_COLOURS], ids=["kinds", "lanes"])
def test_colour_blind_people_tell_kinds_and_lanes_apart(blindness: str, named: dict[str, str]) -> None:
    pairs = itertools.combinations(named.values(), 2)
    assert [pair for pair in pairs if not is_apart(*pair, blindness)] == []


@pytest.mark.parametrize("blindness", BLIND)
@pytest.mark.parametrize("name", ["lengths", "round", "memory", "timeline", "prices", "machines"])
def test_colour_blind_people_tell_traces_apart(figures: dict[str, go.Figure], name: str, blindness: str) -> None:
    assert alike(figures[name], blindness) == []


@pytest.mark.parametrize("blindness", BLIND)
def test_colour_blind_people_see_speed_rise_on_the_map(figures: dict[str, go.Figure], blindness: str) -> None:
    scale = [colour for _, colour in figures["map"].data[0].colorscale]
    shades = sample_colorscale(scale, 11)
    steps = np.diff([brightness(shade, blindness) for shade in shades])
    assert np.all(steps > 0.01)
    border, around = (figures["map"].data[place].line.color for place in (2, 1))
    for shade in (shades[0], shades[-1]):  # the line or its edge stands out on the darkest and on the brightest
        assert (
            max(
                abs(brightness("#FFFFFF", blindness) - brightness(shade, blindness)),
                abs(brightness(around, blindness) - brightness(shade, blindness)),
            )
            > 0.3
        )
    assert border == "white"


def test_ink_stands_out_in_both_themes_and_the_page_shines_through(figures: dict[str, go.Figure]) -> None:
    dark = themed(figures["lengths"], "dark")
    assert dark.layout.template.layout.font.color != figures["lengths"].layout.template.layout.font.color
    assert dark.to_plotly_json()["data"] == figures["lengths"].to_plotly_json()["data"]
    assert {template.layout.paper_bgcolor for template in TEMPLATES.values()} == {"rgba(0,0,0,0)"}


def test_names_out_of_files_are_shown_as_they_are_written() -> None:
    figure = lengths_figure(curve_of({1: 2.0}, draft="<a href='x'>draft</a>\x1b[2J"))
    assert "&lt;a href='x'&gt;draft" in figure.layout.title.subtitle.text
    assert "\x1b" not in figure.to_json()


def test_figures_keep_their_traces_whatever_their_data() -> None:
    assert len(lengths_figure(curve_of({1: 0.5})).data) == len(
        lengths_figure(curve_of({1: 2.0, 4: 3.0}), chosen=4).data
    )
    assert len(round_figure([parts_of("a")]).data) == len(round_figure([parts_of("a", disk_s=0.1)] * 3).data)
    made = StrategyMap(device_bytes=(2**30,), link_bytes_per_s=(1e9,), cells=((None,),))
    assert len(map_figure(made).data) == len(map_figure(made, Here(device_bytes=1, link_bytes_per_s=1.0)).data)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.9, 25, [1, 2, 5, 10, 20]), (0.03, 0.3, [0.05, 0.1, 0.2]), (11, 13, [11, 13]), (3, 3, [3])],
)
def test_ticks_of_a_logarithmic_axis_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert decimal_ticks(low, high) == pytest.approx(ticks)
