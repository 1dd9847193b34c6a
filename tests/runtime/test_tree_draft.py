"""Drafted trees: the target's own text whatever is drafted, and a draft that follows by itself."""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from drafted_trees import FOREVER, GREEDY, cached, ngram_drafter, tree_drafter, written
from made_up_model import MadeUpModel, made_up_row
from tiny_models import FAMILIES, VOCAB_SIZE, TinyModel, resident, stock_greedy

from planner.contracts.plan import RoundCosts
from runtime.clock import RoundClock
from runtime.decode import Sampling, decode_rounds, prefill
from runtime.draft.base import Drafter
from runtime.draft.costs import Costs
from runtime.draft.draws import draw_children, draw_one_by_one
from runtime.draft.model import ChainDrafter
from runtime.draft.ngram import NodeCandidates
from runtime.draft.tree import top_of_rows
from runtime.proposal import NOTHING, ROOT, Proposal, Verdict
from runtime.sampling import SamplingSettings, probability_rows

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS: tuple[tuple[int, ...], ...] = ((7,), (3, 1, 4, 1, 5, 9, 2, 6), tuple(range(100, 130)))
SHAPES = ((1, 1, 1), (5, 2, 2), (12, 6, 3), (40, 8, 16))  # nodes, depth, nodes per pass


# L3: token for token


def check_greedy_text(
    family: str, tiny_model: TinyModel, *, is_hybrid: bool, shapes: Sequence[tuple[int, int, int]], num_tokens: int
) -> None:
    folder = tiny_model(family, "fp64")
    stock = resident(folder, "fp64")
    expected = [stock_greedy(stock, prompt, num_tokens) for prompt in PROMPTS]
    counts = {}
    with ExitStack() as stack:
        target = stack.enter_context(cached(folder))
        for kind, seed, noise in (("same", 0, 0.0), ("perturbed", 0, 0.1), ("random", 1, 0.0)):
            draft = stack.enter_context(cached(tiny_model(family, "fp64", seed=seed, noise=noise)))
            num_drafted = num_accepted = 0
            for (num_nodes, max_depth, pass_nodes), (prompt, tokens) in itertools.product(
                shapes, zip(PROMPTS, expected, strict=True)
            ):
                draft.reset()
                drafter = tree_drafter(
                    draft,
                    num_nodes=num_nodes,
                    max_depth=max_depth,
                    pass_nodes=pass_nodes,
                    ngram=ngram_drafter(num_nodes, max_depth) if is_hybrid else None,
                )
                text, drafted, accepted = written(target, drafter, prompt, num_tokens, GREEDY)
                assert text == tokens, (kind, num_nodes, max_depth, prompt)
                num_drafted, num_accepted = num_drafted + drafted, num_accepted + accepted
            counts[kind] = (num_accepted, num_drafted)
    assert all(0 <= accepted < drafted for accepted, drafted in counts.values())
    assert counts["same"][0] > counts["random"][0]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("is_hybrid", [False, True])
def test_greedy_text_with_drafted_trees_is_transformers_generate(
    family: str, is_hybrid: bool, tiny_model: TinyModel
) -> None:
    check_greedy_text(family, tiny_model, is_hybrid=is_hybrid, shapes=SHAPES[1::2], num_tokens=12)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_hybrid", [False, True])
def test_greedy_text_with_trees_of_every_shape_is_transformers_generate(
    family: str, is_hybrid: bool, tiny_model: TinyModel
) -> None:
    check_greedy_text(family, tiny_model, is_hybrid=is_hybrid, shapes=SHAPES, num_tokens=20)


def test_a_draft_with_the_targets_weights_is_accepted_down_to_its_depth(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama", "fp64")
    with cached(folder) as target, cached(folder) as draft:
        target.reset()
        sampling = Sampling(GREEDY)
        context = [5, 6, prefill(target, [5, 6], sampling, 16)]
        drafter = tree_drafter(draft, num_nodes=5, max_depth=5, pass_nodes=2, most_children=1)
        rounds = list(decode_rounds(target, drafter, context, sampling, max_tokens=24, clock=RoundClock()))
    assert [entry.num_accepted_tokens for entry in rounds] == [5] * 4


# the draft's cache


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])  # full attention, sliding windows, both
def test_a_tree_after_any_accepted_path_is_the_tree_drafted_from_scratch(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family, "fp64", noise=0.1)
    context = [5, 6, 7]
    with cached(folder) as model, cached(folder) as other:
        drafter = tree_drafter(model, num_nodes=14, max_depth=5, pass_nodes=4)
        for place in (0, 13, 3, 6, 1, 12, 9, 13, 5, 0, 13):
            proposal = drafter.propose(context, FOREVER)
            other.reset()
            scratch = tree_drafter(other, num_nodes=14, max_depth=5, pass_nodes=4)
            assert proposal == scratch.propose(context, FOREVER)
            assert len(proposal.tokens) == 14
            context += [*path_to(proposal, place), 11]


def path_to(proposal: Proposal, node: int) -> list[int]:
    """The tokens from the root down to a node."""
    path: list[int] = []
    while node != ROOT:
        path.insert(0, proposal.tokens[node])
        node = proposal.parents[node]
    return path


def test_accepted_nodes_that_the_draft_has_seen_are_not_fed_again() -> None:
    model = MadeUpModel(lambda text: made_up_row(text, 8, evenness=0.3), 8)
    drafter = tree_drafter(model.as_cached(), num_nodes=20, max_depth=4, pass_nodes=20, vocab_size=8)
    context = [1, 2]
    proposal = drafter.propose(context, FOREVER)
    node = max(range(20), key=lambda node: (proposal.depths[node] <= 3, proposal.depths[node]))
    model.fed.clear()
    drafter.propose([*context, *path_to(proposal, node), 3], FOREVER)
    assert model.fed[0] == [3]
    assert model.passes.count(0) == 2


def test_each_pass_feeds_as_many_nodes_as_allowed_and_there_are_as_many_passes_as_levels() -> None:
    model = MadeUpModel(lambda text: made_up_row(text, 8), 8)
    drafter = tree_drafter(model.as_cached(), num_nodes=40, max_depth=5, pass_nodes=6, vocab_size=8)
    proposal = drafter.propose([1, 2], FOREVER)
    assert model.passes == [0, 6, 6, 6, 6]
    assert max(proposal.depths) <= 5
    model.most_nodes = 10  # fewer than the passes would feed
    model.passes.clear()
    assert len(drafter.propose([1, 2, 3], FOREVER).tokens) == 40
    assert model.passes == [0, 3, 3, 2, 2]


def test_a_tree_ends_with_the_drafts_own_context_and_with_the_depth_that_is_wanted() -> None:
    model = MadeUpModel(lambda text: made_up_row(text, 8, evenness=0.1), 8, context_tokens=20)
    drafter = tree_drafter(model.as_cached(), num_nodes=30, max_depth=6, pass_nodes=30, vocab_size=8)
    for length, wanted, depth in ((3, 2, 2), (4, 0, 0), (16, 9, 4), (19, 9, 1), (20, 9, 0), (21, 9, 0)):
        assert max(drafter.propose([1] * length, wanted).depths, default=0) == depth


def test_copies_are_proposed_where_the_draft_itself_cannot_follow(tiny_model: TinyModel) -> None:
    model = MadeUpModel(lambda text: made_up_row(text, 8), 8)
    drafter = tree_drafter(model.as_cached(), vocab_size=VOCAB_SIZE, ngram=ngram_drafter())
    proposal = drafter.propose([1, 300, 2, 3, 1, 300], FOREVER)
    assert proposal.tokens[:2] == (2, 3)
    assert set(proposal.sources) == {"ngram"}
    assert model.passes == []


def test_copied_tokens_that_the_draft_lacks_are_proposed_but_not_fed(tiny_model: TinyModel) -> None:
    model = MadeUpModel(lambda text: made_up_row(text, 8), 8)

    class Copies:
        def candidates(self, context: Sequence[int], num_nodes: int, max_depth: int) -> NodeCandidates:
            return NodeCandidates((1, 300, 2), (ROOT, 0, 1), (0.9, 0.9, 0.9))

        def observe(self, proposal: Proposal, verdict: Verdict) -> None:
            raise AssertionError

    drafter = tree_drafter(model.as_cached(), num_nodes=20, vocab_size=VOCAB_SIZE, ngram=Copies())  # type: ignore[arg-type]
    proposal = drafter.propose([1, 2], FOREVER)
    assert [proposal.tokens[node] for node, source in enumerate(proposal.sources) if source == "ngram"] == [1, 300, 2]
    assert sum(model.passes) > 0


# a chain is the narrowest tree


@pytest.mark.parametrize("settings", [GREEDY, SamplingSettings(temperature=0.9, top_p=0.95, seed=3)])
def test_a_tree_of_one_child_per_node_is_the_chain(settings: SamplingSettings, tiny_model: TinyModel) -> None:
    target_folder, draft_folder = tiny_model("llama", "fp64"), tiny_model("llama", "fp64", noise=0.1)
    with cached(target_folder) as target, cached(draft_folder) as one, cached(draft_folder) as other:
        for length, prompt in itertools.product((1, 3, 7), PROMPTS):
            proposals: list[list[Proposal]] = [[], []]
            runs = []
            for kind, model in enumerate((one, other)):
                target.reset()
                model.reset()
                sampling = Sampling(settings)
                context = [*prompt, prefill(target, prompt, sampling, 16)]
                drafter: Drafter
                if kind == 0:
                    drafter = ChainDrafter(
                        model, settings, sampling.uniforms, vocab_size=VOCAB_SIZE, chunk_tokens=6, draft_len=length
                    )
                else:
                    drafter = tree_drafter(
                        model, settings, num_nodes=length, max_depth=length, pass_nodes=1, most_children=1
                    )
                    drafter._uniforms = sampling.uniforms  # as the chain's are
                recording = Recording(drafter, proposals[kind])
                list(decode_rounds(target, recording, context, sampling, max_tokens=20, clock=RoundClock()))
                runs.append(context)
            assert runs[0] == runs[1]
            for chain, tree in zip(*proposals, strict=True):
                assert (chain.tokens, chain.parents) == (tree.tokens, tree.parents)
                if chain.rows_RV is not None and tree.rows_RV is not None:
                    torch.testing.assert_close(chain.rows_RV, tree.rows_RV)


class Recording:
    """Keeps what another drafter proposes."""

    def __init__(self, drafter: Drafter, proposals: list[Proposal]) -> None:
        self._drafter = drafter
        self._proposals = proposals

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        proposal = self._drafter.propose(context, max_depth)
        rows_RV = None if proposal.rows_RV is None else proposal.rows_RV.clone()
        self._proposals.append(Proposal(proposal.tokens, proposal.parents, proposal.sources, rows_RV, proposal.row_of))
        return proposal

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        self._drafter.observe(proposal, verdict)


def test_sampled_text_with_the_targets_own_weights_accepts_the_first_child_of_every_node(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama", "fp64")
    settings = SamplingSettings(temperature=1.0, seed=5)
    with cached(folder) as target, cached(folder) as draft:
        sampling = Sampling(settings)
        context = [5, 6, prefill(target, [5, 6], sampling, 16)]
        drafter = tree_drafter(draft, settings, num_nodes=8, max_depth=4, pass_nodes=4)
        for entry in decode_rounds(target, drafter, context, sampling, max_tokens=20, clock=RoundClock()):
            assert entry.num_accepted_tokens > 0 or entry.num_draft_tokens == 0


# draws


@pytest.mark.parametrize("seed", range(20))
def test_children_drawn_for_many_nodes_at_once_are_those_drawn_one_by_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows_PV = probability_rows(torch.randn(5, 30, generator=generator), SamplingSettings(temperature=1.0, top_k=12))
    uniforms = [torch.rand(num, generator=generator, dtype=torch.float64).tolist() for num in (1, 4, 2, 7, 3)]
    taken = [[], [3], [], [1, 99, 2], rows_PV[4].topk(5).indices.tolist()]
    expected = [draw_one_by_one(row_V, *rest) for row_V, *rest in zip(rows_PV, taken, uniforms, strict=True)]
    assert draw_children(rows_PV, taken, uniforms) == expected
    for row_V, own, tokens in zip(rows_PV, taken, expected, strict=True):
        assert len({*tokens, *own}) == len(tokens) + len(own)
        assert all(row_V[token] > 0 for token in tokens)


def test_the_last_uniform_never_draws_a_token_without_probability() -> None:
    rows_PV = torch.tensor([[0.3, 0.7, 0.0, 0.0], [0.0, 0.2, 0.2, 0.6]])
    last = float(np.nextafter(1.0, 0.0))
    assert draw_children(rows_PV, [[], [3]], [[last, last], [last, last]]) == [[1, 0], [2, 1]]


def test_of_equal_probabilities_the_lowest_ids_come_first() -> None:
    top = top_of_rows(torch.tensor([[0.1, 0.2, 0.1, 0.2, 0.4]]), 5)
    assert top.tokens_WK.tolist() == [[4, 1, 3, 0, 2]]
    assert top.probs_WK[0].tolist() == pytest.approx([0.4, 0.2, 0.2, 0.1, 0.1])


# what pays


def costs(node_s: float = 0.0, pass_s: float = 0.0, hidden_s: float = 0.0) -> Costs:
    return Costs(
        RoundCosts(
            num_verified=(1, 1001),
            round_s=(1.0, 1.0 + 1000 * node_s),
            hidden_s=(hidden_s, hidden_s),
            pass_nodes=(1, 64),
            draft_pass_s=(pass_s, pass_s),
        )
    )


def proposals_at(rate_costs: Costs, num_rounds: int = 40) -> tuple[MadeUpModel, list[Proposal]]:
    """What is proposed while the target accepts one token in each round."""
    model = MadeUpModel(lambda text: made_up_row(text, 8, evenness=0.5), 8, context_tokens=512)
    drafter = tree_drafter(model.as_cached(), num_nodes=30, max_depth=6, pass_nodes=10, vocab_size=8, costs=rate_costs)
    context, proposals = [1, 2], []
    for _ in range(num_rounds):
        proposal = drafter.propose(context, FOREVER)
        proposals.append(proposal)
        path = (0,) if proposal is not NOTHING else ()
        drafter.observe(proposal, Verdict(path, 3))
        context += [*(proposal.tokens[node] for node in path), 3]
    return model, proposals


def test_what_costs_nothing_fills_the_tree() -> None:
    _, proposals = proposals_at(costs())
    assert all(len(proposal.tokens) == 30 for proposal in proposals)


def test_nodes_that_are_dear_to_verify_are_left_out() -> None:
    _, proposals = proposals_at(costs(node_s=0.05))
    assert 1 <= max(len(proposal.tokens) for proposal in proposals) < 15


def test_passes_that_are_dear_are_fewer_and_hidden_ones_are_not() -> None:
    dear, _ = proposals_at(costs(pass_s=0.2))
    hidden, _ = proposals_at(costs(pass_s=0.2, hidden_s=2.0))
    assert 40 <= len(dear.passes) < len(hidden.passes)


def test_a_draft_that_does_not_pay_at_all_is_asked_again_every_32nd_round() -> None:
    _, proposals = proposals_at(costs(pass_s=10.0), num_rounds=70)
    assert [place for place, proposal in enumerate(proposals) if proposal is not NOTHING] == [31, 63]
