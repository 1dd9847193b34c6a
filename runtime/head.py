"""The language-model head in row chunks: its module runs once per chunk, and the logits are joined.

A module that the user put in place of the head must compute each logit from its own row of the weight alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runtime.binding import Parameters


@dataclass(frozen=True, slots=True)
class HeadChunk:
    """`enter` makes the chunk's parameters available (and waits for them where they travel), `leave` gives them up."""

    enter: Callable[[], Parameters]
    leave: Callable[[], None]
    bias: Parameters  # the chunk's part of the bias, where the head has one


def keep_strides_plain(head: nn.Module) -> None:
    """Hook a head so that it sees its input with plain strides.

    transformers cuts the wanted rows out of a longer tensor. torch takes a product over such a cut for one matrix only
    where the strides say so; else it copies the whole weight and multiplies in a batch (docs/LOG.md: 50 times slower).
    """

    def before(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].clone(memory_format=torch.contiguous_format), *args[1:])

    head.register_forward_pre_hook(before)


def run_in_chunks(head: nn.Module, chunks: Sequence[HeadChunk]) -> None:
    """Hook a head so that each call runs its forward for every chunk in turn.

    The chunks before the last run in the hook before the module's own call, the last one is that call.
    """
    outputs: list[Tensor] = []

    def bind(chunk: HeadChunk) -> None:
        head._parameters.update({**chunk.enter(), **chunk.bias})

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        outputs.clear()
        for chunk in chunks[:-1]:
            try:
                bind(chunk)
                outputs.append(module.forward(*args))
            finally:
                chunk.leave()
        bind(chunks[-1])

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None) -> Tensor | None:
        chunks[-1].leave()
        if output is None:  # the call failed, and its error is on the way up
            return None
        logits_BTV = torch.cat([*outputs, output], dim=-1)
        outputs.clear()
        return logits_BTV

    head.register_forward_pre_hook(before)
    head.register_forward_hook(after, always_call=True)
