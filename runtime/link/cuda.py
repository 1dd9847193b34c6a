"""The link to a CUDA device: copies from pinned host memory on a stream of their own, ordered by events alone.

No call here waits for the device, except `wait_source_free` on the copy thread and `load` before the run.
"""

import contextlib
from collections import deque

import torch
from torch import Tensor

from runtime.link.base import DeviceTimes, PinningError
from runtime.link.source import HostRange, Source, page_aligned

_BOUNCE_BYTES = 64 * 2**20


class EventTimer:
    """Sums the device time between pairs of events, once both have passed; never waits for them.

    Pairs of one stream pass in the order in which they were noted, perhaps by another thread than the one that sums.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._total_s = 0.0

    def start(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        """An event at the stream's present end."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return event

    def stop(self, started: torch.cuda.Event, stream: torch.cuda.Stream) -> None:
        """Count the device time from the event to the stream's present end."""
        self._pending.append((started, self.start(stream)))

    def total_s(self) -> float:
        """Seconds between all pairs that have passed."""
        while self._pending and self._pending[0][1].query():
            started, stopped = self._pending.popleft()
            self._total_s += started.elapsed_time(stopped) * 1e-3
        return self._total_s


class CudaCopy:
    """Pinned host memory to device slots by asynchronous copies."""

    is_asynchronous = True
    is_immediate = False
    label = "cuda"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copy_stream = torch.cuda.Stream(device)
        self._copied: dict[int, torch.cuda.Event] = {}
        self._freed: dict[int, torch.cuda.Event] = {}
        self._copying, self._waiting = EventTimer(), EventTimer()
        self._registered: list[Tensor] = []

    def allocate(self, num_bytes: int) -> Tensor:
        """Device memory, which the copy stream does not touch before its former users are done."""
        region = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        self._copy_stream.wait_stream(torch.cuda.current_stream(self.device))
        return region

    def allocate_host(self, num_bytes: int) -> Tensor:
        """Page-aligned memory in exact size, registered with the driver.

        The framework's own pinned allocator would round up to a power of two. Raises: PinningError.
        """
        region = page_aligned(num_bytes)
        if num_bytes:
            status = torch.cuda.cudart().cudaHostRegister(region.data_ptr(), num_bytes, 0)
            if int(status) != 0:
                with contextlib.suppress(RuntimeError):  # the next kernel would report this error, and clears it
                    torch.ones(1, device=self.device)
                raise PinningError(f"cudaHostRegister refused {num_bytes} bytes: {status}")
            self._registered.append(region)
        return region

    def load(self, source: Source, num_bytes: int) -> Tensor:
        """Device memory with the source's bytes, which pass through ordinary host memory once."""
        staged = page_aligned(num_bytes)
        source.read_into(staged)
        region = self.allocate(num_bytes)
        for start in range(0, num_bytes, _BOUNCE_BYTES):
            region[start : start + _BOUNCE_BYTES].copy_(staged[start : start + _BOUNCE_BYTES])
        return region

    def copy(self, source: Source, slot: Tensor, slot_idx: int, may_start_s: float) -> None:
        """Enqueue the copy behind the slot's last use; returns at once."""
        assert isinstance(source, HostRange)
        if slot_idx in self._freed:
            self._copy_stream.wait_event(self._freed[slot_idx])
        with torch.cuda.stream(self._copy_stream):
            started = self._copying.start(self._copy_stream)
            slot.copy_(source.region[: slot.numel()], non_blocking=True)
            self._copying.stop(started, self._copy_stream)
            self._copied.setdefault(slot_idx, torch.cuda.Event()).record(self._copy_stream)

    def wait_copied(self, slot_idx: int) -> None:
        """Enqueue the wait on the compute stream."""
        compute = torch.cuda.current_stream(self.device)
        started = self._waiting.start(compute)
        compute.wait_event(self._copied[slot_idx])
        self._waiting.stop(started, compute)

    def wait_source_free(self, slot_idx: int) -> None:
        """Block the calling thread until the slot's last copy has ended."""
        self._copied[slot_idx].synchronize()

    def mark_freed(self, slot_idx: int) -> None:
        """Record the end of the slot's use on the compute stream."""
        self._freed.setdefault(slot_idx, torch.cuda.Event()).record(torch.cuda.current_stream(self.device))

    def device_times(self) -> DeviceTimes:
        """Copying and waiting by the device's clock, of everything that has ended."""
        return DeviceTimes(copying_s=self._copying.total_s(), waiting_s=self._waiting.total_s())

    def close(self) -> None:
        """Wait for the copies under way and give the pinned memory back."""
        self._copy_stream.synchronize()
        for region in self._registered:
            torch.cuda.cudart().cudaHostUnregister(region.data_ptr())
        self._registered = []
