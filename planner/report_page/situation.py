"""The pages of `planner recommend` and `planner what-if`: answer, reasons and figures, and sliders over a grid."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import plotly.graph_objects as go

from planner.changes import Change
from planner.contracts.errors import DraftstreamError
from planner.contracts.quantities import format_s
from planner.contracts.recommendation import Recommendation
from planner.figures.view import case_figures, here_figure, view_figures
from planner.figures.what_if import machines_figure
from planner.grid import Axis, Point, axes_of, map_around, num_points, points
from planner.recommend import answer_of, choice_of
from planner.render import facts, headline, sections, speed
from planner.report_page.document import Document, Section, Slider, Stand
from planner.report_page.pictures import case_tables, picture
from planner.what_if import Advice, LengthCurve, StrategyMap
from planner.what_if_tables import TableData, machine_table, map_table, price_table
from planner.what_if_view import View

Tick = Callable[[int, int], None]  # points done, and all of them
Maps = Mapping[int | None, StrategyMap]  # by the context that a change asks for


def recommendation_document(view: View, command_line: str) -> Document:
    """The page of a recommendation, which ends with the line to paste."""
    found = view.recommendation
    return Document(
        title=f"{found.plan.target.name} on {view.name}",
        subtitle=f"What to run, why, and what else was considered; {found.basis}.",
        headline=headline(found),
        facts=facts(found.plan, found.choice),
        sections=(*_situation_sections(view), Section(title="Run it", text=command_line)),
        figures=view_figures(view),
    )


def comparison_document(advice: Sequence[Advice]) -> Document:
    """The page of several machines or drafts, the fastest first; it runs on that one at least."""
    best = advice[0].recommendation
    assert best is not None
    reasons = [
        Section(title=entry.name, lead=headline(entry.recommendation), items=entry.recommendation.reasons)
        for entry in advice
        if entry.recommendation is not None
    ]
    return Document(
        title=f"{best.plan.target.name}, side by side",
        subtitle="The same model with the best plan for each.",
        headline=f"{advice[0].name}: {headline(best)}",
        facts=facts(best.plan, best.choice),
        sections=(
            Section(title="Side by side", pictures=(picture("machines"),), tables=(machine_table(advice),)),
            *reasons,
        ),
        figures={"machines": machines_figure(advice)},
    )


def what_if_document(
    view: View, contexts_tokens: Sequence[int] = (), tick: Tick = lambda _done, _whole: None
) -> Document:
    """The page of a view with its sliders; `tick` hears of every point of the grid. Raises: as `recommend` does."""
    found = view.recommendation
    axes = axes_of(view.situation, contexts_tokens)
    maps, stands = _maps(view, axes), []
    for point in points(view.what_if, axes):
        stands.append(_stand(view, maps, point))
        tick(len(stands), num_points(axes))
    lengths = tuple(sorted({length for stand in stands for length in stand.lengths}))
    return Document(
        title=f"What if? {found.plan.target.name} on {view.name}",
        subtitle="Move the sliders to see what other memory, another link bandwidth or another draft length would "
        f"change. Every number was computed beforehand; {found.basis}.",
        headline=headline(found),
        facts=facts(found.plan, found.choice),
        sections=tuple(_situation_sections(view, has_sliders=True)),
        figures=view_figures(view),
        sliders=tuple(_slider(axis) for axis in axes),
        stands=tuple(stands),
        lengths=lengths,
        start_length=view.curve.best.draft_len if view.curve is not None else min(lengths, default=0),
    )


def _slider(axis: Axis) -> Slider:
    return Slider(label=axis.label, texts=axis.texts, start_idx=axis.start_idx)


def _maps(view: View, axes: Sequence[Axis]) -> Maps:
    """The map at each context that a slider offers; none where nothing runs as it is."""
    if view.strategies is None:
        return {}
    maps: dict[int | None, StrategyMap] = {None: view.strategies}
    for axis in axes:
        if axis.field != "context_tokens":
            continue
        for place, value in enumerate(axis.values):
            if place != axis.start_idx:
                try:
                    maps[int(value)] = map_around(view.what_if, Change(context_tokens=int(value)))
                except DraftstreamError:
                    continue  # each of its stands says so
    return maps


def _stand(view: View, maps: Maps, point: Point) -> Stand:
    case, change = point.case, point.change
    figures: dict[str, go.Figure] = {}
    tables: dict[str, TableData] = {}
    strategies = maps.get(change.context_tokens)
    if strategies is not None:
        device_bytes = change.device_bytes or view.situation.request.budget.device_bytes
        rate = change.link_bytes_per_s or view.now_bytes_per_s
        figures["map"] = here_figure(strategies, device_bytes, rate)
        if len(maps) > 1:
            tables["map"] = _map_table(view, strategies)
    if case is None:
        return Stand(headline=f"Nothing runs here: {point.why_not}", figures=figures, tables=tables)
    curve = case.curve
    return Stand(
        headline=f"{answer_of(case.best)}: {speed(case.plan)}",
        facts=facts(case.plan, choice_of(case.best, case.situation.profile.target)),
        figures={**figures, **case_figures(case)},
        tables={**tables, **case_tables(case)},
        lengths={} if curve is None else dict(_lengths(curve)),
    )


def _map_table(view: View, strategies: StrategyMap) -> TableData:
    """The map in numbers; what is now stands in brackets."""
    return map_table(strategies, view.situation.request.budget.device_bytes, view.now_bytes_per_s)


def _lengths(curve: LengthCurve) -> Iterator[tuple[int, str]]:
    """Each draft length in words."""
    for point in curve.points:
        band = point.tokens_per_s
        yield (
            point.draft_len,
            f"chain of {point.draft_len}: {band.p50:.2f} tok/s (P10-P90 {band.p10:.2f}-{band.p90:.2f}), "
            f"{point.tokens_per_round:.2f} tokens per round of {format_s(point.round_s)}",
        )


def _situation_sections(view: View, *, has_sliders: bool = False) -> Iterator[Section]:
    """What the figures show, and what the recommendation says."""
    tables = case_tables(view.case)
    yield Section(
        title="What happens in a round",
        lead="A round is one guess by the draft and one check by the target, for which all weights that are not "
        "resident travel over the link.",
        pictures=(*(picture(key, table) for key, table in tables.items()), picture("timeline")),
    )
    if view.strategies is not None:
        map_picture = picture("map", _map_table(view, view.strategies))
        yield Section(title="Other memory, another link", pictures=(map_picture,))
    if has_sliders:
        lead = f"From here on everything is about {view.name} as it is now, wherever the sliders stand."
        yield Section(title="As it is now", lead=lead)
    if view.case.prices:
        table = price_table(view.case.prices, view.recommendation.choice.tokens_per_s)
        yield Section(title="What more would give", pictures=(picture("prices", table),))
    if view.advice:
        yield Section(
            title="Which machine for this model?",
            lead=f"All the rest of this page is about {view.name}.",
            pictures=(picture("machines", machine_table(view.advice)),),
        )
    yield from _written(view.recommendation)


def _written(found: Recommendation) -> Iterator[Section]:
    """What `planner recommend` says in words."""
    for section in sections(found, explain=True):
        if section.title != "what more would give":
            yield Section(title=section.title.capitalize(), lead=section.subject, items=tuple(section.lines))
    if found.refused:
        yield Section(
            title="Refused drafts", items=tuple(f"{refusal.draft}: {refusal.why}" for refusal in found.refused)
        )
    yield Section(title="Known from", items=(f"{found.basis}; {found.num_scored} plans scored", *found.sources))
    if found.warnings:
        yield Section(title="Notes", items=found.warnings)
