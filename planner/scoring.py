"""Seconds, tokens and bytes of candidate plans, many at once: from a profile's tables to tok/s and time to first token.

A candidate is a way to draft, a prefill chunk and a placement. Placements repeat among candidates, so that their
arrays are made once; the rounds of all candidates go through the recurrence together.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from planner.acceptance import Yield
from planner.contracts.errors import BadInputError
from planner.contracts.layer_parts import DECODER_KINDS
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import INLINE_BYTES, LinkChoice, ProbabilityCurve, Staging, Unit, UnitKind, Workload
from planner.contracts.profile import Processor, Profile
from planner.drafting import Drafting
from planner.placement import Placement, choose_sources, units_of
from planner.schedule import Schedule, ScheduleBatch, Step, passes_s, round_time_s, round_times_s
from planner.timing import Timing
from planner.yields import Yields

FloatArray = NDArray[np.float64]

_FEW = 48  # schedules that are faster one by one than as arrays
_PER_BYTE_PER_S = 1e9  # the load at which slow-downs are read off the tables; they are in proportion to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What distinguishes one plan from another on the same machine, target and budget."""

    draft: ModelShape | None
    drafting: Drafting
    prefill_chunk_tokens: int
    placement: Placement
    host_bytes: int  # for weights, beside everything else on the host


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTerms:
    """What a round is made of, before the schedule joins it: seconds per unit, of drafting, of the host, and tokens.

    Arrays have one entry per unit in pass order. `compute_s_U` and `copy_s_U` are those under each other's load.
    """

    is_streamed_U: NDArray[np.bool_]
    compute_s_U: FloatArray
    copy_s_U: FloatArray
    read_s_U: FloatArray
    num_slots: int
    num_staging_buffers: int
    draft_s: float
    host_s: float
    tokens_per_round: float
    max_depth: int  # of what is drafted


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a candidate yields on the workload, in the median."""

    candidate: Candidate
    terms: RoundTerms
    round_s: float
    tokens_per_s: float
    ttft_s: float
    total_s: float  # for the whole workload


class _UnitClass(NamedTuple):
    """What units have in common that compute equally long."""

    kind: UnitKind
    first: int  # layer of that shape
    num_rows: int  # of a head chunk
    is_on_host: bool

    @classmethod
    def of(cls, timing: Timing, unit: Unit) -> Self:
        """The class of a unit."""
        is_of_layer = unit.kind in DECODER_KINDS
        return cls(
            kind=unit.kind,
            first=timing.first_alike[unit.index] if is_of_layer else 0,
            num_rows=0 if unit.rows is None else unit.rows[1] - unit.rows[0],
            is_on_host=unit.placement == "host",
        )


@dataclass(frozen=True, slots=True)
class _PlacedUnits:
    """A placement as arrays over its units in pass order."""

    units: tuple[Unit, ...]
    classes: tuple[_UnitClass, ...]
    class_U: NDArray[np.int64]  # index into them
    staging: Staging | None
    is_streamed_U: NDArray[np.bool_]
    is_inline: bool
    streamed_bytes: int
    copies_s: tuple[FloatArray, FloatArray]  # beside an idle compute lane, and beside a busy one
    reads_s: tuple[FloatArray, FloatArray]  # from disk into staging buffers before that


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
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.profile = profile
        self.timing = Timing(profile, link)
        self.workload = workload
        self._yields = Yields(profile, workload.domain, is_sampled=is_sampled)
        self._draft_processor: Processor = "host" if draft_on_host else "device"
        self._hazard_gain = hazard_gain
        self._factors = defaultdict(lambda: 1.0, factors or {})
        self.decode_context_tokens = workload.prompt_tokens + workload.new_tokens / 2
        self._placed = lru_cache(maxsize=None)(self._place)
        self._pass_times = lru_cache(maxsize=None)(self._pass_arrays)
        self._class_times = lru_cache(maxsize=None)(self._class_slopes)
        self._prefill = lru_cache(maxsize=None)(self._prefill_s)
        self._draft_prefill = lru_cache(maxsize=None)(self._draft_prefill_s)
        self.tokens_per_round = lru_cache(maxsize=None)(self._yield)

    def units(self, candidate: Candidate) -> tuple[tuple[Unit, ...], Staging | None]:
        """The candidate's units and staging, without times."""
        placed = self._placed(candidate.placement, candidate.host_bytes)
        return placed.units, placed.staging

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """The score of each candidate, in order; those that differ in their prefill alone share their rounds."""
        keys = [(entry.placement, entry.host_bytes, _fingerprint(entry), entry.drafting) for entry in candidates]
        first = dict(zip(reversed(keys), reversed(candidates), strict=True))
        terms = {key: self.terms(candidate) for key, candidate in first.items()}
        rounds_s = dict(zip(terms, rounds_of(list(terms.values())), strict=True))
        return [
            self._score(candidate, terms[key], float(rounds_s[key]))
            for candidate, key in zip(candidates, keys, strict=True)
        ]

    def terms(self, candidate: Candidate) -> RoundTerms:
        """The parts of the candidate's rounds."""
        placed = self._placed(candidate.placement, candidate.host_bytes)
        num_verified = candidate.drafting.num_verified
        alone_s_U, slope_U = self._pass_times(
            candidate.placement, candidate.host_bytes, num_verified, self.decode_context_tokens
        )
        tokens = self.tokens_per_round(_fingerprint(candidate), candidate.drafting)
        host_s = self.timing.round_s(num_verified)
        draft_s = self._draft_s(candidate, tokens, 0.0)
        transfers_s = max(float(placed.copies_s[0].sum()), float(placed.reads_s[0].sum()))
        lanes_s = max(transfers_s, float(alone_s_U.sum()) + draft_s + host_s)
        load = placed.streamed_bytes / lanes_s
        compute_s_U = alone_s_U * (1 + slope_U * load)
        compute_s_U[placed.is_streamed_U] += self.timing.edge_s(load)
        draft_s = self._draft_s(candidate, tokens, load)
        duty = min(1.0, (float(compute_s_U.sum()) + draft_s + host_s) / lanes_s)
        copy_s_U, read_s_U = _under_load(placed.copies_s, duty), _under_load(placed.reads_s, duty)
        is_streamed_U = placed.is_streamed_U
        if placed.is_inline:  # the compute lane reads such units itself
            compute_s_U, copy_s_U = compute_s_U + copy_s_U, np.zeros_like(copy_s_U)
            is_streamed_U = np.zeros_like(is_streamed_U)
        factors = self._factors
        return RoundTerms(
            is_streamed_U=is_streamed_U,
            compute_s_U=compute_s_U * factors["compute"],
            copy_s_U=copy_s_U * factors["link"],
            read_s_U=read_s_U * factors["link"],
            num_slots=candidate.placement.num_slots,
            num_staging_buffers=0 if placed.staging is None else placed.staging.num_buffers,
            draft_s=draft_s * factors["draft"],
            host_s=host_s * factors["host"],
            tokens_per_round=self._tokens_per_round(candidate, tokens),
            max_depth=candidate.drafting.max_depth,
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
        tokens = self.tokens_per_round(_fingerprint(candidate), candidate.drafting)
        mean = self._tokens_per_round(candidate, tokens)
        return num_rounds(self.workload, mean, tokens.round_frac) * round_s + self.first_draft_s(candidate)

    def _score(self, candidate: Candidate, terms: RoundTerms, round_s: float) -> Score:
        ttft_s = self._prefill(candidate.placement, candidate.host_bytes, candidate.prefill_chunk_tokens)
        ttft_s *= self._factors["ttft"]
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

    def _compute_only_s(self, candidate: Candidate, placed: _PlacedUnits, elsewhere: Processor) -> float:
        num_verified, context_tokens = candidate.drafting.num_verified, self.decode_context_tokens
        counts = Counter(zip(placed.class_U.tolist(), placed.is_streamed_U.tolist(), strict=True))
        compute_s = 0.0
        for (of_unit, is_streamed), count in counts.items():
            processor = elsewhere if is_streamed else "device"
            unit_s = _class_s(self.timing, placed.classes[of_unit], num_verified, context_tokens, 0.0, processor)
            compute_s += count * unit_s
        tokens, factors = self.tokens_per_round(_fingerprint(candidate), candidate.drafting), self._factors
        draft_s = self._draft_s(candidate, tokens, 0.0) * factors["draft"]
        return compute_s * factors["compute"] + draft_s + self.timing.round_s(num_verified) * factors["host"]

    def _tokens_per_round(self, candidate: Candidate, tokens: Yield) -> float:
        """The corrected mean, within what the draft allows."""
        return min(max(1.0, tokens.mean * self._factors["tokens"]), candidate.drafting.max_depth + 1.0)

    def _draft_s(self, candidate: Candidate, tokens: Yield, load_bytes_per_s: float) -> float:
        """Seconds of drafting in a round: the first pass of the model, the others, and looking up n-grams."""
        drafting = candidate.drafting
        lookup_s = self.timing.ngram_s(drafting.num_nodes) if drafting.kind in ("ngram", "hybrid") else 0.0
        if candidate.draft is None:
            return lookup_s
        passes_s = self.timing.draft_s(
            candidate.draft.fingerprint,
            drafting,
            self.decode_context_tokens,
            load_bytes_per_s,
            self._draft_processor,
            mean_fed=1 + tokens.survival[-1],  # after a round that accepted all, the last token is fed too
        )
        return passes_s + lookup_s

    def calibration(self, candidate: Candidate) -> ProbabilityCurve | None:
        """How the runtime is to read the draft's probabilities; None where nothing depends on them."""
        is_adaptive = candidate.drafting.kind in ("tree", "hybrid") or candidate.drafting.tiers
        if candidate.draft is None or not is_adaptive:
            return None
        return self._yields.calibration(candidate.draft.fingerprint)

    def _yield(self, fingerprint: str | None, drafting: Drafting) -> Yield:
        """Tokens per round from recordings of the workload's domain, or from a published curve."""
        return _with_hazards(self._yields.of(fingerprint, drafting), self._hazard_gain)

    def _place(self, placement: Placement, host_bytes: int) -> _PlacedUnits:
        target, link = self.profile.target, self.timing.link
        units, staging = choose_sources(target, units_of(target, self.profile.dtype, placement), link, host_bytes)
        streamed = [unit for unit in units if unit.placement == "streamed"]
        class_of_units = [_UnitClass.of(self.timing, unit) for unit in units]
        classes = tuple(dict.fromkeys(class_of_units))
        return _PlacedUnits(
            units=tuple(units),
            classes=classes,
            class_U=np.array([classes.index(of_unit) for of_unit in class_of_units]),
            staging=staging,
            is_streamed_U=np.array([unit.placement == "streamed" for unit in units]),
            is_inline=link.kind == "disk" and max((unit.dense_bytes for unit in streamed), default=0) <= INLINE_BYTES,
            streamed_bytes=sum(unit.wire_bytes for unit in streamed),
            copies_s=self._transfers(units, self.timing.copy_s, streamed),
            reads_s=self._transfers(units, self.timing.read_s, streamed if link.kind != "disk" else [], "disk"),
        )

    def _transfers(
        self,
        units: Sequence[Unit],
        seconds_of: Callable[[int, float], float],
        travelling: Sequence[Unit],
        source: Literal["ram", "disk"] | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """Seconds of moving each unit that travels (from that source), beside an idle and a busy compute lane."""
        moved = {(unit.kind, unit.index): unit.wire_bytes for unit in travelling if source in (None, unit.source)}
        sizes_U = [moved.get((unit.kind, unit.index), 0) for unit in units]
        idle_s = {size: seconds_of(size, 0.0) if size else 0.0 for size in set(sizes_U)}
        busy_s = {size: seconds_of(size, 1.0) if size else 0.0 for size in set(sizes_U)}
        return np.array([idle_s[size] for size in sizes_U]), np.array([busy_s[size] for size in sizes_U])

    def _pass_arrays(
        self, placement: Placement, host_bytes: int, num_tokens: float, context_tokens: float
    ) -> tuple[FloatArray, FloatArray]:
        """Seconds per unit without copies beside it, and by how much a byte per second of them slows each down."""
        placed = self._placed(placement, host_bytes)
        times = [self._class_times(of_units, num_tokens, context_tokens) for of_units in placed.classes]
        alone_s, slopes = zip(*times, strict=True)
        return np.array(alone_s)[placed.class_U], np.array(slopes)[placed.class_U]

    def _class_slopes(self, of_units: _UnitClass, num_tokens: float, context_tokens: float) -> tuple[float, float]:
        """Seconds alone, and the relative slow-down per byte per second of copies, read off at some load."""
        alone = _class_s(self.timing, of_units, num_tokens, context_tokens, 0.0, "device")
        loaded = _class_s(self.timing, of_units, num_tokens, context_tokens, _PER_BYTE_PER_S, "device")
        return alone, (loaded / alone - 1) / _PER_BYTE_PER_S if alone else 0.0

    def _prefill_s(self, placement: Placement, host_bytes: int, chunk_tokens: int) -> float:
        """Seconds from empty slots to the first token: as many passes as the prompt has chunks, of equal length."""
        prompt_tokens = self.workload.prompt_tokens
        num_passes = math.ceil(prompt_tokens / chunk_tokens)
        placed = self._placed(placement, host_bytes)
        alone_s_U, slope_U = self._pass_times(placement, host_bytes, prompt_tokens / num_passes, prompt_tokens / 2)
        one_row_s_U, _ = self._pass_times(placement, host_bytes, 1, prompt_tokens / 2)
        is_head_U = np.array([unit.kind == "head_chunk" for unit in placed.units])
        alone_s_U = np.where(is_head_U, one_row_s_U, alone_s_U)  # a prefill wants the last row of logits only
        copy_s_U, read_s_U = placed.copies_s[1], placed.reads_s[1]
        load = placed.streamed_bytes / max(float(copy_s_U.sum()), float(alone_s_U.sum()))
        compute_s_U = alone_s_U * (1 + slope_U * load)
        steps = [
            Step(
                label="",
                is_streamed=bool(streamed) and not placed.is_inline,
                compute_s=float(compute_s) + (float(copy_s) if placed.is_inline else 0.0),
                copy_s=float(copy_s),
                read_s=float(read_s),
            )
            for streamed, compute_s, copy_s, read_s in zip(
                placed.is_streamed_U, compute_s_U, copy_s_U, read_s_U, strict=True
            )
        ]
        schedule = Schedule(steps=tuple(steps), num_slots=max(1, placement.num_slots), boundary_s=0.0)
        return passes_s(schedule, num_passes)


def rounds_of(terms: Sequence[RoundTerms]) -> FloatArray:
    """Seconds of a round of each, through the recurrence; those with as many staging buffers go together."""
    rounds_s = np.empty(len(terms))
    for num_buffers in {entry.num_staging_buffers for entry in terms}:
        rows = [row for row, entry in enumerate(terms) if entry.num_staging_buffers == num_buffers]
        chosen = [terms[row] for row in rows]
        if len(chosen) <= _FEW:
            rounds_s[rows] = [round_time_s(schedule_of(entry)) for entry in chosen]
            continue
        num_units = max(len(entry.compute_s_U) for entry in chosen)
        batch = ScheduleBatch(
            copy_s_BU=_padded([entry.copy_s_U for entry in chosen], num_units),
            compute_s_BU=_padded([entry.compute_s_U for entry in chosen], num_units),
            is_streamed_BU=_padded([entry.is_streamed_U for entry in chosen], num_units).astype(np.bool_),
            num_slots_B=np.array([max(1, entry.num_slots) for entry in chosen]),
            boundary_s_B=np.array([entry.draft_s + entry.host_s for entry in chosen]),
            read_s_BU=_padded([entry.read_s_U for entry in chosen], num_units) if num_buffers else None,
            num_staging_buffers=max(1, num_buffers),
        )
        rounds_s[rows] = round_times_s(batch)
    return rounds_s


def schedule_of(terms: RoundTerms) -> Schedule:
    """The schedule that joins the terms."""
    units = zip(
        terms.is_streamed_U.tolist(),
        terms.compute_s_U.tolist(),
        terms.copy_s_U.tolist(),
        terms.read_s_U.tolist(),
        strict=True,
    )
    return Schedule(
        steps=tuple(
            Step(label="", is_streamed=streamed, compute_s=compute_s, copy_s=copy_s, read_s=read_s)
            for streamed, compute_s, copy_s, read_s in units
        ),
        num_slots=max(1, terms.num_slots),
        boundary_s=terms.draft_s + terms.host_s,
        num_staging_buffers=max(1, terms.num_staging_buffers),
    )


def num_rounds(workload: Workload, tokens_per_round: float, round_frac: float) -> float:
    """Rounds of a run: the last one overshoots the end by the mean residual of a renewal process."""
    overshoot = (tokens_per_round * (1 + round_frac**2) - 1) / 2
    return (max(workload.new_tokens - 1, 1) + overshoot) / tokens_per_round


def _fingerprint(candidate: Candidate) -> str | None:
    return None if candidate.draft is None else candidate.draft.fingerprint


def _under_load(times_s: tuple[FloatArray, FloatArray], duty: float) -> FloatArray:
    idle_s, busy_s = times_s
    return idle_s + duty * (busy_s - idle_s)


def _padded(rows: Sequence[FloatArray | NDArray[np.bool_]], num_units: int) -> FloatArray:
    padded = np.zeros((len(rows), num_units))
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _class_s(
    timing: Timing,
    of_units: _UnitClass,
    num_tokens: float,
    context_tokens: float,
    load_bytes_per_s: float,
    processor: Processor,
) -> float:
    match of_units.kind:
        case "layer" | "attention" | "mlp":
            table = timing.decoder_table(of_units.kind, of_units.first, processor)
            return table.at(num_tokens, context_tokens, load_bytes_per_s)
        case "head_chunk":
            return timing.head_s(of_units.num_rows, num_tokens, load_bytes_per_s, processor)
        case "embedding":
            gather_s = timing.gather_s(num_tokens) if of_units.is_on_host else 0.0
            return timing.pass_s(num_tokens, context_tokens) + gather_s
    raise BadInputError(
        f"the planner does not time units of kind {of_units.kind}",
        why="it places layers or their attention and MLP, head chunks and the embedding",
        remedy="plan again with whole layers",
    )


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
    return Yield(
        mean=1 + sum(survival),
        between_frac=found.between_frac,
        round_frac=found.round_frac,
        num_prompts=found.num_prompts,
        survival=tuple(survival),
    )
