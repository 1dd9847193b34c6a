"""What passes are made of before the schedule joins them, and how long they then take, many at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.schedule import Schedule, Step, passes_s, round_time_s
from planner.schedule_batch import (
    BatchDraws,
    BoolArray,
    FloatArray,
    ScheduleBatch,
    drawn_round_times_s,
    passes_times_s,
    round_times_s,
)

_FEW = 32  # schedules that are faster one by one than as arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTerms:
    """Seconds per unit of a pass, in pass order, under each other's load, and the buffers that weights go through."""

    is_streamed_U: BoolArray
    compute_s_U: FloatArray
    copy_s_U: FloatArray
    read_s_U: FloatArray
    num_slots: int
    num_staging_buffers: int

    @property
    def boundary_s(self) -> float:
        """Seconds between two passes."""
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTerms(PassTerms):
    """A round: a verify pass, drafting and the host before it, and what it yields."""

    draft_s: float
    host_s: float
    tokens_per_round: float
    max_depth: int  # of what is drafted

    @property
    def boundary_s(self) -> float:
        """Seconds between two passes: drafting, and the host's work."""
        return self.draft_s + self.host_s


def rounds_of(terms: Sequence[PassTerms]) -> FloatArray:
    """Seconds of a repeating round of each."""
    rounds_s = np.empty(len(terms))
    for rows in _alike(terms):
        chosen = [terms[row] for row in rows]
        if len(chosen) < _FEW:
            rounds_s[rows] = [round_time_s(schedule_of(entry)) for entry in chosen]
        else:
            rounds_s[rows] = round_times_s(_batch(chosen))
    return rounds_s


@dataclass(frozen=True, slots=True, kw_only=True)
class TermFactors:
    """D draws of the factors that multiply a round's terms, shape (D,)."""

    compute_D: FloatArray
    link_D: FloatArray  # reads from disk too
    draft_D: FloatArray
    host_D: FloatArray


def drawn_rounds_of(terms: Sequence[RoundTerms], factors: TermFactors) -> FloatArray:
    """Seconds of a repeating round of each under each draw of the factors, shape (len(terms), D)."""
    rounds_s = np.empty((len(terms), len(factors.compute_D)))
    for rows in _alike(terms):
        chosen = [terms[row] for row in rows]
        boundary_s_BD = np.outer([entry.draft_s for entry in chosen], factors.draft_D)
        boundary_s_BD += np.outer([entry.host_s for entry in chosen], factors.host_D)
        draws = BatchDraws(compute_D=factors.compute_D, transfers_D=factors.link_D, boundary_s_BD=boundary_s_BD)
        rounds_s[rows] = drawn_round_times_s(_batch(chosen), draws)
    return rounds_s


def prefills_of(terms: Sequence[PassTerms], num_passes: Sequence[int]) -> FloatArray:
    """Seconds of so many passes of each, from empty slots."""
    seconds = np.empty(len(terms))
    for rows in _alike(terms):
        chosen, counts = [terms[row] for row in rows], [num_passes[row] for row in rows]
        if len(chosen) < _FEW:
            schedules = [schedule_of(entry) for entry in chosen]
            seconds[rows] = [passes_s(schedule, count) for schedule, count in zip(schedules, counts, strict=True)]
        else:
            seconds[rows] = passes_times_s(_batch(chosen), np.array(counts))
    return seconds


def schedule_of(terms: PassTerms) -> Schedule:
    """The schedule that joins the terms."""
    times = (terms.is_streamed_U, terms.compute_s_U, terms.copy_s_U, terms.read_s_U)
    units = list(zip(*(values_U.tolist() for values_U in times), strict=True))
    steps = {  # few units differ
        (is_streamed, compute_s, copy_s, read_s): Step(
            label="", is_streamed=is_streamed, compute_s=compute_s, copy_s=copy_s, read_s=read_s
        )
        for is_streamed, compute_s, copy_s, read_s in set(units)
    }
    return Schedule(
        steps=tuple(steps[unit] for unit in units),
        num_slots=max(1, terms.num_slots),
        boundary_s=terms.boundary_s,
        num_staging_buffers=max(1, terms.num_staging_buffers),
    )


def _alike(terms: Sequence[PassTerms]) -> Iterator[list[int]]:
    """Rows of terms with as many staging buffers, which go through the recurrence together."""
    for num_buffers in {entry.num_staging_buffers for entry in terms}:
        yield [row for row, entry in enumerate(terms) if entry.num_staging_buffers == num_buffers]


def _batch(terms: Sequence[PassTerms]) -> ScheduleBatch:
    num_units = max(len(entry.compute_s_U) for entry in terms)
    num_buffers = terms[0].num_staging_buffers
    return ScheduleBatch(
        copy_s_BU=_padded([entry.copy_s_U for entry in terms], num_units),
        compute_s_BU=_padded([entry.compute_s_U for entry in terms], num_units),
        is_streamed_BU=_padded([entry.is_streamed_U for entry in terms], num_units).astype(np.bool_),
        num_slots_B=np.array([max(1, entry.num_slots) for entry in terms]),
        boundary_s_B=np.array([entry.boundary_s for entry in terms]),
        read_s_BU=_padded([entry.read_s_U for entry in terms], num_units) if num_buffers else None,
        num_staging_buffers=max(1, num_buffers),
    )


def _padded(rows: Sequence[FloatArray | NDArray[np.bool_]], num_units: int) -> FloatArray:
    padded = np.zeros((len(rows), num_units))
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded
