"""The planner chooses among chains, trees, n-grams and hybrids, by recordings and costs that decide between them."""

import random
from dataclasses import replace

import pytest
from made_up import DRAFT, MB, TARGET, profile, request, spread

from planner.acceptance import chain_yield
from planner.budget import plan_for_budget
from planner.contracts.errors import UsageError
from planner.contracts.plan import NgramDraft, Plan, RankPath, TreeDraft
from planner.contracts.profile import (
    AcceptanceRecording,
    ComputeMeasurement,
    DraftMeasurement,
    Profile,
)
from planner.drafting import EVERY_DRAFTING, Drafting, chain, drafting_of, ngram, static, tree
from planner.recommend import recommend
from planner.round_costs import round_costs
from planner.schedule import round_time_s
from planner.search import plan_of, rank, scorer_for
from planner.static_tree import best_static_tree, static_tree_yield
from planner.terms import schedule_of

TIGHT = 80 * MB
NUM_TOKENS = 96
TOP = (0.5, 0.3, 0.1, 0.05, 0.02, 0.01, 0.01, 0.01)


def texts(seed: int, *, is_repetitive: bool) -> tuple[AcceptanceRecording, AcceptanceRecording]:
    """A text alone, and a draft whose first two choices are right in eight of ten cases."""
    drawn = random.Random(seed)
    ranks = tuple(drawn.choices(range(9), weights=(*TOP, 0.0))[0] for _ in range(NUM_TOKENS))
    matches = (12,) * NUM_TOKENS if is_repetitive else (0,) * NUM_TOKENS
    hits = tuple(int(drawn.random() < 0.97) if is_repetitive else 0 for _ in range(NUM_TOKENS))
    alone = AcceptanceRecording(
        domain="code",
        prompt_tokens=16,
        match_lengths=matches,
        match_hits=hits,
        match_shares=tuple(float(is_repetitive) for _ in hits),
    )
    drafted = AcceptanceRecording(
        domain="code",
        prompt_tokens=16,
        fingerprint=DRAFT.fingerprint,
        ranks=ranks,
        draft_probs=tuple(TOP[rank] for rank in ranks),
        overlaps=(0.6,) * NUM_TOKENS,
        top_probs=TOP * NUM_TOKENS,
    )
    return alone, drafted


def measured(*, is_repetitive: bool, has_levels: bool = True) -> Profile:
    """A profile in which every kind can be priced; looking up n-grams takes 0.1 ms, a level of a tree 4 ms."""
    made = profile()
    levels = [
        DraftMeasurement(
            fingerprint=DRAFT.fingerprint,
            is_tree_level=True,
            num_tokens=count,
            context_tokens=0,
            duration_s=spread(4e-3),
        )
        for count in (1, 64)
    ]
    lookup = ComputeMeasurement(
        unit="ngram", processor="host", num_tokens=16, context_tokens=0, duration_s=spread(1e-4)
    )
    return profile(
        compute=(*made.compute, lookup),
        draft_passes=(*made.draft_passes, *(levels if has_levels else [])),
        acceptance=tuple(entry for seed in range(6) for entry in texts(seed, is_repetitive=is_repetitive)),
    )


def test_every_kind_takes_part_and_the_best_of_each_is_listed() -> None:
    found = recommend(measured(is_repetitive=False), request(TIGHT))
    assert [choice.draft_kind for choice in found.kinds] == ["none", "chain", "ngram", "tree", "hybrid"]
    assert found.refused == ()


def test_where_second_choices_are_often_right_a_tree_beats_every_chain() -> None:
    ranking = rank(measured(is_repetitive=False), request(TIGHT))
    best_tree, best_chain = ranking.best_of(DRAFT.fingerprint, "tree"), ranking.best_of(DRAFT.fingerprint, "chain")
    assert best_tree is not None
    assert best_chain is not None
    assert best_tree.terms.tokens_per_round > best_chain.terms.tokens_per_round
    assert best_tree.tokens_per_s > best_chain.tokens_per_s


@pytest.mark.parametrize(
    ("drafting", "host_s"),
    [(chain(4), 1e-3), (tree(16, 4), 1.4e-3), (tree(16, 4, "hybrid"), 1.4e-3), (ngram(8), 1.4e-3)],
    ids=["chain", "tree", "hybrid", "n-grams"],
)
def test_rounds_of_trees_take_the_host_longer_where_that_was_told_apart(drafting: Drafting, host_s: float) -> None:
    made = measured(is_repetitive=True)
    of_trees = ComputeMeasurement(unit="tree_round", num_tokens=512, context_tokens=0, duration_s=spread(1.4e-3))
    profiled = made.model_copy(update={"compute": (*made.compute, of_trees)})
    draft = DRAFT.fingerprint if drafting.has_model else None
    score = rank(profiled, replace(request(TIGHT), draftings=(drafting,))).best_of(draft, drafting.kind)
    assert score is not None
    assert score.terms.host_s == pytest.approx(host_s)


def test_text_that_repeats_itself_is_drafted_from_itself_without_any_model() -> None:
    alone = measured(is_repetitive=True).model_copy(update={"drafts": ()})
    plan = recommend(alone, request(TIGHT)).plan
    assert isinstance(plan.draft, NgramDraft)
    assert plan.memory.draft_bytes == plan.memory.draft_kv_bytes == 0
    assert recommend(measured(is_repetitive=False).model_copy(update={"drafts": ()}), request(TIGHT)).answer == (
        "do not speculate"
    )


def test_trees_that_nobody_timed_are_refused_by_name_and_chains_are_planned() -> None:
    found = recommend(measured(is_repetitive=False, has_levels=False), request(TIGHT))
    assert found.choice.draft_kind == "chain"
    assert [refusal.draft for refusal in found.refused] == ["draft (tree)", "draft (hybrid)"]
    assert "levels of a tree" in found.refused[0].why


def test_only_what_was_asked_for_is_planned() -> None:
    asked = replace(request(TIGHT), draftings=(tree(16, 4),))
    ranking = rank(measured(is_repetitive=True), asked)
    assert {score.candidate.drafting.label for score in ranking.scores} == {"no draft", "tree of 16, depth 4"}


def test_copies_are_not_priced_as_greedy_ones_where_one_samples() -> None:
    asked = replace(request(TIGHT), is_sampled=True)
    found = recommend(measured(is_repetitive=True), asked)
    assert {choice.draft_kind for choice in found.kinds} == {"none", "chain", "tree"}
    assert [refusal.draft for refusal in found.refused] == ["n-grams", "draft (hybrid)"]
    assert "probabilities of matches" in found.refused[0].why
    assert "where one samples" in found.refused[1].why


@pytest.mark.parametrize(("prob", "best"), [(0.95, "ngram"), (0.1, "tree")])
def test_n_grams_are_planned_for_sampled_text_by_how_probable_the_target_finds_copies(prob: float, best: str) -> None:
    made = measured(is_repetitive=True)
    texts = [
        entry if entry.fingerprint else entry.model_copy(update={"match_probs": (prob,) * NUM_TOKENS})
        for entry in made.acceptance
    ]
    asked = replace(request(TIGHT), is_sampled=True)
    found = recommend(made.model_copy(update={"acceptance": tuple(texts)}), asked)
    assert found.choice.draft_kind == best


def test_a_chain_among_all_kinds_still_yields_what_the_replay_says() -> None:
    made = measured(is_repetitive=False)
    asked = replace(request(TIGHT), draftings=(chain(3), ngram(4)))
    score = rank(made, asked).best_of(DRAFT.fingerprint)
    assert score is not None
    recordings = [entry for entry in made.acceptance if entry.fingerprint is not None]
    assert score.terms.tokens_per_round == pytest.approx(chain_yield(recordings, 3).mean)


def test_a_plan_carries_what_each_size_of_round_costs_and_hides() -> None:
    made, asked = measured(is_repetitive=False), replace(request(TIGHT), draftings=(tree(32, 8),))
    score = rank(made, asked).best_of(DRAFT.fingerprint)
    assert score is not None
    plan, _ = plan_of(made, asked, score)
    costs = plan.round_costs
    assert isinstance(plan.draft, TreeDraft)
    assert costs is not None
    assert costs.num_verified[-1] == 33
    assert list(costs.round_s) == pytest.approx(sorted(costs.round_s))
    assert costs.draft_pass_s == pytest.approx([4e-3] * len(costs.pass_nodes))
    schedule = schedule_of(replace(score.terms, draft_s=0.0))
    assert round_time_s(schedule) == pytest.approx(costs.round_s[-1], rel=0.01)
    hidden_s = costs.hidden_s[-1]
    assert hidden_s > 0, "the link binds"
    later = replace(schedule, boundary_s=schedule.boundary_s + hidden_s)
    assert round_time_s(later) == pytest.approx(round_time_s(schedule), rel=1e-6)
    assert round_time_s(replace(later, boundary_s=later.boundary_s + 1e-3)) > round_time_s(later) + 0.9e-3


def dearer(made: Profile, per_token_s: float) -> Profile:
    """The same, where each further token takes a layer so much longer."""
    compute = tuple(
        entry.model_copy(update={"duration_s": spread(entry.duration_s.median + per_token_s * entry.num_tokens)})
        if entry.unit == "layer"
        else entry
        for entry in made.compute
    )
    return made.model_copy(update={"compute": compute})


def test_rounds_are_planned_full_where_the_link_binds_and_as_large_as_pays_where_verification_does() -> None:
    made, asked = measured(is_repetitive=False), replace(request(TIGHT), draftings=(tree(8, 4),))
    rounds, plans = [], []
    for of_profile in (made, dearer(made, 1e-3)):
        score = rank(of_profile, asked).best_of(DRAFT.fingerprint)
        assert score is not None
        rounds.append(scorer_for(of_profile, asked).tokens_of(score.candidate))
        plans.append(plan_of(of_profile, asked, score)[0])
    assert (rounds[0].mean_nodes, rounds[0].mean_passes) == (8, 4)
    assert rounds[1].mean_nodes < 6
    assert rounds[1].mean_passes < 4
    assert rounds[1].mean < rounds[0].mean
    assert plans[1].predicted.tokens_per_round == pytest.approx(rounds[1].mean, rel=0.05)
    assert plans[1].memory == plans[0].memory, "buffers hold the largest round"


def test_rounds_that_never_differ_carry_no_costs() -> None:
    made, asked = measured(is_repetitive=False), request(TIGHT)
    score = rank(made, replace(asked, draftings=(chain(4),))).best_of(DRAFT.fingerprint)
    assert score is not None
    assert round_costs(scorer_for(made, asked), score.candidate) is None


def test_a_tree_takes_memory_for_its_nodes_in_both_caches() -> None:
    asked = request(10**9)
    plans = [
        plan_for_budget(TARGET, DRAFT, asked.budget, replace(asked.wishes, drafting=drafting))
        for drafting in (chain(8), tree(64, 8))
    ]
    kv_bytes = [plan.memory.target_kv_bytes for plan in plans]
    per_token = kv_bytes[0] / asked.wishes.context_tokens
    assert kv_bytes[1] >= kv_bytes[0] + 65 * per_token
    assert plans[1].memory.draft_kv_bytes > plans[0].memory.draft_kv_bytes


def test_a_tree_larger_than_the_context_is_refused() -> None:
    asked = request(10**9)
    with pytest.raises(UsageError, match="larger than the context"):
        plan_for_budget(TARGET, DRAFT, asked.budget, replace(asked.wishes, drafting=tree(128, 8)))
    sizes = {score.candidate.drafting for score in rank(measured(is_repetitive=False), asked).scores}
    assert sizes < set(EVERY_DRAFTING)
    assert max(size.num_nodes for size in sizes) < asked.wishes.context_tokens


# trees of one shape


def test_a_static_tree_is_planned_with_the_shape_that_replay_prefers_and_priced_by_it() -> None:
    made, asked = measured(is_repetitive=False), replace(request(TIGHT), draftings=(static(tree(8, 4)),))
    found = recommend(made, asked)
    draft = found.plan.draft
    assert isinstance(draft, TreeDraft)
    recordings = [entry for entry in made.acceptance if entry.fingerprint is not None]
    shape = best_static_tree(recordings, 8, 4, most_expanded=draft.pass_nodes)
    assert set(draft.paths) == shape
    assert found.choice.drafting == "static tree of 8, depth 4"
    assert found.choice.tokens_per_round == pytest.approx(static_tree_yield(recordings, shape).mean)
    assert found.plan.round_costs is None
    assert drafting_of(draft) == replace(static(tree(8, 4)), paths=draft.paths)
    assert Plan.model_validate_json(found.plan.to_json()) == found.plan


def test_no_level_of_a_static_tree_has_more_parents_than_a_pass_expands() -> None:
    recordings = [entry for entry in measured(is_repetitive=False).acceptance if entry.fingerprint is not None]
    free, narrow = best_static_tree(recordings, 32, 4), best_static_tree(recordings, 32, 4, most_expanded=2)
    parents = {path[:-1] for path in narrow}
    assert max(sum(len(parent) == depth for parent in parents) for depth in range(4)) == 2
    assert len(narrow) == len(free) == 32
    assert static_tree_yield(recordings, narrow).mean < static_tree_yield(recordings, free).mean


@pytest.mark.parametrize(
    ("ranks", "is_sampled", "why"),
    [(0, True, "where one samples"), (None, False, "without recordings"), (64, False, "none of the draft's choices")],
)
def test_a_static_tree_that_nothing_predicts_is_refused_by_name(ranks: int | None, is_sampled: bool, why: str) -> None:
    made = measured(is_repetitive=False)
    kept = [
        entry.model_copy(update={"ranks": (ranks,) * len(entry.ranks)})
        for entry in made.acceptance
        if ranks is not None
    ]
    asked = replace(request(TIGHT), draftings=(static(tree(8, 4)),), is_sampled=is_sampled)
    found = recommend(made.model_copy(update={"acceptance": tuple(kept)}), asked)
    assert found.choice.draft_kind == "none"
    assert [refusal.draft for refusal in found.refused] == ["draft (tree)"]
    assert why in found.refused[0].why


@pytest.mark.parametrize(
    ("paths", "fault"),
    [
        (((0,), (0, 0, 0)), "beginning"),
        (((0,), (0,)), "each once"),
        (((0,), (1,), (2,), (3,)), "as many as"),
        (((0,), (0, 0), (0, 0, 0)), "max_depth"),
        (((32,),), "ranks"),
    ],
)
def test_paths_that_are_no_tree_are_refused(paths: tuple[RankPath, ...], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        TreeDraft(model="draft", fingerprint="0", num_nodes=3, max_depth=2, pass_nodes=2, paths=paths, dtype="fp32")
