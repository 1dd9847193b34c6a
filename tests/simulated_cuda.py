"""A simulated CUDA device: it runs what was enqueued in the worst order that streams and events allow."""

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import pytest
import torch
from torch import Tensor

from runtime.link.cuda import CudaCopy

TORN = 255  # what a slot holds while a copy writes it
Order = Literal["copy first", "compute first"] | int  # a number is the seed of a random order


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
