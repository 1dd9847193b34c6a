"""How a unit's tensors lie in its region: one contiguous range of bytes, every tensor aligned."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.contracts.model_shape import align


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """One tensor's place in a region."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of one unit, in order, and the bytes of the region that holds them."""

    slices: tuple[TensorSlice, ...]
    num_bytes: int

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, Tensor]]) -> "Layout":
        """The layout of named tensors; only their shapes and dtypes matter, so they may be on meta."""
        slices, offset = [], 0
        for name, tensor in tensors:
            num_bytes = tensor.numel() * tensor.element_size()
            slices.append(TensorSlice(name, tuple(tensor.shape), tensor.dtype, offset, num_bytes))
            offset += align(num_bytes)
        return cls(tuple(slices), offset)

    def views(self, region: Tensor) -> Mapping[str, Tensor]:
        """The tensors as views of a uint8 region."""
        return {
            part.name: region[part.offset : part.offset + part.num_bytes].view(part.dtype).view(part.shape)
            for part in self.slices
        }
