"""The figures of a case and of a view, by their keys, and what one sees in each."""

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
from planner.report_page.document import Picture
from planner.what_if import Case, LengthCurve, StrategyMap
from planner.what_if_tables import TableData, length_table, memory_table, round_table
from planner.what_if_view import View

CAPTIONS = {
    "lengths": "The longer the draft, the more tokens a round may add, and the more work is in vain where the draft is "
    "wrong. The band is P10-P90.",
    "round": "For each kind of draft the round that it makes: what the device does above, what the link does below. "
    "Hatched is waiting for weights.",
    "memory": "What lies in device memory against the budget, and what lies in host memory.",
    "timeline": "One round, lane by lane. Where a lane is empty it waits for another.",
    "map": "Every square is a machine with other memory and another link bandwidth, with the draft that is best there.",
    "prices": "Which purchase pays: each with the best plan for it.",
    "machines": "The same model on each machine, with the best draft there.",
}


def case_figures(case: Case, curve: LengthCurve | None) -> dict[str, go.Figure]:
    """The figures that move with every change."""
    found = {} if curve is None else {"lengths": lengths_figure(curve)}
    found["round"] = round_figure(case.parts())
    found["memory"] = memory_figure(case.plan)
    return {**found, "timeline": timeline_figure(case.spans(1))}


def case_tables(case: Case, curve: LengthCurve | None) -> dict[str, TableData]:
    """Their numbers."""
    found = {} if curve is None else {"lengths": length_table(curve)}
    return {**found, "round": round_table(case.parts()), "memory": memory_table(case.plan)}


def here_figure(strategies: StrategyMap, device_bytes: int, link_bytes_per_s: float) -> go.Figure:
    """The map, with a mark where one is."""
    return map_figure(strategies, Here(device_bytes=device_bytes, link_bytes_per_s=link_bytes_per_s))


def view_figures(view: View) -> dict[str, go.Figure]:
    """All figures of a view as it is."""
    found = case_figures(view.case, view.curve)
    if view.strategies is not None:
        device_bytes = view.situation.request.budget.device_bytes
        found["map"] = here_figure(view.strategies, device_bytes, view.now_bytes_per_s)
    if view.case.prices:
        found["prices"] = prices_figure(view.case.prices)
    if view.advice:
        found["machines"] = machines_figure(view.advice)
    return found


def picture(key: str, table: TableData | None = None) -> Picture:
    """A figure with what one sees in it."""
    return Picture(key=key, caption=CAPTIONS[key], table=table)
