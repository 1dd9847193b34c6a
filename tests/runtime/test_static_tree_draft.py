"""Trees of one shape: the target's own text, the target's law, and the same passes in every round."""

import itertools
from collections.abc import Sequence

import pytest
from drafted_trees import CONTEXT_TOKENS, FOREVER, GREEDY, cached, tree_drafter, written
from made_up_model import MadeUpModel, made_up_row
from test_tree_draft import PROMPTS, path_to
from tiny_models import TinyModel, placed, recounted, resident, stock_greedy
from tree_law import DRAFT_SEED, law_error

from planner.contracts.plan import RankPath, TreeDraft
from runtime.api import load, make_plan
from runtime.draft.growth import TreeGrowth
from runtime.draft.static_tree import StaticGrowth
from runtime.draft.tree import TreeDrafter
from runtime.sampling import SamplingSettings

pytestmark = pytest.mark.usefixtures("one_thread")

WIDE: tuple[RankPath, ...] = ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0))
RARE: tuple[RankPath, ...] = ((9,), (9, 9))  # beyond as many as there are nodes
SKEWED: tuple[RankPath, ...] = ((0,), (1,), (1, 0), (1, 1), (1, 1, 0))  # the first child is a leaf
CHAIN: tuple[RankPath, ...] = ((0,), (0, 0), (0, 0, 0))
NUM_TOKENS = 16


def static_drafter(model: MadeUpModel, paths: Sequence[RankPath], settings: SamplingSettings = GREEDY) -> TreeDrafter:
    """Of a made-up model."""
    return tree_drafter(
        model.as_cached(),
        settings,
        num_nodes=len(paths),
        max_depth=max(map(len, paths)),
        pass_nodes=len(paths),
        vocab_size=model.streamed.vocab_size,
        paths=paths,
    )


@pytest.mark.parametrize("paths", [WIDE, SKEWED, CHAIN, RARE])
def test_the_tree_holds_just_the_ranks_that_were_settled(paths: tuple[RankPath, ...]) -> None:
    model = MadeUpModel(lambda text: made_up_row(text, 16), 16)
    drafter = static_drafter(model, paths)
    for context in ([1, 2], [1, 2, 5, 3]):
        model.passes.clear()
        proposal = drafter.propose(context, FOREVER)
        found = set()
        for node in range(len(proposal.tokens)):
            text, ranks = list(context), []
            for token in path_to(proposal, node):
                ranks.append((-made_up_row(text, 16)).argsort(kind="stable").tolist().index(token))
                text.append(token)
            found.add(tuple(ranks))
        assert found == set(paths)
        parents = {path[:-1] for path in paths}
        assert model.passes == [
            0,
            *(sum(len(path) == depth for path in parents) for depth in range(1, len(max(paths, key=len)))),
        ]


def test_it_ends_with_the_depth_that_is_left() -> None:
    model = MadeUpModel(lambda text: made_up_row(text, 8), 8, context_tokens=6)
    drafter = static_drafter(model, WIDE)
    assert len(drafter.propose([1, 2], 2).tokens) == 6
    assert len(drafter.propose([1, 2, 3], 1).tokens) == 3
    assert len(drafter.propose([1, 2, 3, 4], 0).tokens) == 0
    assert max(drafter.propose([1, 2, 3, 4, 5], FOREVER).depths) == 1  # the draft's own context


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_greedy_text_is_transformers_generate(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family, "fp64")
    stock = resident(folder, "fp64")
    with cached(folder) as target, cached(tiny_model(family, "fp64", noise=0.1)) as draft:
        for paths, prompt in itertools.product((WIDE, SKEWED), PROMPTS):
            draft.reset()
            drafter = tree_drafter(draft, num_nodes=8, max_depth=3, pass_nodes=3, paths=paths)
            text, drafted, accepted = written(target, drafter, prompt, NUM_TOKENS, GREEDY)
            assert text == stock_greedy(stock, prompt, NUM_TOKENS)
            assert 0 < accepted < drafted


@pytest.mark.parametrize("paths", [WIDE, SKEWED, CHAIN])
def test_sampled_trees_leave_the_targets_law_as_it_is(
    paths: tuple[RankPath, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert law_error(lambda: law_drafter(paths), 3, monkeypatch) < 1e-12


def test_the_law_is_another_where_children_are_drawn_in_another_order_than_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StaticGrowth, "settle", TreeGrowth.settle)
    assert law_error(lambda: law_drafter(SKEWED), 3, monkeypatch) > 1e-3


def law_drafter(paths: Sequence[RankPath]) -> TreeDrafter:
    model = MadeUpModel(lambda text: made_up_row(text, 3, DRAFT_SEED), 3)
    return static_drafter(model, paths, SamplingSettings(temperature=1.0, seed=0))


def test_a_plan_with_paths_runs_as_it_says(tiny_model: TinyModel) -> None:
    target, draft = tiny_model("llama", "fp64"), tiny_model("llama", "fp64", noise=0.1)
    size = TreeDraft(
        model=str(draft),
        fingerprint=make_plan(draft).target.fingerprint,
        num_nodes=len(WIDE),
        max_depth=3,
        pass_nodes=3,
        paths=WIDE,
        dtype="fp64",
    )
    plan = recounted(placed(target, draft=draft, context_tokens=CONTEXT_TOKENS), draft=size)
    with load(plan=plan) as engine:
        engine.end_tokens = frozenset()
        generation = engine.generate(PROMPTS[1], max_tokens=NUM_TOKENS)
        tokens = [piece.token_id for piece in generation]
    assert tokens == stock_greedy(resident(target, "fp64"), PROMPTS[1], NUM_TOKENS)
    assert {entry.num_draft_tokens for entry in generation.report().rounds[:-3]} == {len(WIDE)}
