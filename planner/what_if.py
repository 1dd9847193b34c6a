"""What the planner answers once something is changed: the numbers of `planner recommend`, fast enough for a slider.

A `WhatIf` holds one situation and remembers what changes have in common; a `Case` is the situation with one change.
Everything here is a pure function of profile, request and change; nothing is measured or run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from planner.changes import Change, Situation, changed
from planner.contracts.errors import DraftstreamError, NoFeasiblePlanError
from planner.contracts.plan import Plan
from planner.contracts.recommendation import Crossover, Price, Recommendation
from planner.contracts.timeline import Span
from planner.drafting import NO_DRAFTING, Drafting, DraftKind, chain, ngram, tree
from planner.recommend import crossover, prices, recommendation_of
from planner.schedule import schedule_of as schedule_of_plan
from planner.schedule import timeline
from planner.schedule_batch import FloatArray
from planner.scoring import Score, Scorer
from planner.search import Ranking, Request, error_of, expected_of, plan_of, rank, scorer_for
from planner.uncertainty import outlooks
from planner.yields import Yields

MAP_DRAFTINGS = (
    NO_DRAFTING,
    *(chain(length) for length in (1, 2, 4, 6, 8, 12, 16)),
    *(tree(nodes, depth) for nodes, depth in ((16, 4), (32, 8), (64, 8), (128, 16))),
    *(ngram(nodes) for nodes in (8, 32)),
    *(tree(nodes, depth, "hybrid") for nodes, depth in ((16, 4), (32, 8), (64, 8), (128, 16))),
)
_AS_IT_IS = Change()
_MOST_CASES = 64  # that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """P10, P50 and P90 of one quantity."""

    p10: float
    p50: float
    p90: float

    @classmethod
    def of(cls, draws: FloatArray) -> Self:
        """Of draws, the first of which has everything at its median."""
        p10, p90 = np.percentile(draws, [10, 90]).tolist()
        return cls(p10=p10, p50=float(draws[0]), p90=p90)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBand:
    """A draft length at its best placement: tok/s with their interval, tokens and seconds per round."""

    draft_len: int
    tokens_per_s: Band
    tokens_per_round: float
    round_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthCurve:
    """tok/s against the length of a draft's chains, and without a draft, whose memory is then given back."""

    draft: str
    points: tuple[LengthBand, ...]
    plain: Band
    crossover: Crossover

    @property
    def best(self) -> LengthBand:
        """The fastest length."""
        return max(self.points, key=lambda point: point.tokens_per_s.p50)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundParts:
    """Seconds of one round by lane. Compute, draft, host and waiting add up to it; copies lie beneath them."""

    label: str
    round_s: float
    link_s: float
    disk_s: float
    compute_s: float
    draft_s: float
    host_s: float

    @property
    def waiting_s(self) -> float:
        """What the compute lane waits for weights."""
        return max(0.0, self.round_s - self.compute_s - self.draft_s - self.host_s)

    @property
    def link_idle_s(self) -> float:
        """What the link stands still."""
        return max(0.0, self.round_s - self.link_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The best plan at one point of a map."""

    tokens_per_s: float
    kind: DraftKind
    is_streaming: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyMap:
    """Best plans over link bandwidth (rows) and device memory (columns); None where nothing fits."""

    device_bytes: tuple[int, ...]
    link_bytes_per_s: tuple[float, ...]
    cells: tuple[tuple[Cell | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What one of several machines is advised to run, or why it cannot."""

    name: str
    recommendation: Recommendation | None
    why_not: str | None = None

    @property
    def tokens_per_s(self) -> float:
        """Predicted tok/s in the median; 0 where nothing runs."""
        return 0.0 if self.recommendation is None else self.recommendation.choice.tokens_per_s

    @classmethod
    def refused(cls, name: str, error: DraftstreamError) -> Self:
        """Of a machine that cannot run it, or of which too little is known."""
        return cls(name=name, recommendation=None, why_not=f"{error.what}; try {error.remedy}")


class Case:
    """A situation after a change, and what the planner says of it. Raises: as `recommend` does."""

    def __init__(self, situation: Situation, scorer: Scorer) -> None:
        self.situation = situation
        self._scorer = scorer
        self.ranking: Ranking = rank(situation.profile, situation.request, scorer)

    @property
    def best(self) -> Score:
        """What `recommend` chooses."""
        return self.ranking.best

    @cached_property
    def plan(self) -> Plan:
        """Its plan, with times per unit and P10, P50, P90."""
        return plan_of(self.situation.profile, self.situation.request, self.best, self._scorer)[0]

    @cached_property
    def prices(self) -> tuple[Price, ...]:
        """What one more GiB, GB/s, or point of acceptance gives."""
        return tuple(prices(self.situation.profile, self.situation.request, self.best, self._scorer))

    @cached_property
    def recommendation(self) -> Recommendation:
        """All that `recommend` says."""
        profile, request = self.situation.profile, self.situation.request
        return recommendation_of(profile, request, self.ranking, self._scorer, plan=self.plan, gains=self.prices)

    @cached_property
    def curve(self) -> LengthCurve | None:
        """tok/s by length of chains of the first draft that has any; None where none has."""
        chains = {shape: self.ranking.fastest_chains(shape.fingerprint) for shape in self.situation.profile.drafts}
        shape = next((shape for shape, scores in chains.items() if scores), None)
        if shape is None:
            return None
        plain, *bands = self._bands([self.ranking.baseline, *chains[shape]])
        return LengthCurve(
            draft=shape.name,
            points=tuple(
                LengthBand(
                    draft_len=score.candidate.drafting.num_nodes,
                    tokens_per_s=band,
                    tokens_per_round=score.terms.tokens_per_round,
                    round_s=score.round_s,
                )
                for score, band in zip(chains[shape], bands, strict=True)
            ),
            plain=plain,
            crossover=crossover(self.ranking, shape),
        )

    def parts(self) -> list[RoundParts]:
        """Round times of the best of each kind of draft, the simplest kind first."""
        return [_parts(score) for score in self.ranking.best_of_kinds()]

    def spans(self, num_rounds: int = 2) -> tuple[Span, ...]:
        """What each lane does in a pass from empty slots and in the rounds after it."""
        return timeline(schedule_of_plan(self.plan), num_rounds)

    def _bands(self, scores: Sequence[Score]) -> list[Band]:
        """tok/s of each score, drawn as `plan_of` draws them."""
        profile, request = self.situation.profile, self.situation.request
        plans = [expected_of(self._scorer, score) for score in scores]
        drawn = outlooks(plans, request.workload, error_of(profile, request))
        return [Band.of(entry.tokens_per_s) for entry in drawn]


class WhatIf:
    """One situation, and its cases by change. Scorers are kept: what only memory changes costs no new tables."""

    def __init__(self, situation: Situation) -> None:
        self.situation = situation
        self._scorers: dict[Change, Scorer] = {}
        self._yields: dict[str | None, Yields] = {}  # by domain; a link or a context leaves them as they are
        self._cases: dict[Change, Case] = {}

    def case(self, change: Change = _AS_IT_IS) -> Case:
        """The situation after a change. Raises: as `changed` and `rank` do."""
        if change not in self._cases:
            if len(self._cases) >= _MOST_CASES:
                self._cases.clear()
                self._scorers.clear()
            self._cases[change] = Case(changed(self.situation, change), self._scorer(change))
        return self._cases[change]

    def map(
        self, device_bytes: Sequence[int], link_bytes_per_s: Sequence[float], change: Change = _AS_IT_IS
    ) -> StrategyMap:
        """The best over memories and bandwidths, among fewer candidates than `recommend` has (`coarse`)."""
        chunk_tokens = self.case(change).best.candidate.prefill_chunk_tokens
        rows = [
            [
                self._cell(replace(change, device_bytes=size, link_bytes_per_s=rate), chunk_tokens)
                for size in device_bytes
            ]
            for rate in link_bytes_per_s
        ]
        return StrategyMap(
            device_bytes=tuple(device_bytes), link_bytes_per_s=tuple(link_bytes_per_s), cells=tuple(map(tuple, rows))
        )

    def _cell(self, change: Change, chunk_tokens: int) -> Cell | None:
        situation = changed(self.situation, change)
        request = coarse(situation.request, chunk_tokens)
        try:
            best = rank(situation.profile, request, self._scorer(change)).best
        except NoFeasiblePlanError:
            return None
        return Cell(
            tokens_per_s=best.tokens_per_s,
            kind=best.candidate.drafting.kind,
            is_streaming=best.candidate.placement.num_slots > 0,
        )

    def _scorer(self, change: Change) -> Scorer:
        """A scorer for what changes times or tokens; cases that differ in memory or in what they rule out share it."""
        shared = replace(change, device_bytes=None, host_bytes=None, draft=None, kind=None, num_nodes=None)
        if shared not in self._scorers:
            situation = changed(self.situation, shared)
            profile, request = situation.profile, situation.request
            domain = request.workload.domain
            if domain not in self._yields:
                self._yields[domain] = Yields(profile, domain, is_sampled=request.is_sampled)
            self._scorers[shared] = scorer_for(profile, request, self._yields[domain])
        return self._scorers[shared]


def coarse(request: Request, chunk_tokens: int) -> Request:
    """The request with one prefill chunk, fewer sizes of draft, two slots and whole layers: for maps of many cells."""
    kinds = dict.fromkeys(entry.kind for entry in MAP_DRAFTINGS if entry != NO_DRAFTING)
    return replace(
        request,
        draftings=(NO_DRAFTING, *(entry for kind in kinds for entry in _coarse_sizes(request, kind))),
        wishes=replace(request.wishes, prefill_chunk_tokens=chunk_tokens),
        slot_counts=(2,),
        grains=("layers",),
    )


def _coarse_sizes(request: Request, kind: DraftKind) -> list[Drafting]:
    """Those sizes of a kind that maps have; all that the request allows where it allows none of these."""
    allowed = [entry for entry in request.draftings if entry.kind == kind]
    return [entry for entry in MAP_DRAFTINGS if entry in allowed] or allowed


def compared(what_ifs: Mapping[str, WhatIf]) -> list[Advice]:
    """What each named situation is advised to run, the fastest first, and why the others cannot."""
    advice = []
    for name, what_if in what_ifs.items():
        try:
            advice.append(Advice(name=name, recommendation=what_if.case().recommendation))
        except DraftstreamError as error:
            advice.append(Advice.refused(name, error))
    return sorted(advice, key=lambda entry: -entry.tokens_per_s)


def _parts(score: Score) -> RoundParts:
    terms = score.terms
    return RoundParts(
        label=score.candidate.drafting.label,
        round_s=score.round_s,
        link_s=float(terms.copy_s_U.sum()),
        disk_s=float(terms.read_s_U.sum()),
        compute_s=float(terms.compute_s_U.sum()),
        draft_s=terms.draft_s,
        host_s=terms.host_s,
    )
