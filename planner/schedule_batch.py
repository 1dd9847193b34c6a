"""Many schedules at once: the vectorised twin of `planner.schedule`, whose docstring gives the recurrence."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.schedule import SAME_STEP_FRAC

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_Value = TypeVar("_Value", np.float64, np.bool_)
_CHUNK = 2048  # schedules whose arrays share the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleBatch:
    """B schedules of U units each: seconds per unit, which units travel, slots, and seconds between passes."""

    copy_s_BU: FloatArray
    compute_s_BU: FloatArray
    is_streamed_BU: BoolArray
    num_slots_B: NDArray[np.int64]
    boundary_s_B: FloatArray
    read_s_BU: FloatArray | None = None
    num_staging_buffers: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDraws:
    """D draws of each of B schedules: by what the times of units are multiplied, and the seconds between passes."""

    compute_D: FloatArray
    transfers_D: FloatArray  # copies, and reads from disk
    boundary_s_BD: FloatArray


def round_times_s(batch: ScheduleBatch) -> FloatArray:
    """Seconds of a round of each schedule once it repeats, shape (B,); the twin of `round_time_s`."""
    round_s_B = np.empty(len(batch.num_slots_B))
    for rows, lanes in _lanes_of(batch):
        round_s_B[rows] = lanes.round_s()
    return round_s_B


def drawn_round_times_s(batch: ScheduleBatch, draws: BatchDraws) -> FloatArray:
    """Seconds of a round of each schedule under each draw, shape (B, D)."""
    round_s_BD = np.empty_like(draws.boundary_s_BD)
    for rows, lanes in _lanes_of(batch, num_draws=len(draws.compute_D)):
        lanes.draw(draws.compute_D, draws.transfers_D, draws.boundary_s_BD[rows])
        round_s_BD[rows] = lanes.round_s().reshape(len(rows), -1)
    return round_s_BD


def passes_times_s(batch: ScheduleBatch, num_passes_B: NDArray[np.int64]) -> FloatArray:
    """Seconds of so many passes of each schedule from empty slots, shape (B,); the twin of `passes_s`."""
    passes_s_B = np.empty(len(num_passes_B))
    for rows, lanes in _lanes_of(batch):
        passes_s_B[rows] = lanes.passes_s(num_passes_B[rows])
    return passes_s_B


def _lanes_of(batch: ScheduleBatch, num_draws: int = 1) -> Iterator[tuple[NDArray[np.int64], "_Lanes"]]:
    """The batch in groups of equally many slots and buffers: their rows, and the lanes."""
    most = max(1, _CHUNK // num_draws)
    streamed_BU = batch.is_streamed_BU
    staged_BU = streamed_BU & (batch.read_s_BU > 0) if batch.read_s_BU is not None else np.zeros_like(streamed_BU)
    slots_B = _used(batch.num_slots_B, streamed_BU)
    buffers_B = _used(np.full_like(slots_B, batch.num_staging_buffers), staged_BU)
    for num_slots, num_buffers in np.unique(np.stack([slots_B, buffers_B], axis=1), axis=0):
        rows = np.flatnonzero((slots_B == num_slots) & (buffers_B == num_buffers))
        for start in range(0, len(rows), most):
            chunk = rows[start : start + most]
            yield chunk, _Lanes(batch, chunk, staged_BU, int(num_slots), int(num_buffers))


def _used(num_buffers_B: NDArray[np.int64], passing_BU: BoolArray) -> NDArray[np.int64]:
    """Buffers that are of use: no more than there are units that pass through them."""
    num_passing_B = passing_BU.sum(axis=1)
    assert np.all((num_buffers_B > 0) | (num_passing_B == 0)), "units that pass through buffers need one"
    used_B: NDArray[np.int64] = np.minimum(num_buffers_B, num_passing_B)
    return used_B


class _Lanes:
    """The recurrence over schedules with equally many slots and buffers: b of them, m streamed units at the most.

    Schedules with more streamed units stand first, so that those that have a j-th one are the first of all. Resident
    compute is added up to what lies before each streamed unit, r in the docstring of `planner.schedule`.
    """

    def __init__(
        self,
        batch: ScheduleBatch,
        rows: NDArray[np.int64],
        staged_BU: BoolArray,
        num_slots: int,
        num_buffers: int,
    ) -> None:
        num_streamed_b = batch.is_streamed_BU[rows].sum(axis=1)
        self._order_b = np.argsort(-num_streamed_b, kind="stable")
        rows, self._num_streamed_b = rows[self._order_b], num_streamed_b[self._order_b]
        streamed_bU, compute_s_bU = batch.is_streamed_BU[rows], batch.compute_s_BU[rows]
        most = int(self._num_streamed_b[0])
        self._num_with_m = [int(np.count_nonzero(self._num_streamed_b > unit)) for unit in range(most)]
        places_bm = np.argsort(~streamed_bU, axis=1, kind="stable")[:, :most]  # of the streamed units, in pass order
        resident_s_bU = np.cumsum(np.where(streamed_bU, 0.0, compute_s_bU), axis=1)
        self._before_s_mb = np.diff(_unit_first(resident_s_bU, places_bm), axis=0, prepend=0.0)
        self._after_s_b = resident_s_bU[:, -1] - self._last(resident_s_bU, places_bm)
        self._compute_s_mb = _unit_first(compute_s_bU, places_bm)
        self._copy_s_mb = _unit_first(batch.copy_s_BU[rows], places_bm)
        self._boundary_s_b = batch.boundary_s_B[rows]
        self._num_slots, self._num_buffers = num_slots, num_buffers
        if num_buffers:
            assert batch.read_s_BU is not None
            self._staged_mb = _unit_first(staged_BU[rows], places_bm)
            read_s_mb = _unit_first(batch.read_s_BU[rows], places_bm)
            self._read_s_mb = np.where(self._staged_mb, read_s_mb, -np.inf)  # which no maximum notices
        self._start()

    def draw(self, compute_D: FloatArray, transfers_D: FloatArray, boundary_s_bD: FloatArray) -> None:
        """Take each schedule once for each draw, its draws side by side."""
        num_draws = len(compute_D)
        self._boundary_s_b = boundary_s_bD[self._order_b].ravel()
        self._order_b = (self._order_b[:, None] * num_draws + np.arange(num_draws)).ravel()
        self._num_streamed_b = np.repeat(self._num_streamed_b, num_draws)
        self._num_with_m = [num * num_draws for num in self._num_with_m]
        self._before_s_mb = _drawn(self._before_s_mb, compute_D)
        self._after_s_b = np.outer(self._after_s_b, compute_D).ravel()
        self._compute_s_mb = _drawn(self._compute_s_mb, compute_D)
        self._copy_s_mb = _drawn(self._copy_s_mb, transfers_D)
        if self._num_buffers:
            self._staged_mb = np.repeat(self._staged_mb, num_draws, axis=1)
            self._read_s_mb = _drawn(self._read_s_mb, transfers_D)
        self._start()

    def _start(self) -> None:
        """Every lane idle and every buffer free, from 0 s on."""
        num_rows, most = len(self._boundary_s_b), len(self._copy_s_mb)
        self._computed_s_b, self._copied_s_b, self._read_s_b = np.zeros((3, num_rows))
        self._freed_s_mb = np.zeros((self._num_slots + most, num_rows))  # of the slots before a pass, then by its units
        self._emptied_s = list(np.zeros((self._num_buffers, num_rows)))  # staging buffers, oldest first

    def _last(self, resident_s_bU: FloatArray, places_bm: NDArray[np.int64]) -> FloatArray:
        """Resident compute up to the last streamed unit of each."""
        if not places_bm.shape[1]:
            return np.zeros(len(resident_s_bU))
        last_b = places_bm[np.arange(len(places_bm)), np.maximum(self._num_streamed_b - 1, 0)]
        return np.where(self._num_streamed_b > 0, resident_s_bU[np.arange(len(last_b)), last_b], 0.0)

    def round_s(self) -> FloatArray:
        """By the first pass that moves all times of a schedule on alike; where none does, by Karp's formula."""
        states = [self._times()]
        num_passes = len(states[0])
        round_s_b = np.full(states[0].shape[1], np.nan)
        for _ in range(num_passes):
            self._run_pass()
            states.append(self._times())
            longest_s_b, is_settled_b = _settled(states[-1] - states[-2])
            np.copyto(round_s_b, longest_s_b, where=is_settled_b & np.isnan(round_s_b))
            if not np.isnan(round_s_b).any():
                return self._in_given_order(round_s_b)
        means_s_Tb = np.full_like(states[-1], np.inf)
        for k, before_s_Tb in enumerate(states[:-1]):
            np.minimum(means_s_Tb, (states[-1] - before_s_Tb) / (num_passes - k), out=means_s_Tb)
        return self._in_given_order(np.where(np.isnan(round_s_b), means_s_Tb.max(axis=0), round_s_b))

    def passes_s(self, num_passes_b: NDArray[np.int64]) -> FloatArray:
        """Seconds of so many passes of each, the boundary between two; none is run that moves all times on alike."""
        num_passes_b = num_passes_b[self._order_b]
        ends_s_b = np.empty(len(num_passes_b))
        is_left_b = np.ones(len(num_passes_b), dtype=np.bool_)
        times_s_Tb = self._times()
        for index in range(int(num_passes_b.max())):
            self._run_pass(has_boundary=index > 0)
            before_s_Tb, times_s_Tb = times_s_Tb, self._times()
            steps_s_Tb = times_s_Tb - before_s_Tb
            num_left_b = num_passes_b - 1 - index
            _, is_settled_b = _settled(steps_s_Tb)
            is_done_b = is_left_b & ((is_settled_b & (index > 0)) | (num_left_b == 0))
            ends_s_b[is_done_b] = (times_s_Tb[0] + num_left_b * steps_s_Tb[0])[is_done_b]
            is_left_b &= ~is_done_b
            if not is_left_b.any():
                break
        return self._in_given_order(ends_s_b)

    def _in_given_order(self, values_b: FloatArray) -> FloatArray:
        given_b = np.empty_like(values_b)
        given_b[self._order_b] = values_b
        return given_b

    def _times(self) -> FloatArray:
        """When each lane is done and each slot and buffer becomes free, oldest first; shape (T, b)."""
        disk = [self._read_s_b, *self._emptied_s] if self._emptied_s else []
        return np.stack([self._computed_s_b, self._copied_s_b, *self._freed_s_mb[: self._num_slots], *disk])

    def _run_pass(self, *, has_boundary: bool = True) -> None:
        computed_s_b, copied_s_b, freed_s_mb = self._computed_s_b, self._copied_s_b, self._freed_s_mb
        if has_boundary:
            computed_s_b += self._boundary_s_b
        for unit, num in enumerate(self._num_with_m):
            arrived_s_b = np.maximum(copied_s_b[:num], freed_s_mb[unit, :num])
            if self._emptied_s:
                np.maximum(arrived_s_b, self._read(unit, num), out=arrived_s_b)
            arrived_s_b += self._copy_s_mb[unit, :num]
            copied_s_b[:num] = arrived_s_b
            if self._emptied_s:
                _shift([emptied_s_b[:num] for emptied_s_b in self._emptied_s], arrived_s_b, self._staged_mb[unit, :num])
            computed_s_b[:num] += self._before_s_mb[unit, :num]
            np.maximum(computed_s_b[:num], arrived_s_b, out=computed_s_b[:num])
            computed_s_b[:num] += self._compute_s_mb[unit, :num]
            freed_s_mb[self._num_slots + unit, :num] = computed_s_b[:num]
        computed_s_b += self._after_s_b
        if self._num_slots:
            newest_Nb = self._num_streamed_b + np.arange(self._num_slots)[:, None]
            freed_s_mb[: self._num_slots] = np.take_along_axis(freed_s_mb, newest_Nb, axis=0)

    def _read(self, unit: int, num: int) -> FloatArray:
        """When the unit lies in a staging buffer; minus infinity where it does not pass one."""
        free_s_b = np.maximum(self._read_s_b[:num], self._emptied_s[0][:num])
        read_s_b: FloatArray = free_s_b + self._read_s_mb[unit, :num]
        np.maximum(self._read_s_b[:num], read_s_b, out=self._read_s_b[:num])
        return read_s_b


def _settled(steps_s_Tb: FloatArray) -> tuple[FloatArray, BoolArray]:
    """The longest step of each schedule, and whether all its times moved on alike, but for rounding."""
    longest_s_b = steps_s_Tb.max(axis=0)
    return longest_s_b, longest_s_b - steps_s_Tb.min(axis=0) <= SAME_STEP_FRAC * longest_s_b


def _unit_first(values_bU: NDArray[_Value], places_bm: NDArray[np.int64]) -> NDArray[_Value]:
    """The values at these places, the unit first, so that the schedules of one unit lie side by side."""
    return np.ascontiguousarray(np.take_along_axis(values_bU, places_bm, axis=1).T)


def _drawn(values_mb: FloatArray, factors_D: FloatArray) -> FloatArray:
    """Each value times each factor, the draws of a schedule side by side."""
    num_units, num_schedules = values_mb.shape
    product: FloatArray = (values_mb[:, :, None] * factors_D).reshape(num_units, num_schedules * len(factors_D))
    return product


def _shift(ring: Sequence[FloatArray], newest_b: FloatArray, moves_b: BoolArray) -> None:
    """Let the oldest time of a ring go where it moves, and add the newest."""
    for older_b, newer_b in zip(ring, [*ring[1:], newest_b], strict=False):
        np.copyto(older_b, newer_b, where=moves_b)
