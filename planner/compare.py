"""Predicted beside measured: where each component fell, and which of them moved the speed.

A plan says how its round is made, so that its speed can be computed again with one component as measured and all others
as predicted. The natural logarithms of such ratios add up where the components act alone; what they leave of the whole
(components that act together, and what no schedule knows) is stated, never shared out.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from planner.contracts.components import COMPONENTS, Component, components_of, error_frac
from planner.contracts.errors import BadInputError
from planner.contracts.performance import Performance
from planner.contracts.report import Report
from planner.schedule import Schedule, round_time_s, schedule_of

Part = Literal["link_busy_s", "compute_s", "draft_s", "host_s"]  # of a round's schedule, by the component's name

MOST_MEMORY = 1.08  # planned over measured (DESIGN.md section 3)
_SPEED, _TOKENS = "generated_tokens_per_s", "tokens_per_round"
_PARTS: tuple[Part, ...] = ("link_busy_s", "compute_s", "draft_s", "host_s")
_BY_NAME = {component.name: component for component in COMPONENTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """ln(measured / predicted) of the tok/s, and what each component alone, as measured, makes of the predicted."""

    total_log: float
    shares_log: dict[str, float]  # by the component's name

    @property
    def unexplained_log(self) -> float:
        """What the shares leave of the whole."""
        return self.total_log - sum(self.shares_log.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One component, in the unit of its name. Memory is inside where measured <= planned <= 1.08 measured."""

    component: Component
    p10: float
    p50: float
    p90: float
    measured: float
    is_inside: bool | None  # None, as the error, where nothing of it was predicted
    error_frac: float | None
    share_log: float | None  # of the tok/s error; None for what is a sum or a consequence of others


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One report's components, and in words where it ran another request than the plan was made for."""

    rows: tuple[Row, ...]
    attribution: Attribution
    draft_kind: str
    note: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How well several runs were predicted in one component; errors and widths are relative to the prediction."""

    component: Component
    num_runs: int
    bias_frac: float  # the median signed error
    median_error_frac: float
    p90_error_frac: float
    coverage_frac: float  # of the runs, inside
    width_frac: float  # P90 - P10, the median


@dataclass(frozen=True, slots=True, kw_only=True)
class KindTokens:
    """Tokens per round of one kind of draft, over its runs: the means, and the median of the relative errors."""

    draft_kind: str
    num_runs: int
    predicted: float
    measured: float
    median_error_frac: float


def compare(report: Report) -> Comparison:
    """Each component that was both predicted and measured.

    Raises: BadInputError, where the plan predicts no speed, or the run was too short to have one.
    """
    found = attribution(report)
    plan, measured = report.plan, report.measured
    if plan.predicted_p10 is None or plan.predicted_p90 is None:
        raise _no_predictions("it has no intervals")
    rows = []
    for component in components_of(plan.predicted, measured):
        middle, value = _value(component, plan.predicted), _value(component, measured)
        low, high = (_value(component, end) for end in (plan.predicted_p10, plan.predicted_p90))
        rows.append(
            Row(
                component=component,
                p10=low,
                p50=middle,
                p90=high,
                measured=value,
                is_inside=_is_inside(component, low, middle, high, value),
                error_frac=error_frac(middle, value),
                share_log=found.total_log if component.name == _SPEED else found.shares_log.get(component.name),
            )
        )
    return Comparison(rows=tuple(rows), attribution=found, draft_kind=plan.draft.kind, note=_other_request(report))


def attribution(report: Report) -> Attribution:
    """What each component alone did to the tok/s, by computing the plan's round again with it as measured.

    Raises: BadInputError, where the plan predicts no speed, or the run was too short to have one.
    """
    predicted, measured = report.plan.predicted, report.measured
    if predicted.generated_tokens_per_s is None:
        raise _no_predictions("it was made without measurements")
    total_log = _log_ratio(measured.generated_tokens_per_s, predicted.generated_tokens_per_s)
    if total_log is None:
        raise BadInputError(
            "the report has no speed to compare",
            why=f"the run ended after {report.generated_tokens} tokens ({report.finish_reason})",
            remedy="runtime generate with more --max-tokens",
        )
    schedule = schedule_of(report.plan)
    round_s = round_time_s(schedule)
    shares: dict[str, float | None] = {
        _TOKENS: _log_ratio(measured.tokens_per_round, predicted.tokens_per_round),
    }
    for part in _PARTS:
        before_s, after_s = _BY_NAME[part].of(predicted), _BY_NAME[part].of(measured)
        if before_s is not None and after_s is not None:
            shares[part] = _log_ratio(round_s, round_time_s(_swapped(schedule, part, before_s, after_s)))
    known = {name: share for name, share in shares.items() if share is not None}
    return Attribution(total_log=total_log, shares_log=known)


def accuracies(comparisons: Sequence[Comparison]) -> tuple[Accuracy, ...]:
    """How well each component was predicted over all runs, but for those in which nothing of it was predicted."""
    found = []
    for component in COMPONENTS:
        rows = [
            row
            for comparison in comparisons
            for row in comparison.rows
            if row.component is component and row.error_frac is not None
        ]
        if not rows:
            continue
        errors = np.array([row.error_frac for row in rows])
        found.append(
            Accuracy(
                component=component,
                num_runs=len(rows),
                bias_frac=float(np.median(errors)),
                median_error_frac=float(np.median(np.abs(errors))),
                p90_error_frac=float(np.percentile(np.abs(errors), 90)),
                coverage_frac=sum(row.is_inside is True for row in rows) / len(rows),
                width_frac=float(np.median([(row.p90 - row.p10) / row.p50 for row in rows])),
            )
        )
    return tuple(found)


def tokens_by_kind(comparisons: Sequence[Comparison]) -> tuple[KindTokens, ...]:
    """Tokens per round of each kind of draft that took part, predicted beside measured; none for runs without one."""
    rows: dict[str, list[Row]] = {}
    for comparison in comparisons:
        of_tokens = [row for row in comparison.rows if row.component.name == _TOKENS]
        if comparison.draft_kind != "none" and of_tokens:
            rows.setdefault(comparison.draft_kind, []).extend(of_tokens)
    return tuple(
        KindTokens(
            draft_kind=kind,
            num_runs=len(of_kind),
            predicted=statistics.fmean(row.p50 for row in of_kind),
            measured=statistics.fmean(row.measured for row in of_kind),
            median_error_frac=statistics.median(row.measured / row.p50 - 1 for row in of_kind),
        )
        for kind, of_kind in sorted(rows.items())
    )


def _swapped(schedule: Schedule, part: Part, before_s: float, after_s: float) -> Schedule:
    """The schedule with one component as measured: lanes in proportion, the boundary's parts by their difference."""
    match part:
        case "link_busy_s" | "compute_s" if before_s <= 0:
            return schedule  # nothing to scale
        case "link_busy_s":
            scale = after_s / before_s
            steps = [replace(step, copy_s=step.copy_s * scale, read_s=step.read_s * scale) for step in schedule.steps]
        case "compute_s":
            steps = [replace(step, compute_s=step.compute_s * after_s / before_s) for step in schedule.steps]
        case "draft_s" | "host_s":
            return replace(schedule, boundary_s=max(0.0, schedule.boundary_s + after_s - before_s))
    return replace(schedule, steps=tuple(steps))


def _value(component: Component, performance: Performance) -> float:
    value = component.of(performance)
    if value is None:
        raise _no_predictions(f"its intervals leave out the {component.label}")
    return value


def _is_inside(component: Component, low: float, middle: float, high: float, measured: float) -> bool | None:
    if component.is_memory:
        return measured <= middle <= MOST_MEMORY * measured
    return low <= measured <= high if middle else None


def _log_ratio(value: float | None, base: float | None) -> float | None:
    return math.log(value / base) if value is not None and base is not None and value > 0 and base > 0 else None


def _other_request(report: Report) -> str | None:
    planned = report.plan.workload
    if planned is None or (planned.prompt_tokens, planned.new_tokens) == (
        report.prompt_tokens,
        report.generated_tokens,
    ):
        return None
    return (
        f"planned for a prompt of {planned.prompt_tokens} tokens and {planned.new_tokens} of text, "
        f"run with {report.prompt_tokens} and {report.generated_tokens}"
    )


def _no_predictions(why: str) -> BadInputError:
    return BadInputError(
        "the report's plan predicts no speed", why=why, remedy="plan with planner recommend, and run that plan"
    )
