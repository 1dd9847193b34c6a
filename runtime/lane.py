"""A lane drives one ring: it fills slots ahead of the consumer, on a thread of its own or, for asynchronous copies,
from the consumer's calls. The ring decides; this module only waits, wakes and keeps the times.

Used twice: for the link into the device's slots, and for the disk reader into the staging buffers before it.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from runtime.slots import Ring


@dataclass(frozen=True, slots=True)
class LaneTimes:
    """Seconds since the lane opened: copying, and waiting for a slot to be freed."""

    busy_s: float
    waiting_for_slot_s: float


class _Sleeper:
    """One thread that waits for another; a condition variable for one, at a fraction of its cost per hand-over."""

    def __init__(self, guard: threading.Lock) -> None:
        self._guard = guard
        self._gate = threading.Lock()
        self._gate.acquire()
        self._is_asleep = False

    def sleep(self) -> None:
        """Give up the guard, which the caller holds, until woken (or, after an interrupt, sometimes for nothing)."""
        self._is_asleep = True
        self._guard.release()
        try:
            self._gate.acquire()
        finally:
            self._guard.acquire()

    def wake(self) -> None:
        """Wake the sleeper, if there is one. The caller holds the guard."""
        if self._is_asleep:
            self._is_asleep = False
            if self._gate.locked():  # an interrupted sleeper has left it open
                self._gate.release()


class Lane:
    """One ring with the thread that fills it. `fill(unit, slot, may_start_s)` makes one copy.

    An error in `fill` surfaces in the consumer's next `acquire`, and in every one after it.
    """

    def __init__(self, ring: Ring, fill: Callable[[int, int, float], None], *, name: str, is_threaded: bool) -> None:
        self._ring = ring
        self._fill = fill
        self._guard = threading.Lock()
        self._filler, self._consumer = _Sleeper(self._guard), _Sleeper(self._guard)
        self._error: Exception | None = None
        self._is_closed = False
        now_s = time.perf_counter()
        self._freed_at_s = [now_s] * ring.num_slots
        self.filled_at_s = [now_s] * ring.num_slots  # when each slot's last copy ended
        self._opened_at_s = now_s
        self._busy_s = 0.0  # of the copies that have ended
        self._busy_since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True) if is_threaded else None
        if self._thread is not None:
            self._thread.start()

    def acquire(self, unit: int) -> int:
        """Wait until the unit lies in its slot and return the slot's index.

        A unit that is not the next in order means that the last pass was aborted: the ring then restarts at it.
        """
        ring = self._ring
        with self._guard:
            is_torn = self._thread is None and ring.begun != ring.copied  # Ctrl-C within a copy made from here
            if is_torn:
                self._end(None)
            if is_torn or ring.acquired != ring.freed or ring.unit_of(ring.acquired) != unit:
                ring.restart(unit)
                self._freed_at_s = [time.perf_counter()] * ring.num_slots
                self._filler.wake()
            if self._thread is None and not ring.may_acquire():
                self._pump()
            while self._error is None and not self._is_closed and not ring.may_acquire():
                self._consumer.sleep()
            if self._error is not None:
                raise self._error
            if self._is_closed:
                raise RuntimeError("the stream of weights is closed")
            return ring.slot_of(ring.acquire())

    def free(self) -> None:
        """The unit acquired last is no longer read."""
        with self._guard:
            ring = self._ring
            if ring.acquired == ring.freed:
                return  # the acquire of an aborted pass had failed
            self._freed_at_s[ring.slot_of(ring.freed)] = time.perf_counter()
            ring.free()
            if self._thread is None:
                self._pump()
            self._filler.wake()

    @property
    def unit_under_way(self) -> int:
        """The unit that the consumer uses, or would take next; read without the lock, to be shown."""
        return self._ring.unit_of(self._ring.freed)

    def times(self) -> LaneTimes:
        """Seconds so far, a copy under way included."""
        with self._guard:
            now_s = time.perf_counter()
            busy_s = self._busy_s + (0.0 if self._busy_since_s is None else now_s - self._busy_since_s)
        return LaneTimes(busy_s=busy_s, waiting_for_slot_s=now_s - self._opened_at_s - busy_s)

    def close(self) -> None:
        """Stop filling; returns when the thread has ended."""
        with self._guard:
            self._is_closed = True
            self._filler.wake()
            self._consumer.wake()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._guard:
                while not (self._is_closed or self._ring.may_begin_copy()):
                    self._filler.sleep()
                if self._is_closed:
                    return
                unit, slot = self._begin()
            error = self._attempt(unit, slot)
            with self._guard:
                self._end(error)
                self._consumer.wake()
                if error is not None:
                    return

    def _pump(self) -> None:
        """Without a thread: enqueue every copy that may start now."""
        while not self._is_closed and self._error is None and self._ring.may_begin_copy():
            unit, slot = self._begin()
            self._end(self._attempt(unit, slot))

    def _begin(self) -> tuple[int, int]:
        self._busy_since_s = time.perf_counter()
        copy = self._ring.begin_copy()
        return self._ring.unit_of(copy), self._ring.slot_of(copy)

    def _attempt(self, unit: int, slot: int) -> Exception | None:
        try:
            self._fill(unit, slot, self._freed_at_s[slot])
        except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
            return error
        return None

    def _end(self, error: Exception | None) -> None:
        now_s = time.perf_counter()
        if self._busy_since_s is not None:
            self._busy_s += now_s - self._busy_since_s
            self._busy_since_s = None
        self.filled_at_s[self._ring.slot_of(self._ring.copied)] = now_s
        self._error = error
        self._ring.end_copy()
