"""Seconds of a copy over each link and size, alone and beside a lane that computes, through the runtime's own links.

Files are those of the target's checkpoint, read from changing places into two slots that are used again and again.
Emulated links are what they state and are not measured.
"""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from planner.contracts.plan import CudaLink, DiskLink
from planner.contracts.profile import LinkMeasurement, LinkName
from runtime.checkpoint import Checkpoint, Layout
from runtime.link import FileRange, HostRange, Link, OpenFile, Source, open_link, page_aligned
from runtime.link.source import FileRun, Piece
from runtime.measure.spans import DeviceClock
from runtime.measure.spread import spread
from runtime.measure.twin import Truncation, Twin
from runtime.skeleton import build_skeleton

SIZES_BYTES = tuple(2**power for power in (16, 18, 20, 22, 24, 26, 28))
_LARGEST_DIRECT_BYTES = 64 * 2**20
_WARM_BYTES = 2**30  # of the checkpoint, which are kept in the page cache
_READ_AHEAD_BYTES = 8 * 2**20  # the kernel reads on behind a read; the next one shall not find its bytes there
_BACKGROUND_TOKENS = 4  # of the passes that compute meanwhile, as in verification

CudaPath = Literal["cuda", "cuda:pageable", "cuda:device_to_host", "cuda:pageable_device_to_host"]
CUDA_PATHS: tuple[CudaPath, ...] = get_args(CudaPath)
_PAGEABLE: tuple[CudaPath, ...] = ("cuda:pageable", "cuda:pageable_device_to_host")
_TO_HOST: tuple[CudaPath, ...] = ("cuda:device_to_host", "cuda:pageable_device_to_host")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyEffort:
    """How often each size is copied: for some seconds, within bounds; reads from the disk itself up to some bytes."""

    seconds_per_size: float
    least: int
    most: int
    direct_bytes: int

    def repetitions(self, copy_s: float) -> int:
        """Repetitions of a size whose copy takes so long."""
        return max(self.least, min(self.most, int(self.seconds_per_size / max(copy_s, 1e-9))))


FULL_COPIES = CopyEffort(seconds_per_size=0.15, least=5, most=25, direct_bytes=768 * 2**20)
QUICK_COPIES = CopyEffort(seconds_per_size=0.05, least=3, most=9, direct_bytes=192 * 2**20)

Copy = Callable[[int], float]  # makes the next copy of so many bytes and returns its seconds


def measure_disk(
    truncation: Truncation, mode: Literal["cached", "direct"], effort: CopyEffort, computing: Twin | None
) -> list[LinkMeasurement]:
    """Reads from the checkpoint into slots; `direct` drops what was read, so that each read is one of the disk."""
    is_direct = mode == "direct"
    with _sources(truncation, drops_pages=is_direct) as sources:
        sizes = [size for size in sources.sizes if not (is_direct and size > _LARGEST_DIRECT_BYTES)]
        link = open_link(DiskLink(mode=mode), torch.device("cpu"))
        copy = _copier(link, sources, max(sizes))
        if is_direct:
            sources.drop_pages()
            effort = _bounded(effort, sum(sizes))
        else:
            sources.warm_up()
        with _computing(computing):
            durations_s = _repeat(copy, sizes, effort)
    return _rows("disk:direct" if is_direct else "disk:cached", durations_s, is_loaded=computing is not None)


def measure_host_memory(effort: CopyEffort, computing: Twin | None) -> list[LinkMeasurement]:
    """Copies within host memory, from changing places; the bytes copied are counted once."""
    largest = SIZES_BYTES[-1]
    source, slot = page_aligned(largest).fill_(1), page_aligned(largest).fill_(0)
    starts = itertools.count()

    def copy(num_bytes: int) -> float:
        start = next(starts) * num_bytes % (largest - num_bytes + 1)
        copied = HostRange(source[start : start + num_bytes])
        began_s = time.perf_counter()
        copied.read_into(slot[:num_bytes])
        return time.perf_counter() - began_s

    with _computing(computing):
        durations_s = _repeat(copy, SIZES_BYTES, effort)
    return _rows("host_memory", durations_s, is_loaded=computing is not None)


def measure_cuda(
    device: torch.device, path: CudaPath, sizes: Sequence[int], effort: CopyEffort, computing: Twin | None
) -> list[LinkMeasurement]:
    """Copies between host and device, pinned or pageable memory, by the device's clock; `computing` is on the CPU.

    Raises: PinningError, where the system pins no buffer as large as the largest size.
    """
    link = open_link(CudaLink(), device)
    largest = max(sizes)
    slot = link.allocate(largest)
    region = page_aligned(largest) if path in _PAGEABLE else link.allocate_host(largest)
    region.fill_(1)
    clock = DeviceClock(device)

    def copy(num_bytes: int) -> float:
        if path == "cuda":
            times = link.device_times()
            assert times is not None
            link.copy(HostRange(region[:num_bytes]), slot[:num_bytes], 0, time.perf_counter())
            link.wait_source_free(0)
            now = link.device_times()
            assert now is not None
            return now.copying_s - times.copying_s
        clock.restart()
        start = clock.mark()
        source, destination = (slot, region) if path in _TO_HOST else (region, slot)
        destination[:num_bytes].copy_(source[:num_bytes], non_blocking=path not in _PAGEABLE)
        return clock.seconds(start, clock.mark())

    try:
        with _computing(computing):
            durations_s = _repeat(copy, sizes, effort)
    finally:
        link.close()
    return _rows(path, durations_s, is_loaded=computing is not None)


def region_sizes(truncation: Truncation) -> list[int]:
    """The sizes of a copy that matter: powers of four up to the model's, and the region of each shape of layer."""
    total_bytes = sum(entry.num_bytes for entry in truncation.folder.tensors.values())
    regions = {layer.region_bytes(truncation.dtype) for layer in truncation.layer_classes}
    return sorted(regions | {size for size in SIZES_BYTES if size <= total_bytes})


class _Sources:
    """Bytes of a checkpoint in units of any size, each time from another place."""

    def __init__(self, truncation: Truncation, checkpoint: Checkpoint, *, drops_pages: bool) -> None:
        self._drops_pages = drops_pages
        entries = truncation.folder.tensors.values()
        self._files = {path: OpenFile(path) for path in sorted({entry.file for entry in entries})}
        self._starts = {
            file: min(entry.offset_bytes for entry in entries if entry.file == path)
            for path, file in self._files.items()
        }
        self._stops = {
            file: max(entry.offset_bytes + entry.num_bytes for entry in entries if entry.file == path)
            for path, file in self._files.items()
        }
        self._layers = _layer_sources(truncation, checkpoint)
        self._largest = max(self._files.values(), key=self._num_bytes)
        sizes = {size for size in SIZES_BYTES if size <= self._num_bytes(self._largest)}
        self.sizes = sorted(sizes | set(self._layers))
        self._position = 0
        self._turns = itertools.count()

    def next(self, num_bytes: int) -> Source:
        """A source of so many bytes: a layer's own, where one has that size, else a stretch of the largest file."""
        if num_bytes in self._layers:
            layers = self._layers[num_bytes]
            return layers[next(self._turns) % len(layers)]
        start, span = self._starts[self._largest], min(self._num_bytes(self._largest), _WARM_BYTES)
        if self._position + num_bytes > span:
            self._position = 0
        run = FileRun(self._largest, start + self._position, (Piece(0, num_bytes),))
        self._position += num_bytes + (_READ_AHEAD_BYTES if self._drops_pages else 0)
        return FileRange((run,), self._drops_pages)

    def warm_up(self) -> None:
        """Read once what will be read, so that it lies in the page cache."""
        start, span = self._starts[self._largest], min(self._num_bytes(self._largest), _WARM_BYTES)
        slot = page_aligned(2**22)
        for position in range(0, span, slot.numel()):
            piece = Piece(0, min(slot.numel(), span - position))
            FileRange((FileRun(self._largest, start + position, (piece,)),)).read_into(slot)
        for size, layers in self._layers.items():
            region = page_aligned(size)
            for layer in layers:
                layer.read_into(region)

    def drop_pages(self) -> None:
        """Let the next read of any of the files come from the disk."""
        for file in self._files.values():
            os.fsync(file.descriptor)
            os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _num_bytes(self, file: OpenFile) -> int:
        return self._stops[file] - self._starts[file]


@contextmanager
def _sources(truncation: Truncation, *, drops_pages: bool) -> Iterator[_Sources]:
    skeleton = build_skeleton(truncation.folder, truncation.dtype, num_layers=truncation.shape.num_layers)
    with Checkpoint(truncation.folder, skeleton.model, drops_pages=drops_pages) as checkpoint:
        sources = _Sources(truncation, checkpoint, drops_pages=drops_pages)
        try:
            yield sources
        finally:
            sources.close()


def _layer_sources(truncation: Truncation, checkpoint: Checkpoint) -> dict[int, list[Source]]:
    """The layers' own sources, by the size of their region."""
    skeleton = build_skeleton(truncation.folder, truncation.dtype, num_layers=truncation.shape.num_layers)
    sources: dict[int, list[Source]] = {}
    for name, layer in skeleton.layers:
        layout = Layout.of(layer.named_parameters())
        sources.setdefault(layout.num_bytes, []).append(checkpoint.source(layout, prefix=f"{name}."))
    return sources


def _copier(link: Link, sources: _Sources, largest: int) -> Copy:
    slots = [link.allocate(largest).fill_(0) for _ in range(2)]
    turns = itertools.count()

    def copy(num_bytes: int) -> float:
        slot_idx = next(turns) % len(slots)
        slot = slots[slot_idx][:num_bytes]
        source = sources.next(num_bytes).prepared_for(slot)
        began_s = time.perf_counter()
        link.copy(source, slot, slot_idx, began_s)
        return time.perf_counter() - began_s

    return copy


def _repeat(copy: Copy, sizes: Sequence[int], effort: CopyEffort) -> dict[int, list[float]]:
    """Seconds of the copies by size; the sizes take turns, and the first copy of each does not count."""
    wanted = {size: effort.repetitions(copy(size)) for size in sizes}
    durations_s: dict[int, list[float]] = {size: [] for size in sizes}
    for repetition in range(max(wanted.values())):
        for size in sizes:
            if repetition < wanted[size]:
                durations_s[size].append(copy(size))
    return durations_s


def _rows(link: LinkName, durations_s: dict[int, list[float]], *, is_loaded: bool) -> list[LinkMeasurement]:
    return [
        LinkMeasurement(link=link, num_bytes=size, loaded=is_loaded, duration_s=spread(taken))
        for size, taken in durations_s.items()
    ]


def _bounded(effort: CopyEffort, bytes_per_turn: int) -> CopyEffort:
    """The effort with so few turns over all sizes that they read no more than allowed, but one at the least."""
    most = max(1, effort.direct_bytes // bytes_per_turn - 1)
    return CopyEffort(
        seconds_per_size=effort.seconds_per_size,
        least=min(effort.least, most),
        most=most,
        direct_bytes=effort.direct_bytes,
    )


def _computing(twin: Twin | None) -> AbstractContextManager[None]:
    return nullcontext() if twin is None else _passes_of(twin)


@contextmanager
def _passes_of(twin: Twin) -> Iterator[None]:
    """Within it a thread runs passes of a resident twin, back to back."""
    stop = threading.Event()
    errors: list[Exception] = []

    def run() -> None:
        try:
            twin.cached.reset()
            while not stop.is_set():
                twin.cached.forward([1] * _BACKGROUND_TOKENS, 1)
                twin.cached.reset()
        except Exception as error:  # noqa: BLE001 - handed to the thread that measures, which raises it
            errors.append(error)

    thread = threading.Thread(target=run, name="computing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]
