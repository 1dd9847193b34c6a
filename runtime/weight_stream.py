"""The stream of weights: units that pass through slots in every pass, over a link, ahead of the compute lane.

Knows units as bytes with a source and a turn; what they mean to a model is not its business. Units that lie on disk
and travel over another link than the disk go through staging buffers, which a second lane of the same kind fills.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from planner.contracts.plan import INLINE_BYTES
from runtime.lane import Lane
from runtime.link import HostRange, Link, Source
from runtime.slots import Ring
from runtime.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedUnit:
    """A unit that travels in every pass."""

    label: str
    num_bytes: int
    source: Source
    is_staged: bool  # read into a staging buffer first


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTimes:
    """Seconds and bytes since the stream opened. The link's three add up to the time it has been open."""

    link_busy_s: float = 0.0
    link_waiting_for_slot_s: float = 0.0
    link_waiting_for_disk_s: float = 0.0
    compute_waiting_s: float = 0.0
    copied_bytes: int = 0


class Stream:
    """Units in pass order, cyclic over passes, through `num_slots` slots."""

    def __init__(
        self,
        link: Link,
        units: Sequence[StreamedUnit],
        *,
        num_slots: int,
        num_staging_buffers: int,
        trace: Trace | None,
    ) -> None:
        self._link = link
        self._units = tuple(units)
        self._trace = trace
        self._compute_waiting_s = 0.0
        self._waiting_for_disk_s = 0.0
        self._copied_bytes = 0
        self._entered: tuple[int, int, float] | None = None  # unit, slot, since when
        slot_bytes = max(unit.num_bytes for unit in units)
        self.slots: list[Tensor] = [link.allocate(slot_bytes) for _ in range(min(num_slots, len(units)))]
        self._regions = [[slot[: unit.num_bytes] for slot in self.slots] for unit in units]
        self._sources = [
            [
                unit.source if unit.is_staged or link.is_asynchronous else unit.source.prepared_for(region)
                for region in regions
            ]
            for unit, regions in zip(units, self._regions, strict=True)
        ]
        staged = [unit for unit in units if unit.is_staged]
        self._turn_of_staged = {unit.label: turn for turn, unit in enumerate(staged)}
        self._disk_lane: Lane | None = None
        if staged:
            self._open_staging(staged, num_staging_buffers)
        self._is_inline = link.is_immediate and slot_bytes <= INLINE_BYTES
        self._lane = Lane(
            Ring(num_units=len(units), num_slots=len(self.slots)),
            self._fill_slot,
            name="link",
            is_threaded=bool(staged) or not (link.is_asynchronous or self._is_inline),
        )

    def enter(self, unit: int) -> int:
        """Wait until the unit lies in a slot, and return the slot's index; the slot is in use until `leave`."""
        if self._entered is not None:  # the last pass was aborted within a unit; its work may still be under way
            self._link.mark_freed(self._entered[1])
            self._entered = None
        start_s = time.perf_counter()
        slot = self._lane.acquire(unit)
        self._link.wait_copied(slot)
        now_s = time.perf_counter()
        self._compute_waiting_s += now_s - start_s
        self._entered = (unit, slot, now_s)
        return slot

    def leave(self) -> None:
        """The unit entered last is no longer read. Without one (its `enter` failed), nothing happens."""
        if self._entered is None:
            return
        unit, slot, since_s = self._entered
        left_s = time.perf_counter()
        self._link.mark_freed(slot)
        self._lane.free()
        self._entered = None
        if self._is_inline:
            self._compute_waiting_s += time.perf_counter() - left_s
        if self._trace is not None:
            self._trace.add("compute", self._units[unit].label, since_s, left_s)

    def times(self) -> StreamTimes:
        """The times so far, by the device's clock where the link is asynchronous."""
        disk_s = self._waiting_for_disk_s  # read once, and first: the link's thread adds to it
        lane, device = self._lane.times(), self._link.device_times()
        busy_s = lane.busy_s - disk_s if device is None else device.copying_s
        return StreamTimes(
            link_busy_s=busy_s,
            link_waiting_for_slot_s=lane.busy_s + lane.waiting_for_slot_s - busy_s - disk_s,
            link_waiting_for_disk_s=disk_s,
            compute_waiting_s=self._compute_waiting_s if device is None else device.waiting_s,
            copied_bytes=self._copied_bytes,
        )

    @property
    def turn(self) -> int:
        """The unit that compute uses or waits for; read without a lock, to be shown."""
        return self._lane.unit_under_way

    @property
    def copied_bytes(self) -> int:
        """Bytes copied since the stream opened; where copies are asynchronous, those handed over."""
        return self._copied_bytes

    def close(self) -> None:
        """End the threads; a unit that is waited for raises."""
        if self._disk_lane is not None:
            self._disk_lane.close()
        self._lane.close()

    def _open_staging(self, staged: list[StreamedUnit], num_buffers: int) -> None:
        buffer_bytes = max(unit.num_bytes for unit in staged)
        buffers = [self._link.allocate_host(buffer_bytes) for _ in range(min(num_buffers, len(staged)))]

        def read(turn: int, buffer: int, _may_start_s: float) -> None:
            staged[turn].source.read_into(buffers[buffer][: staged[turn].num_bytes])

        self._staging = buffers
        self._disk_lane = Lane(
            Ring(num_units=len(staged), num_slots=len(buffers)), read, name="disk reader", is_threaded=True
        )

    def _fill_slot(self, index: int, slot_idx: int, may_start_s: float) -> None:
        unit = self._units[index]
        slot = self._regions[index][slot_idx]
        start_s = 0.0 if self._trace is None else time.perf_counter()
        if unit.is_staged:
            self._copy_staged(unit, slot, slot_idx, may_start_s)
        else:
            self._link.copy(self._sources[index][slot_idx], slot, slot_idx, may_start_s)
        self._copied_bytes += unit.num_bytes
        if self._trace is not None:
            self._trace.add("link", unit.label, start_s, time.perf_counter())

    def _copy_staged(self, unit: StreamedUnit, slot: Tensor, slot_idx: int, may_start_s: float) -> None:
        assert self._disk_lane is not None
        start_s = time.perf_counter()
        buffer = self._disk_lane.acquire(self._turn_of_staged[unit.label])
        self._waiting_for_disk_s += time.perf_counter() - start_s
        try:
            staged = HostRange(self._staging[buffer][: unit.num_bytes])
            self._link.copy(staged, slot, slot_idx, max(may_start_s, self._disk_lane.filled_at_s[buffer]))
            self._link.wait_source_free(slot_idx)
        finally:
            self._disk_lane.free()
