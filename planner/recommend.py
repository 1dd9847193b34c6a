"""What to run here, why, why not the runner-up, and what would change the answer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from planner.changes import link_bytes_per_s, with_faster_link
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import Plan
from planner.contracts.profile import Profile
from planner.contracts.quantities import format_bytes, format_s, format_tokens_per_s
from planner.contracts.recommendation import (
    Answer,
    Bound,
    Choice,
    Crossover,
    LengthPoint,
    Price,
    Recommendation,
    Refusal,
    Rival,
)
from planner.drafting import NO_DRAFTING, DraftKind, drafting_of
from planner.placement import Placement
from planner.rivals import rivals
from planner.scoring import Candidate, Score, Scorer
from planner.search import N_GRAMS, Ranking, Request, plan_of, rank, scorer_for
from planner.timing import staging_link

_ONE_GIB = 2**30
_ONE_GBYTE_PER_S = 1e9
_ONE_POINT = 0.01


def recommend(profile: Profile, request: Request) -> Recommendation:
    """The best plan, with its reasons.

    Raises: NoFeasiblePlanError, where nothing fits; BadInputError, where a measurement is missing.
    """
    scorer = scorer_for(profile, request)
    ranking = rank(profile, request, scorer)
    plan, _ = plan_of(profile, request, ranking.best, scorer)
    gains = prices(profile, request, ranking.best, scorer)
    return recommendation_of(profile, request, ranking, scorer, plan=plan, gains=gains)


def recommendation_of(
    profile: Profile, request: Request, ranking: Ranking, scorer: Scorer, *, plan: Plan, gains: Sequence[Price]
) -> Recommendation:
    """What a ranking says, with the plan of its best and the prices that were found for it."""
    best, baseline = ranking.best, ranking.baseline
    runner_up = _runner_up(ranking)
    drafts = () if request.never_speculate else profile.drafts
    is_streaming = best.candidate.placement.num_slots > 0
    priced, unpriced = rivals(scorer, drafts, request) if is_streaming else ((), ())
    return Recommendation(
        answer=answer_of(best),
        plan=plan,
        choice=choice_of(best, profile.target),
        binds=_binds(best),
        reasons=tuple(_reasons(profile, request, plan, ranking, priced)),
        baseline=choice_of(baseline, profile.target),
        runner_up=None if runner_up is None else choice_of(runner_up, profile.target),
        runner_up_lost=None if runner_up is None else _why_lost(best, runner_up),
        kinds=tuple(choice_of(score, profile.target) for score in ranking.best_of_kinds()),
        crossovers=tuple(
            crossover(ranking, draft)
            for draft in profile.drafts
            if ranking.best_of(draft.fingerprint, "chain") is not None
        ),
        prices=tuple(gains),
        rivals=priced,
        unpriced_rivals=unpriced,
        refused=tuple(Refusal(draft=name, why=why) for name, why in ranking.refused),
        num_scored=len(ranking.scores),
        basis=basis_of(profile, request),
        warnings=_warnings(profile, request, plan),
        sources=profile.notes if profile.kind == "estimated" else (),
    )


def answer_of(best: Score) -> Answer:
    """What to do, in a few words."""
    if best.candidate.drafting != NO_DRAFTING:
        return "speculate"
    return "do not speculate" if best.candidate.placement.num_slots else "do not stream, it fits"


def choice_of(score: Score, target: ModelShape) -> Choice:
    """The score in the words of a recommendation."""
    candidate = score.candidate
    return Choice(
        draft=None if candidate.draft is None else candidate.draft.name,
        draft_kind=candidate.drafting.kind,
        num_nodes=candidate.drafting.num_nodes,
        drafting=candidate.drafting.label,
        slots=candidate.placement.num_slots,
        num_resident_layers=len(candidate.placement.residents),
        num_layers=target.num_layers,
        residents=_residents(candidate.placement, target.num_layers),
        prefill_chunk_tokens=candidate.prefill_chunk_tokens,
        tokens_per_s=score.tokens_per_s,
        tokens_per_round=score.terms.tokens_per_round,
        round_s=score.round_s,
        ttft_s=score.ttft_s,
    )


def _residents(placement: Placement, num_layers: int) -> str:
    """What stays on the device, as a person says it."""
    if placement.resident_parts is None:
        return f"{len(placement.residents)} of {num_layers} layers"
    counts = Counter(kind for kind, _ in placement.resident_parts)
    return f"the attention of {counts['attention']} and the MLP of {counts['mlp']} of {num_layers} layers"


def _lanes_s(score: Score) -> dict[Bound, float]:
    """Seconds per round that each lane cannot do with less."""
    terms = score.terms
    return {
        "link": float(terms.copy_s_U.sum()),
        "disk": float(terms.read_s_U.sum()),
        "compute": float(terms.compute_s_U.sum()) + terms.host_s,
        "draft": terms.draft_s,
    }


def _binds(score: Score) -> Bound:
    """The lane that takes longest; the draft where it and compute, in turn on one lane, outlast the link.

    Memory, where it does not hold the two slots without which copies and compute take turns.
    """
    if score.candidate.placement.num_slots == 1 and score.terms.is_streamed_U.sum() > 1:
        return "memory"
    lanes_s = _lanes_s(score)
    transfer: Bound = "link" if lanes_s["link"] >= lanes_s["disk"] else "disk"
    if lanes_s[transfer] >= lanes_s["compute"] + lanes_s["draft"]:
        return transfer
    return "draft" if lanes_s["draft"] > lanes_s["compute"] else "compute"


def _reasons(profile: Profile, request: Request, plan: Plan, ranking: Ranking, priced: Sequence[Rival]) -> list[str]:
    best = ranking.best
    lanes_s, binds = _lanes_s(best), _binds(best)
    num_layers = profile.target.num_layers
    reasons = [
        f"{binds} binds: of a round of {format_s(best.round_s)}, link {format_s(lanes_s['link'])}"
        + (f", disk {format_s(lanes_s['disk'])}" if lanes_s["disk"] else "")
        + f", compute {format_s(lanes_s['compute'])}, draft {format_s(lanes_s['draft'])}"
    ]
    if best.candidate.placement.num_slots:
        reasons.append(
            f"resident: {_residents(best.candidate.placement, num_layers)}; "
            f"{format_bytes(plan.streamed_bytes)} travel in every pass"
        )
    else:
        reasons.append("everything fits, so nothing travels")
    if best.candidate.drafting != NO_DRAFTING:
        gain = best.tokens_per_s / ranking.baseline.tokens_per_s
        reasons.append(
            f"{best.terms.tokens_per_round:.2f} tokens per round from a draft by {best.candidate.drafting.label}: "
            f"{gain:.2f} times the best plan without a draft, which has its memory"
        )
    elif request.never_speculate:
        reasons.append("no draft was considered, as asked")
    else:
        reasons.append(_why_no_draft(profile, ranking))
    faster = [rival for rival in priced if rival.tokens_per_s > best.tokens_per_s]
    reasons += [
        f"faster here: {rival.name}{_with_draft(rival)}, {format_tokens_per_s(rival.tokens_per_s)}; it {rival.how}"
        for rival in faster[:1]
    ]
    return reasons


def _why_no_draft(profile: Profile, ranking: Ranking) -> str:
    """What became of the best way to draft; where none could take part, of the first of them."""
    drafted = next((score for score in ranking.scores if score.candidate.drafting != NO_DRAFTING), None)
    if drafted is not None:
        share = drafted.tokens_per_s / ranking.best.tokens_per_s
        return f"no draft pays: the best, {drafted.candidate.drafting.label}, gives {share:.2f} times this speed"
    of_models = [entry for entry in ranking.refused if entry[0] != N_GRAMS]
    for name, why in of_models or ranking.refused[: len(profile.drafts)]:
        return f"{name} cannot draft here: {why}"
    known = "the profile knows no draft" if profile.kind == "measured" else "no draft was named"
    return f"{known}; planner drafts lists those on this machine"


def _with_draft(rival: Rival) -> str:
    return f" with {rival.draft} at {rival.draft_len}" if rival.draft else " without a draft"


def _runner_up(ranking: Ranking) -> Score | None:
    """The best plan of another strategy: another draft, or none; failing that, other slots or another size."""
    best = ranking.best.candidate

    def strategy(candidate: Candidate) -> tuple[str | None, DraftKind]:
        return None if candidate.draft is None else candidate.draft.fingerprint, candidate.drafting.kind

    others = ranking.scores[1:]
    other = next((score for score in others if strategy(score.candidate) != strategy(best)), None)
    return other or next(
        (
            score
            for score in others
            if (score.candidate.drafting, score.candidate.placement) != (best.drafting, best.placement)
        ),
        None,
    )


def _why_lost(best: Score, other: Score) -> str:
    """What the runner-up does worse, in the terms of the rate: fewer tokens per round, or longer rounds."""
    share = best.tokens_per_s / other.tokens_per_s
    if share < 1:
        return (
            f"{1 / share - 1:.1%} faster once it decodes, which is noise or paid for before the first token "
            f"({format_s(other.ttft_s)} against {format_s(best.ttft_s)}); the plan chosen is the simpler one"
        )
    tokens = other.terms.tokens_per_round / best.terms.tokens_per_round
    rounds = other.round_s / best.round_s
    return f"{share:.2f} times slower: {tokens:.2f} times the tokens per round, in rounds {rounds:.2f} times as long"


def crossover(ranking: Ranking, draft: ModelShape) -> Crossover:
    """At each length the best plan with a chain of the draft, and where it starts and stops paying."""
    plain_tokens_per_s = ranking.baseline.tokens_per_s
    points = [
        LengthPoint(
            draft_len=score.candidate.drafting.num_nodes,
            tokens_per_s=score.tokens_per_s,
            tokens_per_round=score.terms.tokens_per_round,
            round_s=score.round_s,
            speedup_frac=score.tokens_per_s / plain_tokens_per_s,
        )
        for score in ranking.fastest_chains(draft.fingerprint)
    ]
    paying = [point.draft_len for point in points if point.speedup_frac > 1]
    return Crossover(
        draft=draft.name,
        first_draft_len=min(paying, default=None),
        last_draft_len=max(paying, default=None),
        points=tuple(points),
    )


def prices(profile: Profile, request: Request, best: Score, scorer: Scorer) -> list[Price]:
    """What one more GiB, GB/s or point of acceptance would give, each with the best plan made anew.

    `scorer` is one for the profile and the request; memory leaves its times as they are.
    """
    budget, around = request.budget, _around(request, best)
    larger = replace(
        budget,
        device_bytes=budget.device_bytes + _ONE_GIB,
        target_bytes=None if budget.target_bytes is None else budget.target_bytes + _ONE_GIB,
    )
    near = profile.model_copy(update={"drafts": () if best.candidate.draft is None else (best.candidate.draft,)})
    rankings = {"1 GiB more device memory": rank(near, replace(around, budget=larger), scorer)}
    if best.candidate.placement.num_slots:
        rate = link_bytes_per_s(near, request.wishes.link)
        faster, link = with_faster_link(near, request.wishes.link, (rate + _ONE_GBYTE_PER_S) / rate)
        rankings["1 GB/s more on the link"] = rank(faster, replace(around, wishes=replace(around.wishes, link=link)))
    if best.terms.read_s_U.any():
        roomier = replace(budget, host_bytes=budget.host_bytes + _ONE_GIB)
        rankings["1 GiB more host memory"] = rank(near, replace(around, budget=roomier), scorer)
        disk = staging_link(near)
        rate = link_bytes_per_s(near, disk)
        faster, _ = with_faster_link(near, disk, (rate + _ONE_GBYTE_PER_S) / rate)
        rankings["1 GB/s more from the disk"] = rank(faster, around)
    if best.candidate.drafting != NO_DRAFTING:
        rankings["1 point more of acceptance"] = rank(near, replace(around, hazard_gain=_ONE_POINT))
    return [
        Price(what=what, gain_tokens_per_s=max(0.0, _fastest(ranking) - best.tokens_per_s))
        for what, ranking in rankings.items()
    ]


def _fastest(ranking: Ranking) -> float:
    return max(score.tokens_per_s for score in ranking.scores)


def _around(request: Request, best: Score) -> Request:
    """The request for plans much like the best, with its prefill chunk: no price is paid before the first token."""
    candidate = best.candidate
    num_slots, drafting = candidate.placement.num_slots, candidate.drafting
    near = tuple(count for count in (num_slots, num_slots + 1) if count == num_slots or count in request.slot_counts)
    return replace(
        request,
        wishes=replace(request.wishes, prefill_chunk_tokens=candidate.prefill_chunk_tokens),
        draftings=tuple(
            other
            for other in request.draftings
            if other == drafting
            or (other.kind == drafting.kind == "chain" and 0.8 <= other.num_nodes / drafting.num_nodes <= 1.25)
        ),
        slot_counts=near if num_slots else request.slot_counts,
        grains=(candidate.placement.granularity,),
        never_speculate=candidate.drafting == NO_DRAFTING,
    )


def basis_of(profile: Profile, request: Request) -> str:
    """Whether the numbers were measured or estimated, when and on what, and how many runs corrected them."""
    num_runs = 0 if request.error is None else request.error.num_runs
    corrected = f"; corrected by {num_runs} run{'s' * (num_runs != 1)}" if num_runs else ""
    if profile.kind == "measured":
        threads = f"{profile.num_threads} thread{'s' * (profile.num_threads != 1)}"
        return f"measured on {profile.machine.name}, {profile.created[:10]}, {threads}{corrected}"
    return f"estimated for {profile.machine.name} from its catalogue entry; nothing was measured{corrected}"


def _warnings(profile: Profile, request: Request, plan: Plan) -> tuple[str, ...]:
    """What the reader should know before trusting the numbers."""
    warnings = list(profile.notes) if profile.kind == "measured" else []
    if profile.kind == "estimated":
        warnings.append("estimates have wide intervals; planner profile narrows them")
    if request.draft_on_host and not request.wishes.draft_on_host:
        warnings.append("--draft-on-host changes nothing: the device that verifies is the host already")
    drafted = plan.draft.kind != "none"
    for curve in profile.curves:
        if drafted and not curve.is_same_pair and getattr(plan.draft, "model", None) == curve.draft:
            warnings.append(
                f"no acceptance is published for {curve.draft} on {curve.domain}: a similar pair's was taken"
            )
    for curve in profile.curves:
        if drafted and drafting_of(plan.draft).max_depth > len(curve.survival):
            warnings.append(
                f"acceptance is published for {len(curve.survival)} drafted tokens; beyond, the last hazard is kept"
            )
    if plan.draft.kind == "tree" and profile.curves and not profile.acceptance:
        warnings.append("no acceptance of trees is published: the draft's further choices are estimated")
    longest = max((entry.context_tokens for entry in profile.compute), default=0)
    if request.workload.prompt_tokens + request.workload.new_tokens > max(longest, 1) and profile.kind == "measured":
        warnings.append(f"compute was measured up to a context of {longest} tokens; beyond that it is extended")
    return tuple(dict.fromkeys(warnings))
