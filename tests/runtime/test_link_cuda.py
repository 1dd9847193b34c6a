"""The link to a CUDA device: the real CudaCopy, through the real Stream, on a simulated device that runs what was
enqueued in the worst order that streams and events allow; and on a true device, where there is one.
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import pytest
import torch
from torch import Tensor

from runtime.link import FileRange, HostRange, OpenFile, PinningError, Source
from runtime.link.cuda import CudaCopy, EventTimer
from runtime.link.source import FileRun, Piece
from runtime.weight_stream import Stream, StreamedUnit

pytestmark = pytest.mark.timeout(60)

TORN = 255  # what a slot holds while a copy writes it
Order = Literal["copy first", "compute first"] | int  # a number is the seed of a random order


# the simulated device


@dataclass(slots=True)
class Marker:
    """One recording of an event; waits are for the recording that was the latest when they were enqueued."""

    passed_at: int | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """What a stream does next: it blocks until the awaited marker has passed."""

    name: str
    run: Callable[[], object] = lambda: None
    awaited: Marker | None = None


class Device:
    """Two or more streams, of which any that is not blocked may run next. Nothing runs until somebody waits for it,
    but where the order is random also while work is enqueued.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._chance = random.Random(order if isinstance(order, int) else 0)
        self.lock = threading.RLock()
        self.num_run = 0  # the device's clock
        self.streams: list[SimulatedStream] = []
        self.compute = SimulatedStream(self)
        self.wrong: list[str] = []

    def run_until(self, is_done: Callable[[], bool]) -> None:
        with self.lock:
            while not is_done():
                assert self._step(), "the device stands still"

    def drain(self) -> None:
        self.run_until(lambda: not any(stream.queue for stream in self.streams))

    def progress(self) -> None:
        """What the device gets done between two calls of the host."""
        if isinstance(self._order, int):
            for _ in range(self._chance.choice((0, 0, 1, 5))):
                self._step()

    def _step(self) -> bool:
        ready = [stream for stream in self.streams if stream.is_ready()]
        if not ready:
            return False
        if isinstance(self._order, int):
            stream = self._chance.choice(ready)
        else:
            stream = ready[0] if self._order == "compute first" else ready[-1]
        stream.queue.popleft().run()
        self.num_run += 1
        return True


class SimulatedStream:
    """torch.cuda.Stream, as far as CudaCopy uses it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.queue: deque[Operation] = deque()
        device.streams.append(self)

    def is_ready(self) -> bool:
        if not self.queue:
            return False
        awaited = self.queue[0].awaited
        return awaited is None or awaited.passed_at is not None

    def enqueue(self, operation: Operation) -> None:
        with self.device.lock:
            self.queue.append(operation)
            self.device.progress()

    def wait_event(self, event: "SimulatedEvent") -> None:
        self.enqueue(Operation("wait", awaited=event.marker))

    def wait_stream(self, stream: "SimulatedStream") -> None:
        event = SimulatedEvent()
        event.record(stream)
        self.wait_event(event)

    def synchronize(self) -> None:
        self.device.run_until(lambda: not self.queue)


class SimulatedEvent:
    """torch.cuda.Event, as far as CudaCopy uses it; a second of device time is one operation."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._is_timed = enable_timing
        self.marker: Marker | None = None

    def record(self, stream: SimulatedStream) -> None:
        marker = self.marker = Marker()
        self._device = stream.device

        def pass_by() -> None:
            marker.passed_at = stream.device.num_run

        stream.enqueue(Operation("record", pass_by))

    def query(self) -> bool:
        return self.marker is None or self.marker.passed_at is not None

    def elapsed_time(self, stopped: "SimulatedEvent") -> float:
        assert self._is_timed
        assert stopped._is_timed
        assert self.marker is not None
        assert stopped.marker is not None
        assert self.marker.passed_at is not None
        assert stopped.marker.passed_at is not None
        return 1000.0 * (stopped.marker.passed_at - self.marker.passed_at)

    def synchronize(self) -> None:
        self._device.run_until(self.query)


class DeviceMemory(Tensor):
    """Memory of the simulated device: a copy into it is enqueued, and tears what was there before it is complete.

    A copy out of it is enqueued too.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func is not Tensor.copy_ or isinstance(args[0], DeviceMemory):
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        there, here = cast(Tensor, args[0]), cast(Tensor, args[1]).as_subclass(Tensor)
        stream = cast(SimulatedStream, torch.cuda.current_stream())
        stream.enqueue(Operation("read", lambda: there.copy_(here)))
        if not (kwargs or {}).get("non_blocking"):
            stream.synchronize()
        return there

    def copy_(self, other: Tensor, non_blocking: bool = False) -> Tensor:
        stream = cast(SimulatedStream, torch.cuda.current_stream())
        memory = self.as_subclass(Tensor)
        stream.enqueue(Operation("tear", lambda: memory.fill_(TORN)))
        stream.enqueue(Operation("write", lambda: memory.copy_(other)))
        if not non_blocking:
            stream.synchronize()
        return self


class SimulatedCopy(CudaCopy):
    """The real link, on the simulated device's memory."""

    def allocate(self, num_bytes: int) -> Tensor:
        return super().allocate(num_bytes).as_subclass(DeviceMemory)


class Driver:
    """The CUDA runtime's calls that pin memory, and its last error, which the next kernel reports and clears."""

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}  # address to bytes
        self.refuses = False
        self.last_error = 0
        self.before_unregister: Callable[[], list[str]] = list
        self.seen_before_unregister: list[list[str]] = []

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802 - CUDA's name
        if self.refuses:
            self.last_error = 2
            return 2
        self.registered[address] = num_bytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - CUDA's name
        self.seen_before_unregister.append(self.before_unregister())
        del self.registered[address]
        return 0

    def launch(self, *size: int, device: torch.device) -> Tensor:
        error, self.last_error = self.last_error, 0
        if error:
            raise RuntimeError(f"CUDA error: {error}")
        return torch.zeros(size, device=device) + 1


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch, "ones", driver.launch)
    return driver


@contextmanager
def simulated(order: Order) -> Iterator[Device]:
    """torch.cuda replaced by a simulated device."""
    device = Device(order)
    current = threading.local()

    @contextmanager
    def stream_context(stream: SimulatedStream) -> Iterator[None]:
        former = getattr(current, "stream", device.compute)
        current.stream = stream
        yield
        current.stream = former

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: SimulatedStream(device))
        monkeypatch.setattr(torch.cuda, "Event", SimulatedEvent)
        monkeypatch.setattr(torch.cuda, "stream", stream_context)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: getattr(current, "stream", device.compute))
        yield device


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


# a true device

NEEDS_DEVICE = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@NEEDS_DEVICE
@pytest.mark.parametrize("is_staged", [False, True], ids=["pinned", "staged from disk"])
@pytest.mark.parametrize("num_slots", [2, 3])
def test_a_device_reads_every_unit_in_fifty_passes(num_slots: int, is_staged: bool, tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    link = CudaCopy(device)
    contents = [torch.randint(256, (2**20 + 4096 * unit,), dtype=torch.uint8) for unit in range(7)]
    expected = [link.load(HostRange(content), len(content)) for content in contents]
    files, units = [], []
    for unit, content in enumerate(contents):
        path = tmp_path / f"unit-{unit}"
        path.write_bytes(content.numpy().tobytes())
        files.append(OpenFile(path))
        source: Source = FileRange((FileRun(files[-1], 0, (Piece(0, len(content)),)),))
        if not is_staged:
            region = link.allocate_host(len(content))
            source.read_into(region)
            source = HostRange(region)
        units.append(StreamedUnit(label=path.name, num_bytes=len(content), source=source, is_staged=is_staged))
    stream = Stream(link, units, num_slots=num_slots, num_staging_buffers=2, trace=None)
    num_wrong = torch.zeros((), dtype=torch.int64, device=device)
    busy = torch.eye(1024, device=device)
    for _ in range(50):
        for unit in range(7):
            slot = stream.slots[stream.enter(unit)][: len(contents[unit])]
            num_wrong += (slot != expected[unit]).sum()
            for _ in range(unit):
                busy = busy @ busy  # so that the host runs ahead of the device, by more in some units than in others
            num_wrong += (slot != expected[unit]).sum()
            stream.leave()
    torch.cuda.synchronize(device)
    times, device_times = stream.times(), link.device_times()
    stream.close()
    link.close()
    for file in files:
        file.close()
    assert num_wrong.item() == 0
    assert device_times.copying_s > 0
    assert device_times.waiting_s > 0
    assert times.copied_bytes >= 50 * sum(map(len, contents))


@pytest.mark.gpu
@NEEDS_DEVICE
def test_a_device_pins_memory_in_exact_size() -> None:
    link = CudaCopy(torch.device("cuda", 0))
    before = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
    region = link.allocate_host(3 * 2**20 + 1)
    assert region.is_pinned()
    assert len(region) == 3 * 2**20 + 1
    assert torch.cuda.host_memory_stats().get("allocated_bytes.current", 0) == before  # not the framework's allocator
    link.close()


@pytest.mark.gpu
@NEEDS_DEVICE
def test_a_device_that_refuses_to_pin_goes_on_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    link = CudaCopy(device)
    region = link.allocate_host(8192)
    monkeypatch.setattr("runtime.link.cuda.page_aligned", lambda _: region)  # pinned already, which is refused
    with pytest.raises(PinningError, match="cudaHostRegister refused 8192 bytes"):
        link.allocate_host(8192)
    assert (torch.zeros(4, device=device) + 1).sum().item() == 4
    link.close()
