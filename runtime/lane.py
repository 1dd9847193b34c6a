"""A lane drives one ring: it fills slots ahead of the consumer, on a thread of its own or, for asynchronous copies,
from the consumer's calls. The ring decides; this module only waits, wakes and keeps the times.

Used twice: for the link into the device's slots, and for the disk reader into the staging buffers before it.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from runtime.slots import Ring

_State = Literal["busy", "waiting_for_slot"]


@dataclass(frozen=True, slots=True)
class LaneTimes:
    """Seconds since the lane opened: copying, and waiting for a slot to be freed."""

    busy_s: float
    waiting_for_slot_s: float


class Lane:
    """One ring with the thread that fills it. `fill(unit, slot, may_start_s)` makes one copy.

    An error in `fill` surfaces in the consumer's next `acquire`, and in every one after it.
    """

    def __init__(self, ring: Ring, fill: Callable[[int, int, float], None], *, name: str, is_threaded: bool) -> None:
        self._ring = ring
        self._fill = fill
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._is_closed = False
        now_s = time.perf_counter()
        self._freed_at_s = [now_s] * ring.num_slots
        self.filled_at_s = [now_s] * ring.num_slots  # when each slot's last copy ended
        self._state: _State = "waiting_for_slot"
        self._state_since_s = now_s
        self._spent_s: dict[_State, float] = {"busy": 0.0, "waiting_for_slot": 0.0}
        self._thread = threading.Thread(target=self._run, name=name, daemon=True) if is_threaded else None
        if self._thread is not None:
            self._thread.start()

    def acquire(self, unit: int) -> int:
        """Wait until the unit lies in its slot and return the slot's index.

        A unit that is not the next in order means that the last pass was aborted: the ring then restarts at it.
        """
        ring = self._ring
        with self._changed:
            is_torn = self._thread is None and ring.begun != ring.copied  # Ctrl-C within a copy made from here
            if is_torn:
                self._end(None)
            if is_torn or ring.acquired != ring.freed or ring.unit_of(ring.acquired) != unit:
                ring.restart(unit)
                self._freed_at_s = [time.perf_counter()] * ring.num_slots
                self._changed.notify_all()
            if self._thread is None:
                self._pump()
            while self._error is None and not self._is_closed and not ring.may_acquire():
                self._changed.wait()
            if self._error is not None:
                raise self._error
            if self._is_closed:
                raise RuntimeError("the stream of weights is closed")
            return ring.slot_of(ring.acquire())

    def free(self) -> None:
        """The unit acquired last is no longer read."""
        with self._changed:
            ring = self._ring
            if ring.acquired == ring.freed:
                return  # the acquire of an aborted pass had failed
            self._freed_at_s[ring.slot_of(ring.freed)] = time.perf_counter()
            ring.free()
            if self._thread is None:
                self._pump()
            else:
                self._changed.notify_all()

    def times(self) -> LaneTimes:
        """Seconds in each state so far, the current one included."""
        with self._changed:
            spent_s = dict(self._spent_s)
            spent_s[self._state] += time.perf_counter() - self._state_since_s
        return LaneTimes(busy_s=spent_s["busy"], waiting_for_slot_s=spent_s["waiting_for_slot"])

    def close(self) -> None:
        """Stop filling; returns when the thread has ended."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._is_closed or self._ring.may_begin_copy()):
                    self._changed.wait()
                if self._is_closed:
                    return
                unit, slot = self._begin()
            error = self._attempt(unit, slot)
            with self._changed:
                self._end(error)
                self._changed.notify_all()
                if error is not None:
                    return

    def _pump(self) -> None:
        """Without a thread: enqueue every copy that may start now."""
        while not self._is_closed and self._error is None and self._ring.may_begin_copy():
            unit, slot = self._begin()
            self._end(self._attempt(unit, slot))

    def _begin(self) -> tuple[int, int]:
        self._enter("busy")
        copy = self._ring.begin_copy()
        return self._ring.unit_of(copy), self._ring.slot_of(copy)

    def _attempt(self, unit: int, slot: int) -> Exception | None:
        try:
            self._fill(unit, slot, self._freed_at_s[slot])
        except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
            return error
        return None

    def _end(self, error: Exception | None) -> None:
        self._enter("waiting_for_slot")
        self.filled_at_s[self._ring.slot_of(self._ring.copied)] = self._state_since_s
        self._error = error
        self._ring.end_copy()

    def _enter(self, state: _State) -> None:
        now_s = time.perf_counter()
        self._spent_s[self._state] += now_s - self._state_since_s
        self._state, self._state_since_s = state, now_s
