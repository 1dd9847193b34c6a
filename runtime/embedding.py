"""The token embedding, gathered on the host: a pass needs as many rows as it has different tokens.

The module's own forward runs on a table of just those rows, with the tokens renumbered to match.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from runtime.checkpoint import RowTable


class RowSource(Protocol):
    """A matrix somewhere in host memory or on disk."""

    def gather(self, row_numbers: list[int], table_RH: Tensor) -> None:
        """Copy the rows, in ascending order, into the first rows of a host matrix."""


class HostTable:
    """A matrix in host memory."""

    def __init__(self, table_VH: Tensor) -> None:
        self._table_VH = table_VH

    def gather(self, row_numbers: list[int], table_RH: Tensor) -> None:
        """Copy the rows."""
        torch.index_select(self._table_VH, 0, torch.tensor(row_numbers), out=table_RH[: len(row_numbers)])


def gather_on_host(
    embedding: nn.Module, source: RowSource | RowTable, *, row_elements: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Hook an embedding module so that each call binds a table of the rows it needs."""
    embedding.padding_idx = None  # type: ignore[assignment]  # only backward passes use it, and it may exceed the table
    table = torch.zeros(1, row_elements, dtype=dtype)
    embedding._parameters["weight"] = nn.Parameter(table.to(device), requires_grad=False)

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens = args[0]
        if tokens.numel() == 1:
            row_numbers, positions = [int(tokens)], torch.zeros_like(tokens)
        else:
            unique, positions = torch.unique(tokens, return_inverse=True)
            row_numbers = unique.tolist()
        table_RH = torch.empty(len(row_numbers), row_elements, dtype=dtype)
        source.gather(row_numbers, table_RH)
        module._parameters["weight"] = nn.Parameter(table_RH.to(tokens.device), requires_grad=False)
        return (positions, *args[1:])

    embedding.register_forward_pre_hook(before)
