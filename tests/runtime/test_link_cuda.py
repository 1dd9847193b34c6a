"""The link to a CUDA device: the real CudaCopy, through the real Stream, on a simulated device."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import pytest
import torch
from simulated_cuda import (
    TORN,
    Device,
    Driver,
    Operation,
    Order,
    SimulatedCopy,
    SimulatedStream,
    simulated,
)
from torch import Tensor

from runtime.link import HostRange, PinningError, Source
from runtime.link.cuda import CudaCopy, EventTimer
from runtime.weight_stream import Stream, StreamedUnit

pytestmark = pytest.mark.timeout(60)

CPU = torch.device("cpu")


def host_unit(unit: int) -> Tensor:
    """The unit's bytes: its number, one byte more for each unit before it."""
    return torch.full((8 + unit,), unit, dtype=torch.uint8)


@dataclass(slots=True)
class SlowSource:
    """Bytes that are not in host memory, and what is called before each read."""

    content: Tensor
    before: Callable[[], object] = lambda: None

    def prepared_for(self, region: Tensor) -> Source:
        return self

    def read_into(self, region: Tensor) -> None:
        self.before()
        region.fill_(TORN)
        region.copy_(self.content)


def open_stream(
    link: CudaCopy,
    num_units: int,
    *,
    num_slots: int,
    staged: Sequence[int] = (),
    num_staging: int = 1,
    before_read: Callable[[], object] = lambda: None,
) -> Stream:
    units = []
    for unit in range(num_units):
        content, is_staged = host_unit(unit), unit in staged
        source: Source = SlowSource(content, before_read) if is_staged else HostRange(content)
        units.append(StreamedUnit(label=f"layer {unit}", num_bytes=len(content), source=source, is_staged=is_staged))
    return Stream(link, units, num_slots=num_slots, num_staging_buffers=num_staging, trace=None)


def read(device: Device, stream: Stream, unit: int, *, is_left: bool = True) -> None:
    """Enqueue a kernel that reads the unit's slot from its first operation to its last."""
    slot_idx = stream.enter(unit)
    slot = stream.slots[slot_idx].as_subclass(Tensor)[: len(host_unit(unit))]

    def check() -> None:
        if not torch.equal(slot, host_unit(unit)):
            device.wrong.append(f"unit {unit} is {slot.tolist()}")

    for _ in range(3):
        device.compute.enqueue(Operation("compute", check))
    if is_left:
        stream.leave()


def wrong_reads(
    order: Order,
    link_type: type[CudaCopy] = SimulatedCopy,
    *,
    num_units: int = 5,
    num_slots: int = 2,
    staged: Sequence[int] = (),
    num_staging: int = 1,
    aborts: Callable[[int], int | None] = lambda _: None,
) -> list[str]:
    """What kernels read wrong in a few passes; `aborts` gives the unit within which a pass is aborted."""
    with simulated(order) as device:
        link = link_type(CPU)
        stream = open_stream(link, num_units, num_slots=num_slots, staged=staged, num_staging=num_staging)
        try:
            for turn in range(6):
                last = aborts(turn)
                for unit in range(num_units if last is None else last):
                    read(device, stream, unit)
                if last is not None:
                    read(device, stream, last, is_left=False)
            device.drain()
        finally:
            stream.close()
            link.close()
        return device.wrong


ORDERS: list[Order] = ["copy first", "compute first", *range(12)]
SIZES = [(1, 1), (1, 3), (2, 1), (2, 4), (2, 5), (3, 4), (3, 7), (4, 3)]


# no order of the device reads a wrong slot


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(("num_slots", "num_units"), SIZES)
def test_every_kernel_reads_its_unit_in_whatever_order_the_device_runs(num_slots: int, num_units: int) -> None:
    for order in ORDERS:
        assert wrong_reads(order, num_units=num_units, num_slots=num_slots) == []


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(("num_slots", "num_units"), SIZES)
def test_a_pass_aborted_within_a_unit_keeps_its_slot_until_the_device_is_done(num_slots: int, num_units: int) -> None:
    for order in ORDERS:
        for last in range(num_units):
            aborts = {1: last, 2: 0, 4: num_units - 1}
            assert wrong_reads(order, num_units=num_units, num_slots=num_slots, aborts=aborts.get) == []


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("num_staging", [1, 2, 3])
@pytest.mark.parametrize("staged", [(0,), (1, 3), (0, 1, 2, 3, 4), (4,)], ids=str)
def test_units_that_pass_through_staging_buffers_arrive_whole(staged: tuple[int, ...], num_staging: int) -> None:
    for order in ORDERS:
        for num_slots in (1, 2, 3):
            assert wrong_reads(order, num_slots=num_slots, staged=staged, num_staging=num_staging) == []


@pytest.mark.usefixtures("driver")
def test_staged_passes_can_be_aborted_too() -> None:
    for order in ORDERS:
        assert wrong_reads(order, staged=(1, 2, 4), num_staging=2, aborts={1: 2, 2: 0, 3: 4}.get) == []


def test_compute_does_not_wait_for_the_disk_to_read_a_unit_that_it_does_not_need_yet(driver: Driver) -> None:
    gate = threading.Event()
    with simulated("copy first") as device:
        link = SimulatedCopy(CPU)
        stream = open_stream(link, 3, num_slots=3, staged=(1, 2), before_read=gate.wait)
        read(device, stream, 0)  # hangs where the link's copies are made from the calls of compute
        gate.set()
        for unit in (1, 2):
            read(device, stream, unit)
        stream.close()
        link.close()
        assert device.wrong == []


# the protocol with one event removed


class ComputeDoesNotWaitForCopied(SimulatedCopy):
    def wait_copied(self, slot_idx: int) -> None:
        pass


class CopyDoesNotWaitForFreed(SimulatedCopy):
    def copy(self, source: Source, slot: Tensor, slot_idx: int, may_start_s: float) -> None:
        self._freed.pop(slot_idx, None)
        super().copy(source, slot, slot_idx, may_start_s)


class FreedIsNotRecorded(SimulatedCopy):
    def mark_freed(self, slot_idx: int) -> None:
        pass


class FreedIsRecordedWhenTheUseBegins(SimulatedCopy):
    def wait_copied(self, slot_idx: int) -> None:
        super().wait_copied(slot_idx)
        super().mark_freed(slot_idx)

    def mark_freed(self, slot_idx: int) -> None:
        pass


class FreedIsRecordedOnTheCopyStream(SimulatedCopy):
    def mark_freed(self, slot_idx: int) -> None:
        with torch.cuda.stream(self._copy_stream):
            super().mark_freed(slot_idx)


class CopiedIsRecordedBeforeTheCopy(SimulatedCopy):
    def copy(self, source: Source, slot: Tensor, slot_idx: int, may_start_s: float) -> None:
        early = torch.cuda.Event()
        early.record(self._copy_stream)
        super().copy(source, slot, slot_idx, may_start_s)
        self._copied[slot_idx] = early


class SourceIsFreeAtOnce(SimulatedCopy):
    def wait_source_free(self, slot_idx: int) -> None:
        pass


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("mutant", "order"),
    [
        (ComputeDoesNotWaitForCopied, "compute first"),
        (CopiedIsRecordedBeforeTheCopy, "compute first"),
        (CopyDoesNotWaitForFreed, "copy first"),
        (FreedIsNotRecorded, "copy first"),
        (FreedIsRecordedWhenTheUseBegins, "copy first"),
        (FreedIsRecordedOnTheCopyStream, "copy first"),
    ],
)
@pytest.mark.parametrize(("num_slots", "num_units"), [(1, 3), (2, 5), (3, 4), (4, 6)])
def test_an_event_removed_from_the_protocol_lets_a_kernel_read_a_wrong_slot(
    mutant: type[CudaCopy], order: Order, num_slots: int, num_units: int
) -> None:
    assert wrong_reads(order, mutant, num_slots=num_slots, num_units=num_units) != []


@pytest.mark.usefixtures("driver")
def test_a_staging_buffer_given_back_too_early_is_read_after_it_was_filled_again() -> None:
    assert wrong_reads("compute first", SourceIsFreeAtOnce, staged=range(5), num_slots=3) != []


# the calls by themselves


def names(stream: object) -> list[str]:
    assert isinstance(stream, SimulatedStream)
    return [operation.name for operation in stream.queue]


def test_the_copy_waits_for_freed_and_is_followed_by_copied_and_no_call_waits_for_the_device() -> None:
    with simulated("copy first") as device:
        link = SimulatedCopy(CPU)
        slot = link.allocate(8)
        assert names(link._copy_stream) == ["wait"]  # for the memory's former users
        device.drain()
        num_run = device.num_run
        timed_copy = ["record", "tear", "write", "record"]
        link.copy(HostRange(host_unit(0)), slot, 0, 0.0)
        assert names(link._copy_stream) == [*timed_copy, "record"]
        link.wait_copied(0)
        assert names(device.compute) == ["record", "wait", "record"]
        link.mark_freed(0)
        assert names(device.compute) == ["record", "wait", "record", "record"]
        link.copy(HostRange(host_unit(0)), slot, 0, 0.0)
        assert names(link._copy_stream) == [*timed_copy, "record", "wait", *timed_copy, "record"]
        assert device.num_run == num_run
        link.wait_source_free(0)
        assert names(link._copy_stream) == []
        link.close()


def test_device_times_are_those_of_the_pairs_of_events_that_have_passed() -> None:
    with simulated("copy first") as device:
        link = SimulatedCopy(CPU)
        slot = link.allocate(8)
        link.copy(HostRange(host_unit(0)), slot, 0, 0.0)
        link.copy(HostRange(host_unit(0)), slot, 0, 0.0)
        assert link.device_times().copying_s == 0
        device.drain()
        # a copy is two operations, between its two events: 3 "seconds" from one event to the other
        assert link.device_times().copying_s == 6
        assert link.device_times().copying_s == 6
        assert link.device_times().waiting_s == 0
        link.wait_copied(0)
        device.drain()
        assert link.device_times().waiting_s == 2  # the wait itself
        link.close()


@pytest.mark.usefixtures("driver")
def test_a_stream_over_a_device_reports_the_times_of_the_device() -> None:
    with simulated(3) as device:
        link = SimulatedCopy(CPU)
        stream = open_stream(link, 5, num_slots=2)
        for unit in range(5):
            read(device, stream, unit)
        device.drain()
        times = stream.times()
        device_times = link.device_times()
        assert times.link_busy_s == device_times.copying_s >= 7 * 3
        assert times.compute_waiting_s == device_times.waiting_s >= 5 * 2
        assert times.copied_bytes == sum(len(host_unit(copy % 5)) for copy in range(7))  # two copies run ahead
        stream.close()
        link.close()


def test_pairs_noted_by_one_thread_while_another_sums_are_all_counted() -> None:
    class Passed:
        def record(self, stream: object) -> None: ...

        def query(self) -> bool:
            return True

        def elapsed_time(self, other: object) -> float:
            return 1.0

    num_pairs = 20_000
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Passed())
        timer = EventTimer()
        stream = cast(torch.cuda.Stream, None)

        def note() -> None:
            for _ in range(num_pairs):
                timer.stop(timer.start(stream), stream)

        thread = threading.Thread(target=note)
        thread.start()
        while thread.is_alive():
            timer.total_s()
        thread.join()
        assert timer.total_s() == pytest.approx(num_pairs * 1e-3)


def test_an_error_of_the_device_in_any_copy_surfaces_in_enter(driver: Driver) -> None:
    for failing in range(8):

        class FailingCopy(SimulatedCopy):
            num_copies = 0

            def wait_source_free(self, slot_idx: int) -> None:
                type(self).num_copies += 1
                if self.num_copies > failing:  # noqa: B023 - used within this turn of the loop
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                super().wait_source_free(slot_idx)

        with pytest.raises(RuntimeError, match="illegal memory access"):
            wrong_reads(failing, FailingCopy, staged=(0, 1, 2, 3, 4))
        assert driver.registered == {}


def test_resident_memory_is_loaded_through_bounded_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.link.cuda._BOUNCE_BYTES", 1000)
    content = torch.arange(4321, dtype=torch.int64).to(torch.uint8)
    with simulated("compute first") as device:
        region = SimulatedCopy(CPU).load(SlowSource(content), 4321)
        assert names(device.compute) == []  # it has arrived when `load` returns
        assert torch.equal(region.as_subclass(Tensor), content)


# pinned memory


def test_host_memory_is_pinned_in_exact_size_and_given_back_once(driver: Driver) -> None:
    with simulated("copy first"):
        link = SimulatedCopy(CPU)
        regions = [link.allocate_host(num_bytes) for num_bytes in (1, 5000, 3 * 2**20 + 1, 0)]
        assert list(driver.registered.items()) == [(region.data_ptr(), len(region)) for region in regions[:3]]
        link.close()
        link.close()
        assert driver.registered == {}


def test_no_memory_is_given_back_under_a_copy_that_reads_it(driver: Driver) -> None:
    with simulated("compute first"):
        link = SimulatedCopy(CPU)
        link.copy(HostRange(link.allocate_host(8)), link.allocate(8), 0, 0.0)
        driver.before_unregister = lambda: names(link._copy_stream)
        link.close()
        assert driver.seen_before_unregister == [[]]


def test_memory_that_cannot_be_pinned_is_an_error_that_leaves_none_behind(driver: Driver) -> None:
    with simulated("copy first"):
        link = SimulatedCopy(CPU)
        driver.refuses = True
        with pytest.raises(PinningError, match="cudaHostRegister refused 5000 bytes: 2"):
            link.allocate_host(5000)
        assert driver.last_error == 0  # else the next kernel, which has nothing to do with it, would report it
        link.close()
