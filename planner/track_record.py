"""What logged runs say of the intervals: how often they hold what was measured, and what learning from runs gives."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.compare import Comparison, Row, compare
from planner.contracts.components import COMPONENTS as COMPARED
from planner.contracts.components import Component as Compared
from planner.contracts.errors import BadInputError
from planner.contracts.report import Report
from planner.shares import Share, wilson_share
from planner.uncertainty import COMPONENTS, Component, ModelError, calibrated, logged_ratio

_NO_PRIOR = ModelError(frac=dict.fromkeys(COMPONENTS, 0.0))  # factors do not depend on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Of the runs, the shares in which a component was measured at or below its P10, P50 and P90."""

    component: Compared
    below_p10: Share
    below_p50: Share
    below_p90: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """Measured over predicted of each run, uncorrected, and as the other runs correct it; None from a single run."""

    component: Component
    before: tuple[float, ...]
    after: tuple[float, ...] | None

    @property
    def median_before(self) -> float:
        """Of the runs, uncorrected."""
        return statistics.median(self.before)

    @property
    def median_after(self) -> float | None:
        """Of the runs, corrected."""
        return None if self.after is None else statistics.median(self.after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Compared runs by name, and why others cannot be."""

    comparisons: dict[str, Comparison]
    left_out: dict[str, str]


def compared(reports: Mapping[str, Report]) -> Runs:
    """Every report compared that can be: its plan predicts a speed, and the run was long enough to have one."""
    runs = Runs(comparisons={}, left_out={})
    for name, report in reports.items():
        try:
            runs.comparisons[name] = compare(report)
        except BadInputError as error:
            runs.left_out[name] = f"{error.what}: {error.why}"
    return runs


def coverages(comparisons: Sequence[Comparison]) -> tuple[Coverage, ...]:
    """The coverage of each component that has intervals; memory is planned, not drawn, and has none."""
    found = []
    for component in COMPARED:
        rows = [
            row
            for comparison in comparisons
            for row in comparison.rows
            if row.component is component and row.error_frac is not None and not component.is_memory
        ]
        if rows:
            found.append(
                Coverage(
                    component=component,
                    below_p10=_share_below(rows, [row.p10 for row in rows]),
                    below_p50=_share_below(rows, [row.p50 for row in rows]),
                    below_p90=_share_below(rows, [row.p90 for row in rows]),
                )
            )
    return tuple(found)


def ratios(reports: Sequence[Report]) -> tuple[Ratios, ...]:
    """What `--calibrate` does for runs that it has not seen: each run corrected by what all others say."""
    factors = [calibrated(_NO_PRIOR, [*reports[:index], *reports[index + 1 :]]).factor for index in range(len(reports))]
    found = []
    for name in COMPONENTS:
        known = [
            (ratio, factor[name])
            for report, factor in zip(reports, factors, strict=True)
            if (ratio := logged_ratio(report, name)) is not None
        ]
        if known:
            found.append(
                Ratios(
                    component=name,
                    before=tuple(ratio for ratio, _ in known),
                    after=tuple(ratio / factor for ratio, factor in known) if len(known) > 1 else None,
                )
            )
    return tuple(found)


def _share_below(rows: Sequence[Row], bounds: Sequence[float]) -> Share:
    return wilson_share(sum(row.measured <= bound for row, bound in zip(rows, bounds, strict=True)), len(rows))
