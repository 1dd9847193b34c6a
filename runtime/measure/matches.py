"""Longest earlier matches in a token sequence: what a draft from the text itself has to go by at each position."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Match:
    """The longest earlier occurrence of what comes right before a position; hit: what followed it then follows now.

    Of several that are equally long, the latest; `share` is how many of them that token followed, 0 without any.
    """

    num_tokens: int
    is_hit: bool
    share: float
    token: int | None = None  # what followed it then


def longest_matches(tokens: Sequence[int], first: int) -> list[Match]:
    """A match for each position from `first` on, among all that comes before it.

    `lengths[j]` is how many tokens right before j are those right before the position: one more than the position
    before had for j - 1, where the tokens in between agree. Quadratic in the number of tokens, on whole rows.
    """
    sequence = np.asarray(tokens)
    lengths = np.zeros(len(tokens) + 1, dtype=np.int64)
    found = []
    for position in range(1, len(tokens)):
        agree = sequence[: position - 1] == sequence[position - 1]
        lengths[1:position] = np.where(agree, lengths[: position - 1] + 1, 0)
        if position < first:
            continue
        best = int(lengths[1:position].max(initial=0))
        if best == 0:
            found.append(Match(0, False, 0.0))
            continue
        followers = sequence[1:position][lengths[1:position] == best]
        share = float((followers == followers[-1]).mean())
        token = int(followers[-1])
        found.append(Match(best, token == sequence[position], share, token))
    return found
