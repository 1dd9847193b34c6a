"""A report as a page: what the run did, predicted beside measured, where its rounds went, and what was accepted."""

from collections import Counter
from collections.abc import Sequence

from planner.compare import compare
from planner.comparison_table import comparison_columns, comparison_rows
from planner.contracts.components import COMPONENTS
from planner.contracts.errors import BadInputError
from planner.contracts.performance import Performance, RoundSplit
from planner.contracts.quantities import format_bytes, format_s, format_tokens_per_s
from planner.contracts.report import FinishReason, Report, VerifyResult
from planner.page import NOT_MEASURED, UNKNOWN, Page, or_not_measured
from planner.show_plan import plan_facts, show_layers, show_rounds

_REASONS: dict[FinishReason, str] = {
    "stop": "the text ended, or a stop string came",
    "length": "as many tokens as were asked for",
    "context": "the context is full",
    "interrupted": "the run was interrupted",
    "error": "the run failed",
}
_MOST_COUNTS = 16  # rows of the histogram
_LEAST_BAR = 8  # columns, below which it says nothing
_COLUMNS_WITH_ENDS = 90  # from so many on, P10 and P90 stand beside what was measured
_BAR = "#"


def show_report(page: Page, report: Report) -> None:
    """Print all of the report; the text itself is left out."""
    page.title(f"report of {report.target.name} over {report.link_label}")
    page.facts(report_facts(report))
    _show_comparison(page, report)
    _show_rounds(page, report)
    _show_accepted(page, report)
    page.heading("as planned")
    page.facts(plan_facts(report.plan))
    show_layers(page, report.plan)
    if report.warnings:
        page.heading("warnings")
        page.lines(report.warnings, style="yellow")


def report_facts(report: Report) -> list[tuple[str, str]]:
    """What ran and what came of it."""
    measured = report.measured
    has_first = report.generated_tokens > 0 or report.prompt_s > 0
    prompt = f"first token after {format_s(report.prompt_s)}" if has_first else f"first token {NOT_MEASURED}"
    facts = [
        ("prompt", f"{report.prompt_tokens} tokens, {prompt}"),
        (
            "generation",
            f"{report.generated_tokens} tokens, {or_not_measured(report.generated_tokens_per_s, format_tokens_per_s)}",
        ),
        ("ended by", f"{report.finish_reason}: {_REASONS[report.finish_reason]}"),
        ("text", f"{len(report.text)} characters in {len(report.text.splitlines())} lines"),
    ]
    if report.plan.draft.kind != "none":
        facts.append(("draft", _drafting(report)))
    facts.append(("memory", _memory(measured)))
    if report.seed is not None:
        facts.append(("seed", str(report.seed)))
    if report.verify is not None:
        facts.append(("verified", _verified(report.verify)))
    return facts


def _show_comparison(page: Page, report: Report) -> None:
    """Predicted beside measured; where one is missing, what there is of the other, and why."""
    page.heading("predicted beside measured")
    try:
        comparison = compare(report)
    except BadInputError as error:
        page.lines([f"not compared: {error.what}, as {error.why}"], style="yellow")
        _show_each(page, report)
        return
    has_ends = page.width >= _COLUMNS_WITH_ENDS
    page.table_in_blocks(comparison_columns(has_ends=has_ends), comparison_rows(comparison, has_ends=has_ends))
    if comparison.note is not None:
        page.lines([f"note: {comparison.note}"], style="yellow")


def _show_each(page: Page, report: Report) -> None:
    is_one_memory = report.measured.total_bytes is not None and report.measured.device_bytes is None
    rows = []
    for entry in COMPONENTS:
        predicted, measured = entry.of(report.predicted), entry.of(report.measured)
        is_part = entry.is_memory and is_one_memory and measured is None
        if not is_part and (predicted is not None or measured is not None):
            shown = UNKNOWN if predicted is None else entry.shown(predicted)
            rows.append((entry.label, shown, or_not_measured(measured, entry.shown)))
    page.table(("", "predicted", "measured"), rows)


def _show_rounds(page: Page, report: Report) -> None:
    """The parts of a mean round, predicted above measured at one scale."""
    measured = report.measured.round
    page.heading(f"each of {report.num_rounds} rounds" if report.num_rounds else "rounds")
    if measured is None:
        page.lines([NOT_MEASURED])
        return
    splits: dict[str, RoundSplit] = {"measured": measured}
    if report.predicted.round is not None:
        splits = {"predicted": report.predicted.round, **splits}
    show_rounds(page, splits)


def _show_accepted(page: Page, report: Report) -> None:
    """How many rounds accepted how many drafted tokens, and the share of rounds that was predicted to."""
    if report.plan.draft.kind == "none":
        return
    page.heading("accepted tokens of a round")
    if not report.rounds:
        page.lines([NOT_MEASURED])
        return
    counts = Counter(entry.num_accepted_tokens for entry in report.rounds)
    most = min(max(counts), _MOST_COUNTS - 1)
    predicted = _shares(report.predicted.survival or (), most)
    rows = []
    for count in range(most + 1):
        is_last = count == most < max(counts)
        num_rounds = sum(n for accepted, n in counts.items() if accepted >= count) if is_last else counts[count]
        share = num_rounds / len(report.rounds)
        rows.append((f"{count}" + " or more" * is_last, str(num_rounds), f"{share:.1%}", predicted[count], share))
    has_predicted = any(predicted)
    columns = ("accepted", "rounds", "share", *("predicted",) * has_predicted)
    room = page.width - sum(max(len(name), 9) + 2 for name in columns)
    longest = max(share for *_, share in rows)
    has_bars = room >= _LEAST_BAR
    table = [
        (name, num_rounds, share, *(expected,) * has_predicted, *(_BAR * round(frac / longest * room),) * has_bars)
        for name, num_rounds, share, expected, frac in rows
    ]
    page.table((*columns, *("",) * has_bars), table)


def _shares(survival: Sequence[float], most: int) -> list[str]:
    """The predicted share of rounds that accept 0, 1, ... tokens; the last counts those beyond it, too."""
    if not survival:
        return [""] * (most + 1)
    at_least = [1.0, *survival, *[0.0] * (most + 2)]
    shares = [at_least[count] - at_least[count + 1] for count in range(most)]
    return [f"{share:.1%}" for share in (*shares, at_least[most])]


def _drafting(report: Report) -> str:
    """Drafted, accepted and emitted tokens, copies by themselves."""
    if not report.rounds:
        return NOT_MEASURED
    copied = sum(entry.num_ngram_tokens for entry in report.rounds)
    accepted_copied = sum(entry.num_accepted_ngram_tokens for entry in report.rounds)
    copies = f"; of {copied} copied ones {accepted_copied}" if copied else ""
    tokens = or_not_measured(report.measured.tokens_per_round, lambda mean: f"{mean:.2f} tokens per round")
    return f"{tokens}, {report.num_accepted_tokens} of {report.num_draft_tokens} drafted accepted{copies}"


def _memory(measured: Performance) -> str:
    if measured.device_bytes is not None:
        host = NOT_MEASURED if measured.host_bytes is None else format_bytes(measured.host_bytes)
        return f"{format_bytes(measured.device_bytes)} on the device, {host} on the host"
    return NOT_MEASURED if measured.total_bytes is None else f"{format_bytes(measured.total_bytes)} in all"


def _verified(result: VerifyResult) -> str:
    verdict = "as the target writes it" if result.passed else "NOT as the target writes it"
    ties = f", {len(result.near_ties)} near-ties" if result.near_ties else ""
    return f"{verdict}: {result.num_agreeing_tokens} of {result.num_checked_tokens} tokens agree{ties}"
