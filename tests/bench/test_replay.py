"""What replayed policies write and cost, on streams so short that every round can be added up by hand."""

import pytest

from bench.auto_choice import Priced, choice, round_cost
from bench.policies import (
    Chances,
    Round,
    Tally,
    accepted_path,
    always,
    best_static,
    linear_costs,
    model_chances,
    ngram_drafter,
    pass_cost,
    per_phase_oracle,
    per_round_oracle,
    replayed,
    replayed_with_model,
    static,
    total,
    tree_drafter,
    walked,
)
from bench.recorded_draft import RecordedModel
from bench.static_trees import round_cost as tree_cost
from bench.static_trees import tally
from bench.texts import Recording
from planner.contracts.profile import AcceptanceRecording
from planner.drafting import NO_DRAFTING, Drafting, DraftKind, chain, ngram, tree
from runtime.draft.costs import Costs
from runtime.proposal import ROOT, Proposal

# Six tokens, the first of which comes with the prompt; the draft's first choice is the target's token but at the third.
RANKS = (0, 0, 1, 0, 0, 0)
ROW = (0.6, 0.2, 0.05, 0.02, 0.01, 0.0, 0.0, 0.0)
TOKEN_COST = 0.25
VOCAB_SIZE = 16


def recording(ranks: tuple[int, ...] = RANKS, phases: tuple[tuple[int, str], ...] = ()) -> Recording:
    return Recording(
        kind="made up",
        prompt=(1, 2, 3),
        output=tuple(range(4, 4 + len(ranks))),
        phases=phases,
        ranks=ranks,
        draft_probs=tuple(ROW[rank] for rank in ranks),
        top_probs=ROW * len(ranks),
    )


def test_without_drafts_every_token_takes_a_pass() -> None:
    rounds = list(walked(model_chances(recording()), TOKEN_COST, always(0)))
    assert rounds == [Round(place, 1, 1.0) for place in range(1, 6)]
    assert total(rounds).rate == 1.0


def test_a_static_chain_by_hand() -> None:
    # from the second token on: 1 of 2 drafted ones is right, and the target's; then both, and the target's
    chances = model_chances(recording())
    assert chances.hits == (2, 1, 0, 3, 2, 1)
    assert list(walked(chances, TOKEN_COST, always(2))) == [Round(1, 2, 1.5), Round(3, 3, 1.5)]
    # one at a time: twice one right, and the last token is never drafted
    assert static([chances], 1, TOKEN_COST) == Tally(5, 1.25 + 1.25 + 1)
    # three at a time: the first round wastes two, the second may draft only two
    assert static([chances], 3, TOKEN_COST) == Tally(5, 1.75 + 1.5)


def test_the_best_static_length_is_the_best_of_all_afterwards() -> None:
    assert best_static([model_chances(recording())], TOKEN_COST) == (2, Tally(5, 3.0))
    assert best_static([model_chances(recording())], 2.0) == (0, Tally(5, 5.0))


def test_the_oracle_of_each_round_drafts_just_what_is_accepted() -> None:
    assert per_round_oracle([([model_chances(recording())], TOKEN_COST)]) == Tally(5, 1.25 + 1.5)


def test_an_oracle_of_several_sources_takes_the_one_that_writes_most_for_its_cost() -> None:
    # the draft is right once and then at none of the next two; three copies from there on are right
    copies = Chances(lengths=(6,) * 6, hits=(0, 3, 0, 0, 0, 0))
    sources = [([model_chances(recording())], TOKEN_COST), ([copies], 0.125)]
    assert per_round_oracle(sources) == Tally(5, 1.375 + 1.0)
    assert per_phase_oracle([recording()], sources) == Tally(5, 1.375 + 1.0)  # copies of three; chains bring less


def test_the_path_of_right_choices_goes_on_where_the_first_one_is_wrong() -> None:
    assert model_chances(recording(), num_choices=2).hits == (6, 5, 4, 3, 2, 1)


def test_the_oracle_of_each_phase_has_a_length_for_each() -> None:
    # first phase: its second token is drafted, its third the target's; second phase: none is right
    text = recording(ranks=(0, 0, 1, 1, 1, 1), phases=((0, "easy"), (3, "hard")))
    chances = Chances(lengths=(6,) * 6, hits=(2, 1, 0, 0, 0, 0))
    assert per_phase_oracle([text], [([chances], TOKEN_COST)]) == Tally(4, 1.25 + 2)


def test_n_grams_by_hand() -> None:
    # after 1 2, which came before, 3 4 9 is copied; three are drafted, since the fourth is the target's, and right
    text = Recording(kind="made up", prompt=(1, 2, 3, 4, 9, 1), output=(2, 3, 4, 9, 7))
    drafter = ngram_drafter(Costs.free(), VOCAB_SIZE)
    rounds = list(replayed(drafter, text, lambda proposal: 1 + 0.125 * len(proposal.tokens)))
    assert rounds == [Round(1, 4, 1.375)]


def test_a_drafted_tree_costs_its_passes() -> None:
    # one node a round: right, and the target's token; then the last token, for which nothing is drafted
    text = recording(ranks=(0, 0, 1, 0))
    model = RecordedModel(text, VOCAB_SIZE)
    one_node = Drafting(kind="tree", num_nodes=1, max_depth=1)
    drafter = tree_drafter(model, Costs.free(), None, size=one_node)
    rounds = list(replayed_with_model(drafter, model, text, 0.125, 0.5))
    assert rounds == [Round(1, 2, 1 + 0.125 + 0.5 * 65 / 64), Round(3, 1, 1.0)]


def test_a_pass_costs_a_64th_more_for_each_node() -> None:
    assert pass_cost(0.64, 1) == pytest.approx(0.65)
    assert linear_costs(0.1, 0.64).draft_pass_s(32) == pytest.approx(pass_cost(0.64, 32)) == pytest.approx(0.96)
    assert linear_costs(0.1).round_s(1 + 5) == pytest.approx(1.5)


def test_the_path_that_a_text_takes_through_a_tree() -> None:
    branching = Proposal((5, 6, 7, 8), (ROOT, ROOT, 1, 2), ("model", "model", "model", "model"), row_of=(None,) * 4)
    assert accepted_path(branching, (6, 7, 8, 9)) == (1, 2, 3)
    assert accepted_path(branching, (6, 7, 8)) == (1, 2)  # the last token is the target's own
    assert accepted_path(branching, (7, 7)) == ()


def test_a_static_tree_by_hand() -> None:
    # first and second choices, and a first below the first
    shape = frozenset({(0,), (1,), (0, 0)})
    entry = AcceptanceRecording(domain="made up", prompt_tokens=3, fingerprint="d", ranks=RANKS)
    # two passes over one node each: the root, and the first choice
    cost = 1 + 3 * 0.1 + 2 * pass_cost(0.64)
    assert tree_cost(shape, 0.1, 0.64) == pytest.approx(cost)
    found = tally(shape, entry, 0.1, 0.64)
    # of ranks 0 1 0 0 0 the first round accepts one (0 1 is no path of the tree), the second two
    assert found.tokens == 5
    assert found.cost == pytest.approx(2 * cost)


# --- the planner's choice ---


def test_planned_rounds_cost_their_mean_size() -> None:
    hybrid, first, further = tree(8, 4, "hybrid"), pass_cost(0.02), pass_cost(0.02, 4)
    assert round_cost(NO_DRAFTING, 0.1, 0, 0) == 1.0
    assert round_cost(ngram(4), 0.1, 2.5, 0) == pytest.approx(1.25)
    assert round_cost(chain(3), 0.1, 3, 3) == pytest.approx(1.3 + 3 * first)
    assert round_cost(hybrid, 0.1, 8, 4) == pytest.approx(1.8 + first + 3 * further)
    assert round_cost(hybrid, 0.1, 2, 1.5) == pytest.approx(1.2 + first + 0.5 * further)
    assert round_cost(hybrid, 0.1, 1, 0.5) == pytest.approx(1.1 + 0.5 * first)


def test_the_simplest_of_those_as_good_as_the_best_is_chosen() -> None:
    best: dict[DraftKind, Priced] = {
        "none": Priced(drafting=NO_DRAFTING, rate=1.0),
        "ngram": Priced(drafting=ngram(4), rate=1.2),
        "hybrid": Priced(drafting=tree(8, 4, "hybrid"), rate=1.205),
    }
    assert choice(best) == "ngram"
    assert choice({**best, "hybrid": Priced(drafting=tree(8, 4, "hybrid"), rate=1.21)}) == "hybrid"
