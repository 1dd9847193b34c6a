"""When each unit of a pass computes: marks at the units' edges, within the waits of the stream, by the device's clock.

A host clock sees what the host does, which on a CPU is the compute; on a CUDA device marks are events on its stream.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from runtime.parts import can_split, mlp_of
from runtime.skeleton import Skeleton

SpanKind = Literal["layer", "mlp", "head_chunk", "embedding"]  # an MLP within its layer


class Clock(Protocol):
    """Marks on the compute lane, and the seconds between two of them."""

    def mark(self) -> int:
        """The number of a new mark at the lane's present end."""

    def seconds(self, start: int, stop: int) -> float:
        """Seconds between two marks; waits until both have passed."""

    def restart(self) -> None:
        """Forget all marks; they count from 0 again."""


class HostClock:
    """Marks of time.perf_counter."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> int:
        """Now."""
        self._marks.append(time.perf_counter())
        return len(self._marks) - 1

    def seconds(self, start: int, stop: int) -> float:
        """Seconds between two marks."""
        return self._marks[stop] - self._marks[start]

    def restart(self) -> None:
        """Forget all marks."""
        self._marks = []


class DeviceClock:
    """Events on the compute stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> int:
        """An event behind everything that the compute stream has been given so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)
        return len(self._marks) - 1

    def seconds(self, start: int, stop: int) -> float:
        """Seconds of the device between two events; waits for the later one."""
        self._marks[stop].synchronize()
        return float(self._marks[start].elapsed_time(self._marks[stop])) * 1e-3

    def restart(self) -> None:
        """Forget all events."""
        self._marks = []


def clock_of(device: torch.device) -> Clock:
    """The clock that sees what a device computes."""
    return DeviceClock(device) if device.type == "cuda" else HostClock()


@dataclass(frozen=True, slots=True)
class Span:
    """One unit's seconds in one pass; of a head chunk, its index counts the chunks of the pass."""

    kind: SpanKind
    index: int
    duration_s: float


class SpanRecorder:
    """Takes the spans of the units of a skeleton's passes while it is attached."""

    def __init__(self, skeleton: Skeleton, clock: Clock) -> None:
        self._skeleton = skeleton
        self._clock = clock
        self._edges: list[tuple[SpanKind, int, int, int]] = []
        self._starts: list[int] = []
        self._num_chunks = 0
        self._mlps = [] if not can_split(skeleton) else [mlp_of(name, layer) for name, layer in skeleton.layers]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it passes are recorded: after the stream's wait for a unit and before it is given up."""
        self._edges, self._starts, self._num_chunks = [], [], 0
        with ExitStack() as hooks:
            for index, (_, layer) in enumerate(self._skeleton.layers):
                self._hook(hooks, layer, "layer", index, is_outermost=False)
            for index, mlp in enumerate(self._mlps):
                self._hook(hooks, mlp, "mlp", index, is_outermost=False)
            self._hook(hooks, self._skeleton.embedding, "embedding", 0, is_outermost=True)
            self._time_head(hooks)
            yield

    def spans(self) -> tuple[Span, ...]:
        """The spans of the last attachment."""
        return tuple(Span(kind, index, self._clock.seconds(start, stop)) for kind, index, start, stop in self._edges)

    def _hook(self, hooks: ExitStack, module: nn.Module, kind: SpanKind, index: int, *, is_outermost: bool) -> None:
        """Hooks innermost, as beside a layer's waits; or outermost, so that an embedding's gathering counts."""

        def before(_module: nn.Module, _args: object) -> None:
            self._starts.append(self._clock.mark())

        def after(_module: nn.Module, _args: object, _output: object) -> None:
            self._edges.append((kind, index, self._starts.pop(), self._clock.mark()))

        hooks.callback(module.register_forward_pre_hook(before, prepend=is_outermost).remove)
        hooks.callback(module.register_forward_hook(after, prepend=not is_outermost).remove)

    def _time_head(self, hooks: ExitStack) -> None:
        """Time the head's forward itself: it runs once per chunk, all but the last of them within a hook."""
        head = self._skeleton.head
        forward = head.forward

        def timed(*args: Tensor) -> Tensor:
            start = self._clock.mark()
            logits: Tensor = forward(*args)
            self._edges.append(("head_chunk", self._num_chunks, start, self._clock.mark()))
            self._num_chunks += 1
            return logits

        vars(head)["forward"] = timed
        hooks.callback(vars(head).pop, "forward")
