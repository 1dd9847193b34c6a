"""The lane around the ring: threads, errors, closing, aborted passes, times. The ring's own rules are in test_slots."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from runtime.lane import Lane
from runtime.slots import Ring

pytestmark = pytest.mark.timeout(60)

TORN, READ = -1, -2  # what a slot holds while a copy writes it, and after its unit was read
SIZES = [(1, 1), (1, 3), (2, 1), (2, 3), (2, 4), (3, 2), (3, 7), (4, 6), (4, 4)]
BOTH_KINDS = pytest.mark.parametrize("is_threaded", [True, False], ids=["threaded", "inline"])


class Slots:
    """Slots that hold a unit's number, and the copies into them: `before` each and in the `pause` amid each."""

    def __init__(
        self, num_slots: int, pause: Callable[[], object] = lambda: None, before: Callable[[], object] = lambda: None
    ) -> None:
        self.contents = [READ] * num_slots
        self.in_use: int | None = None
        self.filled: list[tuple[int, int]] = []  # unit and slot of every copy that was begun
        self.pause, self.before = pause, before

    def fill(self, unit: int, slot: int, may_start_s: float) -> None:
        self.before()
        self.filled.append((unit, slot))
        assert slot != self.in_use
        self.contents[slot] = TORN
        self.pause()
        self.contents[slot] = unit

    def read(self, lane: Lane, unit: int, *, is_left: bool = True) -> None:
        """One unit's turn on the compute lane; poisons the slot before it is freed."""
        slot = lane.acquire(unit)
        self.in_use = slot
        assert self.contents[slot] == unit
        self.pause()
        assert self.contents[slot] == unit
        self.in_use = None
        if is_left:
            self.contents[slot] = READ
            lane.free()

    def open(self, num_units: int, *, is_threaded: bool) -> Lane:
        ring = Ring(num_units=num_units, num_slots=len(self.contents))
        return Lane(ring, self.fill, name="lane under test", is_threaded=is_threaded)


@contextmanager
def closing(lane: Lane) -> Iterator[Lane]:
    try:
        yield lane
    finally:
        lane.close()


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before


def pauses(seed: int, share: float) -> Callable[[], None]:
    """Gives the processor away in a share of the calls, for 50 us at most."""
    chance = random.Random(seed)

    def pause() -> None:
        if chance.random() < share:
            time.sleep(chance.random() * 50e-6)

    return pause


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(1e-4)


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Start the call on a thread; its error, if any, is in the list once the thread has ended."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, errors


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr("runtime.lane.time", SimpleNamespace(perf_counter=lambda: self.now_s))

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


# content


@BOTH_KINDS
@pytest.mark.parametrize(("num_slots", "num_units"), SIZES)
def test_every_unit_of_every_pass_lies_complete_in_its_slot(num_slots: int, num_units: int, is_threaded: bool) -> None:
    slots = Slots(num_slots, pauses(num_slots + num_units, share=0.3))
    with closing(slots.open(num_units, is_threaded=is_threaded)) as lane:
        for _ in range(40):
            for unit in range(num_units):
                slots.read(lane, unit)
    assert [unit for unit, _ in slots.filled] == [copy % num_units for copy in range(len(slots.filled))]
    assert [slot for _, slot in slots.filled] == [copy % num_slots for copy in range(len(slots.filled))]


def test_ten_thousand_passes_in_threads_read_no_poison() -> None:
    slots = Slots(2, pauses(0, share=0.02))
    with closing(slots.open(3, is_threaded=True)) as lane:
        for _ in range(10_000):
            for unit in range(3):
                slots.read(lane, unit)


@pytest.mark.parametrize(("num_slots", "num_units"), SIZES)
def test_a_lane_without_a_thread_fills_every_free_slot_in_the_consumers_calls(num_slots: int, num_units: int) -> None:
    slots = Slots(num_slots)
    lane = slots.open(num_units, is_threaded=False)
    assert slots.filled == []
    for use in range(2 * num_units):
        slots.read(lane, use % num_units)
        assert len(slots.filled) == use + 1 + num_slots  # all slots again: the one just freed was filled in `free`
    lane.close()


def test_a_lane_with_a_thread_fills_every_slot_before_the_first_acquire_and_then_waits() -> None:
    slots = Slots(3)
    with closing(slots.open(5, is_threaded=True)):
        wait_until(lambda: len(slots.filled) == 3)
        time.sleep(0.01)
        assert slots.filled == [(0, 0), (1, 1), (2, 2)]


# aborted passes


@BOTH_KINDS
@pytest.mark.parametrize("is_left", [True, False], ids=["between units", "within a unit"])
@pytest.mark.parametrize(("num_slots", "num_units"), [(1, 3), (2, 3), (2, 5), (3, 2), (4, 3)])
def test_a_pass_aborted_after_any_unit_can_restart_at_any_unit(
    num_slots: int, num_units: int, is_left: bool, is_threaded: bool
) -> None:
    slots = Slots(num_slots, pauses(num_slots, share=0.3))
    with closing(slots.open(num_units, is_threaded=is_threaded)) as lane:
        for num_read in range(num_units + 1):
            for restart in range(num_units):
                for unit in range(num_read):
                    slots.read(lane, unit, is_left=is_left or unit < num_read - 1)
                for unit in range(restart, num_units):
                    slots.read(lane, unit)


def test_a_copy_under_way_at_the_restart_ends_unused_before_the_next_begins() -> None:
    gate = threading.Semaphore(0)
    arrived: list[None] = []

    def hold() -> None:
        arrived.append(None)
        gate.acquire()

    slots = Slots(1, before=hold)
    with closing(slots.open(3, is_threaded=True)) as lane:
        gate.release()
        slots.read(lane, 0)
        wait_until(lambda: len(arrived) == 2)  # the copy of unit 1 is now held at the gate
        reader, errors = in_thread(lambda: slots.read(lane, 2))
        time.sleep(0.01)
        assert slots.filled == [(0, 0)]
        gate.release(3)
        reader.join()
        assert slots.filled[:3] == [(0, 0), (1, 0), (2, 0)]
        assert errors == []


def test_free_after_an_acquire_that_failed_does_nothing() -> None:
    slots = Slots(2)
    with closing(slots.open(3, is_threaded=False)) as lane:
        lane.free()
        slots.read(lane, 0)
        lane.free()
        slots.read(lane, 1)
        assert slots.filled == [(0, 0), (1, 1), (2, 0), (0, 1)]


# errors


@BOTH_KINDS
@pytest.mark.parametrize("num_slots", [1, 2, 4])
@pytest.mark.parametrize("failing", range(7))
def test_an_error_in_any_copy_surfaces_in_the_next_acquire_and_in_every_later_one(
    failing: int, num_slots: int, is_threaded: bool
) -> None:
    tried: list[None] = []

    def fail() -> None:
        tried.append(None)
        if len(tried) == failing + 1:
            raise OSError(f"copy {failing} failed")

    slots = Slots(num_slots, before=fail)
    num_read = 0
    with closing(slots.open(3, is_threaded=is_threaded)) as lane:

        def read_for_ever() -> None:
            nonlocal num_read
            while True:
                slots.read(lane, num_read % 3)
                num_read += 1

        with pytest.raises(OSError, match=f"copy {failing} failed"):
            read_for_ever()
        assert num_read <= failing
        for unit in range(3):
            with pytest.raises(OSError, match=f"copy {failing} failed"):
                lane.acquire(unit)
        lane.free()
    assert len(tried) == failing + 1  # no copy was tried after it


def test_an_error_in_a_copy_that_an_aborted_pass_left_behind_surfaces_too() -> None:
    gate = threading.Event()

    def fail() -> None:
        gate.wait()
        raise OSError("disk gone")

    slots = Slots(2, before=fail)
    with closing(slots.open(3, is_threaded=True)) as lane:
        opener, _ = in_thread(gate.set)
        with pytest.raises(OSError, match="disk gone"):
            lane.acquire(2)  # the copy under way is that of unit 0
        opener.join()


@pytest.mark.parametrize("num_slots", [1, 2, 3])
@pytest.mark.parametrize("interrupted", range(8))
def test_ctrl_c_within_any_copy_made_from_the_consumers_calls_voids_that_copy(interrupted: int, num_slots: int) -> None:
    def interrupt() -> None:
        if slots.in_use is None and len(slots.filled) == interrupted + 1 and not was_interrupted:
            was_interrupted.append(True)
            raise KeyboardInterrupt

    was_interrupted: list[bool] = []
    slots = Slots(num_slots, interrupt)
    num_units = 3
    with closing(slots.open(num_units, is_threaded=False)) as lane:
        for _ in range(5):
            try:
                for unit in range(num_units):
                    slots.read(lane, unit)
            except KeyboardInterrupt:
                continue  # the pass was aborted; the next one starts at unit 0, as ever
    assert was_interrupted


# closing


@pytest.mark.parametrize("num_read", [0, 1, 4])
def test_close_ends_a_thread_that_waits_for_a_slot(num_read: int) -> None:
    slots = Slots(2)
    lane = slots.open(3, is_threaded=True)
    for use in range(num_read):
        slots.read(lane, use % 3)
    wait_until(lambda: len(slots.filled) == num_read + 2)
    lane.close()
    assert len(slots.filled) == num_read + 2


def test_close_returns_when_the_copy_under_way_has_ended_and_starts_no_other() -> None:
    gate = threading.Event()
    slots = Slots(2, pause=gate.wait)
    lane = slots.open(3, is_threaded=True)
    wait_until(lambda: len(slots.filled) == 1)
    closer, _ = in_thread(lane.close)
    time.sleep(0.01)
    assert closer.is_alive()
    gate.set()
    closer.join()
    assert slots.filled == [(0, 0)]


def test_close_wakes_a_consumer_that_waits_even_while_the_copy_goes_on() -> None:
    gate = threading.Event()
    slots = Slots(2, pause=gate.wait)
    lane = slots.open(3, is_threaded=True)
    consumer, errors = in_thread(lambda: lane.acquire(0))
    wait_until(lambda: len(slots.filled) == 1)
    closer, _ = in_thread(lane.close)
    consumer.join()
    assert [str(error) for error in errors] == ["the stream of weights is closed"]
    gate.set()
    closer.join()


@BOTH_KINDS
def test_acquire_after_close_raises_even_where_the_unit_lies_ready(is_threaded: bool) -> None:
    slots = Slots(2)
    lane = slots.open(3, is_threaded=is_threaded)
    slots.read(lane, 0)
    wait_until(lambda: len(slots.filled) >= 2)
    lane.close()
    lane.close()
    num_filled = len(slots.filled)
    for unit in (1, 0):
        with pytest.raises(RuntimeError, match="the stream of weights is closed"):
            lane.acquire(unit)
    lane.free()
    assert len(slots.filled) == num_filled


def test_a_lane_that_was_never_used_can_be_closed() -> None:
    slots = Slots(1)
    slots.open(1, is_threaded=True).close()
    slots.open(1, is_threaded=False).close()


# times


def test_copying_and_waiting_are_timed_to_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    starts_s = []

    def fill(unit: int, slot: int, may_start_s: float) -> None:
        starts_s.append(may_start_s)
        clock.advance(2.0)

    lane = Lane(Ring(num_units=3, num_slots=2), fill, name="lane under test", is_threaded=False)
    clock.advance(1.0)
    lane.acquire(0)  # fills both slots: 101 .. 103 .. 105
    assert (lane.times().busy_s, lane.times().waiting_for_slot_s) == (4.0, 1.0)
    assert lane.filled_at_s == [103.0, 105.0]
    clock.advance(5.0)
    assert (lane.times().busy_s, lane.times().waiting_for_slot_s) == (4.0, 6.0)
    lane.free()  # at 110; fills slot 0 until 112
    assert (lane.times().busy_s, lane.times().waiting_for_slot_s) == (6.0, 6.0)
    assert lane.filled_at_s == [112.0, 105.0]
    lane.acquire(0)  # restarts at 112: all slots are free from then on; fills both until 116
    assert (lane.times().busy_s, lane.times().waiting_for_slot_s) == (10.0, 6.0)
    assert starts_s == [100.0, 100.0, 110.0, 112.0, 112.0]  # opened, opened, freed, restarted, restarted
    lane.close()


@BOTH_KINDS
def test_busy_and_waiting_add_up_to_the_time_since_opening_at_any_moment(is_threaded: bool) -> None:
    slots = Slots(2, pauses(3, share=0.5))
    before_s = time.perf_counter()
    with closing(slots.open(3, is_threaded=is_threaded)) as lane:
        after_s = time.perf_counter()
        for use in range(300):
            slots.read(lane, use % 3)
            asked_s = time.perf_counter()
            times = lane.times()
            open_s = times.busy_s + times.waiting_for_slot_s
            assert asked_s - after_s - 1e-9 <= open_s <= time.perf_counter() - before_s + 1e-9
            assert times.busy_s >= 0
            assert times.waiting_for_slot_s >= 0


def test_a_copy_under_way_counts_as_busy_while_it_lasts() -> None:
    gate = threading.Event()
    slots = Slots(1, pause=gate.wait)
    with closing(slots.open(2, is_threaded=True)) as lane:
        wait_until(lambda: len(slots.filled) == 1)
        early = lane.times()
        time.sleep(0.005)
        late = lane.times()
        gate.set()
        assert late.busy_s >= early.busy_s + 0.005
        assert late.waiting_for_slot_s == early.waiting_for_slot_s
