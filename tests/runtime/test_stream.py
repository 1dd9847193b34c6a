"""The stream of weights over links that end in host memory, with and without staging buffers.

Streams over a device, and the events between copies and kernels, are in test_link_cuda; the ring's rules in test_slots.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from planner.contracts.errors import ResourceFailureError
from planner.contracts.plan import DiskLink, EmulatedLink
from runtime.link import FileRange, HostRange, Link, OpenFile, Source
from runtime.link.base import DiskReader, EmulatedCopy, HostLink
from runtime.link.source import FileRun, Piece
from runtime.trace import Trace
from runtime.weight_stream import Stream, StreamedUnit

pytestmark = pytest.mark.timeout(60)

SIZES = [(1, 1), (1, 3), (2, 1), (2, 3), (2, 4), (3, 2), (3, 7), (4, 6)]


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes that are torn while they are read, and what is called before each read."""

    content: Tensor
    before: Callable[[], object] = lambda: None

    def prepared_for(self, region: Tensor) -> Source:
        return self

    def read_into(self, region: Tensor) -> None:
        self.before()
        region.fill_(0)
        region.copy_(self.content)


class RecordingLink(HostLink):
    """A link within host memory that notes every call, with the name of the thread."""

    label = "recording"

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.copies: list[tuple[str, float]] = []  # the source's class, and when the copy was allowed to start
        self.allocated: list[int] = []
        self.allocated_host: list[int] = []

    def allocate(self, num_bytes: int) -> Tensor:
        self.allocated.append(num_bytes)
        return super().allocate(num_bytes)

    def allocate_host(self, num_bytes: int) -> Tensor:
        self.allocated_host.append(num_bytes)
        return super().allocate_host(num_bytes)

    def copy(self, source: Source, slot: Tensor, slot_idx: int, may_start_s: float) -> None:
        self.copies.append((type(source).__name__, may_start_s))
        source.read_into(slot)
        self.calls.append(("copy", slot_idx))

    def wait_copied(self, slot_idx: int) -> None:
        self.calls.append(("wait_copied", slot_idx))

    def wait_source_free(self, slot_idx: int) -> None:
        self.calls.append(("wait_source_free", slot_idx))

    def mark_freed(self, slot_idx: int) -> None:
        self.calls.append(("mark_freed", slot_idx))


def unit_bytes(unit: int) -> Tensor:
    """The content of a unit; no two units are of the same size, nor is any zero."""
    generator = torch.Generator().manual_seed(unit)
    return torch.randint(1, 256, (300 - 37 * unit,), dtype=torch.uint8, generator=generator)


def open_stream(
    link: Link,
    sources: Sequence[Source],
    *,
    num_slots: int = 2,
    staged: Sequence[int] = (),
    num_staging_buffers: int = 1,
    trace: Trace | None = None,
) -> Stream:
    units = [
        StreamedUnit(label=f"layer {unit}", num_bytes=len(unit_bytes(unit)), source=source, is_staged=unit in staged)
        for unit, source in enumerate(sources)
    ]
    return Stream(link, units, num_slots=num_slots, num_staging_buffers=num_staging_buffers, trace=trace)


def contents(num_units: int) -> list[Source]:
    return [Content(unit_bytes(unit)) for unit in range(num_units)]


def read(stream: Stream, unit: int, *, is_left: bool = True) -> None:
    """One unit's turn on the compute lane; poisons the slot before it is freed."""
    slot = stream.slots[stream.enter(unit)]
    assert torch.equal(slot[: len(unit_bytes(unit))], unit_bytes(unit))
    slot.fill_(0)
    if is_left:
        stream.leave()


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[OpenFile]]:
    """One file per unit, of seven."""
    files = []
    for unit in range(7):
        path = tmp_path / f"shard-{unit}"
        path.write_bytes(unit_bytes(unit).numpy().tobytes())
        os.utime(path, ns=(10**18, 10**18))  # so that a write shows in the time, however coarse the kernel's clock
        files.append(OpenFile(path))
    yield files
    for file in files:
        file.close()


def ranges(files: Sequence[OpenFile], *, drops_pages: bool = False) -> list[Source]:
    return [
        FileRange((FileRun(file, 0, (Piece(0, len(unit_bytes(unit))),)),), drops_pages)
        for unit, file in enumerate(files)
    ]


# content


@pytest.mark.parametrize(("num_slots", "num_units"), SIZES)
@pytest.mark.parametrize("mode", ["cached", "direct"])
def test_units_on_disk_lie_in_their_slots_in_every_pass(
    num_slots: int, num_units: int, mode: str, files: list[OpenFile]
) -> None:
    link = DiskReader(DiskLink())
    stream = open_stream(link, ranges(files[:num_units], drops_pages=mode == "direct"), num_slots=num_slots)
    for _ in range(10):
        for unit in range(num_units):
            read(stream, unit)
    stream.close()


@pytest.mark.parametrize(("num_slots", "num_units"), SIZES)
def test_units_in_host_memory_lie_in_their_slots_in_every_pass(num_slots: int, num_units: int) -> None:
    link = EmulatedCopy(EmulatedLink(bytes_per_s=1e7))
    sources = [HostRange(unit_bytes(unit)) for unit in range(num_units)]
    stream = open_stream(link, sources, num_slots=num_slots)
    for _ in range(10):
        for unit in range(num_units):
            read(stream, unit)
    stream.close()


@pytest.mark.parametrize("num_slots", [1, 2, 3])
@pytest.mark.parametrize("num_staging_buffers", [1, 2, 3])
def test_units_of_every_mixture_of_staged_and_unstaged_lie_in_their_slots(
    num_slots: int, num_staging_buffers: int
) -> None:
    for mixture in product([False, True], repeat=4):
        staged = [unit for unit in range(4) if mixture[unit]]
        stream = open_stream(
            RecordingLink(),
            contents(4),
            num_slots=num_slots,
            staged=staged,
            num_staging_buffers=num_staging_buffers,
        )
        for _ in range(5):
            for unit in range(4):
                read(stream, unit)
        stream.close()


def test_units_staged_from_disk_files_lie_in_their_slots(files: list[OpenFile]) -> None:
    link = EmulatedCopy(EmulatedLink(bytes_per_s=1e7))
    stream = open_stream(link, ranges(files), num_slots=3, staged=range(0, 7, 2), num_staging_buffers=2)
    for _ in range(10):
        for unit in range(7):
            read(stream, unit)
    stream.close()


def test_slots_and_staging_buffers_are_as_large_as_the_largest_unit_that_uses_them_and_no_more_than_needed() -> None:
    link = RecordingLink()
    open_stream(link, contents(4), num_slots=3, staged=[1, 3], num_staging_buffers=5).close()
    assert link.allocated == [300] * 3  # unit 0
    assert link.allocated_host == [263] * 2  # unit 1; two units are staged
    link = RecordingLink()
    open_stream(link, contents(2), num_slots=3, num_staging_buffers=5).close()
    assert (link.allocated, link.allocated_host) == ([300] * 2, [])


def test_a_staged_unit_is_read_from_disk_once_for_each_copy_of_it() -> None:
    reads: list[None] = []
    link = RecordingLink()
    sources = [Content(unit_bytes(unit), before=lambda: reads.append(None)) for unit in range(4)]
    stream = open_stream(link, sources, num_slots=2, staged=range(4), num_staging_buffers=3)
    for use in range(20):
        read(stream, use % 4)
    stream.close()
    assert len(reads) <= len(link.copies) + 3  # as many as there are buffers were read ahead


# aborted passes


@pytest.mark.parametrize("staged", [(), (0, 1, 2, 3), (1, 2), (3,)], ids=str)
@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_a_pass_aborted_at_any_unit_is_followed_by_whole_ones(num_slots: int, staged: tuple[int, ...]) -> None:
    stream = open_stream(RecordingLink(), contents(4), num_slots=num_slots, staged=staged, num_staging_buffers=2)
    for num_read in range(1, 5):
        for is_left in (True, False):
            for unit in range(num_read):
                read(stream, unit, is_left=is_left or unit < num_read - 1)
            for unit in range(4):
                read(stream, unit)
    stream.close()


def test_the_slot_of_a_unit_that_was_never_left_is_marked_as_freed_when_the_next_pass_begins() -> None:
    link = RecordingLink()
    stream = open_stream(link, contents(3))
    read(stream, 0)
    read(stream, 1, is_left=False)
    num_calls = len(link.calls)
    read(stream, 0)
    assert ("mark_freed", 1) in link.calls[num_calls:]
    stream.close()


def test_leaving_twice_frees_once() -> None:
    link = RecordingLink()
    stream = open_stream(link, contents(3))
    stream.leave()
    read(stream, 0)
    stream.leave()
    read(stream, 1)
    assert [call for call in link.calls if call[0] == "mark_freed"] == [("mark_freed", 0), ("mark_freed", 1)]
    stream.close()


# the link's calls


def test_each_use_waits_for_its_copy_and_marks_its_slot_and_only_staged_copies_wait_for_their_source() -> None:
    link = RecordingLink()
    stream = open_stream(link, contents(3), num_slots=1, staged=[1])
    for _ in range(2):
        for unit in range(3):
            read(stream, unit)
    stream.close()
    use = [("wait_copied", 0), ("mark_freed", 0)]
    unstaged, staged = [("copy", 0), *use], [("copy", 0), ("wait_source_free", 0), *use]
    one_pass = [*unstaged, *staged, *unstaged]
    assert link.calls[: 2 * len(one_pass)] == 2 * one_pass
    assert [source for source, _ in link.copies[:3]] == ["Content", "HostRange", "Content"]


@pytest.mark.parametrize("staged", [(), (0, 1, 2)], ids=["unstaged", "staged"])
def test_a_copy_may_start_when_its_slot_is_free_and_its_source_is_there_but_not_before(staged: tuple[int, ...]) -> None:
    freed_s, read_s = [], []

    class SlowDisk(Content):
        def prepared_for(self, region: Tensor) -> Source:
            return self

        def read_into(self, region: Tensor) -> None:
            time.sleep(1e-3)
            Content.read_into(self, region)
            read_s.append(time.perf_counter())

    link = RecordingLink()
    before_s = time.perf_counter()
    sources = [SlowDisk(unit_bytes(unit)) for unit in range(3)]
    stream = open_stream(link, sources, num_slots=2, staged=staged, num_staging_buffers=2)
    for use in range(9):
        stream.enter(use % 3)
        freed_s.append(time.perf_counter())
        stream.leave()
    stream.close()
    for copy, (_, may_start_s) in enumerate(link.copies):
        assert may_start_s >= (before_s if copy < 2 else freed_s[copy - 2])
        if staged:
            assert may_start_s >= read_s[copy]


# errors


@pytest.mark.parametrize("staged", [(), (0, 1, 2, 3), (1, 3)], ids=str)
@pytest.mark.parametrize("failing", range(4))
def test_an_error_of_any_source_surfaces_in_enter_and_in_every_later_one(failing: int, staged: tuple[int, ...]) -> None:
    def fail() -> None:
        raise ResourceFailureError("no disk", why="it was unplugged", remedy="plug it in")

    sources = contents(4)
    sources[failing] = Content(unit_bytes(failing), before=fail)
    link = RecordingLink()
    stream = open_stream(link, sources, staged=staged, num_staging_buffers=2)
    num_read = 0

    def read_for_ever() -> None:
        nonlocal num_read
        while True:
            read(stream, num_read % 4)
            num_read += 1

    with pytest.raises(ResourceFailureError, match="no disk"):
        read_for_ever()
    assert num_read <= failing
    stream.leave()
    for unit in range(4):
        with pytest.raises(ResourceFailureError, match="no disk"):
            stream.enter(unit)
        stream.leave()
    assert [call for call, _ in link.calls].count("mark_freed") == num_read
    stream.close()


def test_an_error_of_the_link_in_enter_leaves_no_unit_entered() -> None:
    class FailingOnce(RecordingLink):
        has_failed = False

        def wait_copied(self, slot_idx: int) -> None:
            if not self.has_failed and len(self.calls) > 5:
                self.has_failed = True
                raise RuntimeError("device lost")
            super().wait_copied(slot_idx)

    link = FailingOnce()
    stream = open_stream(link, contents(3))

    def read_for_ever() -> None:
        while True:
            for unit in range(3):
                read(stream, unit)

    with pytest.raises(RuntimeError, match="device lost"):
        read_for_ever()
    num_marked = link.calls.count(("mark_freed", 0)) + link.calls.count(("mark_freed", 1))
    stream.leave()
    assert link.calls.count(("mark_freed", 0)) + link.calls.count(("mark_freed", 1)) == num_marked
    for unit in range(3):
        read(stream, unit)  # the next pass is whole
    stream.close()


def truncate(path: Path) -> None:
    os.truncate(path, 10)


def overwrite(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(b"other")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"other")
    other.replace(path)


@pytest.mark.parametrize("staged", [(), range(7)], ids=["read into slots", "staged"])
@pytest.mark.parametrize("change", [truncate, overwrite])
@pytest.mark.parametrize("changed", range(7))
def test_a_file_that_changes_while_streaming_is_an_error_within_one_pass(
    changed: int, change: Callable[[Path], None], staged: Sequence[int], files: list[OpenFile]
) -> None:
    link = DiskReader(DiskLink())
    stream = open_stream(link, ranges(files), num_slots=2, staged=staged)
    for unit in range(7):
        read(stream, unit)
    change(files[changed].path)

    def read_a_pass_and_what_was_copied_ahead() -> None:
        for use in range(7 + 2 + 1):
            read(stream, use % 7)

    with pytest.raises(ResourceFailureError, match=rf"shard-{changed} changed while the model was running"):
        read_a_pass_and_what_was_copied_ahead()
    stream.close()


@pytest.mark.parametrize("changed", range(7))
def test_a_file_that_is_replaced_while_streaming_is_read_on_as_it_was(changed: int, files: list[OpenFile]) -> None:
    stream = open_stream(DiskReader(DiskLink()), ranges(files))
    for use in range(21):
        if use == 7:
            replace(files[changed].path)
        read(stream, use % 7)
    assert [file.was_replaced() for file in files] == [unit == changed for unit in range(7)]
    stream.close()


# closing


@pytest.mark.parametrize("staged", [(), (0, 1, 2)], ids=["unstaged", "staged"])
def test_close_wakes_an_enter_that_waits_and_ends_the_threads(staged: tuple[int, ...]) -> None:
    gate, is_reading = threading.Event(), threading.Event()

    def hold() -> None:
        is_reading.set()
        gate.wait()

    sources = [Content(unit_bytes(unit), before=hold) for unit in range(3)]
    stream = open_stream(RecordingLink(), sources, staged=staged)
    errors = []

    def wait() -> None:
        try:
            stream.enter(0)
        except RuntimeError as error:
            errors.append(str(error))

    consumer = threading.Thread(target=wait, daemon=True)
    closer = threading.Thread(target=stream.close, daemon=True)
    is_reading.wait()
    consumer.start()
    closer.start()
    consumer.join()  # while the read goes on
    gate.set()
    closer.join()
    assert errors == ["the stream of weights is closed"]


@pytest.mark.parametrize("staged", [(), (0, 1, 2), (1,)], ids=str)
@pytest.mark.parametrize("num_read", [0, 1, 2, 5])
def test_a_stream_can_be_closed_at_any_time_and_gives_out_nothing_afterwards(
    num_read: int, staged: tuple[int, ...]
) -> None:
    stream = open_stream(RecordingLink(), contents(3), staged=staged)
    for use in range(num_read):
        read(stream, use % 3)
    stream.close()
    stream.close()
    with pytest.raises(RuntimeError, match="the stream of weights is closed"):
        stream.enter(num_read % 3)
    stream.leave()


# times and traces


@pytest.mark.parametrize("staged", [(), (0, 1, 2), (1,)], ids=str)
def test_the_links_times_add_up_to_the_time_since_opening_at_any_moment(staged: tuple[int, ...]) -> None:
    before_s = time.perf_counter()
    sources = [Content(unit_bytes(unit), before=lambda: time.sleep(1e-4)) for unit in range(3)]
    stream = open_stream(RecordingLink(), sources, staged=staged, num_staging_buffers=2)
    after_s = time.perf_counter()
    for use in range(100):
        read(stream, use % 3)
        asked_s = time.perf_counter()
        times = stream.times()
        open_s = times.link_busy_s + times.link_waiting_for_slot_s + times.link_waiting_for_disk_s
        assert asked_s - after_s - 1e-9 <= open_s <= time.perf_counter() - before_s + 1e-9
        assert min(times.link_busy_s, times.link_waiting_for_slot_s, times.link_waiting_for_disk_s) >= 0
        assert 0 <= times.compute_waiting_s <= time.perf_counter() - after_s
    stream.close()
    assert (times.link_waiting_for_disk_s > 0) == (len(staged) > 0)


def test_a_link_that_waits_for_the_disk_is_not_busy_and_compute_waits_with_it() -> None:
    gate, has_copied = threading.Event(), threading.Event()
    sources: list[Source] = [Content(unit_bytes(0), before=has_copied.set), Content(unit_bytes(1), before=gate.wait)]
    stream = open_stream(RecordingLink(), sources, staged=[1])
    has_copied.wait()
    read(stream, 0)
    opener = threading.Timer(0.05, gate.set)
    opener.start()
    read(stream, 1)
    opener.join()
    times = stream.times()
    stream.close()
    assert times.link_waiting_for_disk_s > 0.02  # 0.05, less what the link's thread took to get there
    assert times.compute_waiting_s > 0.02
    assert times.link_busy_s < times.link_waiting_for_disk_s


def test_copied_bytes_are_those_of_every_copy_that_was_made() -> None:
    link = RecordingLink()
    stream = open_stream(link, contents(3), num_slots=1, staged=[2])
    for use in range(7):
        read(stream, use % 3)
    stream.close()
    num_copies = len(link.copies)
    assert num_copies in (7, 8)
    assert stream.times().copied_bytes == sum(len(unit_bytes(copy % 3)) for copy in range(num_copies))


def test_the_trace_has_a_span_for_every_copy_and_every_use_in_their_order() -> None:
    trace = Trace()
    stream = open_stream(RecordingLink(), contents(3), num_slots=2, staged=[1], trace=trace)
    for use in range(6):
        read(stream, use % 3)
    stream.close()
    events = json.loads(trace.to_json("test"))["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans: dict[str, list[tuple[str, float, float]]] = {"link": [], "compute": []}
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            spans[lanes[event["tid"]]].append((event["name"], event["ts"], event["ts"] + event["dur"]))
    assert [name for name, _, _ in spans["compute"]] == [f"layer {use % 3}" for use in range(6)]
    assert [name for name, _, _ in spans["link"]] == [f"layer {use % 3}" for use in range(len(spans["link"]))]
    rounding_us = 0.002
    for lane in spans.values():
        for (_, _, stop_us), (_, start_us, _) in pairwise(lane):
            assert start_us >= stop_us - rounding_us  # one thing at a time
    for (_, _, copied_us), (_, used_us, _) in zip(spans["link"], spans["compute"], strict=False):
        assert used_us >= copied_us - rounding_us
