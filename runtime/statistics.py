"""The block that `runtime generate` prints after a run: what was measured, and predicted beside it. To stderr."""

import sys

from rich.console import Console
from rich.table import Table

from planner.contracts.components import COMPONENTS, Component, components_of, error_frac
from planner.contracts.performance import LinkSplit, Performance, RoundSplit
from planner.contracts.plan import Plan
from planner.contracts.quantities import format_bytes, format_bytes_per_s, format_s, format_tokens_per_s
from planner.contracts.report import Report, VerifyResult

_MOST_POSITIONS = 16  # of a draft, that are listed
_UNWRAPPED_COLUMNS = 2000  # in a file or a pipe, each figure stays on one line


def show_statistics(report: Report) -> None:
    """Print the block; without colour where stderr is not a terminal or NO_COLOR is set."""
    width = None if sys.stderr.isatty() else _UNWRAPPED_COLUMNS
    console = Console(stderr=True, highlight=False, width=width)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    has_predictions = _predicts_more_than_memory(report.plan.predicted)
    for name, value in _rows(report):
        table.add_row(name, value)
    if not has_predictions:
        table.add_row("predicted", "plan with planner recommend to see predicted beside measured")
    console.print()
    console.print(table)
    if has_predictions:
        console.print()
        console.print(_beside(report.plan, report.measured))
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def _rows(report: Report) -> list[tuple[str, str]]:
    measured = report.measured
    rows = [
        ("prompt", _speed(report.prompt_tokens, measured.prompt_tokens_per_s) + _after(report.prompt_s)),
        ("generation", _speed(report.generated_tokens, report.generated_tokens_per_s) + f", {report.finish_reason}"),
    ]
    if report.num_draft_tokens:
        rows.append(("draft", _drafting(report)))
    if measured.round is not None:
        rows.append((f"each of {report.num_rounds} rounds", _round(measured.round)))
    if measured.link is not None and measured.round is not None:
        rows.append((report.link_label, _link(measured.link, measured.round, measured.streamed_bytes_per_pass or 0)))
    rows.append(("memory", _memory(report)))
    if report.verify is not None:
        rows.append(("verified", _verified(report.verify)))
    return rows


def _speed(num_tokens: int, rate: float | None) -> str:
    return f"{num_tokens} tokens" + ("" if rate is None else f", {format_tokens_per_s(rate)}")


def _after(prompt_s: float) -> str:
    return f", first token after {format_s(prompt_s)}"


def _drafting(report: Report) -> str:
    survival = report.measured.survival or ()
    positions = " ".join(f"{share:.2f}" for share in survival[:_MOST_POSITIONS])
    positions += " ..." * (len(survival) > _MOST_POSITIONS)
    copied = sum(entry.num_ngram_tokens for entry in report.rounds)
    accepted_copied = sum(entry.num_accepted_ngram_tokens for entry in report.rounds)
    return (
        f"{report.plan.draft.kind}: {report.measured.tokens_per_round or 0:.2f} tokens per round, "
        f"{report.num_accepted_tokens} of {report.num_draft_tokens} drafted accepted"
        + (f" ({accepted_copied} of {copied} copied from earlier text)" if copied else "")
        + f", by position {positions}"
    )


def _round(split: RoundSplit) -> str:
    return (
        f"{format_s(split.round_s)} = waiting for weights {format_s(split.waiting_for_weights_s)} + compute "
        f"{format_s(split.compute_s)} + draft {format_s(split.draft_s)} + host {format_s(split.host_s)} + unexplained "
        f"{format_s(split.unexplained_s)}"
    )


def _link(link: LinkSplit, split: RoundSplit, streamed_bytes: int) -> str:
    rate = "" if link.bytes_per_s is None else f" at {format_bytes_per_s(link.bytes_per_s)}"
    return f"{format_bytes(streamed_bytes)} per pass{rate}, busy {link.busy_s / split.round_s:.0%} of the time"


def _memory(report: Report) -> str:
    """Measured of predicted, on the device against its budget; both together where the device is the CPU."""
    measured, predicted = report.measured, report.predicted
    budget = format_bytes(report.plan.devices[0].budget_bytes)
    device, host = _size(predicted.device_bytes), _size(predicted.host_bytes)
    return f"planned {device} on the device (budget {budget}), {host} on the host; {_measured_memory(measured)}"


def _measured_memory(measured: Performance) -> str:
    if measured.device_bytes is None:
        return f"measured {_size(measured.total_bytes)} together"
    return f"measured {_size(measured.device_bytes)} and {_size(measured.host_bytes)}"


def _size(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else format_bytes(num_bytes)


def _verified(result: VerifyResult) -> str:
    verdict = "as the target writes it" if result.passed else "NOT as the target writes it"
    ties = "".join(
        f"; near-tie at {tie.position}: {tie.logit_gap:.3g} below token {tie.preferred_token}"
        for tie in result.near_ties
    )
    return (
        f"{verdict}: {result.num_agreeing_tokens} of {result.num_checked_tokens} tokens agree, allowed gap "
        f"{result.allowed_logit_gap:.2g}{ties}"
    )


# --- predicted beside measured ---


def _predicts_more_than_memory(predicted: Performance) -> bool:
    return any(component.of(predicted) is not None for component in COMPONENTS if not component.is_memory)


def _beside(plan: Plan, measured: Performance) -> Table:
    """A row per component that was both predicted and measured; the error is relative to the prediction."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("", style="bold", no_wrap=True)
    for name in ("predicted (P10-P90)", "measured", "error"):
        table.add_column(name, justify="right" if name == "error" else "left")
    for component in components_of(plan.predicted, measured):
        predicted, found = component.of(plan.predicted), component.of(measured)
        assert predicted is not None
        assert found is not None
        error = error_frac(predicted, found)
        interval = component.shown(predicted) + _ends(component, plan)
        table.add_row(component.label, interval, component.shown(found), "" if error is None else f"{error:+.1%}")
    return table


def _ends(component: Component, plan: Plan) -> str:
    """P10 and P90 in brackets, where they are known and apart."""
    ends = [None if end is None else component.of(end) for end in (plan.predicted_p10, plan.predicted_p90)]
    low, high = (None if end is None else component.shown(end) for end in ends)
    return "" if low is None or high is None or low == high else f" ({low}-{high})"
