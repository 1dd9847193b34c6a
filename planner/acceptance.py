"""Tokens per round: exact replay of recordings, published survival curves, and how far one run may be off.

Replays of a recording are not estimates: greedy verification accepts just those drafted tokens that the target writes,
so that every draft length follows from one recording (no "acceptance rate", which falls with the length). Sampled
rounds are followed in expectation. All of it goes through one vector per prompt, C_0 to C_K: the number of rounds with
at least i accepted tokens. Rounds are C_0, tokens their sum, survival C_i / C_0. Trees: see planner.tree_yield.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.contracts.errors import BadInputError
from planner.contracts.profile import AcceptanceCurve, AcceptanceRecording

FloatArray = NDArray[np.float64]

# What prompts differ by where fewer than two were recorded. A prior, not a measurement: 15 % on text nobody replayed.
ASSUMED_BETWEEN_FRAC = 0.15

_P10, _P90 = 10, 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Yield:
    """Tokens per round of one way to draft, and its relative standard deviations between prompts and of one round."""

    mean: float
    between_frac: float
    round_frac: float
    num_prompts: int
    survival: tuple[float, ...]
    proposed_frac: float = 1.0  # share of rounds in which anything was proposed
    mean_nodes: float = 0.0  # that a round verifies beside the context's last token
    mean_passes: float = 0.0  # of the draft model in a round

    def run_frac(self, num_rounds: float, num_requests: int = 1) -> float:
        """Relative standard deviation of the tokens per round of some requests of so many rounds each.

        Their prompts were not recorded: they differ from the recorded ones as those differ among themselves.
        """
        between_square = self.between_frac**2 * (1 / num_requests + 1 / self.num_prompts)
        return math.sqrt(between_square + self.round_frac**2 / (num_rounds * num_requests))


# --- replay ---


def replay(ranks: Sequence[int], draft_len: int) -> tuple[int, ...]:
    """Accepted tokens of each round that decodes this text greedily, from its first token to its last.

    A round that starts at p drafts min(draft_len, tokens left - 1), as the runtime's loop does, accepts the leading
    tokens that are the draft's first choice, and the target adds one.
    """
    hits = [rank == 0 for rank in ranks]
    accepted = []
    start = 0
    while start < len(hits):
        run = _leading(hits, start, min(draft_len, len(hits) - start - 1))
        accepted.append(run)
        start += run + 1
    return tuple(accepted)


def replay_ngram(
    match_lengths: Sequence[int], match_hits: Sequence[int], draft_len: int, min_match_tokens: int
) -> tuple[int | None, ...]:
    """Accepted tokens of each round with n-gram drafts; None where no match was long enough to propose anything.

    An approximation in one point: a proposal copies one earlier occurrence to its end, while the recording looks the
    longest match up anew at each position. After a hit that is the same occurrence or one that matches longer.
    """
    hits = [hit == 1 for hit in match_hits]
    accepted: list[int | None] = []
    start = 0
    while start < len(hits):
        if match_lengths[start] >= min_match_tokens:
            run = _leading(hits, start, min(draft_len, len(hits) - start - 1))
            accepted.append(run)
            start += run + 1
        else:
            accepted.append(None)
            start += 1
    return tuple(accepted)


def expected_counts(overlaps: Sequence[float], draft_len: int) -> FloatArray:
    """Expected number of rounds with at least i accepted tokens, i = 0 to draft_len, when this text is sampled.

    A drafted token is accepted with probability sum(min(p, q)), its overlap, whatever the draft drew. Forward over the
    probability that a round starts at each position; overlaps of 0 and 1 give the greedy replay. Exact for the recorded
    text; a token resampled after a rejection would lead to another one, whose overlaps are taken to be alike.
    """
    num_tokens = len(overlaps)
    starts = np.zeros(num_tokens + 1)
    starts[0] = 1.0
    counts = np.zeros(draft_len + 1)
    for start in range(num_tokens):
        reached = float(starts[start])
        counts[0] += reached
        for i in range(1, min(draft_len, num_tokens - start - 1) + 1):
            passed = reached * overlaps[start + i - 1]
            starts[start + i] += reached - passed
            counts[i] += passed
            reached = passed
            if reached == 0.0:
                break
        else:
            starts[start + min(draft_len, num_tokens - start - 1) + 1] += reached
    return counts


def counts_by_text(reach_TK: FloatArray, lengths: Sequence[int]) -> FloatArray:
    """Expected rounds of each text (P, K) with at least i accepted tokens, given P(at least i | a round starts there).

    `reach_TK` are the texts one after the other; 0 for as many tokens as are left at a start.
    """
    return rounds_by_text(reach_TK, lengths).counts_PK


@dataclass(frozen=True, slots=True)
class Rounds:
    """Expected rounds of each text with at least i accepted tokens, and P(a round starts there) of each position."""

    counts_PK: FloatArray
    starts_T: FloatArray

    def mean(self, sizes_T: FloatArray) -> float:
        """Of what a round has that starts at each position."""
        return float(self.starts_T @ sizes_T / self.starts_T.sum())


def rounds_by_text(reach_TK: FloatArray, lengths: Sequence[int]) -> Rounds:
    """The rounds of texts one after the other, as `counts_by_text` takes them.

    Forward over the probability that a round starts at each position, all texts at once; with 0 and 1 it is a plain
    replay.
    """
    num_texts, most_tokens, width = len(lengths), max(lengths), reach_TK.shape[1]
    is_inside_PL = np.arange(most_tokens) < np.array(lengths)[:, None]
    reach_PLK = np.zeros((num_texts, most_tokens, width))
    reach_PLK[is_inside_PL] = reach_TK
    stops_PLK = reach_PLK.copy()
    stops_PLK[:, :, :-1] -= reach_PLK[:, :, 1:]
    starts_PL = np.zeros((num_texts, most_tokens + width))
    starts_PL[:, 0] = 1.0
    for start in range(most_tokens):
        starts_PL[:, start + 1 : start + 1 + width] += starts_PL[:, start, None] * stops_PLK[:, start]
    starts_PL = starts_PL[:, :most_tokens]
    return Rounds(np.einsum("pl,plk->pk", starts_PL, reach_PLK), starts_PL[is_inside_PL])


def _leading(hits: Sequence[bool], start: int, most: int) -> int:
    """How many hits in a row there are from `start` on."""
    run = 0
    while run < most and hits[start + run]:
        run += 1
    return run


# --- yields ---


def chain_yield(recordings: Sequence[AcceptanceRecording], draft_len: int) -> Yield:
    """Tokens per round of a chain under greedy verification. Raises: BadInputError, where no draft was recorded."""
    return yield_of(chain_counts(recordings, draft_len))


def sampled_yield(recordings: Sequence[AcceptanceRecording], draft_len: int) -> Yield:
    """Tokens per round of a chain under rejection sampling, at the temperature of the recorded overlaps.

    Raises: BadInputError, where no overlaps were recorded.
    """
    counts_PK = [
        expected_counts(recording.overlaps[1:], draft_len) for recording in recordings if len(recording.overlaps) > 1
    ]
    return yield_of(stacked(counts_PK, "overlaps of a draft"))


def curve_yield(curve: AcceptanceCurve, draft_len: int) -> Yield:
    """Tokens per round of a published curve; beyond its end the last hazard stays.

    How prompts differ is not published: ASSUMED_BETWEEN_FRAC, as if one prompt had been recorded.
    """
    survival = list(curve.survival[:draft_len])
    if len(survival) < draft_len:
        before, last = [1.0, *curve.survival][-2:]
        hazard = last / before if before > 0 else 0.0
        survival += [last * hazard**i for i in range(1, draft_len - len(survival) + 1)]
    return yield_of(np.array([[1.0, *survival]]))


def bootstrap_over_prompts(
    recordings: Sequence[AcceptanceRecording], draft_len: int, *, seed: int, num_draws: int = 2000
) -> tuple[float, float]:
    """P10 and P90 of the tokens per round, prompts drawn with replacement; rounds of one prompt are not independent.

    Raises: BadInputError, where no draft was recorded.
    """
    counts_PK = chain_counts(recordings, draft_len)
    low, high = quotients_over_prompts(counts_PK.sum(axis=1), counts_PK[:, 0], seed=seed, num_draws=num_draws)
    return float(low), float(high)


def quotients_over_prompts(
    parts_PX: FloatArray, wholes_P: FloatArray, *, seed: int, num_draws: int = 2000
) -> tuple[FloatArray, FloatArray]:
    """P10 and P90, (X) each, of the sums of parts over the sum of wholes, prompts drawn with replacement."""
    num_prompts = len(wholes_P)
    draws_DP = np.random.default_rng(seed).multinomial(num_prompts, [1 / num_prompts] * num_prompts, size=num_draws)
    quotients_XD = (draws_DP @ parts_PX).T / (draws_DP @ wholes_P)
    low_X, high_X = np.percentile(quotients_XD, [_P10, _P90], axis=-1)
    return low_X, high_X


def chain_counts(recordings: Sequence[AcceptanceRecording], draft_len: int) -> FloatArray:
    """Counts per prompt. The first token of a text comes out of its prefill, so that rounds start at the second."""
    return stacked(
        [
            counts_of(replay(recording.ranks[1:], draft_len), draft_len)
            for recording in recordings
            if len(recording.ranks) > 1
        ],
        "ranks of a draft",
    )


def ngram_counts(recordings: Sequence[AcceptanceRecording], draft_len: int, min_match_tokens: int) -> FloatArray:
    """Counts per prompt of n-gram drafts. Raises: BadInputError, where no matches were recorded."""
    return _ngram_counts(_ngram_replays(recordings, draft_len, min_match_tokens), draft_len)


def _ngram_replays(
    recordings: Sequence[AcceptanceRecording], draft_len: int, min_match_tokens: int
) -> list[tuple[int | None, ...]]:
    return [
        replay_ngram(recording.match_lengths[1:], recording.match_hits[1:], draft_len, min_match_tokens)
        for recording in recordings
        if len(recording.match_hits) > 1
    ]


def _ngram_counts(replays: Sequence[Sequence[int | None]], draft_len: int) -> FloatArray:
    return stacked([counts_of([run or 0 for run in rounds], draft_len) for rounds in replays], "matches")


def stacked(counts_PK: Sequence[FloatArray], what: str) -> FloatArray:
    """The counts of all prompts. Raises: BadInputError, naming what no recording holds."""
    if not counts_PK:
        raise nothing_recorded(what)
    stacked_PK: FloatArray = np.stack(counts_PK)
    return stacked_PK


def nothing_recorded(what: str) -> BadInputError:
    """The error for what no recording holds."""
    return BadInputError(
        "there is no acceptance to replay",
        why=f"no recording of the profile holds {what} over two tokens or more",
        remedy="profile with that draft and a prompt file, or plan with a published curve",
    )


def counts_of(accepted: Sequence[int], draft_len: int) -> FloatArray:
    """Number of rounds with at least i accepted tokens, i = 0 to draft_len."""
    runs = np.asarray(accepted)
    counts: FloatArray = (runs[:, None] >= np.arange(draft_len + 1)).sum(axis=0, dtype=np.float64)
    return counts


def yield_of(counts_PK: FloatArray, proposed_frac: float = 1.0, sizes: tuple[float, float] | None = None) -> Yield:
    """Mean and spreads over prompts, by the one-way analysis of variance with rounds nested in prompts.

    Rounds within a prompt are taken as independent given the prompt; what they are not shows up between prompts.
    """
    mean_nodes, mean_passes = sizes or (counts_PK.shape[1] - 1.0, counts_PK.shape[1] - 1.0)  # those of a chain
    rounds_P = counts_PK[:, 0]
    accepted_P = counts_PK[:, 1:].sum(axis=1)
    odd_K = 2 * np.arange(1, counts_PK.shape[1]) - 1
    squares_P = counts_PK[:, 1:] @ odd_K  # sum of A^2 = sum over i of (2i - 1) rounds with A >= i
    num_prompts, num_rounds = len(rounds_P), rounds_P.sum()
    mean = 1 + accepted_P.sum() / num_rounds
    within = float((squares_P - accepted_P**2 / rounds_P).sum() / max(num_rounds - num_prompts, 1.0))
    if num_prompts == 1:  # one recording, or a curve that stands for a single average round
        within = float(squares_P[0] / num_rounds - (mean - 1) ** 2)
        between_frac = ASSUMED_BETWEEN_FRAC
    else:
        between = float((rounds_P * (1 + accepted_P / rounds_P - mean) ** 2).sum() / (num_prompts - 1))
        rounds_per_prompt = (num_rounds - (rounds_P**2).sum() / num_rounds) / (num_prompts - 1)
        between_frac = math.sqrt(max(0.0, between - within) / rounds_per_prompt) / mean
    return Yield(
        mean=float(mean),
        between_frac=float(between_frac),
        round_frac=math.sqrt(max(0.0, within)) / float(mean),
        num_prompts=num_prompts,
        survival=tuple(float(share) for share in counts_PK[:, 1:].sum(axis=0) / num_rounds),
        proposed_frac=proposed_frac,
        mean_nodes=mean_nodes,
        mean_passes=mean_passes,
    )


# --- the geometric formula, for what was published with it ---


def geometric_tokens_per_round(hazard: float, draft_len: int) -> float:
    """(1 - a^(K+1)) / (1 - a), which holds only if all hazards equal a. Source: arXiv 2211.17192, equation 1."""
    return float(draft_len + 1) if hazard == 1 else (1 - hazard ** (draft_len + 1)) / (1 - hazard)


def geometric_mle(survival: Sequence[float]) -> float:
    """The hazard that makes rounds with this survival most likely: accepted / (accepted + rounds with a rejection)."""
    num_accepted = sum(survival)
    return num_accepted / (num_accepted + 1 - survival[-1])


def pooled_share(survival: Sequence[float]) -> float:
    """Accepted / drafted tokens: no hazard, for it falls with the draft length."""
    return sum(survival) / len(survival)
