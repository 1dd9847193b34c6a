"""A draft model replayed from a recording, so that the runtime's own drafters run over it and no model does.

After the recorded text its rows are the recorded ones: the text's token has its rank and its probability, the other
ranks belong to made-up tokens, which no target ever writes. After any other path a row is one of the same text's, drawn
by a hash of the path, with made-up tokens alone. A token of a rank that was not recorded is in no row.

Shapes: T tokens fed, P positions of the output, J recorded ranks, V the vocabulary with the made-up tokens.
"""

import zlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from bench.texts import Recording
from planner.contracts.profile import NUM_TOP_PROBS
from runtime.cached import CachedModel
from runtime.proposal import ROOT

_NUM_OTHERS = 1024  # made-up tokens that share what a row leaves to ranks beyond the recorded ones
_RANK_STEP = 1e-5  # in logits, so that of probabilities equal by their four digits the first rank is the largest
_MOST_NODES = 1024


class RecordedModel:
    """What a `CachedModel` is to a drafter; `passes` tells how many nodes each pass had, one of the sequence counts 1.

    A state of the cache is told by the CRC-32 of the tokens so far.
    """

    def __init__(self, recording: Recording, vocab_size: int) -> None:
        """`vocab_size` is the target's; the made-up tokens follow it."""
        text = (*recording.prompt, *recording.output)
        self.streamed = SimpleNamespace(vocab_size=vocab_size + NUM_TOP_PROBS + _NUM_OTHERS)
        self.context_tokens = len(text)
        self.most_nodes = _MOST_NODES
        self.passes: list[int] = []
        self._rows_V = _rows(recording, vocab_size)  # (2 P, V): those along the text, then those beside it
        self._num_positions = len(recording.output)
        self._first = len(recording.prompt)
        self._text = [0]  # the state after so many tokens of the text
        for token in text:
            self._text.append(_after(self._text[-1], token))
        self._sequence = [0]  # the state after so many tokens of the cache
        self._nodes: list[tuple[int, int, int]] = []  # of the tree: its parent's index, depth, state

    @property
    def num_seen(self) -> int:
        """Tokens of the sequence, without the nodes of a tree."""
        return len(self._sequence) - 1

    def as_cached(self) -> CachedModel:
        """Itself, by the name under which drafters take it."""
        return cast(CachedModel, self)

    def forward(self, tokens: Sequence[int], num_rows: int) -> Tensor:
        """The logits (num_rows, V) after the last of these tokens, which become part of the sequence."""
        assert not self._nodes, "a tree hangs on the sequence"
        for token in tokens:
            self._sequence.append(_after(self._sequence[-1], token))
        self.passes.append(1)
        last = self.num_seen
        return self._rows_V[[self._row(place, self._sequence[place]) for place in range(last - num_rows + 1, last + 1)]]

    def forward_tree(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """The logits (T, V) after each of these nodes."""
        first = len(self._nodes)
        for token, parent in zip(tokens, parents, strict=True):
            _, depth, state = (ROOT, 0, self._sequence[-1]) if parent == ROOT else self._nodes[parent]
            self._nodes.append((parent, depth + 1, _after(state, token)))
        assert len(self._nodes) <= self.most_nodes
        self.passes.append(len(tokens))
        return self._rows_V[[self._row(self.num_seen + depth, state) for _, depth, state in self._nodes[first:]]]

    def keep_path(self, path: Sequence[int]) -> None:
        """Make these nodes part of the sequence, and forget the others."""
        assert [self._nodes[node][0] for node in path] == [*[ROOT][: len(path)], *path[:-1]], "not a path"
        self._sequence += [self._nodes[node][2] for node in path]
        self._nodes = []

    def drop(self, num_tokens: int) -> None:
        """Forget the last tokens."""
        assert not self._nodes, "a tree hangs on the sequence"
        del self._sequence[len(self._sequence) - num_tokens :]

    def reset(self) -> None:
        """Forget the whole sequence, and the passes."""
        self._sequence, self._nodes, self.passes = [0], [], []

    def _row(self, num_tokens: int, state: int) -> int:
        position = num_tokens - self._first
        if 0 <= position < self._num_positions and state == self._text[num_tokens]:
            return position
        return self._num_positions + state % self._num_positions


def _after(state: int, token: int) -> int:
    return zlib.crc32(token.to_bytes(4, "little"), state)


def _rows(recording: Recording, vocab_size: int) -> Tensor:
    """Logits (2 P, V)."""
    num_positions = len(recording.output)
    top_PJ = np.array(recording.top_probs, dtype=np.float64).reshape(num_positions, NUM_TOP_PROBS)
    others_P = np.minimum((1 - top_PJ.sum(axis=1)).clip(min=0) / _NUM_OTHERS, top_PJ[:, -1] * 0.99)
    rows_V = np.full((2 * num_positions, vocab_size + NUM_TOP_PROBS + _NUM_OTHERS), -np.inf, dtype=np.float32)
    with np.errstate(divide="ignore"):
        top_logits_PJ = np.log(top_PJ) - _RANK_STEP * np.arange(NUM_TOP_PROBS)
        rows_V[:, vocab_size + NUM_TOP_PROBS :] = np.tile(np.log(others_P), 2)[:, None]
    rows_V[:, vocab_size : vocab_size + NUM_TOP_PROBS] = np.tile(top_logits_PJ, (2, 1))
    ranks_P, tokens_P = np.array(recording.ranks), np.array(recording.output)
    known = np.flatnonzero(ranks_P < NUM_TOP_PROBS)
    rows_V[known, vocab_size + ranks_P[known]] = -np.inf
    rows_V[known, tokens_P[known]] = top_logits_PJ[known, ranks_P[known]]
    return torch.from_numpy(rows_V)
