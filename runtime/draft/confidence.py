"""How probable it is that the target takes a token that followed earlier text: by length of the match and by votes.

Starts from what was measured on natural text and learns within a request from what the target wrote. Covers one source
of continuations; who drafts from two keeps one of these for each.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

from planner.contracts.copied_text import ONE_VOTE_ODDS, PRIOR_TOKENS, RIGHT_BY_LENGTH

MOST_LENGTH = len(RIGHT_BY_LENGTH)  # of a match: longer ones count as this long

_DECAY = 0.9998  # of what a cell has counted, at each observation in it
# Columns of like votes, by the lower bounds of all but the first of each kind:
_SOLE_VOTES = (2, 3, 5)  # the only continuation of the longest match
_SPLIT_SHARES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8)  # one of several
_BACKOFF_SHARES = (0.1, 0.25, 0.5, 0.8)  # of a shorter match
_NUM_SOLE, _NUM_SPLIT = len(_SOLE_VOTES) + 1, len(_SPLIT_SHARES) + 1
_FIRST_BACKOFF = (_NUM_SOLE + 2 * _NUM_SPLIT) * MOST_LENGTH  # cell


def cell_of(match_tokens: int, num_votes: int, total_votes: int, is_latest: bool, is_backoff: bool) -> int:
    """Where candidates like this one are counted together.

    A match of at least 1 token was followed by the candidate in `num_votes` of `total_votes` places, of which the most
    recent is one if `is_latest`. If `is_backoff` it is not the longest match, and what followed that has no votes.
    """
    if is_backoff:
        column = _NUM_SOLE + 2 * (_NUM_SPLIT + bisect_right(_BACKOFF_SHARES, num_votes / total_votes)) + is_latest
    elif num_votes == total_votes:
        column = bisect_right(_SOLE_VOTES, num_votes)
    else:
        column = _NUM_SOLE + 2 * bisect_right(_SPLIT_SHARES, num_votes / total_votes) + is_latest
    return column * MOST_LENGTH + min(match_tokens, MOST_LENGTH) - 1


class Confidence:
    """Beta counts by cell, the prior among them; within a column no longer match has a lower chance."""

    def __init__(self) -> None:
        priors = [prob for column in _columns() for prob in column]
        self._right = array("d", (prob * PRIOR_TOKENS for prob in priors))
        self._all = array("d", [PRIOR_TOKENS]) * len(priors)
        self._prob = array("d", priors)
        self._changed = set(range(len(priors) // MOST_LENGTH))  # columns whose chances are yet to be fitted
        self.most_backoff = 1.0  # no backoff candidate has a larger chance

    def prob(self, cell: int) -> float:
        """P(the target takes a candidate of this cell | the text reached its parent, and it was its turn)."""
        if self._changed:
            self._fit_changed()
        return self._prob[cell]

    def record(self, cell: int, *, is_right: bool) -> None:
        """The target wrote a token where a candidate of this cell might have stood: that one, or another."""
        self._right[cell] = self._right[cell] * _DECAY + is_right
        self._all[cell] = self._all[cell] * _DECAY + 1.0
        self._changed.add(cell // MOST_LENGTH)

    def _fit_changed(self) -> None:
        for column in self._changed:
            self._fit(column)
        self._changed.clear()
        self.most_backoff = max(self._prob[_FIRST_BACKOFF + MOST_LENGTH - 1 :: MOST_LENGTH])

    def _fit(self, column: int) -> None:
        """Isotonic regression of one column by pooling adjacent violators, weighted by the counts."""
        start = column * MOST_LENGTH
        pools: list[tuple[float, float, int]] = []  # right, all, cells
        for cell in range(start, start + MOST_LENGTH):
            right, total, num_cells = self._right[cell], self._all[cell], 1
            while pools and pools[-1][0] * total >= right * pools[-1][1]:
                before = pools.pop()
                right, total, num_cells = right + before[0], total + before[1], num_cells + before[2]
            pools.append((right, total, num_cells))
        cell = start
        for right, total, num_cells in pools:
            for pooled in range(cell, cell + num_cells):
                self._prob[pooled] = right / total
            cell += num_cells


def _columns() -> Iterator[tuple[float, ...]]:
    """The priors of each column, by length: those of the table, told apart by votes as in code and maths texts.

    Source: first halves of HumanEval and GSM8K by the demo pair's tokenizer, 48,000 positions.
    """
    for least_votes in (1, *_SOLE_VOTES):
        yield tuple(1 - 1 / least_votes / (1 + ONE_VOTE_ODDS * prob / (1 - prob)) for prob in RIGHT_BY_LENGTH)
    for share in _middles(_SPLIT_SHARES):
        yield (0.02 + 0.28 * share,) * MOST_LENGTH
        yield (0.10 + 0.35 * share,) * MOST_LENGTH
    for share in _middles(_BACKOFF_SHARES):
        yield (0.02 + 0.14 * share,) * MOST_LENGTH
        yield (0.13 + 0.12 * share,) * MOST_LENGTH


def _middles(bounds: tuple[float, ...]) -> Iterator[float]:
    return (sum(edges) / 2 for edges in pairwise((0.0, *bounds, 1.0)))
