"""Seconds, tokens and bytes of candidate plans, many at once: from a profile's tables to tok/s and time to first token.

A candidate is a way to draft, a prefill chunk and a placement. Placements repeat among candidates, so that their
arrays are made once; the rounds of all candidates go through the recurrence together.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np

from planner.acceptance import Yield
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import LinkChoice, ProbabilityCurve, Staging, Unit, Workload
from planner.contracts.profile import Processor, Profile
from planner.drafting import Drafting
from planner.placed_units import PlacedUnits, UnitClass, UnitTimes
from planner.placement import Placement
from planner.schedule_batch import FloatArray
from planner.terms import PassTerms, RoundTerms, prefills_of, rounds_of
from planner.timing import Timing
from planner.yields import Yields

_Floats = TypeVar("_Floats", float, FloatArray)
_RoundKey = tuple[Placement, int, str | None, Drafting]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What distinguishes one plan from another on the same machine, target and budget."""

    draft: ModelShape | None
    drafting: Drafting
    prefill_chunk_tokens: int
    placement: Placement
    host_bytes: int  # for weights, beside everything else on the host


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a candidate yields on the workload, in the median."""

    candidate: Candidate
    terms: RoundTerms
    round_s: float
    tokens_per_s: float
    ttft_s: float
    total_s: float  # for the whole workload


class Scorer:
    """Scores candidates for one profile, link, workload and way of decoding.

    `factors` correct components as logged runs showed: link, compute, draft, host, tokens, ttft.
    """

    def __init__(
        self,
        profile: Profile,
        link: LinkChoice,
        workload: Workload,
        *,
        is_sampled: bool = False,
        draft_on_host: bool = False,
        hazard_gain: float = 0.0,
        yields: Yields | None = None,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.profile = profile
        self.timing = Timing(profile, link)
        self.workload = workload
        self._yields = yields or Yields(profile, workload.domain, is_sampled=is_sampled)
        self._draft_processor: Processor = "host" if draft_on_host else "device"
        self._hazard_gain = hazard_gain
        self._factors = defaultdict(lambda: 1.0, factors or {})
        self.decode_context_tokens = workload.prompt_tokens + workload.new_tokens / 2
        self._placed = lru_cache(maxsize=None)(partial(PlacedUnits.of, profile, self.timing))
        self._pass_times = lru_cache(maxsize=None)(self._pass_arrays)
        self._class_times = lru_cache(maxsize=None)(UnitClass.times)
        self._terms: dict[_RoundKey, RoundTerms] = {}
        self._prefills_s: dict[tuple[Placement, int, int], float] = {}  # from empty slots to the first token
        self._draft_prefill = lru_cache(maxsize=None)(self._draft_prefill_s)
        self._verify_s = lru_cache(maxsize=None)(self._pass_alone_s)
        self._tokens: dict[_RoundKey, Yield] = {}

    def tokens_of(self, candidate: Candidate) -> Yield:
        """Tokens per round, and how large rounds are: by recordings of the workload's domain, or a published curve."""
        key = _round_key(candidate)
        if key not in self._tokens:
            found = self._yields.best(_fingerprint(candidate), candidate.drafting, partial(self._lanes_s, candidate))
            self._tokens[key] = _with_hazards(found, self._hazard_gain)
        return self._tokens[key]

    def settled(self, candidate: Candidate) -> Drafting:
        """How the candidate drafts, the shape of a static tree included."""
        return self._yields.settled(_fingerprint(candidate), candidate.drafting)

    def units(self, candidate: Candidate) -> tuple[tuple[Unit, ...], Staging | None]:
        """The candidate's units and staging, without times."""
        placed = self._placed(candidate.placement, candidate.host_bytes)
        return placed.units, placed.staging

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """The score of each candidate, in order; those that differ in their prefill alone share their rounds."""
        self.check(candidates)
        keys = [_round_key(entry) for entry in candidates]
        rounds = dict.fromkeys(keys)
        rounds_s = dict(zip(rounds, rounds_of([self._terms[key] for key in rounds]), strict=True))
        self._prefill(candidates)
        return [
            self._score(candidate, self._terms[key], float(rounds_s[key]))
            for candidate, key in zip(candidates, keys, strict=True)
        ]

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Look up all that scoring them needs. Raises: BadInputError, where a measurement is missing."""
        for candidate in candidates:
            key = _round_key(candidate)
            if key not in self._terms:
                self._terms[key] = self.terms(candidate)
            self.first_draft_s(candidate)

    def _prefill(self, candidates: Sequence[Candidate]) -> None:
        """Time the prefills of the candidates that are not known yet."""
        keys = [key for key in dict.fromkeys(map(_prefill_key, candidates)) if key not in self._prefills_s]
        seconds = prefills_of([self._prefill_terms(*key) for key in keys], [self._num_chunks(key[-1]) for key in keys])
        self._prefills_s.update(zip(keys, seconds.tolist(), strict=True))

    def terms(self, candidate: Candidate) -> RoundTerms:
        """The parts of the candidate's rounds."""
        placed = self._placed(candidate.placement, candidate.host_bytes)
        tokens = self.tokens_of(candidate)
        num_verified = 1 + tokens.mean_nodes
        times = self._pass_times(candidate.placement, candidate.host_bytes, num_verified, self.decode_context_tokens)
        host_s = self._host_s(candidate.drafting, num_verified)
        draft_s = self._draft_s(candidate, tokens, 0.0)
        transfers_s = max(float(placed.copies_s[0].sum()), float(placed.reads_s[0].sum()))
        lanes_s = max(transfers_s, float(times.alone_s_U.sum()) + draft_s + host_s)
        load = placed.streamed_bytes / lanes_s
        compute_s_U = times.beside(load)
        is_warm = not candidate.drafting.has_model  # whose passes leave nothing in the processor's cache
        if is_warm:
            compute_s_U[placed.is_streamed_U] *= times.warm_frac_U[placed.is_streamed_U]
        compute_s_U[placed.is_streamed_U] += self.timing.edge_s(load)
        waiting_s = lanes_s - float(compute_s_U.sum()) - draft_s - host_s
        compute_s_U += placed.wakes_s(self.timing, waiting_s, is_warm=is_warm)
        draft_s = self._draft_s(candidate, tokens, load)
        duty = min(1.0, (float(compute_s_U.sum()) + draft_s + host_s) / lanes_s)
        of_pass, factors = placed.pass_terms(compute_s_U, duty), self._factors
        return RoundTerms(
            is_streamed_U=of_pass.is_streamed_U,
            compute_s_U=of_pass.compute_s_U * factors["compute"],
            copy_s_U=of_pass.copy_s_U * factors["link"],
            read_s_U=of_pass.read_s_U * factors["link"],
            num_slots=of_pass.num_slots,
            num_staging_buffers=of_pass.num_staging_buffers,
            draft_s=draft_s * factors["draft"],
            host_s=host_s * factors["host"],
            tokens_per_round=self._tokens_per_round(candidate, tokens),
            max_depth=candidate.drafting.most_accepted_tokens,
        )

    def serial_round_s(self, candidate: Candidate) -> float:
        """Seconds of a round in which nothing overlaps: read, copy, compute, one unit after the other."""
        placed = self._placed(candidate.placement, candidate.host_bytes)
        transfers_s = float(placed.copies_s[0].sum() + placed.reads_s[0].sum()) * self._factors["link"]
        return transfers_s + self._compute_only_s(candidate, placed, "device")

    def cpu_round_s(self, candidate: Candidate) -> float:
        """Seconds of a round in which the CPU computes, where it lies, what is not resident; nothing is copied."""
        placed = self._placed(candidate.placement, candidate.host_bytes)
        elsewhere: Processor = "host" if self.timing.link.kind == "cuda" else "device"
        reads_s = float(placed.reads_s[0].sum()) * self._factors["link"]  # of what host memory does not hold
        return reads_s + self._compute_only_s(candidate, placed, elsewhere)

    def first_draft_s(self, candidate: Candidate) -> float:
        """Seconds that the first round drafts longer than the others: the draft reads the prompt then."""
        if candidate.draft is None:
            return 0.0
        seconds = self._draft_prefill(candidate.draft.fingerprint, candidate.prefill_chunk_tokens)
        return seconds * self._factors["draft"]

    def draft_level_s(self, candidate: Candidate, num_nodes: int) -> float:
        """Seconds of one pass of the draft over a tree's level, or over a chain's next token."""
        assert candidate.draft is not None
        seconds = self.timing.draft_pass_s(
            candidate.draft.fingerprint,
            num_nodes,
            self.decode_context_tokens,
            0.0,
            self._draft_processor,
            is_tree_level=candidate.drafting.kind != "chain",
        )
        return seconds * self._factors["draft"]

    def decode_s(self, candidate: Candidate, round_s: float) -> float:
        """Seconds of decoding the workload after its first token, in rounds of a length."""
        tokens = self.tokens_of(candidate)
        mean = self._tokens_per_round(candidate, tokens)
        return num_rounds(self.workload, mean, tokens.round_frac) * round_s + self.first_draft_s(candidate)

    def _score(self, candidate: Candidate, terms: RoundTerms, round_s: float) -> Score:
        ttft_s = self._prefills_s[_prefill_key(candidate)] * self._factors["ttft"]
        decode_s = self.decode_s(candidate, round_s)
        num_decoded = max(self.workload.new_tokens - 1, 1)
        return Score(
            candidate=candidate,
            terms=terms,
            round_s=round_s,
            tokens_per_s=num_decoded / decode_s,
            ttft_s=ttft_s,
            total_s=ttft_s + decode_s,
        )

    def _draft_prefill_s(self, fingerprint: str, chunk_tokens: int) -> float:
        prompt_tokens, processor = self.workload.prompt_tokens, self._draft_processor
        chunk_tokens = min(chunk_tokens, self.timing.most_draft_tokens(fingerprint, processor))
        num_passes = math.ceil(prompt_tokens / chunk_tokens)
        num_tokens = prompt_tokens / num_passes
        return num_passes * self.timing.draft_pass_s(fingerprint, num_tokens, prompt_tokens / 2, 0.0, processor)

    def _compute_only_s(self, candidate: Candidate, placed: PlacedUnits, elsewhere: Processor) -> float:
        tokens, context_tokens = self.tokens_of(candidate), self.decode_context_tokens
        num_verified = 1 + tokens.mean_nodes
        counts = Counter(zip(placed.class_U.tolist(), placed.is_streamed_U.tolist(), strict=True))
        compute_s = 0.0
        for (of_unit, is_streamed), count in counts.items():
            processor = elsewhere if is_streamed else "device"
            of_units = placed.classes[of_unit]
            unit_s = of_units.seconds(self.timing, num_verified, context_tokens, processor=processor)
            compute_s += count * unit_s
        factors = self._factors
        draft_s = self._draft_s(candidate, tokens, 0.0) * factors["draft"]
        host_s = self._host_s(candidate.drafting, num_verified) * factors["host"]
        return compute_s * factors["compute"] + draft_s + host_s

    def _host_s(self, drafting: Drafting, num_verified: float) -> float:
        """Seconds of judging so many tokens, and of accepting some."""
        return self.timing.round_s(num_verified, is_tree=drafting.tree_nodes > 0)

    def _tokens_per_round(self, candidate: Candidate, tokens: Yield) -> float:
        """The corrected mean, within what the draft allows."""
        return min(max(1.0, tokens.mean * self._factors["tokens"]), candidate.drafting.most_accepted_tokens + 1.0)

    def _draft_s(self, candidate: Candidate, tokens: Yield, load_bytes_per_s: float) -> float:
        """Seconds of drafting in a round: the first pass of the model, the others, and looking up n-grams."""
        drafting = candidate.drafting
        lookup_s = self.timing.ngram_s(drafting.num_nodes) if drafting.has_copies else 0.0
        if candidate.draft is None:
            return lookup_s
        # after a round that accepted all, the last token is fed too
        mean_fed = 1 + tokens.survival[-1]
        return lookup_s + self._passes_s(candidate, tokens.mean_passes, load_bytes_per_s, mean_fed)

    def _passes_s(self, candidate: Candidate, num_passes: float, load_bytes_per_s: float, mean_fed: float) -> float:
        assert candidate.draft is not None
        return self.timing.draft_s(
            candidate.draft.fingerprint,
            candidate.drafting,
            self.decode_context_tokens,
            load_bytes_per_s,
            self._draft_processor,
            mean_fed=mean_fed,
            num_passes=num_passes,
        )

    def _lanes_s(self, candidate: Candidate, num_nodes: float, num_passes: float) -> float:
        """Seconds of the busier lane in a round that verifies so many nodes after so many passes of the draft.

        What the runtime weighs candidates by is the whole round; lanes tell apart what is hidden and what is not.
        """
        placed, factors = self._placed(candidate.placement, candidate.host_bytes), self._factors
        num_verified = 1 + num_nodes
        fewer = min(2 ** math.floor(math.log2(num_verified)), candidate.drafting.num_verified)
        more = min(2 * fewer, candidate.drafting.num_verified)
        fewer_s, more_s = (self._verify_s(candidate.placement, candidate.host_bytes, count) for count in (fewer, more))
        compute_s = fewer_s + (more_s - fewer_s) * (num_verified - fewer) / max(more - fewer, 1)
        draft_s = 0.0 if candidate.draft is None else self._passes_s(candidate, num_passes, 0.0, mean_fed=1.0)
        transfers_s = max(float(placed.copies_s[0].sum()), float(placed.reads_s[0].sum())) * factors["link"]
        computing_s: float = compute_s + draft_s * factors["draft"]
        return max(transfers_s, computing_s)

    def _pass_alone_s(self, placement: Placement, host_bytes: int, num_tokens: int) -> float:
        """Seconds that the compute lane takes to verify so many tokens, the host's work among them."""
        alone_s_U = self._pass_times(placement, host_bytes, num_tokens, self.decode_context_tokens).alone_s_U
        host_s = self.timing.round_s(num_tokens) * self._factors["host"]
        return float(alone_s_U.sum()) * self._factors["compute"] + host_s

    def calibration(self, candidate: Candidate) -> ProbabilityCurve | None:
        """How the runtime is to read the draft's probabilities; None where nothing depends on them."""
        drafting = candidate.drafting
        is_adaptive = drafting.tiers or (drafting.kind in ("tree", "hybrid") and not drafting.is_static)
        if candidate.draft is None or not is_adaptive:
            return None
        return self._yields.calibration(candidate.draft.fingerprint)

    def _pass_arrays(
        self, placement: Placement, host_bytes: int, num_tokens: float, context_tokens: float
    ) -> UnitTimes:
        """Seconds per unit, alone and beside copies."""
        placed = self._placed(placement, host_bytes)
        times = [self._class_times(of_units, self.timing, num_tokens, context_tokens) for of_units in placed.classes]
        return UnitTimes.of(times, placed.class_U)

    def _prefill_terms(self, placement: Placement, host_bytes: int, chunk_tokens: int) -> PassTerms:
        """A pass over one of the prompt's chunks, all of equal length."""
        prompt_tokens = self.workload.prompt_tokens
        num_tokens = prompt_tokens / self._num_chunks(chunk_tokens)
        placed = self._placed(placement, host_bytes)
        times = self._pass_times(placement, host_bytes, num_tokens, prompt_tokens / 2)
        one_row = self._pass_times(placement, host_bytes, 1, prompt_tokens / 2)
        is_head_U = placed.is_head_U  # a prefill wants the last row of logits only
        alone_s = float(np.where(is_head_U, one_row.alone_s_U, times.alone_s_U).sum())
        load = placed.streamed_bytes / max(float(placed.copies_s[1].sum()), alone_s)
        return placed.pass_terms(np.where(is_head_U, one_row.beside(load), times.beside(load)), duty=1.0)

    def _num_chunks(self, chunk_tokens: int) -> int:
        return math.ceil(self.workload.prompt_tokens / chunk_tokens)


def num_rounds(workload: Workload, tokens_per_round: _Floats, round_frac: float) -> _Floats:
    """Rounds of a run: the last one overshoots the end by the mean residual of a renewal process."""
    overshoot = (tokens_per_round * (1 + round_frac**2) - 1) / 2
    return (max(workload.new_tokens - 1, 1) + overshoot) / tokens_per_round


def _fingerprint(candidate: Candidate) -> str | None:
    return None if candidate.draft is None else candidate.draft.fingerprint


def _round_key(candidate: Candidate) -> _RoundKey:
    return candidate.placement, candidate.host_bytes, _fingerprint(candidate), candidate.drafting


def _prefill_key(candidate: Candidate) -> tuple[Placement, int, int]:
    return candidate.placement, candidate.host_bytes, candidate.prefill_chunk_tokens


def _with_hazards(found: Yield, gain: float) -> Yield:
    """The same draft with every hazard raised by so much, for the price of a point of acceptance."""
    if gain == 0:
        return found
    survival, before, reached = [], 1.0, 1.0
    for share in found.survival:
        hazard = min(1.0, (share / before if before else 0.0) + gain)
        before = share
        reached *= hazard
        survival.append(reached)
    return replace(found, mean=1 + sum(survival), survival=tuple(survival))
