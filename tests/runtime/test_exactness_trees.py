"""Speculative sampling of trees emits the target's own distribution: by enumeration (L0), by statistics (L1), and both
reject every seeded bug (L2). Chains are in test_exactness_sampling.

Shapes: V vocabulary, T = N + 1 target rows of N nodes, L = depth + 1 tokens of a round's output, R rounds.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_exactness_sampling import chi_square_p_value, inside
from torch import Tensor
from tree_worlds import (
    Floats,
    Rows,
    Slot,
    Tree,
    World,
    all_trees,
    drawn_from,
    emitted_tokens,
    proposal_of,
    sampled_tree,
    target_rows_of,
)

from runtime import verify as verify_module
from runtime.proposal import ROOT, Proposal, Verdict
from runtime.sampling import SamplingSettings, probability_rows
from runtime.verify import residual_probs, verify_sampled

# L0: the distribution, enumerated


def target_joints(world: World) -> list[Floats]:
    """Entry d, of shape (V,) * L: the target's distribution of the tokens from d on, given those before."""
    num_tokens = len(world.target_rows)
    joints = [np.ones((world.vocabulary,) * num_tokens)]
    for rows in reversed(world.target_rows):
        joints.insert(0, rows.reshape(rows.shape + (1,) * (num_tokens - rows.ndim)) * joints[0])
    return joints


@dataclass(frozen=True, slots=True)
class Outcome:
    """A way in which a walk ends: the interval of each test's uniform, and the rows its target row went through."""

    tests: dict[int, tuple[float, float]]
    rows: list[Floats]

    def final_cells(self) -> Iterator[tuple[float, float]]:
        """Intervals in which the final draw is constant, from any of the rows."""
        cumulative = [np.cumsum(row_V) / row_V.sum() for row_V in self.rows]
        return itertools.pairwise(np.unique(np.concatenate([[0.0, 1.0], *cumulative])).tolist())


def outcomes(target_TV: Floats, proposal: Proposal, node: int = ROOT) -> Iterator[Outcome]:
    """Every way the walk from a node can end, found without the production code."""
    rejected: dict[int, tuple[float, float]] = {}
    rows = [target_TV[node + 1]]
    earlier: list[int] = []
    for child in [idx for idx, parent in enumerate(proposal.parents) if parent == node]:
        token, row = proposal.tokens[child], proposal.row_of[child]
        draft_V = np.eye(len(rows[-1]))[token]
        if row is not None and proposal.rows_RV is not None:
            width = proposal.rows_RV.shape[1]
            draft_V = np.zeros(max(len(rows[-1]), width))
            draft_V[:width] = proposal.rows_RV[row].numpy()
            draft_V[earlier] = 0.0
            draft_V = draft_V[: len(rows[-1])] / draft_V.sum()
        accept = min(1.0, float(rows[-1][token] / draft_V[token]))
        if accept > 0:
            for below in outcomes(target_TV, proposal, child):
                yield Outcome(rejected | {child: (0.0, accept)} | below.tests, below.rows)
        if accept == 1:
            return
        rejected[child] = (accept, 1.0)
        excess_V = np.maximum(rows[-1] - draft_V, 0.0)
        rows.append(excess_V / excess_V.sum() if excess_V.any() else rows[-1])
        earlier.append(token)
    yield Outcome(rejected, rows)


def output_joint(world: World) -> Floats:
    """The joint distribution (V, ..., V) of L tokens: a round's output, extended by the target.

    Every cell of uniforms in which the correct verdict is constant enters with its length. It is probed at both edges
    and in the middle, so that a verdict that changes elsewhere shows.
    """
    tails = target_joints(world)
    joint = np.zeros_like(tails[0])
    for tree_weight, drafted in all_trees(world):
        tree = world.edit(world, drafted)
        target_TV, proposal = target_rows_of(world, tree), world.declare(world, tree)
        for outcome in outcomes(target_TV.numpy(), proposal):
            weight = tree_weight * float(np.prod([high - low for low, high in outcome.tests.values()]))
            for low, high in outcome.final_cells() if weight > 0 else ():
                for place in ("low", "middle", "high"):
                    uniforms = [inside(*outcome.tests.get(node, (0.0, 1.0)), place) for node in range(len(tree))]
                    verdict = world.verify(target_TV, proposal, [*uniforms, inside(low, high, place)])
                    emitted = emitted_tokens(proposal, verdict)
                    joint[emitted] += weight * (high - low) / 3 * tails[len(emitted)][emitted]
    return joint


def exact_error(world: World) -> float:
    """The largest difference between the output's joint distribution and the target's."""
    return float(np.abs(output_joint(world) - target_joints(world)[0]).max())


def random_rows(seed: int, depth: int, vocabulary: int, *, sparse: bool = False) -> Rows:
    """Rows without pattern for every text of up to `depth` tokens; of sparse ones about half of the tokens are 0."""
    generator = np.random.default_rng(seed)
    tables = []
    for length in range(depth + 1):
        weights = generator.random((vocabulary,) * (length + 1))
        if sparse:
            weights *= (generator.random(weights.shape) < 0.5) | (weights == weights.max(axis=-1, keepdims=True))
        tables.append(weights / weights.sum(axis=-1, keepdims=True))
    return tuple(tables)


def random_world(slots: Sequence[Slot], seed: int, vocabulary: int, depth: int, *, sparse: bool = False) -> World:
    target_rows = random_rows(seed, depth, vocabulary, sparse=sparse)
    draft_rows = random_rows(seed + 1, depth - 1, vocabulary, sparse=sparse)
    return World(target_rows=target_rows, draft_rows=draft_rows, slots=tuple(slots))


COPY = Slot(is_drawn=False)

# By name: the slots, the vocabulary and the depth.
SHAPES: dict[str, tuple[list[Slot], int, int]] = {
    "two siblings": ([Slot(), Slot()], 3, 1),
    "three siblings": ([Slot(), Slot(), Slot()], 4, 1),
    "siblings that hold the whole vocabulary": ([Slot(), Slot(), Slot()], 3, 1),
    "two children of each": ([Slot(), Slot(), Slot(0), Slot(0), Slot(1), Slot(1)], 3, 2),
    "three children of each of two": ([Slot(), Slot(), *[Slot(0)] * 3, *[Slot(1)] * 3], 2, 2),
    "a sibling at each depth": ([Slot(), Slot(), Slot(0), Slot(0), Slot(2), Slot(2)], 3, 3),
    "two chains": ([Slot(), Slot(), Slot(0), Slot(1), Slot(2), Slot(3)], 2, 3),
    "deeper nodes before siblings": ([Slot(), Slot(0), Slot(1), Slot(), Slot(0), Slot(3)], 2, 3),
    "a copied chain, then a drawn one": (
        [COPY, Slot(0, False), Slot(1, False), Slot(), Slot(3), Slot(4)],
        3,
        3,
    ),
    "a drawn chain, then a copied one": ([Slot(), Slot(0), COPY, Slot(2, False)], 4, 2),
    "copied between drawn": ([Slot(), COPY, Slot(), Slot(0), Slot(1), Slot(2, False)], 3, 2),
    "copied below drawn, drawn below copied": ([Slot(), COPY, Slot(0, False), Slot(0), Slot(1), Slot(1)], 3, 2),
    "only copied": ([COPY, Slot(0, False), Slot(1, False)], 4, 3),
    "a second child only after some first ones": ([Slot(), Slot(wanted=lambda t: t[0] != 1), Slot(0)], 4, 2),
    "the likelier of two grows": (
        [Slot(), Slot(), Slot(0, wanted=lambda t: t[0] < t.get(1, 9)), Slot(1, wanted=lambda t: t[1] < t[0])],
        3,
        2,
    ),
    "a third child, or a grandchild": (
        [Slot(), Slot(), Slot(wanted=lambda t: t[0] + t.get(1, 0) > 3), Slot(0, wanted=lambda t: 2 not in t), Slot(3)],
        4,
        3,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_output_distribution_equals_the_targets(shape: str) -> None:
    slots, vocabulary, depth = SHAPES[shape]
    assert exact_error(random_world(slots, 10, vocabulary, depth)) < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_output_distribution_equals_the_targets_where_probabilities_are_zero(shape: str) -> None:
    slots, vocabulary, depth = SHAPES[shape]
    assert exact_error(random_world(slots, 20, vocabulary, depth, sparse=True)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 43))
@pytest.mark.parametrize("shape", SHAPES)
def test_output_distribution_equals_the_targets_for_many_tables(shape: str, seed: int) -> None:
    slots, vocabulary, depth = SHAPES[shape]
    assert exact_error(random_world(slots, seed, vocabulary, depth, sparse=seed % 2 == 0)) < 1e-12


MIXED = (Slot(), COPY, Slot(), Slot(0), Slot(2))


@pytest.mark.parametrize("sparse", [False, True])
def test_output_distribution_equals_the_targets_where_the_draft_is_the_target(sparse: bool) -> None:
    world = random_world(MIXED, 50, 4, 2, sparse=sparse)
    assert exact_error(replace(world, draft_rows=world.target_rows[:-1])) < 1e-12


def test_output_distribution_equals_the_targets_where_both_differ_by_rounding_only() -> None:
    world = random_world(MIXED, 51, 4, 2)
    draft_rows = tuple(np.nextafter(rows, 1.0) for rows in world.target_rows[:-1])
    assert exact_error(replace(world, draft_rows=draft_rows)) < 1e-12


def test_output_distribution_equals_the_targets_where_the_supports_are_disjoint() -> None:
    world = random_world(MIXED, 52, 4, 2)
    target_rows = normalised(world.target_rows, np.array([1.0, 0.0, 1.0, 0.0]))
    draft_rows = normalised(world.draft_rows, np.array([0.0, 1.0, 0.0, 1.0]))
    assert exact_error(replace(world, target_rows=target_rows, draft_rows=draft_rows)) < 1e-12


def test_output_distribution_equals_the_targets_where_a_draw_that_a_copied_sibling_has_is_not_listed() -> None:
    for slots in (MIXED, (COPY, Slot(), Slot(), Slot(1)), (Slot(), Slot(0, False), Slot(0), Slot(0))):
        assert exact_error(replace(random_world(slots, 54, 4, 2), avoids_copied=False)) < 1e-12


@pytest.mark.parametrize("width", [2, 3, 6])
def test_output_distribution_equals_the_targets_with_a_draft_vocabulary_of_another_size(width: int) -> None:
    world = random_world(MIXED, 53, 4, 2)
    kept = [rows[..., :width] for rows in world.draft_rows]
    padded = tuple(np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, width - rows.shape[-1])]) for rows in kept)
    assert exact_error(replace(world, draft_rows=normalised(padded, np.ones(width)))) < 1e-12


def normalised(tables: Rows, kept_V: Floats) -> Rows:
    return tuple(rows * kept_V / (rows * kept_V).sum(axis=-1, keepdims=True) for rows in tables)


# L1: sampled


def emitted_sequences(world: World, num_rounds: int, seed: int) -> npt.NDArray[np.int64]:
    """Tokens (R, L) of independent rounds; a round that stopped earlier goes on with draws from the target."""
    generator = np.random.default_rng(seed)
    sequences = np.empty((num_rounds, len(world.target_rows)), dtype=np.int64)
    for round_idx in range(num_rounds):
        tree = world.edit(world, sampled_tree(world, generator))
        proposal = world.declare(world, tree)
        verdict = world.verify(target_rows_of(world, tree), proposal, generator.random(len(tree) + 1).tolist())
        emitted = emitted_tokens(proposal, verdict)
        for rows in world.target_rows[len(emitted) :]:
            emitted = (*emitted, drawn_from(rows[emitted], generator))
        sequences[round_idx] = emitted
    return sequences


def marginal(world: World, positions: Sequence[int]) -> Floats:
    """The target's distribution of the tokens at some positions."""
    joint = target_joints(world)[0]
    others = tuple(axis for axis in range(joint.ndim) if axis not in positions)
    probs = joint.sum(axis=others)
    return np.asarray(probs / probs.sum())


def frequencies(world: World, sequences: npt.NDArray[np.int64], positions: Sequence[int]) -> npt.NDArray[np.int64]:
    """How often each combination of tokens came at some positions."""
    counts = np.zeros((world.vocabulary,) * len(positions), dtype=np.int64)
    np.add.at(counts, tuple(sequences[:, position] for position in positions), 1)
    return counts


def smallest_p_value(world: World, sequences: npt.NDArray[np.int64]) -> float:
    """The smallest p of the first token, the last, the pairs of neighbours, and the whole."""
    last = sequences.shape[1] - 1
    return min(
        chi_square_p_value(frequencies(world, sequences, positions).ravel(), marginal(world, positions).ravel())
        for positions in ([0], [last], *([position, position + 1] for position in range(last)), range(last + 1))
    )


def largest_total_variation(world: World, sequences: npt.NDArray[np.int64]) -> float:
    """The larger total variation from the target of the first and of the last token."""
    return max(
        float(np.abs(frequencies(world, sequences, [p]) / len(sequences) - marginal(world, [p])).sum() / 2)
        for p in (0, sequences.shape[1] - 1)
    )


def related_world(
    slots: Sequence[Slot], seed: int, depth: int, target: SamplingSettings, draft: SamplingSettings
) -> World:
    """Float32 rows of vocabulary 64 of a target and of a draft that agrees with it to a degree."""
    generator = torch.Generator().manual_seed(seed)

    def rows(logits: Tensor, settings: SamplingSettings) -> npt.NDArray[np.floating]:
        probs: npt.NDArray[np.floating] = probability_rows(logits.reshape(-1, 64), settings).view_as(logits).numpy()
        return probs

    logits = [torch.randn((64,) * (length + 1), generator=generator) * 1.5 for length in range(depth + 1)]
    noisy = [table + 0.7 * torch.randn(table.shape, generator=generator) for table in logits[:-1]]
    return World(
        target_rows=tuple(rows(table, target) for table in logits),
        draft_rows=tuple(rows(table, draft) for table in noisy),
        slots=tuple(slots),
    )


WARM_TOP_K = SamplingSettings(temperature=0.7, top_k=20)
HOT_FILTERED = SamplingSettings(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02)
RAW = SamplingSettings(temperature=1.0)
WIDE = (Slot(), COPY, Slot(), Slot(), Slot(0), Slot(0), Slot(2), Slot(1, False))


@pytest.mark.usefixtures("one_thread")
def test_20000_rounds_have_the_targets_distribution() -> None:
    world = related_world(MIXED, 1, 2, target=WARM_TOP_K, draft=HOT_FILTERED)
    assert smallest_p_value(world, emitted_sequences(world, 20_000, seed=1)) > 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("slots", "target", "draft"), [(WIDE, HOT_FILTERED, WARM_TOP_K), (MIXED, WARM_TOP_K, RAW)])
def test_100000_rounds_have_the_targets_distribution(
    slots: Sequence[Slot], target: SamplingSettings, draft: SamplingSettings
) -> None:
    world = related_world(slots, 2, 2, target, draft)
    sequences = emitted_sequences(world, 100_000, seed=2)
    assert smallest_p_value(world, sequences) > 1e-6
    assert largest_total_variation(world, sequences) <= 0.015


# L2: seeded bugs


def without_unlikely(world: World, tree: Tree) -> Tree:
    """The tree without the drawn nodes that are less than half as probable as the best, and without what is below."""
    texts: set[tuple[int, ...]] = {()}
    kept = []
    for node in tree:
        row_V = world.draft_rows[len(node.before)][node.before]
        if node.before in texts and not (node.is_drawn and row_V[node.token] < row_V.max() / 2):
            kept.append(node)
            texts.add((*node.before, node.token))
    return tuple(kept)


def likeliest_first(world: World, tree: Tree) -> Tree:
    """The tree with siblings in the order of their draft probabilities."""
    return tuple(
        sorted(tree, key=lambda n: (len(n.before), -float(world.draft_rows[len(n.before)][n.before][n.token])))
    )


def declared_with_rows_for_copied(world: World, tree: Tree, tables: Rows) -> Proposal:
    """The proposal with copied tokens declared as drawn from the rows of a table."""
    honest = proposal_of(world, tree)
    assert honest.rows_RV is not None
    rows, row_of = list(honest.rows_RV), list(honest.row_of)
    for idx, node in enumerate(tree):
        if not node.is_drawn:
            row_of[idx] = len(rows)
            rows.append(torch.from_numpy(tables[len(node.before)][node.before]))
    return replace(honest, rows_RV=torch.stack(rows), row_of=tuple(row_of))


def verify_with_rows_of_the_node_before(target_TV: Tensor, proposal: Proposal, uniforms: Sequence[float]) -> Verdict:
    return verify_sampled(target_TV[[0, *range(len(proposal.tokens))]], proposal, uniforms)


def verify_with_rows_of_a_sibling(target_TV: Tensor, proposal: Proposal, uniforms: Sequence[float]) -> Verdict:
    siblings = [proposal.children[parent] for parent in proposal.parents]
    others = [nodes[(nodes.index(node) + 1) % len(nodes)] for node, nodes in enumerate(siblings)]
    return verify_sampled(target_TV[[0, *(node + 1 for node in others)]], proposal, uniforms)


def verify_with_parents_row_as_bonus(target_TV: Tensor, proposal: Proposal, uniforms: Sequence[float]) -> Verdict:
    rows = [node + 1 if node in proposal.children else parent + 1 for node, parent in enumerate(proposal.parents)]
    return verify_sampled(target_TV[[0, *rows]], proposal, uniforms)


def verify_with_children_of_a_sibling(target_TV: Tensor, proposal: Proposal, uniforms: Sequence[float]) -> Verdict:
    first = proposal.children[ROOT]
    moved = {node: first[(rank + 1) % len(first)] for rank, node in enumerate(first)}
    parents = tuple(moved.get(parent, parent) for parent in proposal.parents)
    return verify_sampled(target_TV, replace(proposal, parents=parents), uniforms)


def verify_with_one_uniform_for_siblings(target_TV: Tensor, proposal: Proposal, uniforms: Sequence[float]) -> Verdict:
    shared = [uniforms[proposal.children[parent][0]] for parent in proposal.parents]
    return verify_sampled(target_TV, proposal, [*shared, uniforms[-1]])


def verify_with_a_tests_uniform_for_the_draw(
    target_TV: Tensor, proposal: Proposal, uniforms: Sequence[float]
) -> Verdict:
    return verify_sampled(target_TV, proposal, [*uniforms[:-1], uniforms[0]])


def verify_without_the_first_residual(target_TV: Tensor, proposal: Proposal, uniforms: Sequence[float]) -> Verdict:
    rejected: list[Tensor] = []

    def residual(target_V: Tensor, draft_V: Tensor) -> Tensor:
        rejected.append(draft_V)
        return target_V.double() if len(rejected) == 1 else residual_probs(target_V, draft_V)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_module, "residual_probs", residual)
        return verify_sampled(target_TV, proposal, uniforms)


def verify_with(name: str, function: Callable[..., Tensor]) -> Callable[[World], World]:
    """A world whose production code has one function replaced."""

    def verify(target_TV: Tensor, proposal: Proposal, uniforms: Sequence[float]) -> Verdict:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verify_module, name, function)
            return verify_sampled(target_TV, proposal, uniforms)

    return lambda world: replace(world, verify=verify)


def zeroed(row_V: Tensor, tokens: Sequence[int]) -> Tensor:
    return row_V.double().index_fill(0, torch.tensor(tokens, dtype=torch.long), 0.0)


def excess(target_V: Tensor, draft_V: Tensor) -> Tensor:
    left_V = (target_V.double() - draft_V.double()).clamp(min=0)
    return left_V if left_V.any() else target_V.double()


BUGS: dict[str, Callable[[World], World]] = {
    "sibling left in q": verify_with("without", lambda row_V, tokens: row_V.double()),
    "q not normalised again": verify_with("without", zeroed),
    "p not normalised again": verify_with("residual_probs", excess),
    "no residual after the first rejection": lambda w: replace(w, verify=verify_without_the_first_residual),
    "unlikely children dropped": lambda w: replace(w, edit=without_unlikely),
    "likeliest sibling first": lambda w: replace(w, edit=likeliest_first),
    "copied declared as drawn from p": lambda w: replace(
        w, declare=lambda world, tree: declared_with_rows_for_copied(world, tree, world.target_rows)
    ),
    "copied declared as drawn from q": lambda w: replace(
        w, declare=lambda world, tree: declared_with_rows_for_copied(world, tree, world.draft_rows)
    ),
    "rows of the node before": lambda w: replace(w, verify=verify_with_rows_of_the_node_before),
    "rows of a sibling": lambda w: replace(w, verify=verify_with_rows_of_a_sibling),
    "parent's row as bonus": lambda w: replace(w, verify=verify_with_parents_row_as_bonus),
    "children of a sibling": lambda w: replace(w, verify=verify_with_children_of_a_sibling),
    "one uniform for all siblings": lambda w: replace(w, verify=verify_with_one_uniform_for_siblings),
    "a test's uniform for the draw": lambda w: replace(w, verify=verify_with_a_tests_uniform_for_the_draw),
}


SMALL = (Slot(), COPY, Slot(), Slot(0))


@pytest.mark.parametrize("bug", BUGS)
def test_enumeration_rejects_a_seeded_bug(bug: str) -> None:
    world = random_world(SMALL, 66, 4, 2)
    assert exact_error(BUGS[bug](world)) > 1e-3


def test_enumeration_accepts_the_world_without_a_bug() -> None:
    assert exact_error(random_world(SMALL, 66, 4, 2)) < 1e-12


# Many siblings and few likely tokens, so that second and third children are often reached and seldom certain.
SIBLINGS = (Slot(), Slot(), Slot(), COPY, Slot(0), Slot(1), Slot(2))
CONCENTRATED = SamplingSettings(temperature=0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("bug", "num_rounds"), [(bug, 30_000 if bug == "children of a sibling" else 10_000) for bug in BUGS]
)
def test_statistics_reject_a_seeded_bug(bug: str, num_rounds: int) -> None:
    world = BUGS[bug](related_world(SIBLINGS, 5, 2, CONCENTRATED, CONCENTRATED))
    assert smallest_p_value(world, emitted_sequences(world, num_rounds, seed=4)) < 1e-6
