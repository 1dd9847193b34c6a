"""A paced processor: every layer takes a stated time, however busy others keep the machine.

The counterpart of the emulated link. Modules compute as always, then wait until their time is over, so that the
runtime and the profiler meet a processor that is slower than this machine and as steady as its clock. What is compared
on it is the planner's arithmetic of overlap, drafts and rounds; not how well real kernels are timed.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

_SPUN_S = 0.2e-3  # the last of a wait, which sleeping would miss


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds of a module's pass, and of each of its tokens."""

    pass_s: float
    token_s: float


PACES: dict[tuple[str, int], Pace] = {  # by module and hidden size: both pairs of the benches, 2-4 times their own time
    ("LlamaAttention", 256): Pace(pass_s=1.0e-3, token_s=0.05e-3),
    ("LlamaMLP", 256): Pace(pass_s=1.4e-3, token_s=0.08e-3),
    ("LlamaAttention", 128): Pace(pass_s=0.7e-3, token_s=0.02e-3),
    ("LlamaMLP", 128): Pace(pass_s=0.8e-3, token_s=0.02e-3),
    ("LlamaAttention", 1024): Pace(pass_s=3.0e-3, token_s=0.10e-3),
    ("LlamaMLP", 1024): Pace(pass_s=5.0e-3, token_s=0.15e-3),
    ("LlamaAttention", 512): Pace(pass_s=1.5e-3, token_s=0.02e-3),
    ("LlamaMLP", 512): Pace(pass_s=2.0e-3, token_s=0.02e-3),
}
_NO_PACE = Pace(pass_s=0.0, token_s=0.0)
_PACED = frozenset(name for name, _ in PACES)
_NORM, _FIRST = "LlamaRMSNorm", "LlamaAttention"


@contextmanager
def paced_processor() -> Iterator[None]:
    """Within it every layer of models in `PACES` takes its time, from its first norm to the end of its MLP.

    For layers that are placed whole: where a part has to wait for its weights, that would count as its own time.
    """
    state = _State()

    def begin(module: nn.Module, _inputs: object) -> None:
        if type(module).__name__ == _NORM and not state.is_within_layer:
            state.since_s = time.perf_counter()

    def end(module: nn.Module, _inputs: object, output: object) -> None:
        name = type(module).__name__
        if name not in _PACED:
            return
        hidden_BTD = output[0] if isinstance(output, tuple) else output
        assert isinstance(hidden_BTD, Tensor)
        pace = PACES.get((name, hidden_BTD.shape[-1]), _NO_PACE)
        state.since_s += pace.pass_s + pace.token_s * hidden_BTD.shape[1]
        state.is_within_layer = name == _FIRST
        _wait_until(state.since_s)

    handles = [register_module_forward_pre_hook(begin), register_module_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(slots=True)
class _State:
    """Since when the module that runs has its time, and whether a layer has begun."""

    since_s: float = 0.0
    is_within_layer: bool = False


def _wait_until(stop_s: float) -> None:
    left_s = stop_s - time.perf_counter()
    if left_s > _SPUN_S:
        time.sleep(left_s - _SPUN_S)
    while time.perf_counter() < stop_s:
        pass
