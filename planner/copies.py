"""Chains of tokens copied from earlier text: what each is worth, and how far the target follows them.

Recordings know of the latest continuation of the longest match at each position; continuations of shorter matches,
which the runtime may add as branches, are counted as nodes and never as accepted.

Shapes: T recorded positions of all texts one after the other, M lengths of a match, P texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from planner.acceptance import Yield, nothing_recorded, rounds_by_text, yield_of
from planner.contracts.copied_text import ONE_VOTE_ODDS, PRIOR_TOKENS, RIGHT_BY_LENGTH
from planner.contracts.profile import AcceptanceRecording
from planner.limits import NO_LIMITS, Limits

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Nodes that branch off a node of a chain of copies, where x is left of the cost that pays: .55 (x - 2)^2. Fitted to
# what the runtime's drafter proposed beyond the chain on HumanEval, GSM8K and Shakespeare (docs/LOG.md).
_BRANCHES, _BRANCH_COST = 0.55, 2.0
_SPLIT_SHARE = 0.45  # how right the majority is where continuations differ, as a part of its share of the votes


@dataclass(frozen=True, eq=False, kw_only=True)
class Copies:
    """A chain of copied tokens at each start whose match is long enough.

    `costs_T` are -ln P(the copied token at each position is right, given that those before it were). `runs_T` is how
    many tokens copied from a start on the target writes; -1 where nothing is copied.
    """

    costs_T: FloatArray
    runs_T: IntArray
    ends_T: IntArray  # the position after the last one of the same text
    taken_T: FloatArray  # P(the target takes the copied token there): 0 or 1 unless one samples

    @classmethod
    def of(cls, recordings: Sequence[AcceptanceRecording], min_match_tokens: int, *, is_sampled: bool = False) -> Self:
        """The chains in these texts, from their second tokens on, by chances as the recordings themselves have them."""
        lengths_T = np.concatenate([np.array(entry.match_lengths[1:], dtype=np.int64) for entry in recordings])
        is_hit_T = np.concatenate([np.array(entry.match_hits[1:], dtype=np.int64) for entry in recordings]) == 1
        shares_T = np.concatenate(
            [np.array((entry.match_shares or (1.0,) * len(entry.match_hits))[1:]) for entry in recordings]
        )
        lengths_P = np.array([len(entry.match_hits) - 1 for entry in recordings])
        ends_P = lengths_P.cumsum()
        runs_T = np.where(lengths_T >= min_match_tokens, _runs(is_hit_T, ends_P), -1)
        taken_T = is_hit_T.astype(np.float64)
        if is_sampled:
            taken_T = np.concatenate([np.array(entry.match_probs[1:]) for entry in recordings])
        costs_T = -np.log(_chances(lengths_T, taken_T, shares_T, len(recordings)))
        return cls(costs_T=costs_T, runs_T=runs_T, ends_T=np.repeat(ends_P, lengths_P), taken_T=taken_T)

    def reach(self, lengths_T: IntArray, most_tokens: int) -> FloatArray:
        """P(the target takes the first k copied tokens) at each start (T, K), of chains of these lengths.

        A copied token that the text does not go on with is the last one of its chain that anything is known of.
        """
        reach_TK = np.zeros((len(lengths_T), most_tokens + 1))
        reach_TK[:, 0] = 1.0
        for depth in range(most_tokens):
            starts_Q = np.flatnonzero((lengths_T > depth) & (self.runs_T >= depth))
            reach_TK[starts_Q, depth + 1] = reach_TK[starts_Q, depth] * self.taken_T[starts_Q + depth]
        return reach_TK

    def sizes(self, most_tokens: int, most_cost: float) -> "CopySizes":
        """What a round copies at each start, in chains of at most so many tokens, within a cost of their paths.

        From the first one on that the target does not write each is taken to cost as much as that one.
        """
        lengths_T = np.zeros(len(self.runs_T), dtype=np.int64)
        branches_T = np.zeros(len(self.runs_T))
        starts_Q = np.flatnonzero(self.runs_T >= 0)
        spent_Q = np.zeros(len(starts_Q))
        for depth in range(most_tokens):
            is_inside_Q = starts_Q + depth + 1 < self.ends_T[starts_Q]  # the round's last token is the target's
            starts_Q, spent_Q = starts_Q[is_inside_Q], spent_Q[is_inside_Q]
            branches_T[starts_Q] += _BRANCHES * np.maximum(most_cost - spent_Q - _BRANCH_COST, 0.0) ** 2
            spent_Q = spent_Q + self.costs_T[starts_Q + np.minimum(depth, self.runs_T[starts_Q])]
            starts_Q, spent_Q = starts_Q[spent_Q <= most_cost], spent_Q[spent_Q <= most_cost]
            lengths_T[starts_Q] += 1
            if len(starts_Q) == 0:
                break
        return CopySizes(lengths_T, lengths_T + branches_T)


@dataclass(frozen=True, slots=True)
class CopySizes:
    """Lengths of chains of copies, and the nodes of a tree of them with all that branches off."""

    lengths_T: IntArray
    nodes_T: FloatArray


def copies_yield(
    recordings: Sequence[AcceptanceRecording],
    num_nodes: int,
    max_depth: int,
    min_match_tokens: int,
    limits: Limits = NO_LIMITS,
    *,
    is_sampled: bool = False,
) -> Yield:
    """Tokens per round of copies alone, as far as they pay.

    Sampled, a copied token is taken with the probability that the target gives it at temperature 1, along a text that
    was written greedily; branches are never counted as accepted.

    Raises: BadInputError, where no matches were recorded, or not their probabilities.
    """
    replay = _replay(tuple(recordings), min_match_tokens, is_sampled)
    return replay.tokens(num_nodes, min(num_nodes, max_depth), limits.verified)


class _Replay:
    """The rounds of a set of texts, for every length."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._lengths = np.diff(np.unique(copies.ends_T), prepend=0).tolist()
        self.tokens = lru_cache(maxsize=None)(self._tokens)

    def _tokens(self, num_nodes: int, most_tokens: int, most_cost: float) -> Yield:
        sizes = self._copies.sizes(most_tokens, most_cost)
        rounds = rounds_by_text(self._copies.reach(sizes.lengths_T, most_tokens), self._lengths)
        return yield_of(
            rounds.counts_PK,
            proposed_frac=rounds.mean((sizes.nodes_T > 0).astype(np.float64)),
            sizes=(rounds.mean(np.minimum(sizes.nodes_T, num_nodes)), 0.0),
        )


@lru_cache(maxsize=16)
def _replay(recordings: tuple[AcceptanceRecording, ...], min_match_tokens: int, is_sampled: bool) -> _Replay:
    used = [entry for entry in recordings if len(entry.match_probs if is_sampled else entry.match_hits) > 1]
    if not used:
        raise nothing_recorded("probabilities of matches" if is_sampled else "matches")
    return _Replay(Copies.of(used, min_match_tokens, is_sampled=is_sampled))


def _chances(lengths_T: IntArray, taken_T: FloatArray, shares_T: FloatArray, num_texts: int) -> FloatArray:
    """P(the copied token is right) by length of the match and whether all earlier occurrences went on alike.

    The prior table and, as the runtime learns anew in every request, half of what a recorded text holds on average.
    """
    learned_frac = 0.5 / num_texts
    chances_T = np.full(len(lengths_T), 1 / (1 + PRIOR_TOKENS))
    of_all_M = np.array(RIGHT_BY_LENGTH)
    odds_M = ONE_VOTE_ODDS * of_all_M / (1 - of_all_M)
    cell_T = np.minimum(lengths_T, len(of_all_M)) - 1
    for is_sole, prior_M in ((True, odds_M / (1 + odds_M)), (False, _SPLIT_SHARE * of_all_M)):
        chosen_T = (lengths_T > 0) & ((shares_T >= 1.0) == is_sole)
        prior_T = prior_M[cell_T[chosen_T]] * (1.0 if is_sole else shares_T[chosen_T])
        expected_M = np.bincount(cell_T[chosen_T], prior_T, len(prior_M)) * learned_frac
        right_M = np.bincount(cell_T[chosen_T], taken_T[chosen_T], len(prior_M)) * learned_frac
        gain_M = (right_M + PRIOR_TOKENS) / (expected_M + PRIOR_TOKENS)  # over what the table says
        chances_T[chosen_T] = np.clip(prior_T * gain_M[cell_T[chosen_T]], 0.01, 0.99)
    return chances_T


def _runs(is_hit_T: NDArray[np.bool_], ends_P: IntArray) -> IntArray:
    """How many hits in a row there are from each position on, within its text."""
    runs_T = np.zeros(len(is_hit_T) + 1, dtype=np.int64)
    last = set(ends_P.tolist())
    for index in range(len(is_hit_T) - 1, -1, -1):
        following = 0 if index + 1 in last else runs_T[index + 1]
        runs_T[index] = following + 1 if is_hit_T[index] else 0
    return runs_T[:-1]
