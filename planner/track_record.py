"""What logged runs say of the intervals: how often they hold what was measured, and what learning from runs gives.

Runs are read from a folder of reports; what is none of ours there is named and left out.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.compare import Comparison, Row, compare
from planner.contracts.components import COMPONENTS as COMPARED
from planner.contracts.components import Component as Compared
from planner.contracts.errors import BadInputError
from planner.contracts.report import Report
from planner.contracts.timeline import spans_of_trace
from planner.shares import Share, wilson_share
from planner.timelines import TracedRun
from planner.uncertainty import COMPONENTS, Component, ModelError, calibrated, logged_ratio

_NAMED = 3  # files of a folder without a report whose faults are given
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
    """Runs by name: what they reported, compared, and why others cannot be."""

    reports: dict[str, Report]
    comparisons: dict[str, Comparison]
    left_out: dict[str, str]


def compared(reports: Mapping[str, Report]) -> Runs:
    """Every report compared that can be: its plan predicts a speed, and the run was long enough to have one."""
    runs = Runs(reports=dict(reports), comparisons={}, left_out={})
    for name, report in reports.items():
        try:
            runs.comparisons[name] = compare(report)
        except BadInputError as error:
            runs.left_out[name] = f"{error.what}: {error.why}"
    return runs


def runs_in(folder: Path) -> Runs:
    """The runs whose reports lie in the folder, by the files' names, compared where they can be.

    Raises: BadInputError, where no report lies there.
    """
    reports: dict[str, Report] = {}
    unread: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            reports[path.stem] = Report.read(path)
        except BadInputError as error:
            unread[path.stem] = f"{error.what}: {error.why}"
    if not reports:
        raise BadInputError(
            f"there is no report in {folder}",
            why="; ".join([*unread.values()][:_NAMED]) or _why_empty(folder),
            remedy=f"runtime generate --json > {folder / 'first.json'}, or name the folder that holds yours",
        )
    found = compared(reports)
    found.left_out.update(unread)
    return found


def traced_run(runs: Runs, name: str, trace: Path) -> TracedRun:
    """The run of that name, and what its lanes did. Raises: BadInputError, where there is no such run or timeline."""
    if name not in runs.reports:
        raise BadInputError(
            f"no report is called {name}", why=f"there are {', '.join(runs.reports)}", remedy="name one of them"
        )
    try:
        content = trace.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise BadInputError(
            f"cannot read the timeline {trace}",
            why=str(error),
            remedy=f"name what runtime generate --trace wrote of the run {name}, or run it again with --trace {trace}",
        ) from error
    return TracedRun(plan=runs.reports[name].plan, spans=spans_of_trace(content, str(trace)))


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


def _why_empty(folder: Path) -> str:
    return "no JSON file lies there" if folder.is_dir() else "there is no such folder"


def _share_below(rows: Sequence[Row], bounds: Sequence[float]) -> Share:
    return wilson_share(sum(row.measured <= bound for row, bound in zip(rows, bounds, strict=True)), len(rows))
