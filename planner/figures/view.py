"""The figures of a case and of a view by name: one set for the notebook, the page without widgets, pages and files."""

import plotly.graph_objects as go

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
from planner.what_if import Case, StrategyMap
from planner.what_if_view import View


def case_figures(case: Case) -> dict[str, go.Figure]:
    """What moves with every change, the curve first, where a draft has chains."""
    curve = case.curve
    found = {} if curve is None else {"lengths": lengths_figure(curve)}
    return found | plan_figures(case)


def plan_figures(case: Case) -> dict[str, go.Figure]:
    """What moves with every change beside the curve: a round by kind of draft, memory, and a round lane by lane."""
    return {
        "round": round_figure(case.parts()),
        "memory": memory_figure(case.plan),
        "timeline": timeline_figure(case.spans(1)),
    }


def here_figure(strategies: StrategyMap, device_bytes: int, link_bytes_per_s: float) -> go.Figure:
    """The map, with a mark where one is."""
    return map_figure(strategies, Here(device_bytes=device_bytes, link_bytes_per_s=link_bytes_per_s))


def view_figures(view: View) -> dict[str, go.Figure]:
    """All figures of a view as it is."""
    found = case_figures(view.case)
    if view.strategies is not None:
        device_bytes = view.situation.request.budget.device_bytes
        found["map"] = here_figure(view.strategies, device_bytes, view.now_bytes_per_s)
    if view.case.prices:
        found["prices"] = prices_figure(view.case.prices)
    if view.advice:
        found["machines"] = machines_figure(view.advice)
    return found
