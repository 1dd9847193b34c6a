"""The best plan for a target here: every way to draft, slots and prefill chunks enumerated, placed and scored.

The baseline without a draft is planned anew with the draft's memory given back, so that "do not speculate" and "do not
stream, it fits" are answers like any other. Among plans within noise of the best the simplest is taken.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from planner.budget import (
    PREFILL_CHUNKS_TOKENS,
    Budget,
    Wishes,
    draft_needs_bytes,
    fixed_memory,
    least_bytes,
    plan_for_budget,
    room_bytes,
)
from planner.contracts.errors import DraftstreamError, NoFeasiblePlanError, UsageError
from planner.contracts.layer_parts import Granularity
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import LinkChoice, Plan, Unit, Workload
from planner.contracts.profile import Profile
from planner.contracts.quantities import format_bytes
from planner.drafting import DRAFT_KINDS, EVERY_DRAFTING, MODEL_KINDS, NO_DRAFTING, Drafting, DraftKind
from planner.memory import Overheads
from planner.placement import Placement, choose_residents
from planner.round_costs import round_costs
from planner.scoring import Candidate, Score, Scorer
from planner.uncertainty import Expected, ModelError, Outlook, outlook, performances, prior
from planner.yields import Yields

SLOT_COUNTS = (2, 3, 4)
N_GRAMS = "n-grams"  # the name by which they are refused
_UNBOUNDED_BYTES = 2**60
_NOISE_FRAC = 0.005  # plans closer than this to the best are as good
_NUM_REFINED = 3  # sizes of each kind of draft that are tried with every number of slots and in parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is wanted, and what is ruled out."""

    budget: Budget
    wishes: Wishes  # of its drafting, num_slots and prefill_chunk_tokens only a stated chunk counts
    workload: Workload
    draftings: tuple[Drafting, ...] = EVERY_DRAFTING  # that of no draft is always among the candidates
    slot_counts: tuple[int, ...] = SLOT_COUNTS
    grains: tuple[Granularity, ...] = ("layers", "parts")
    resident_only: bool = False
    never_speculate: bool = False
    is_sampled: bool = False
    draft_on_host: bool = False  # as asked for; in `wishes` only where the host is another processor than the device
    error: ModelError | None = None
    hazard_gain: float = 0.0


def request_for(
    profile: Profile,
    budget: Budget,
    link: LinkChoice,
    device: str,
    workload: Workload,
    *,
    context_tokens: int | None = None,
    draftings: Sequence[Drafting] | None = None,
    num_slots: int | None = None,
    draft_on_host: bool = False,
    corpus_tokens: int = 0,
) -> Request:
    """A request by a profile, with what the user fixed; what is None is the planner's to choose.

    Raises: UsageError, where prompt and text do not fit the context.
    """
    needed_tokens = workload.prompt_tokens + workload.new_tokens
    if context_tokens is not None and context_tokens < needed_tokens:
        raise UsageError(
            f"{workload.prompt_tokens} tokens of prompt and {workload.new_tokens} of text do not fit the context",
            why=f"--ctx-size is {context_tokens}",
            remedy=f"--ctx-size {needed_tokens}, or fewer tokens",
        )
    return Request(
        budget=budget,
        wishes=Wishes(
            dtype=profile.dtype,
            context_tokens=context_tokens or needed_tokens,
            link=link,
            device=device,
            draft_on_host=draft_on_host and link.kind == "cuda",
            overheads=Overheads.of(profile.memory),
            corpus_tokens=corpus_tokens,
        ),
        workload=workload,
        draftings=EVERY_DRAFTING if draftings is None else tuple(draftings),
        slot_counts=SLOT_COUNTS if num_slots is None else (num_slots,),
        draft_on_host=draft_on_host,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """All scores of a request, the best first, and the drafts that could not take part."""

    scores: tuple[Score, ...]
    refused: tuple[tuple[str, str], ...]  # name, why

    @property
    def best(self) -> Score:
        """The score to plan by."""
        return self.scores[0]

    @property
    def baseline(self) -> Score:
        """The best score without any draft."""
        return next(score for score in self.scores if score.candidate.drafting.kind == "none")

    def best_of(self, fingerprint: str | None, kind: DraftKind | None = None) -> Score | None:
        """The best score with a draft model, or without one; of one kind of draft, or of any."""
        return next(
            (
                score
                for score in self.scores
                if _fingerprint(score) == fingerprint and kind in (None, score.candidate.drafting.kind)
            ),
            None,
        )

    def best_of_kinds(self) -> list[Score]:
        """The best score of each kind of draft that has any, the simplest kind first."""
        found: dict[DraftKind, Score] = {}
        for score in self.scores:
            found.setdefault(score.candidate.drafting.kind, score)
        return [found[kind] for kind in DRAFT_KINDS if kind in found]

    def fastest_chains(self, fingerprint: str) -> list[Score]:
        """The fastest score of each length of a draft model's chains, the shortest first."""
        fastest: dict[int, Score] = {}
        for score in self.scores:
            drafting = score.candidate.drafting
            if drafting.kind == "chain" and not drafting.tiers and _fingerprint(score) == fingerprint:
                kept = fastest.setdefault(drafting.num_nodes, score)
                if score.tokens_per_s > kept.tokens_per_s:
                    fastest[drafting.num_nodes] = score
        return [fastest[length] for length in sorted(fastest)]


def rank(profile: Profile, request: Request, scorer: Scorer | None = None) -> Ranking:
    """Every candidate that fits, scored, the best first; `scorer` is one for this profile and request, if there is one.

    Raises: NoFeasiblePlanError, where nothing fits; BadInputError, where a measurement is missing.
    """
    scorer = scorer or scorer_for(profile, request)
    ways = () if request.never_speculate else tuple(_ways(profile, request))
    request = within_tables(scorer, request)
    grains = granularities(scorer, request)
    plain = _Way(draft=None, request=replace(request, draftings=(NO_DRAFTING,)), grains=grains)
    scores = plain.scores(scorer)
    if not scores:
        raise _nothing_fits(profile.target, request, grains)
    chunk_tokens = min(scores, key=_total_s).candidate.prefill_chunk_tokens
    refused = dict[str, str]()
    for draft, kind in ways:
        if draft is not None and draft.name in refused:
            continue  # a tree asks for no less than a chain
        name = N_GRAMS if draft is None else draft.name + f" ({kind})" * (kind != "chain")
        way = _Way(draft=draft, request=_of_kind(request, kind), grains=grains)
        try:
            found = way.scores(scorer, chunk_tokens)
        except DraftstreamError as error:
            refused[name] = f"{error.what}: {error.why}"
            continue
        if not found:
            refused[name] = _why_unfit(profile.target, draft, way.request, grains)
        scores += found
    return Ranking(scores=tuple(_ordered(scores)), refused=tuple(refused.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A draft model and a kind of draft: all its sizes, then the best of them with all slots and in parts."""

    draft: ModelShape | None
    request: Request
    grains: tuple[Granularity, ...]

    def scores(self, scorer: Scorer, chunk_tokens: int | None = None) -> list[Score]:
        """Of every size with the fewest slots, where that fits in such prefill chunks; of the best sizes, of others.

        Raises: BadInputError, where a measurement is missing.
        """
        request, draft = self.request, self.draft
        if draft is not None and draft.max_context_tokens < request.wishes.context_tokens:
            return []
        fewest = replace(request, slot_counts=request.slot_counts[:1])
        scores = self._more(scorer, fewest if chunk_tokens is None else _in_chunks(fewest, chunk_tokens))
        fitting = {score.candidate.drafting for score in scores}
        left = tuple(entry for entry in request.draftings if entry not in fitting)
        scores += self._more(scorer, replace(request, draftings=left), self.grains)
        if not scores:
            return []
        scores.sort(key=_total_s)
        sizes = tuple(dict.fromkeys(score.candidate.drafting for score in scores))[:_NUM_REFINED]
        refined = _in_chunks(replace(request, draftings=sizes), scores[0].candidate.prefill_chunk_tokens)
        scores += self._more(scorer, refined, self.grains, scores)
        best = min(scores, key=_total_s).candidate
        num_slots, grain = best.placement.num_slots, best.placement.granularity
        alike = replace(
            request, draftings=(best.drafting,), slot_counts=(num_slots,) if num_slots else request.slot_counts
        )
        return scores + self._more(scorer, alike, (grain,), scores)

    def _more(
        self,
        scorer: Scorer,
        request: Request,
        grains: Sequence[Granularity] = ("layers",),
        known: Iterable[Score] = (),
    ) -> list[Score]:
        """The scores of what the request allows beside those that are known."""
        seen = {score.candidate for score in known}
        found = candidates_of(scorer.profile.target, self.draft, request, grains)
        return scorer.score([candidate for candidate in found if candidate not in seen])


def _in_chunks(request: Request, chunk_tokens: int) -> Request:
    return replace(request, wishes=replace(request.wishes, prefill_chunk_tokens=chunk_tokens))


def _ways(profile: Profile, request: Request) -> Iterator[tuple[ModelShape | None, DraftKind]]:
    """The draft models and kinds of draft that the request allows."""
    kinds = [kind for kind in DRAFT_KINDS if kind in {entry.kind for entry in request.draftings}]
    yield from ((None, kind) for kind in kinds if kind == "ngram")
    yield from ((draft, kind) for draft in profile.drafts for kind in kinds if kind in MODEL_KINDS)


def _of_kind(request: Request, kind: DraftKind) -> Request:
    return replace(request, draftings=tuple(entry for entry in request.draftings if entry.kind == kind))


def within_tables(scorer: Scorer, request: Request) -> Request:
    """The request with only those sizes of drafts whose verification the profile's tables reach."""
    most = scorer.timing.most_verified_tokens()
    return replace(request, draftings=tuple(entry for entry in request.draftings if entry.num_verified <= most))


def scorer_for(profile: Profile, request: Request, yields: Yields | None = None) -> Scorer:
    """A scorer for what the request asks, by replays that are already there, if there are any."""
    return Scorer(
        profile,
        request.wishes.link,
        request.workload,
        is_sampled=request.is_sampled,
        draft_on_host=request.wishes.draft_on_host,
        hazard_gain=request.hazard_gain,
        yields=yields,
        factors=None if request.error is None else request.error.corrections,
    )


def granularities(scorer: Scorer, request: Request) -> tuple[Granularity, ...]:
    """By what the target may be placed: by whole layers, and where it may be split and was measured so, by parts."""
    may_split = request.wishes.most_residents is None and scorer.profile.target.can_split and scorer.timing.has_parts
    allowed = tuple(grain for grain in request.grains if grain == "layers" or may_split)
    return allowed or ("layers",)


def candidates_of(
    target: ModelShape,
    draft: ModelShape | None,
    request: Request,
    grains: Sequence[Granularity] = ("layers",),
) -> list[Candidate]:
    """The candidates with one draft model, or without one, that fit the budget; none where nothing does."""
    draftings = [
        entry
        for entry in request.draftings
        if entry.has_model == (draft is not None) and entry.tree_nodes <= request.wishes.context_tokens
    ]
    rooms = {
        wishes: room
        for drafting, chunk_tokens in itertools.product(draftings, _chunks(request.wishes))
        for wishes in [replace(request.wishes, drafting=drafting, prefill_chunk_tokens=chunk_tokens)]
        for room in [_room(target, draft, request.budget, wishes)]
        if room is not None
    }
    found: dict[tuple[Drafting, int, Placement], Candidate] = {}
    is_free = request.slot_counts == SLOT_COUNTS
    for num_slots in (*request.slot_counts, 1) if is_free else request.slot_counts:
        if is_free and num_slots == 1 and found:
            continue  # a single slot hides nothing; it is what is left where two do not fit
        for granularity, (beside, room) in itertools.product(grains, rooms.items()):
            wishes = replace(beside, num_slots=num_slots, granularity=granularity)
            placement = _placement(target, request, wishes, room)
            if placement is None:
                continue
            candidate = Candidate(
                draft=draft,
                drafting=wishes.drafting,
                prefill_chunk_tokens=wishes.prefill_chunk_tokens or 1,
                placement=placement,
                host_bytes=room.host_bytes,
            )
            found.setdefault((candidate.drafting, candidate.prefill_chunk_tokens, placement), candidate)
    return list(found.values())


def place(
    target: ModelShape, draft: ModelShape | None, request: Request, wishes: Wishes
) -> tuple[Placement | None, int]:
    """The placement within the budget and the host bytes left for weights; None where it does not fit."""
    room = _room(target, draft, request.budget, wishes)
    if room is None:
        return None, 0
    return _placement(target, request, wishes, room), room.host_bytes


class _Room(NamedTuple):
    """Bytes beside all that does not depend on what is resident."""

    device_bytes: int  # for slots and residents
    host_bytes: int  # for weights


def _room(target: ModelShape, draft: ModelShape | None, budget: Budget, wishes: Wishes) -> _Room | None:
    """What is left for weights; None where the draft may not take what it needs, or the host has nothing left."""
    fixed = fixed_memory(target, draft, wishes)
    host_bytes = budget.host_bytes - fixed.host_bytes
    is_over = budget.draft_bytes is not None and draft_needs_bytes(fixed) > budget.draft_bytes
    return None if is_over or host_bytes < 0 else _Room(room_bytes(target, fixed, budget, wishes), host_bytes)


def _placement(target: ModelShape, request: Request, wishes: Wishes, room: _Room) -> Placement | None:
    """What stays resident; None where not even the slots fit."""
    if room.device_bytes < least_bytes(target, wishes):
        return None
    placement = choose_residents(
        target, room.device_bytes, wishes.dtype, wishes.num_slots, wishes.most_residents, wishes.granularity
    )
    return None if request.resident_only and placement.num_slots else placement


def plan_of(profile: Profile, request: Request, score: Score, scorer: Scorer | None = None) -> tuple[Plan, Outlook]:
    """The plan that a score stands for, with times per unit and P10, P50, P90 of its performance."""
    candidate, scorer = score.candidate, scorer or scorer_for(profile, request)
    wishes = replace(
        request.wishes,
        drafting=scorer.settled(candidate),
        num_slots=max(1, candidate.placement.num_slots),
        prefill_chunk_tokens=candidate.prefill_chunk_tokens,
        granularity=candidate.placement.granularity,
    )
    plan = plan_for_budget(profile.target, candidate.draft, request.budget, wishes)
    tokens = scorer.tokens_of(candidate)
    drawn = outlook(expected_of(scorer, score), request.workload, error_of(profile, request))
    middle, low, high = performances(drawn, request.workload, plan.predicted, tokens.survival)
    update = {
        "units": tuple(_timed(unit, score, index) for index, unit in enumerate(plan.units)),
        "predicted": middle,
        "predicted_p10": low,
        "predicted_p90": high,
        "workload": request.workload,
        "round_costs": round_costs(scorer, candidate),
        "draft_calibration": scorer.calibration(candidate),
        "calibration": {} if request.error is None else request.error.corrections,
    }
    return plan.model_copy(update=update), drawn


def expected_of(scorer: Scorer, score: Score) -> Expected:
    """What a score stands for, to draw from."""
    candidate, workload = score.candidate, scorer.workload
    tokens = scorer.tokens_of(candidate)
    return Expected(
        terms=score.terms,
        run_frac=tokens.run_frac(workload.new_tokens / tokens.mean, workload.num_requests),
        round_frac=tokens.round_frac,
        first_draft_s=scorer.first_draft_s(candidate),
        ttft_s=score.ttft_s,
    )


def error_of(profile: Profile, request: Request) -> ModelError:
    """How far predictions may be off: as logged runs showed, or as assumed before any."""
    return request.error or prior(profile, request.wishes.link)


def _timed(unit: Unit, score: Score, index: int) -> Unit:
    terms = score.terms
    is_streamed = bool(terms.is_streamed_U[index])
    return unit.model_copy(
        update={
            "compute_s": float(terms.compute_s_U[index]),
            "copy_s": float(terms.copy_s_U[index]) if is_streamed else (0.0 if unit.placement == "streamed" else None),
            "read_s": float(terms.read_s_U[index]) if is_streamed and terms.read_s_U[index] else None,
        }
    )


def _ordered(scores: Iterable[Score]) -> list[Score]:
    """By seconds for the workload; first the simplest of those that are as good as the best."""
    ordered = sorted(scores, key=lambda score: score.total_s)
    limit_s = ordered[0].total_s * (1 + _NOISE_FRAC)
    as_good = [score for score in ordered if score.total_s <= limit_s]
    simplest = min(
        as_good,
        key=lambda score: (
            DRAFT_KINDS.index(score.candidate.drafting.kind),
            score.candidate.drafting.num_nodes,
            score.candidate.placement.granularity == "parts",
            score.candidate.placement.num_slots,
            score.total_s,
        ),
    )
    return [simplest, *(score for score in ordered if score is not simplest)]


def _chunks(wishes: Wishes) -> Sequence[int]:
    if wishes.prefill_chunk_tokens is not None:
        return (min(wishes.prefill_chunk_tokens, wishes.context_tokens),)
    return sorted({min(chunk, wishes.context_tokens) for chunk in PREFILL_CHUNKS_TOKENS})


def _total_s(score: Score) -> float:
    return score.total_s


def _fingerprint(score: Score) -> str | None:
    return None if score.candidate.draft is None else score.candidate.draft.fingerprint


def _smallest(request: Request, grains: Sequence[Granularity], drafting: Drafting) -> Wishes:
    """The wishes that take the least memory."""
    return replace(
        request.wishes,
        drafting=drafting,
        num_slots=1 if request.slot_counts == SLOT_COUNTS else min(request.slot_counts),
        prefill_chunk_tokens=min(_chunks(request.wishes)),
        granularity=grains[-1],
    )


def _nothing_fits(target: ModelShape, request: Request, grains: Sequence[Granularity]) -> DraftstreamError:
    """The error that says by how much, and the smallest relaxation that works."""
    wishes = _smallest(request, grains, NO_DRAFTING)
    budget = request.budget
    try:
        plan_for_budget(target, None, budget, wishes)
        unbounded = replace(budget, device_bytes=_UNBOUNDED_BYTES, target_bytes=None)
        whole_bytes = plan_for_budget(target, None, unbounded, wishes).memory.device_bytes
    except DraftstreamError as error:
        return error
    caps = {"--device-memory": budget.device_bytes, "--target-memory": budget.target_bytes or budget.device_bytes}
    binding = {flag: cap for flag, cap in caps.items() if cap < whole_bytes}
    smallest_bytes = min(binding.values())
    flags = budget.relaxed({flag: whole_bytes for flag in binding if flag in _given(budget)})
    return NoFeasiblePlanError(
        f"{target.name} does not fit without streaming: {format_bytes(whole_bytes - smallest_bytes)} short",
        why=f"all of it takes {format_bytes(whole_bytes)}, and {format_bytes(smallest_bytes)} may be taken",
        remedy=f"{flags}, or drop --resident-only",
    )


def _given(budget: Budget) -> tuple[str, ...]:
    return ("--device-memory",) if budget.target_bytes is None else ("--device-memory", "--target-memory")


def _why_unfit(target: ModelShape, draft: ModelShape | None, request: Request, grains: Sequence[Granularity]) -> str:
    """Why nothing with that kind of draft is among the candidates."""
    if not request.draftings:
        return "the profile was measured for fewer verified tokens than that draft asks for"
    context_tokens = request.wishes.context_tokens
    if draft is not None and draft.max_context_tokens < context_tokens:
        return (
            f"it was made for {draft.max_context_tokens} tokens of context, and {context_tokens} are planned: "
            "beyond its own it proposes nothing"
        )
    smallest = min(request.draftings, key=lambda entry: entry.num_nodes)
    try:
        plan_for_budget(target, draft, request.budget, _smallest(request, grains, smallest))
    except NoFeasiblePlanError as error:
        return f"{error.what}; {error.why}"
    return "with it the target does not fit without streaming"
