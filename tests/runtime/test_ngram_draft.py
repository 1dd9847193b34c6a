"""Drafting from earlier text: what is proposed in which order, what is learned, and that it pays on real text."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.contracts.plan import RoundCosts
from profiles import heldout_texts
from runtime.draft.automaton import SuffixAutomaton
from runtime.draft.corpus import Corpus
from runtime.draft.costs import Costs
from runtime.draft.ngram import NgramDrafter
from runtime.proposal import NOTHING, ROOT, Proposal, Verdict

repetitive_texts = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def drafter_of(
    *,
    num_nodes: int = 16,
    max_depth: int = 8,
    min_match_tokens: int = 1,
    costs: Costs | None = None,
    corpus: Corpus | None = None,
    vocab_size: int = 100,
    most_tokens: int = 1000,
) -> NgramDrafter:
    return NgramDrafter(
        num_nodes=num_nodes,
        max_depth=max_depth,
        min_match_tokens=min_match_tokens,
        costs=costs or Costs.free(),
        corpus=corpus,
        vocab_size=vocab_size,
        most_tokens=most_tokens,
    )


def verifying_costs(seconds_per_token: float) -> Costs:
    return Costs(RoundCosts(num_verified=(1, 1001), round_s=(1, 1 + 1000 * seconds_per_token), hidden_s=(0, 0)))


def follow_truth(proposal: Proposal, truth: Sequence[int]) -> Verdict:
    """The verdict of a target that writes `truth`."""
    path: list[int] = []
    node: int | None = ROOT
    while node is not None:
        wanted = truth[len(path)]
        children = proposal.children.get(node, ()) if len(path) + 1 < len(truth) else ()
        node = next((child for child in children if proposal.tokens[child] == wanted), None)
        if node is not None:
            path.append(node)
    return Verdict(tuple(path), wanted)


# --- what is proposed ---


def test_a_text_that_repeats_itself_is_drafted_on() -> None:
    proposal = drafter_of(max_depth=5).propose([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], 99)
    chain = proposal.tokens[:4]
    assert chain == (4, 5, 6, 7)
    assert proposal.parents[:4] == (ROOT, 0, 1, 2)
    assert set(proposal.sources) == {"ngram"}
    assert proposal.rows_RV is None
    assert proposal.row_of == (None,) * len(proposal.tokens)


def test_a_period_is_drafted_beyond_the_end_of_what_was_seen() -> None:
    assert drafter_of(num_nodes=6, max_depth=6).propose([9, 1, 2, 1, 2, 1, 2], 99).tokens[:6] == (1, 2, 1, 2, 1, 2)


def test_unlike_continuations_become_branches_the_latest_first() -> None:
    candidates = drafter_of().candidates([1, 5, 1, 6, 1, 7, 1], 3, 1)
    assert candidates.tokens == (7, 6, 5)
    assert candidates.parents == (ROOT,) * 3
    assert candidates.probs[0] > candidates.probs[1] == candidates.probs[2]


def test_what_only_shorter_matches_offer_comes_after_the_longest_ones() -> None:
    candidates = drafter_of().candidates([2, 3, 8, 1, 3, 9, 2, 3], 2, 1)
    assert candidates.tokens == (8, 9)  # 2 3 was followed by 8, and 3 alone by 9 too
    assert sum(candidates.probs) <= 1


def test_matches_below_the_least_length_offer_nothing() -> None:
    context = [1, 2, 8, 5, 1, 2]
    assert drafter_of(min_match_tokens=2).propose(context, 99).tokens[0] == 8
    assert drafter_of(min_match_tokens=3).propose(context, 99) == NOTHING


def test_nothing_is_proposed_where_there_is_no_room_or_nothing_known() -> None:
    assert drafter_of().propose([1, 2, 1], 0) == NOTHING
    assert drafter_of().propose([1, 2, 3], 9) == NOTHING
    assert drafter_of().propose([1], 9) == NOTHING


@given(repetitive_texts, st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 20), st.integers(1, 5))
def test_candidates_are_a_tree_best_first(
    context: list[int], other_text: list[int], num_nodes: int, max_depth: int
) -> None:
    drafter = drafter_of(max_depth=4, corpus=Corpus([other_text]))
    candidates = drafter.candidates(context, num_nodes, max_depth)
    tree = Proposal(candidates.tokens, candidates.parents, sources=())
    assert len(tree.tokens) <= num_nodes
    assert max(tree.depths, default=0) <= min(4, max_depth)
    assert list(candidates.probs) == sorted(candidates.probs, reverse=True)
    assert all(0 < prob <= 1 for prob in candidates.probs)
    assert all(parent < node for node, parent in enumerate(candidates.parents))
    for children in tree.children.values():
        assert len({tree.tokens[child] for child in children}) == len(children)


@given(repetitive_texts, st.integers(1, 59), st.booleans())
def test_growing_contexts_are_followed_as_if_read_anew(context: list[int], num_first: int, has_corpus: bool) -> None:
    corpus = Corpus([[0, 1, 2, 3, 2], [1, 1, 0]]) if has_corpus else None
    growing = drafter_of(corpus=corpus)
    for num_tokens in range(min(num_first, len(context)), len(context) + 1):
        found = growing.candidates(context[:num_tokens], 12, 4)
    assert found == drafter_of(corpus=corpus).candidates(context, 12, 4)


def test_text_beyond_the_most_tokens_is_forgotten() -> None:
    context = [1, 2, 3, *range(10, 40), 1, 2]
    assert drafter_of(most_tokens=100).propose(context, 9).tokens[0] == 3
    assert drafter_of(most_tokens=20).propose(context, 9) == NOTHING


# --- a corpus ---


def test_corpus_offers_what_the_text_has_not_seen() -> None:
    corpus = Corpus([[1, 2, 3, 4], [2, 9]])
    assert drafter_of(corpus=corpus, min_match_tokens=2).propose([5, 1, 2], 9).tokens == (3, 4)
    assert drafter_of(corpus=corpus).propose([5, 3, 4], 9) == NOTHING  # the first text ends there


def test_text_and_corpus_share_nodes_and_the_likelier_chance_holds() -> None:
    context = [7, 3, 4, 8, 3]
    alone = drafter_of().candidates(context, 4, 2)
    both = drafter_of(corpus=Corpus([[8, 3, 4], [3, 6]])).candidates(context, 4, 2)
    assert alone.tokens[0] == both.tokens[0] == 4
    assert both.tokens.count(4) == 1
    assert 6 in both.tokens
    assert both.probs[0] > alone.probs[0]  # two tokens match the corpus
    longer = [8, 3, 4, 8, 3]
    with_less = drafter_of(corpus=Corpus([[3, 4]])).candidates(longer, 1, 1)
    assert with_less == drafter_of().candidates(longer, 1, 1)  # one token does, and two the text


def test_tokens_that_the_target_does_not_have_are_not_proposed() -> None:
    corpus = Corpus([[1, 2, 200, 3], [2, 4]])
    assert drafter_of(corpus=corpus, vocab_size=201).propose([1, 2], 9).tokens[0] == 200
    assert 200 not in drafter_of(corpus=corpus, vocab_size=200).propose([1, 2], 9).tokens


# --- what pays ---


def test_no_more_is_proposed_than_pays() -> None:
    context = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]  # 4 tokens match: the next one is right in half of all cases
    sizes = [
        len(drafter_of(costs=verifying_costs(seconds)).propose(context, 99).tokens) for seconds in (0, 0.2, 0.4, 0.9)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3] == 0


def test_steps_of_the_pass_are_filled() -> None:
    steps = RoundCosts(num_verified=(1, 4, 5, 8), round_s=(1.0, 1.0, 3.0, 3.0), hidden_s=(0.0,) * 4)
    context = [1, 5, 1, 6, 1, 7, 1, 8, 1, 9, 1]
    assert len(drafter_of(costs=Costs(steps)).propose(context, 1).tokens) == 3


# --- what is learned ---

CONTEXT = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]


def test_right_ones_raise_the_chance_and_wrong_ones_lower_it() -> None:
    drafter = drafter_of(num_nodes=1, max_depth=1)
    (before,) = drafter.candidates(CONTEXT, 1, 1).probs
    drafter.observe(drafter.propose(CONTEXT, 1), Verdict((0,), 9))
    (after_right,) = drafter.candidates(CONTEXT, 1, 1).probs
    for _ in range(3):
        drafter.observe(drafter.propose(CONTEXT, 1), Verdict((), 9))
    (after_wrong,) = drafter.candidates(CONTEXT, 1, 1).probs
    assert after_wrong < before < after_right


def test_nothing_is_learned_of_nodes_below_the_first_wrong_one() -> None:
    drafter = drafter_of(num_nodes=3, max_depth=3)
    first, second, third = drafter.candidates(CONTEXT, 3, 3).probs
    drafter.observe(drafter.propose(CONTEXT, 3), Verdict((), 9))
    now_first, now_second, now_third = drafter.candidates(CONTEXT, 3, 3).probs
    assert now_first < first
    assert now_second / now_first == pytest.approx(second / first)
    assert now_third / now_second == pytest.approx(third / second)


def test_a_round_without_candidates_is_no_news() -> None:
    drafter = drafter_of()
    assert drafter.propose([1, 2, 3], 5) == NOTHING
    drafter.observe(NOTHING, Verdict((), 4))
    assert drafter.candidates(CONTEXT, 5, 5) == drafter_of().candidates(CONTEXT, 5, 5)


def test_candidates_that_did_not_pay_are_learned_from_where_the_target_was() -> None:
    drafter = drafter_of(num_nodes=1, max_depth=1, costs=verifying_costs(0.6))
    assert drafter.propose(CONTEXT, 1) == NOTHING
    for _ in range(40):
        drafter.observe(NOTHING, Verdict((), 3))
        proposal = drafter.propose(CONTEXT, 1)
    assert proposal.tokens == (3,)


def test_a_tree_of_another_drafter_teaches_by_its_tokens() -> None:
    drafter = drafter_of()
    first, second = drafter.candidates(CONTEXT, 2, 2).probs
    other = Proposal(tokens=(50, 3, 4), parents=(ROOT, ROOT, 1), sources=("model", "model", "ngram"))
    drafter.observe(other, Verdict((1, 2), 60))
    now_first, now_second = drafter.candidates(CONTEXT, 2, 2).probs
    assert now_first > first
    assert now_second / now_first > second / first


def test_shorter_matches_are_judged_only_where_the_longest_one_was_wrong() -> None:
    context = [2, 3, 8, 1, 3, 9, 2, 3]  # 8 after 2 3, and else 9 after 3
    drafter = drafter_of()

    def chance_of_nine_if_not_eight() -> float:
        eight, nine = drafter.candidates(context, 2, 1).probs
        return nine / (1 - eight)

    before = chance_of_nine_if_not_eight()
    drafter.observe(drafter.propose(context, 1), Verdict((0,), 7))
    assert chance_of_nine_if_not_eight() == pytest.approx(before)
    drafter.observe(drafter.propose(context, 1), Verdict((), 7))
    assert chance_of_nine_if_not_eight() < before


def test_nothing_is_learned_after_a_token_that_was_no_candidate() -> None:
    one_wrong, then_others = drafter_of(), drafter_of()
    one_wrong.observe(one_wrong.propose(CONTEXT, 3), Verdict((), 50))
    then_others.propose(CONTEXT, 3)
    then_others.observe(Proposal((50, 3), (ROOT, 0), ("model", "model")), Verdict((0, 1), 4))
    assert then_others.candidates(CONTEXT, 3, 3) == one_wrong.candidates(CONTEXT, 3, 3)


# --- real text ---


def words_of(text: str, vocabulary: dict[str, int]) -> list[int]:
    return [vocabulary.setdefault(word, len(vocabulary)) for word in re.findall(r"\w+|\s+|[^\w\s]", text)]


def adaptive_speed(tokens: list[int], num_prompt: int, seconds_per_token: float) -> float:
    """Tokens per pass of one token."""
    costs = verifying_costs(seconds_per_token)
    drafter = drafter_of(num_nodes=64, max_depth=64, costs=costs, vocab_size=10**6, most_tokens=10**5)
    spent_s, place = 0.0, num_prompt
    while place < len(tokens):
        proposal = drafter.propose(tokens[:place], len(tokens) - place - 1)
        verdict = follow_truth(proposal, tokens[place:])
        drafter.observe(proposal, verdict)
        spent_s += costs.round_s(1 + len(proposal.tokens))
        place += verdict.num_accepted + 1
    return (len(tokens) - num_prompt) / spent_s


def static_speed(tokens: list[int], num_prompt: int, seconds_per_token: float, draft_len: int) -> float:
    """The same for chains of one length after the longest match, of the latest continuation."""
    text = SuffixAutomaton()
    for token in tokens[:num_prompt]:
        text.append(token)
    spent_s, place = 0.0, num_prompt
    while place < len(tokens):
        limit = min(draft_len, len(tokens) - place - 1)
        drafted: list[int] = []
        match = text.longest_earlier()
        while match.length > 0 and len(drafted) < limit:
            found = text.continuations(match)
            if found:
                drafted.append(found[0][0])
            match = text.step(match, found[0][0]) if found else text.shorter(match)
        right = 0
        while right < len(drafted) and drafted[right] == tokens[place + right]:
            right += 1
        for token in tokens[place : place + right + 1]:
            text.append(token)
        spent_s += 1 + seconds_per_token * len(drafted)
        place += right + 1
    return (len(tokens) - num_prompt) / spent_s


@pytest.mark.parametrize("seconds_per_token", [0.01, 0.1])
def test_adaptive_drafts_beat_every_fixed_length_where_text_changes(seconds_per_token: float) -> None:
    """A repetition, then code, then prose; fixed lengths are the best of a grid, chosen after the fact."""
    vocabulary: dict[str, int] = {}
    by_domain = {entry.domain: entry.text for entry in heldout_texts("evaluation")}
    code, prose = (words_of(by_domain[domain], vocabulary)[:600] for domain in ("code", "prose"))
    tokens = [*prose[:400], *prose[:400], *code, *prose]
    fixed = max(static_speed(tokens, 400, seconds_per_token, length) for length in (0, 1, 2, 3, 4, 6, 8, 12, 16, 32))
    assert adaptive_speed(tokens, 400, seconds_per_token) > fixed
