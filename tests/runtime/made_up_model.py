"""A model without weights for tests of drafters: a row for every text, and a sequence with a tree that it checks.

Shapes: T tokens fed, V vocabulary.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.cached import CachedModel
from runtime.proposal import ROOT

Floats = npt.NDArray[np.float64]


def made_up_row(text: Sequence[int], vocab_size: int, seed: int = 0, evenness: float = 1.0) -> Floats:
    """Probabilities (V) of what follows a text, drawn once for each text and seed."""
    return np.random.default_rng([seed, *text]).dirichlet(np.full(vocab_size, evenness))


class MadeUpModel:
    """What a `CachedModel` is to a drafter.

    `passes` tells the nodes of each pass, 0 for one of the sequence, and `fed` the tokens of the latter.
    """

    def __init__(self, row_after: Callable[[Sequence[int]], Floats], vocab_size: int, context_tokens: int = 64) -> None:
        self.streamed = SimpleNamespace(vocab_size=vocab_size)
        self.context_tokens = context_tokens
        self.most_nodes = 1024
        self.passes: list[int] = []
        self.fed: list[list[int]] = []
        self._row_after = row_after
        self._sequence: list[int] = []
        self._paths: list[list[int]] = []  # of every node of the tree

    def forward(self, tokens: Sequence[int], num_rows: int) -> Tensor:
        """The logits after the last tokens."""
        assert not self._paths, "a tree hangs on the sequence"
        self._sequence += tokens
        self.fed.append(list(tokens))
        assert len(self._sequence) <= self.context_tokens
        self.passes.append(0)
        return self._logits([[]] * num_rows)

    def forward_tree(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """The logits after each node."""
        for token, parent in zip(tokens, parents, strict=True):
            self._paths.append([*([] if parent == ROOT else self._paths[parent]), token])
        self.passes.append(len(tokens))
        return self._logits(self._paths[-len(tokens) :])

    def keep_path(self, path: Sequence[int]) -> None:
        """End the tree."""
        assert self._paths, "no tree hangs on the sequence"
        kept = self._paths[path[-1]] if path else []
        assert len(kept) == len(path)
        self._sequence += kept
        self._paths = []

    def drop(self, num_tokens: int) -> None:
        """Forget the last tokens."""
        assert not self._paths, "a tree hangs on the sequence"
        del self._sequence[len(self._sequence) - num_tokens :]

    def as_cached(self) -> CachedModel:
        """Itself, by the name under which drafters take it."""
        return cast(CachedModel, self)

    def _logits(self, paths: Sequence[Sequence[int]]) -> Tensor:
        rows = np.stack([self._row_after((*self._sequence, *path)) for path in paths])
        with np.errstate(divide="ignore"):
            return torch.from_numpy(np.log(rows))
