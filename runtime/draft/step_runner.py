"""How a draft's step of one width is run: by Python, or by a device that has recorded it.

A step reads and writes memory that never moves, and does the same for every token; so a device can replay its launches
without Python. Whether a model's forward is like that is tried, not assumed: `host_reads` watches one step.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Step = Callable[[int], object]  # of a width; reads and writes nothing but memory that never moves

_WARM_UP_STEPS = 3  # libraries choose kernels and take workspaces in the first
_READS = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "is_nonzero", "equal")


class StepRunner(Protocol):
    """Runs steps of widths that it was made for."""

    def run(self, width: int) -> None:
        """One step."""


class EagerSteps:
    """Runs the step as Python says."""

    def __init__(self, step: Step, widths: Sequence[int]) -> None:
        self._step = step

    def run(self, width: int) -> None:
        """One step."""
        self._step(width)


class CapturedSteps:
    """Replays a CUDA graph per width. All share one memory pool, and memory is taken when they are recorded.

    Raises: RuntimeError, where the step does what cannot be recorded.
    """

    def __init__(self, step: Step, widths: Sequence[int]) -> None:
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        pool = torch.cuda.graph_pool_handle()
        side = torch.cuda.Stream()
        for width in sorted(widths, reverse=True):  # the others fit into the memory of the widest
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_STEPS):
                    step(width)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Another thread may copy weights meanwhile, which must not spoil the recording.
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                step(width)
            self._graphs[width] = graph

    def run(self, width: int) -> None:
        """Enqueue the recorded launches; nothing waits for them here."""
        self._graphs[width].replay()


def host_reads(step: Step) -> list[str]:
    """The operations of a step of width 1 by which the host waits for a value, or for a shape that depends on one."""
    watch = _Watch()
    with watch:
        step(1)
    return watch.found


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        crosses = isinstance(output, Tensor) and any(
            isinstance(arg, Tensor) and arg.ndim > 0 and arg.device != output.device for arg in args
        )
        if (name in _READS or crosses) and name not in self.found:
            self.found.append(name)
        return output
