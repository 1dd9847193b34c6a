"""The page of a run: its text, predicted beside measured, its rounds, and two timelines where one was recorded."""

from collections.abc import Sequence

import plotly.graph_objects as go

from planner.compare import Comparison, compare
from planner.comparison_table import comparison_columns, comparison_rows
from planner.contracts.errors import BadInputError
from planner.contracts.quantities import format_tokens_per_s
from planner.contracts.report import Report
from planner.contracts.timeline import Span
from planner.figures.run_rounds import rounds_figure, timelines_figure
from planner.figures.runs import components_figure
from planner.figures.what_if import memory_figure
from planner.page import or_not_measured
from planner.report_page.document import Document, Picture, Section
from planner.report_page.pictures import picture
from planner.show_plan import plan_facts
from planner.show_report import report_facts
from planner.timelines import Timelines, round_starts_s, timelines
from planner.what_if_tables import TableData, memory_table

_NUM_ROUNDS = 2  # of the timelines, from the middle of the run
_COMPONENTS = (
    "Each part of the prediction against what was measured: the bar is P10-P90, a dot lies within it, a cross outside."
)
_ROUNDS = "What each round drafted and accepted, and below it how long it took."
_TIMELINES = "The same stretch of time as the plan predicts it, above, and as it was recorded, below."


def run_document(report: Report, prompt: str, spans: Sequence[Span] | None) -> Document:
    """The page of a run that ended, or was ended. What nobody measured is said to be so."""
    figures: dict[str, go.Figure] = {"rounds": rounds_figure(report), "memory": memory_figure(report.plan)}
    compared = _compared(report)
    if isinstance(compared, Comparison):
        figures["components"] = components_figure(compared)
    lines = _lines(report, spans)
    if isinstance(lines, Timelines):
        figures["timelines"] = timelines_figure(lines)
    speed = or_not_measured(report.generated_tokens_per_s, format_tokens_per_s)
    predicted = report.predicted.generated_tokens_per_s
    said = "" if predicted is None else f", {format_tokens_per_s(predicted)} predicted"
    return Document(
        title=f"A run of {report.target.name}",
        subtitle=f"Over {report.link_label}: what was predicted, what was measured, and what was written.",
        headline=f"{report.generated_tokens} tokens, {speed}{said}",
        facts=report_facts(report),
        sections=(
            Section(title="Prompt", text=prompt),
            Section(title="Text", text=report.text) if report.text else Section(title="Text", lead="none was written"),
            _comparison_section(compared),
            Section(title="Rounds", pictures=(Picture(key="rounds", caption=_ROUNDS),)),
            _timelines_section(lines),
            Section(
                title="As planned",
                facts=plan_facts(report.plan),
                pictures=(picture("memory", memory_table(report.plan)),),
            ),
            *(Section(title="Warnings", items=report.warnings) for _ in report.warnings[:1]),
        ),
        figures=figures,
    )


def _compared(report: Report) -> Comparison | str:
    """Predicted beside measured, or why they cannot be compared."""
    try:
        return compare(report)
    except BadInputError as error:
        return f"not compared: {error.why}"


def _comparison_section(compared: Comparison | str) -> Section:
    title = "Predicted beside measured"
    if isinstance(compared, str):
        return Section(title=title, lead=compared)
    cells = comparison_rows(compared, has_ends=True)
    table = TableData(
        title="by component; on tok/s: what the error of this component alone made of the speed",
        columns=comparison_columns(has_ends=True),
        rows=tuple(tuple(map(str, row)) for row in cells),
        notes=() if compared.note is None else (compared.note,),
    )
    return Section(title=title, pictures=(Picture(key="components", caption=_COMPONENTS),), tables=(table,))


def _lines(report: Report, spans: Sequence[Span] | None) -> Timelines | str:
    """Two rounds from the middle of the run, predicted and measured, or why there are none."""
    if spans is None:
        return "no timeline was recorded"
    num_rounds = max(0, len(round_starts_s(spans)) - 1)
    shown = min(_NUM_ROUNDS, num_rounds)
    try:
        return timelines(report.plan, spans, first_round=(num_rounds - shown) // 2, num_rounds=shown)
    except BadInputError as error:
        return f"not drawn: {error.what}, as {error.why}"


def _timelines_section(lines: Timelines | str) -> Section:
    title = "Timelines"
    if isinstance(lines, str):
        return Section(title=title, lead=lines)
    return Section(title=title, pictures=(Picture(key="timelines", caption=_TIMELINES),))
