"""Chains of tokens copied from earlier text: what each is worth, and how far the target follows them.

Recordings know of the latest continuation of the longest match at each position; continuations of shorter matches,
which the runtime may add as branches, are not covered.

Shapes: T recorded positions of all texts one after the other, M lengths of a match, P texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from planner.contracts.copied_text import PRIOR_TOKENS, RIGHT_BY_LENGTH
from planner.contracts.profile import AcceptanceRecording

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_SPLIT_SHARE = 0.45  # how right the majority is where continuations differ, as a part of its share of the votes


@dataclass(frozen=True, eq=False, kw_only=True)
class Copies:
    """A chain of copied tokens at each start whose match is long enough.

    `costs_T` are -ln P(the copied token at each position is right, given that those before it were). `runs_T` is how
    many tokens copied from a start on the target writes; -1 where nothing is copied.
    """

    costs_T: FloatArray
    runs_T: IntArray

    @classmethod
    def of(cls, recordings: Sequence[AcceptanceRecording], min_match_tokens: int) -> Self:
        """The chains in these texts, from their second tokens on, by chances as the recordings themselves have them."""
        lengths_T = np.concatenate([np.array(entry.match_lengths[1:], dtype=np.int64) for entry in recordings])
        is_hit_T = np.concatenate([np.array(entry.match_hits[1:], dtype=np.int64) for entry in recordings]) == 1
        shares_T = np.concatenate(
            [np.array((entry.match_shares or (1.0,) * len(entry.match_hits))[1:]) for entry in recordings]
        )
        ends_P = np.cumsum([len(entry.match_hits) - 1 for entry in recordings])
        runs_T = np.where(lengths_T >= min_match_tokens, _runs(is_hit_T, ends_P), -1)
        return cls(costs_T=-np.log(_chances(lengths_T, is_hit_T, shares_T)), runs_T=runs_T)


def _chances(lengths_T: IntArray, is_hit_T: NDArray[np.bool_], shares_T: FloatArray) -> FloatArray:
    """P(the copied token is right) by length of the match and whether all earlier occurrences went on alike.

    The prior table and the recorded texts together, as the runtime learns while it writes.
    """
    chances_T = np.full(len(lengths_T), 1 / (1 + PRIOR_TOKENS))
    prior_M = np.array(RIGHT_BY_LENGTH)
    cell_T = np.minimum(lengths_T, len(prior_M)) - 1
    for is_sole, scale in ((True, 1.0), (False, _SPLIT_SHARE)):
        chosen_T = (lengths_T > 0) & ((shares_T >= 1.0) == is_sole)
        weights = np.ones(chosen_T.sum()) if is_sole else shares_T[chosen_T]
        expected_M = np.bincount(cell_T[chosen_T], scale * weights * prior_M[cell_T[chosen_T]], len(prior_M))
        right_M = np.bincount(cell_T[chosen_T], is_hit_T[chosen_T], len(prior_M))
        gain_M = (right_M + PRIOR_TOKENS) / (expected_M + PRIOR_TOKENS)  # over what the table says
        own_T = scale * weights * prior_M[cell_T[chosen_T]] * gain_M[cell_T[chosen_T]]
        chances_T[chosen_T] = np.clip(own_T, 0.01, 0.99)
    return chances_T


def _runs(is_hit_T: NDArray[np.bool_], ends_P: IntArray) -> IntArray:
    """How many hits in a row there are from each position on, within its text."""
    runs_T = np.zeros(len(is_hit_T) + 1, dtype=np.int64)
    last = set(ends_P.tolist())
    for index in range(len(is_hit_T) - 1, -1, -1):
        following = 0 if index + 1 in last else runs_T[index + 1]
        runs_T[index] = following + 1 if is_hit_T[index] else 0
    return runs_T[:-1]
