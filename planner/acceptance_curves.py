"""Acceptance as curves over draft length, rank, tree size, match and probability: what the acceptance figures show.

All from recordings by replay (planner.acceptance, planner.tree_yield); published curves are not covered. Intervals run
from P10 to P90: of curves over prompts drawn with replacement, of single points by Wilson's formula over positions, as
if these were independent. Where one prompt was recorded, nothing says how prompts differ: there is no interval.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.acceptance import chain_counts, ngram_counts, quotients_over_prompts, stacked
from planner.calibration import probability_bins
from planner.contracts.copied_text import RIGHT_BY_LENGTH
from planner.contracts.errors import BadInputError
from planner.contracts.plan import ProbabilityCurve
from planner.contracts.profile import AcceptanceRecording, Profile
from planner.drafting import EVERY_CHAIN, EVERY_HYBRID, EVERY_TREE, Drafting, DraftKind
from planner.shares import Share, wilson_share
from planner.yields import Yields

FloatArray = NDArray[np.float64]
Agreement = Literal["all", "most", "few", "unknown"]

MIN_MATCH_TOKENS = 1
_MATCH_ENDS = (1, 2, 3, 4, 5, 6, 8, 11, 15)  # last lengths of the groups; one more for all beyond
_MOST_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCurve:
    """A quantity over 1, 2, ... for one kind of text (None: all of them); intervals None where one prompt is all."""

    domain: str | None
    num_prompts: int
    num_tokens: int
    steps: tuple[int, ...]
    values: tuple[float, ...]
    lows: tuple[float, ...] | None
    highs: tuple[float, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchGroup:
    """How often the continuation of an earlier match was right, by the match's length and how earlier ones went on.

    `agreement`: after all earlier occurrences the same followed, after more than half of them, or fewer; unknown in
    older profiles. `most_tokens` is None for all longer ones. `prior_frac` is what is assumed before anything is known,
    where all agree.
    """

    least_tokens: int
    most_tokens: int | None
    agreement: Agreement
    right: Share
    prior_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilityPoint:
    """Candidates of like probability by the draft, and the share of them that the target took."""

    draft_prob: float
    taken: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCalibration:
    """What the draft's probabilities are worth, and the rising curve that plans take of it; None where too few."""

    points: tuple[ProbabilityPoint, ...]
    curve: ProbabilityCurve | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthCurve:
    """Tokens per round against drafted nodes, of one kind of draft and depth; None: chains, as deep as long."""

    kind: DraftKind
    max_depth: int | None
    num_nodes: tuple[int, ...]
    tokens_per_round: tuple[float, ...]


def recorded(profile: Profile, fingerprint: str | None, domain: str | None = None) -> tuple[AcceptanceRecording, ...]:
    """The recordings of a draft, or of the texts alone (None), on one kind of text or all (None).

    Raises: BadInputError, where there are none.
    """
    found = tuple(
        entry for entry in profile.acceptance if entry.fingerprint == fingerprint and domain in (None, entry.domain)
    )
    if not found:
        whose = "of the texts" if fingerprint is None else "of this draft"
        raise _none_recorded(profile, f"{whose}{'' if domain is None else f', domain {domain}'}")
    return found


def recorded_drafts(profile: Profile) -> dict[str, str]:
    """The fingerprints of drafts with recordings, by name. Raises: BadInputError, where there are none."""
    drafts = {entry.fingerprint for entry in profile.acceptance}
    found = {draft.name: draft.fingerprint for draft in profile.drafts if draft.fingerprint in drafts}
    if not found:
        raise _none_recorded(profile, "of any draft")
    return found


def by_domain(
    recordings: Sequence[AcceptanceRecording],
) -> list[tuple[str | None, list[AcceptanceRecording]]]:
    """Each kind of text, and where there are several all of them together (None)."""
    domains: list[str | None] = [*sorted({entry.domain for entry in recordings})]
    if len(domains) > 1:
        domains.append(None)
    return [(domain, [entry for entry in recordings if domain in (None, entry.domain)]) for domain in domains]


def survival_curves(recordings: Sequence[AcceptanceRecording], draft_len: int, *, seed: int) -> tuple[TextCurve, ...]:
    """Share of rounds in which at least 1, 2, ... drafted tokens are accepted, of chains that long, or of copies.

    Raises: BadInputError, where nothing can be replayed.
    """
    curves = []
    for domain, entries in by_domain(recordings):
        counts_PK = _counts(entries, draft_len)
        curves.append(_curve(domain, entries, range(1, draft_len + 1), counts_PK[:, 1:], counts_PK[:, 0], seed=seed))
    return tuple(curves)


def length_curves(
    recordings: Sequence[AcceptanceRecording], draft_lens: Sequence[int], *, seed: int
) -> tuple[TextCurve, ...]:
    """Tokens per round, had so many been drafted: of chains of the draft, or of copies where texts were recorded alone.

    Raises: BadInputError, where nothing can be replayed.
    """
    curves = []
    for domain, entries in by_domain(recordings):
        counts = [_counts(entries, draft_len) for draft_len in draft_lens]
        each = [_curve(domain, entries, (0,), of.sum(axis=1)[:, None], of[:, 0], seed=seed) for of in counts]
        first = each[0]
        curves.append(
            TextCurve(
                domain=domain,
                num_prompts=first.num_prompts,
                num_tokens=first.num_tokens,
                steps=tuple(draft_lens),
                values=tuple(curve.values[0] for curve in each),
                lows=None if first.lows is None else tuple(curve.lows[0] for curve in each if curve.lows),
                highs=None if first.highs is None else tuple(curve.highs[0] for curve in each if curve.highs),
            )
        )
    return tuple(curves)


def rank_curves(recordings: Sequence[AcceptanceRecording], num_ranks: int, *, seed: int) -> tuple[TextCurve, ...]:
    """Share of the target's tokens that are among the draft's first 1, 2, ... choices.

    Raises: BadInputError, where no ranks were recorded.
    """
    curves = []
    for domain, entries in by_domain(recordings):
        used = [np.array(entry.ranks) for entry in entries if entry.ranks]
        within = [(ranks_T[:, None] < np.arange(1, num_ranks + 1)).sum(axis=0, dtype=np.float64) for ranks_T in used]
        parts_PR = stacked(within, "ranks of a draft")
        wholes_P = np.array([float(len(ranks_T)) for ranks_T in used])
        curves.append(_curve(domain, entries, range(1, num_ranks + 1), parts_PR, wholes_P, seed=seed))
    return tuple(curves)


def match_groups(profile: Profile, domain: str | None = None) -> tuple[MatchGroup, ...]:
    """How often what followed an earlier match followed again, on one kind of text or all (None); no empty groups.

    Raises: BadInputError, where no matches were recorded.
    """
    num_all: Counter[tuple[int, Agreement]] = Counter()
    num_right: Counter[tuple[int, Agreement]] = Counter()
    prior: defaultdict[tuple[int, Agreement], float] = defaultdict(float)
    for entry in recorded(profile, None, domain):
        shares = entry.match_shares or (None,) * len(entry.match_hits)
        for length, hit, share in zip(entry.match_lengths, entry.match_hits, shares, strict=True):
            if length:
                key = (sum(length > end for end in _MATCH_ENDS), _agreement(share))
                num_all[key] += 1
                num_right[key] += hit
                prior[key] += RIGHT_BY_LENGTH[min(length, len(RIGHT_BY_LENGTH)) - 1]
    if not num_all:
        raise BadInputError(
            "there are no matches to calibrate",
            why="no recording of the profile holds a position where earlier text matches",
            remedy="planner profile with longer prompts of your kind of text",
        )
    starts, ends = (1, *(end + 1 for end in _MATCH_ENDS)), (*_MATCH_ENDS, None)
    return tuple(
        MatchGroup(
            least_tokens=starts[place],
            most_tokens=ends[place],
            agreement=agreement,
            right=wilson_share(num_right[place, agreement], num_all[place, agreement]),
            prior_frac=prior[place, agreement] / num_all[place, agreement],
        )
        for place, agreement in sorted(num_all)
    )


def draft_calibration(profile: Profile, fingerprint: str, domain: str | None = None) -> DraftCalibration:
    """How often the target takes what the draft gives some probability, on one kind of text or all (None).

    Raises: BadInputError, where no probabilities were recorded.
    """
    bins = probability_bins(recorded(profile, fingerprint, domain))
    if not bins:
        raise BadInputError(
            "there are no probabilities to calibrate",
            why="no recording of the profile holds those of the draft's first choices",
            remedy="planner profile again with that draft",
        )
    return DraftCalibration(
        points=tuple(
            ProbabilityPoint(draft_prob=entry.mean_prob, taken=wilson_share(entry.num_taken, entry.num_candidates))
            for entry in bins
        ),
        curve=Yields(profile, domain, is_sampled=False).calibration(fingerprint),
    )


def growth_curves(profile: Profile, fingerprint: str, domain: str | None = None) -> tuple[GrowthCurve, ...]:
    """Tokens per round of every size of chain, tree and hybrid that the planner tries, greedy; in that order.

    Hybrids are left out where no matches were recorded. Raises: BadInputError, where nothing can be replayed.
    """
    yields = Yields(profile, domain, is_sampled=False)
    curves = [_growth(yields, fingerprint, None, EVERY_CHAIN)]
    has_matches = any(entry.match_hits for entry in profile.acceptance if domain in (None, entry.domain))
    for draftings in (EVERY_TREE, EVERY_HYBRID if has_matches else ()):
        for depth in sorted({entry.max_depth for entry in draftings}):
            curves.append(
                _growth(yields, fingerprint, depth, [entry for entry in draftings if entry.max_depth == depth])
            )
    return tuple(curves)


def _none_recorded(profile: Profile, whose: str) -> BadInputError:
    drafts = {entry.fingerprint for entry in profile.acceptance} - {None}
    return BadInputError(
        f"the profile has no recorded acceptance {whose}",
        why=f"it holds {len(profile.acceptance)} recordings, of {len(drafts)} drafts",
        remedy="planner profile with that draft, and with time enough for the group acceptance",
    )


def _growth(yields: Yields, fingerprint: str, max_depth: int | None, draftings: Sequence[Drafting]) -> GrowthCurve:
    return GrowthCurve(
        kind=draftings[0].kind,
        max_depth=max_depth,
        num_nodes=tuple(entry.num_nodes for entry in draftings),
        tokens_per_round=tuple(yields.of(fingerprint, entry).mean for entry in draftings),
    )


def _counts(entries: Sequence[AcceptanceRecording], draft_len: int) -> FloatArray:
    """Rounds of each prompt with at least 0, 1, ... accepted tokens, of the draft's chains or of copies."""
    if all(entry.fingerprint is None for entry in entries):
        return ngram_counts(entries, draft_len, MIN_MATCH_TOKENS)
    return chain_counts(entries, draft_len)


def _curve(
    domain: str | None,
    entries: Sequence[AcceptanceRecording],
    steps: Sequence[int],
    parts_PX: FloatArray,
    wholes_P: FloatArray,
    *,
    seed: int,
) -> TextCurve:
    values_X = parts_PX.sum(axis=0) / wholes_P.sum()
    ends = quotients_over_prompts(parts_PX, wholes_P, seed=seed) if len(wholes_P) > 1 else None
    return TextCurve(
        domain=domain,
        num_prompts=len(wholes_P),
        num_tokens=sum(max(len(entry.ranks), len(entry.match_hits)) for entry in entries),
        steps=tuple(steps),
        values=tuple(values_X.tolist()),
        lows=None if ends is None else tuple(ends[0].tolist()),
        highs=None if ends is None else tuple(ends[1].tolist()),
    )


def _agreement(share: float | None) -> Agreement:
    if share is None:
        return "unknown"
    if share >= 1:
        return "all"
    return "most" if share > _MOST_SHARE else "few"
