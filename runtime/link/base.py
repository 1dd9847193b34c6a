"""The interface of a link, and the two links that end in host memory: disk and emulated."""

import ctypes
import threading
import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from planner.contracts.errors import PlanMismatchError, ResourceFailureError
from planner.contracts.plan import CudaLink, DiskLink, EmulatedLink
from planner.contracts.quantities import format_bytes_per_s
from runtime.link.source import HostRange, Source, page_aligned

_PR_SET_TIMERSLACK = 29
_SLICE_BYTES = 2 * 2**20


class PinningError(ResourceFailureError):
    """The system will not pin this much host memory; copies must go through pinned bounce buffers."""

    def __init__(self, refusal: str) -> None:
        super().__init__(
            refusal,
            why="copies to the device run beside its compute only from pinned memory",
            remedy="raise the limit on locked memory (ulimit -l), or plan with a smaller --host-memory",
        )


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """Seconds by the device's own clock: copying, and the compute lane waiting for copies."""

    copying_s: float
    waiting_s: float


class Link(Protocol):
    """Moves bytes from a source to slot memory on the device; knows nothing of checkpoints or models.

    An asynchronous link returns from `copy` at once; the copy's end and the slot's release are then events on the
    device, which `wait_copied` and `mark_freed` enqueue.
    """

    label: str
    device: torch.device
    is_asynchronous: bool
    is_immediate: bool  # a copy takes no longer than moving its bytes does

    def allocate(self, num_bytes: int) -> Tensor:
        """Slot memory on the device: uint8, `num_bytes` long."""

    def allocate_host(self, num_bytes: int) -> Tensor:
        """Host memory that this link can copy from at its full speed: uint8, `num_bytes` long.

        Raises: PinningError, where the link needs pinned memory and the system gives none.
        """

    def load(self, source: Source, num_bytes: int) -> Tensor:
        """Memory on the device that holds the source's bytes for good."""

    def copy(self, source: Source, slot: Tensor, slot_idx: int, may_start_s: float) -> None:
        """Fill the slot; `may_start_s` is the time (perf_counter) at which the slot and the source became free."""

    def wait_copied(self, slot_idx: int) -> None:
        """Make the compute lane wait for the slot's last copy."""

    def wait_source_free(self, slot_idx: int) -> None:
        """Block until the slot's last copy has read its source to the end."""

    def mark_freed(self, slot_idx: int) -> None:
        """Note that everything the compute lane has been given so far may still read the slot, and nothing later."""

    def device_times(self) -> DeviceTimes | None:
        """Times by the device's clock so far; None where the host's clock sees every copy end."""

    def close(self) -> None:
        """Give back what the link holds."""


class HostLink:
    """What links that end in host memory share: `copy` blocks, so nothing is left to wait for."""

    device = torch.device("cpu")
    is_asynchronous = False
    is_immediate = False

    def allocate(self, num_bytes: int) -> Tensor:
        """Page-aligned memory in exact size."""
        return page_aligned(num_bytes)

    def allocate_host(self, num_bytes: int) -> Tensor:
        """Page-aligned memory in exact size."""
        return page_aligned(num_bytes)

    def load(self, source: Source, num_bytes: int) -> Tensor:
        """Page-aligned memory in exact size, filled from the source."""
        region = page_aligned(num_bytes)
        source.read_into(region)
        return region

    def wait_copied(self, slot_idx: int) -> None:
        """Nothing: the copy had ended when it was reported."""

    def wait_source_free(self, slot_idx: int) -> None:
        """Nothing: the copy had ended when it was reported."""

    def mark_freed(self, slot_idx: int) -> None:
        """Nothing: the compute lane runs in program order."""

    def device_times(self) -> None:
        """None: the host's clock sees every copy end."""

    def close(self) -> None:
        """Nothing is held."""


class DiskReader(HostLink):
    """Reads a source straight into the slot."""

    is_immediate = True

    def __init__(self, choice: DiskLink) -> None:
        self.label = f"disk ({choice.mode})"

    def copy(self, source: Source, slot: Tensor, slot_idx: int, may_start_s: float) -> None:
        """Read; blocks until the bytes are there."""
        source.read_into(slot)


class EmulatedCopy(HostLink):
    """A copy within host memory, paced so that each takes the stated latency plus bytes over bandwidth.

    The pace is kept by absolute times, as a hardware queue would: a copy starts when the one before it should have
    ended or when its slot became free, whichever is later, so that late wake-ups do not add up.
    """

    def __init__(self, choice: EmulatedLink) -> None:
        self.label = f"emulated {format_bytes_per_s(choice.bytes_per_s)}"
        self._choice = choice
        self._idle_since_s = 0.0
        self._punctual_thread: int | None = None

    def copy(self, source: Source, slot: Tensor, slot_idx: int, may_start_s: float) -> None:
        """Copy and sleep in turn, so that the bytes arrive spread over the stated time, as over a real link.

        One burst at the start would slow down what computes beside it by more than such a link does (docs/LOG.md).
        """
        self._wake_on_time()
        num_bytes = slot.numel()
        start_s = max(self._idle_since_s, may_start_s) + self._choice.latency_s
        self._idle_since_s = start_s + num_bytes / self._choice.bytes_per_s
        if isinstance(source, HostRange):
            for first in range(0, num_bytes - _SLICE_BYTES, _SLICE_BYTES):
                slot[first : first + _SLICE_BYTES].copy_(source.region[first : first + _SLICE_BYTES])
                _sleep_until(start_s + (first + _SLICE_BYTES) / self._choice.bytes_per_s)
            first = (num_bytes - 1) // _SLICE_BYTES * _SLICE_BYTES
            slot[first:].copy_(source.region[first:num_bytes])
        else:
            source.read_into(slot)
        late_s = _sleep_until(self._idle_since_s)
        self._idle_since_s += late_s  # the copy itself was slower than the stated bandwidth

    def _wake_on_time(self) -> None:
        """Let sleeps of this thread end when they should: by default the kernel may add 50 us to each."""
        if self._punctual_thread != threading.get_ident():
            self._punctual_thread = threading.get_ident()
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def _sleep_until(due_s: float) -> float:
    """Sleep until a time of perf_counter; seconds by which it had passed already."""
    remaining_s = due_s - time.perf_counter()
    if remaining_s > 0:
        time.sleep(remaining_s)
    return max(0.0, -remaining_s)


def open_link(choice: DiskLink | EmulatedLink | CudaLink, device: torch.device) -> Link:
    """The link that a plan names. Raises: PlanMismatchError, where this machine has no such link."""
    if isinstance(choice, CudaLink):
        if not torch.cuda.is_available():
            raise PlanMismatchError(
                "the plan's link cuda does not exist here",
                why="torch sees no CUDA device on this machine",
                remedy="use --link disk, or --link emulated:RATE to see how a device would behave",
            )
        from runtime.link.cuda import CudaCopy

        return CudaCopy(device)
    return DiskReader(choice) if isinstance(choice, DiskLink) else EmulatedCopy(choice)
