"""Parameters of a module, pointed at memory that somebody else owns: one dictionary entry each."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from runtime.checkpoint import Layout

Parameters = Mapping[str, nn.Parameter]


def as_parameters(layout: Layout, region: Tensor) -> Parameters:
    """A region's tensors as parameters, made once and bound many times."""
    return {name: nn.Parameter(view, requires_grad=False) for name, view in layout.views(region).items()}


class Binder:
    """The places of some of a module's parameters; `bind` fills them by name."""

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        self._places = []
        for part in layout.slices:
            owner, _, leaf = part.name.rpartition(".")
            self._places.append((module.get_submodule(owner)._parameters, leaf, part.name))

    def bind(self, parameters: Parameters) -> None:
        """Point every place at its parameter."""
        for place, leaf, name in self._places:
            place[leaf] = parameters[name]


def names_on_meta(module: nn.Module) -> list[str]:
    """Parameters and buffers left without memory.

    Must be empty before a pass: on the CPU a product with a meta weight returns uninitialised memory, without an error.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in tensors if tensor.device == torch.device("meta")]
