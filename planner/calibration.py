"""How often the target takes a token that the draft gives some probability: a rising curve from recordings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.contracts.plan import ProbabilityCurve
from planner.contracts.profile import NUM_TOP_PROBS, AcceptanceRecording

FloatArray = NDArray[np.float64]

_NUM_BINS = 32
_MOST_LOG_ODDS = 9.2  # of one ten-thousandth, the last digit that is recorded
_LEAST_TOKENS = 256  # fewer candidates than these say less than the draft itself


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilityBin:
    """Candidates to which the draft gave much the same probability, and how many of them the target took."""

    mean_prob: float
    num_candidates: int
    num_taken: int


def probability_bins(recordings: Sequence[AcceptanceRecording]) -> tuple[ProbabilityBin, ...]:
    """The eight first choices at every position, pooled, in bins of equal width in the log odds; none if not recorded.

    Bins without a candidate are left out; the probabilities ascend.
    """
    probs_C, is_taken_C = _candidates(recordings)
    log_odds_C = np.log(probs_C) - np.log1p(-probs_C)
    bin_C = ((log_odds_C / _MOST_LOG_ODDS + 1) / 2 * _NUM_BINS).astype(np.int64).clip(0, _NUM_BINS - 1)
    num_B = np.bincount(bin_C, minlength=_NUM_BINS)
    probs_B = np.bincount(bin_C, probs_C, _NUM_BINS)
    taken_B = np.bincount(bin_C, is_taken_C, _NUM_BINS)
    return tuple(
        ProbabilityBin(mean_prob=float(probs_B[b] / num_B[b]), num_candidates=int(num_B[b]), num_taken=int(taken_B[b]))
        for b in np.flatnonzero(num_B)
    )


def calibration(recordings: Sequence[AcceptanceRecording]) -> ProbabilityCurve | None:
    """The curve over the eight first choices at every position, pooled; None where too few are recorded.

    Candidates are gathered in bins of like probability. A bin's share counts one more candidate, which is taken as
    often as the draft says, so that no share is 0 or 1; isotonic regression then makes the shares rise.
    """
    bins = probability_bins(recordings)
    if sum(entry.num_candidates for entry in bins) < _LEAST_TOKENS:
        return None
    counts = [entry.num_candidates + 1 for entry in bins]
    shares = [(entry.num_taken + entry.mean_prob) / count for entry, count in zip(bins, counts, strict=True)]
    return ProbabilityCurve(
        draft_probs=tuple(entry.mean_prob for entry in bins),
        accepted_shares=risen_shares(shares, counts),
        by_rank_frac=rank_shares(recordings),
    )


def rank_shares(recordings: Sequence[AcceptanceRecording]) -> tuple[float, ...]:
    """How often the target takes each of the eight first choices, over all positions where they are recorded."""
    ranks = [np.array(entry.ranks, dtype=np.int64) for entry in recordings if entry.top_probs]
    if not ranks:
        return ()
    ranks_T = np.concatenate(ranks)
    right_J = np.bincount(ranks_T[ranks_T < NUM_TOP_PROBS], minlength=NUM_TOP_PROBS)
    return tuple((right_J / len(ranks_T)).tolist())


def risen_shares(shares: Sequence[float], weights: Sequence[float]) -> tuple[float, ...]:
    """The nearest shares that never fall, by weighted squares: neighbours that do are pooled into their mean.

    What scipy.optimize.isotonic_regression gives, whose import takes longer than all else that a search does.
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, shares in it
    for share, weight in zip(shares, weights, strict=True):
        block = (share, weight, 1)
        while blocks and blocks[-1][0] >= block[0]:
            before = blocks.pop()
            both = before[1] + block[1]
            block = ((before[0] * before[1] + block[0] * block[1]) / both, both, before[2] + block[2])
        blocks.append(block)
    return tuple(mean for mean, _, size in blocks for _ in range(size))


def calibrated(draft_probs: FloatArray, curve: ProbabilityCurve | None) -> FloatArray:
    """The curve's shares at these probabilities, of any shape; its ends stay; without a curve the draft's word."""
    if curve is None:
        return draft_probs
    shares: FloatArray = np.interp(draft_probs, curve.draft_probs, curve.accepted_shares)
    return shares


def _candidates(recordings: Sequence[AcceptanceRecording]) -> tuple[FloatArray, FloatArray]:
    """The draft's probability of each candidate that it gives any, and 1 where the target took it."""
    probs, taken = [], []
    for recording in recordings:
        if recording.top_probs:
            probs_TJ = np.array(recording.top_probs).reshape(-1, NUM_TOP_PROBS)
            taken_TJ = np.array(recording.ranks)[:, None] == np.arange(NUM_TOP_PROBS)
            probs.append(probs_TJ[probs_TJ > 0])
            taken.append(taken_TJ[probs_TJ > 0])
    if not probs:
        return np.zeros(0), np.zeros(0)
    least = 1 / (1 + np.exp(_MOST_LOG_ODDS))
    return np.concatenate(probs).clip(least, 1 - least), np.concatenate(taken).astype(np.float64)
