"""Sources of bytes and the two links that end in host memory. The link to a CUDA device is in test_link_cuda."""

import errno
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planner.contracts.errors import PlanMismatchError, ResourceFailureError
from planner.contracts.plan import CudaLink, DiskLink, EmulatedLink
from runtime.link import FileRange, HostRange, OpenFile, Source, open_link, page_aligned
from runtime.link.base import DiskReader, EmulatedCopy
from runtime.link.source import FileRun, Piece, byte_view, read_scattered

CONTENT = torch.randint(256, (20_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LONG_AGO_NS = 10**18  # so that a write shows in the file's time, however coarse the kernel's clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    write(path, CONTENT)
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return path


@pytest.fixture
def file(path: Path) -> Iterator[OpenFile]:
    file = OpenFile(path)
    yield file
    file.close()


@pytest.fixture(scope="module")
def lasting_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenFile]:
    path = tmp_path_factory.mktemp("lasting") / "weights.safetensors"
    write(path, CONTENT)
    file = OpenFile(path)
    yield file
    file.close()


def write(path: Path, content: Tensor) -> None:
    path.write_bytes(content.numpy().tobytes())


def preadv_of_at_most(num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every read of the operating system a short one."""
    preadv = os.preadv

    def short_preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        assert len(buffers) <= os.sysconf("SC_IOV_MAX")
        taken, left = [], num_bytes
        for buffer in buffers:
            taken.append(buffer[:left])
            left -= len(taken[-1])
        return preadv(descriptor, taken, offset)

    monkeypatch.setattr(os, "preadv", short_preadv)


def in_pieces(file: OpenFile, file_offset: int, sizes: Sequence[int], order: Sequence[int]) -> FileRange:
    """Consecutive bytes of the file whose pieces lie in the region in the given order."""
    offsets = dict.fromkeys(order, 0)
    end = 0
    for piece in order:
        offsets[piece] = end
        end += sizes[piece]
    pieces = tuple(Piece(offsets[piece], size) for piece, size in enumerate(sizes))
    return FileRange((FileRun(file, file_offset, pieces),))


def content_in_pieces(file_offset: int, sizes: Sequence[int], order: Sequence[int]) -> Tensor:
    """What a region so read must hold."""
    parts = CONTENT[file_offset : file_offset + sum(sizes)].split(list(sizes))
    return torch.cat([parts[piece] for piece in order])


def read(source: FileRange, num_bytes: int) -> Tensor:
    region = page_aligned(num_bytes)
    source.read_into(region)
    return region


# reading files


@settings(max_examples=60, deadline=None)
@given(data=st.data(), limit=st.integers(1, 4000))
def test_scattered_pieces_of_a_file_arrive_in_place_however_short_the_reads(
    lasting_file: OpenFile, data: st.DataObject, limit: int
) -> None:
    sizes = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=20))
    order = data.draw(st.permutations(range(len(sizes))))
    offset = data.draw(st.integers(0, 10_000))
    with pytest.MonkeyPatch.context() as monkeypatch:
        preadv_of_at_most(limit, monkeypatch)
        region = read(in_pieces(lasting_file, offset, sizes, order), sum(sizes))
    assert torch.equal(region, content_in_pieces(offset, sizes, order))


@pytest.mark.parametrize("num_pieces", [1023, 1024, 1025, 2048, 5000])
def test_more_pieces_than_one_call_takes_arrive_in_place(file: OpenFile, num_pieces: int) -> None:
    sizes = [3] * num_pieces
    order = range(num_pieces - 1, -1, -1)
    assert torch.equal(read(in_pieces(file, 7, sizes, order), 3 * num_pieces), content_in_pieces(7, sizes, order))


def test_one_byte_at_a_time_is_enough(file: OpenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv_of_at_most(1, monkeypatch)
    assert torch.equal(read(in_pieces(file, 0, [5, 0, 2, 9], [3, 1, 0, 2]), 16)[:9], CONTENT[7:16])


def test_several_runs_fill_one_region_and_nothing_around_it(file: OpenFile) -> None:
    source = FileRange((FileRun(file, 100, (Piece(4, 6),)), FileRun(file, 50, (Piece(0, 4), Piece(12, 2)))))
    region = torch.full((20,), 7, dtype=torch.uint8)
    source.read_into(region)
    sevens = torch.full((6,), 7, dtype=torch.uint8)
    expected = [CONTENT[50:54], CONTENT[100:106], sevens[:2], CONTENT[54:56], sevens]
    assert torch.equal(region, torch.cat(expected))


def test_a_region_of_any_type_is_filled_byte_by_byte(file: OpenFile) -> None:
    region = torch.empty(8, 25, dtype=torch.bfloat16)
    FileRange((FileRun(file, 0, (Piece(0, 400),)),)).read_into(region)
    assert torch.equal(region.view(-1).view(torch.uint8), CONTENT[:400])


def test_nothing_is_read_for_pieces_without_bytes(file: OpenFile) -> None:
    read_scattered(file, [], 0)
    read_scattered(file, [memoryview(bytearray()), memoryview(bytearray())], 0)
    buffer = bytearray(2)
    read_scattered(file, [memoryview(bytearray()), memoryview(buffer), memoryview(bytearray())], 3)
    assert list(buffer) == CONTENT[3:5].tolist()


@pytest.mark.parametrize("limit", [10, 1_000_000])
def test_a_file_that_ends_amid_a_unit_is_an_error_that_names_it(
    path: Path, file: OpenFile, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv_of_at_most(limit, monkeypatch)
    with pytest.raises(ResourceFailureError, match=rf"{path.name} changed while the model was running"):
        read(in_pieces(file, len(CONTENT) - 100, [60, 60], [0, 1]), 120)


def test_a_disk_that_fails_is_an_error_that_names_the_file(
    path: Path, file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, buffers: object, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ResourceFailureError, match=rf"cannot read .*{path.name}\n.*Input/output error"):
        read(in_pieces(file, 0, [10], [0]), 10)


# files that change under the reader


def change_after_each_read(change: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv

    def preadv_then_change(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        num_read = preadv(descriptor, buffers, offset)
        change()
        return num_read

    monkeypatch.setattr(os, "preadv", preadv_then_change)


@pytest.mark.parametrize("unit", range(4))
@pytest.mark.parametrize("num_left", [0, 4999, 5000, 9999, 10_000, 19_999])
def test_a_truncated_file_is_an_error_in_the_next_read_of_any_of_its_units(
    path: Path, file: OpenFile, unit: int, num_left: int
) -> None:
    source = in_pieces(file, 5000 * unit, [5000], [0])
    assert torch.equal(read(source, 5000), content_in_pieces(5000 * unit, [5000], [0]))
    os.truncate(path, num_left)
    with pytest.raises(ResourceFailureError, match="truncated or written to"):
        read(source, 5000)


def test_a_file_overwritten_in_place_is_an_error_in_the_next_read(path: Path, file: OpenFile) -> None:
    source = in_pieces(file, 0, [100], [0])
    read(source, 100)
    with path.open("r+b") as stream:
        stream.seek(10_000)
        stream.write(b"other")
    with pytest.raises(ResourceFailureError, match=rf"{path.name} changed") as caught:
        read(source, 100)
    assert caught.value.exit_code == 6


def test_a_file_overwritten_during_the_read_is_an_error_in_that_read(
    path: Path, file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_after_each_read(lambda: write(path, CONTENT.flip(0)), monkeypatch)
    with pytest.raises(ResourceFailureError, match=rf"{path.name} changed"):
        read(in_pieces(file, 0, [100], [0]), 100)


def test_a_file_that_nobody_touched_is_not_replaced(file: OpenFile) -> None:
    file.check_unchanged()
    assert not file.was_replaced()


def test_a_replaced_file_is_read_on_as_it_was_opened(path: Path, file: OpenFile) -> None:
    other = path.with_name("other")
    write(other, CONTENT.flip(0))
    other.replace(path)
    assert torch.equal(read(in_pieces(file, 0, [20_000], [0]), 20_000), CONTENT)
    assert file.was_replaced()


def test_a_deleted_file_is_read_on_as_it_was_opened(path: Path, file: OpenFile) -> None:
    path.unlink()
    assert torch.equal(read(in_pieces(file, 0, [20_000], [0]), 20_000), CONTENT)
    assert file.was_replaced()


def test_a_link_that_leads_elsewhere_by_now_counts_as_replaced(path: Path) -> None:
    other, link = path.with_name("other"), path.with_name("link")
    write(other, CONTENT.flip(0))
    link.symlink_to(path)
    file = OpenFile(link)
    assert not file.was_replaced()
    link.unlink()
    link.symlink_to(other)
    assert torch.equal(read(in_pieces(file, 0, [100], [0]), 100), CONTENT[:100])
    assert file.was_replaced()
    file.close()


def test_pages_are_dropped_after_each_run_where_the_source_says_so(
    file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    advised = []
    posix_fadvise = os.posix_fadvise

    def advise(descriptor: int, offset: int, num_bytes: int, advice: int) -> None:
        advised.append((descriptor, offset, num_bytes, advice))
        posix_fadvise(descriptor, offset, num_bytes, advice)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    runs = (FileRun(file, 4096, (Piece(0, 10), Piece(30, 20))), FileRun(file, 0, (Piece(10, 20),)))
    kept = read(FileRange(runs), 50)
    assert advised == []
    dropped = read(FileRange(runs, drops_pages=True), 50)
    assert advised == [
        (file.descriptor, 4096, 30, os.POSIX_FADV_DONTNEED),
        (file.descriptor, 0, 20, os.POSIX_FADV_DONTNEED),
    ]
    assert torch.equal(kept, dropped)


def test_a_closed_file_has_given_its_descriptor_back(path: Path) -> None:
    file = OpenFile(path)
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.descriptor)


# host memory


@pytest.mark.parametrize("num_bytes", [0, 1, 4095, 4096, 4097, 1_000_003])
def test_page_aligned_memory_is_aligned_zeroed_and_exact(num_bytes: int) -> None:
    region = page_aligned(num_bytes)
    assert (region.dtype, tuple(region.shape)) == (torch.uint8, (num_bytes,))
    assert region.data_ptr() % mmap.PAGESIZE == 0
    assert not region.any()
    region.fill_(255)
    assert len(byte_view(region)) == num_bytes


def test_a_kernel_without_huge_pages_gives_page_aligned_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory(mmap.mmap):
        def madvise(self, *_: object) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(mmap, "mmap", Memory)
    assert page_aligned(5000).data_ptr() % mmap.PAGESIZE == 0


def test_a_host_range_fills_the_front_of_a_region() -> None:
    region = torch.zeros(8, dtype=torch.uint8)
    HostRange(CONTENT[:5]).read_into(region)
    assert torch.equal(region, torch.cat([CONTENT[:5], torch.zeros(3, dtype=torch.uint8)]))


# links that end in host memory


@pytest.mark.parametrize("choice", [DiskLink(), EmulatedLink(bytes_per_s=1e12)], ids=["disk", "emulated"])
def test_a_link_fills_slots_and_loads_what_stays(choice: DiskLink | EmulatedLink, file: OpenFile) -> None:
    link = open_link(choice, torch.device("cpu"))
    source = in_pieces(file, 1000, [500, 300], [1, 0])
    expected = content_in_pieces(1000, [500, 300], [1, 0])
    slot = link.allocate(900)
    link.copy(source, slot[:800], 0, 0.0)
    link.wait_copied(0)
    link.wait_source_free(0)
    link.mark_freed(0)
    assert torch.equal(slot[:800], expected)
    assert torch.equal(link.load(source, 800), expected)
    assert link.allocate_host(33).numel() == 33
    assert link.device_times() is None
    assert not link.is_asynchronous
    link.close()


def test_links_are_labelled_and_an_emulated_one_says_that_it_is() -> None:
    assert DiskReader(DiskLink(mode="direct")).label == "disk (direct)"
    assert EmulatedCopy(EmulatedLink(bytes_per_s=25e9)).label == "emulated 25.00 GB/s"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_plan_for_cuda_is_refused_where_there_is_no_device() -> None:
    with pytest.raises(
        PlanMismatchError, match=r"link cuda does not exist here\n.*no CUDA device.*\n.*--link emulated:"
    ):
        open_link(CudaLink(), torch.device("cuda"))


# the pace of the emulated link

LATENCY_S, BYTES_PER_S = 0.25, 4096.0
COPY_S = 0.5  # 1024 bytes at 4096 bytes/s, and the latency: exact in binary, as all times below


class Pace:
    """An emulated link under a clock that only sleeping and reading move; wake-ups come late by `late_s`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, late_s: float = 0.0, read_s: float = 0.0) -> None:
        self.now_s, self.late_s, self.read_s = 100.0, late_s, read_s
        self.link = EmulatedCopy(EmulatedLink(bytes_per_s=BYTES_PER_S, latency_s=LATENCY_S))
        clock = SimpleNamespace(perf_counter=lambda: self.now_s, sleep=self.sleep)
        monkeypatch.setattr("runtime.link.base.time", clock)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds + self.late_s

    def prepared_for(self, region: Tensor) -> Source:
        return self

    def read_into(self, region: Tensor) -> None:
        self.now_s += self.read_s

    def copy(self, may_start_s: float, num_bytes: int = 1024) -> float:
        """When a copy ends that may start at the given time."""
        self.link.copy(self, torch.empty(num_bytes, dtype=torch.uint8), 0, may_start_s)
        return self.now_s


def test_copies_back_to_back_take_latency_plus_bytes_over_bandwidth_each(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(monkeypatch, read_s=0.125)
    assert [pace.copy(100.0) for _ in range(50)] == [100.0 + COPY_S * (copy + 1) for copy in range(50)]


def test_each_copy_takes_the_time_of_its_own_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(monkeypatch)
    # 0, 512 and 8192 bytes: 0.25 + 0, 0.25 + 0.125, 0.25 + 2
    assert [pace.copy(100.0, num_bytes) for num_bytes in (0, 512, 8192)] == [100.25, 100.625, 102.875]


def test_late_wake_ups_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(monkeypatch, late_s=0.125)
    assert [pace.copy(100.0) for _ in range(50)] == [100.125 + COPY_S * (copy + 1) for copy in range(50)]


def test_a_slot_that_is_freed_late_delays_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(monkeypatch)
    assert pace.copy(100.0) == 100.5
    pace.now_s = 103.0
    assert pace.copy(102.0) == 103.0  # freed at 102 and noticed at 103: the copy ended at 102.5, just noticed
    assert pace.copy(103.25) == 103.75


def test_a_slot_that_was_free_all_along_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(monkeypatch)
    assert pace.copy(100.0) == 100.5
    pace.now_s = 100.75  # the lane woke up late
    assert pace.copy(99.0) == 101.0


def test_a_copy_slower_than_the_stated_bandwidth_pushes_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(monkeypatch, read_s=2.0)
    assert pace.copy(100.0) == 102.0
    pace.read_s = 0.0
    assert [pace.copy(100.0) for _ in range(2)] == [102.5, 103.0]
