"""Speculative sampling of chains emits the target's own distribution: by enumeration (L0), by statistics (L1), and both
reject every seeded bug (L2). Trees are in test_exactness_trees.

Shapes: K drafted tokens, V vocabulary (of target or draft), N rounds, L cells.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from runtime import verify as verify_module
from runtime.proposal import Proposal, Verdict
from runtime.sampling import SamplingSettings, Uniforms, draw_token, probability_rows
from runtime.verify import verify_sampled

Floats = npt.NDArray[np.float64]
Verify = Callable[[Tensor, Proposal, Sequence[float]], Verdict]
RAW = SamplingSettings(temperature=1.0)
LARGEST_UNIFORM = float(np.nextafter(1.0, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Rows by position and previous token (the first follows token 0): target (K+1, V, V), draft (K, V, V).

    In a correct program the declared target is the true one, and the draft is sampled from the declared rows.
    """

    true_target: Tensor
    declared_target: Tensor
    declared_draft: Tensor
    sampled_draft: Tensor
    verify: Verify = verify_sampled

    @property
    def draft_len(self) -> int:
        return self.sampled_draft.shape[0]


def correct_world(target_rows: Tensor, draft_rows: Tensor) -> World:
    return World(
        true_target=target_rows, declared_target=target_rows, declared_draft=draft_rows, sampled_draft=draft_rows
    )


def sample_rows(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """`probability_rows` of every position and previous token."""
    return probability_rows(logits.flatten(0, 1), settings).view_as(logits)


# L0: the distribution, enumerated


def tail_joints(target_rows: Tensor) -> list[Floats]:
    """Per position, by previous token: the target's joint distribution of all tokens from there to position K."""
    joints = [target_rows[-1].numpy()]
    for rows_VV in reversed(target_rows[:-1].numpy()):
        joints.insert(0, rows_VV.reshape(rows_VV.shape + (1,) * (joints[0].ndim - 1)) * joints[0][None])
    return joints


def final_cells(target_V: Floats, draft_V: Floats | None) -> Floats:
    """Edges (L+1) between which the final draw is constant, here and in the seeded bugs of the residual."""
    rows = [target_V]
    if draft_V is not None:
        shared = min(len(target_V), len(draft_V))
        difference_V = target_V.copy()
        difference_V[:shared] -= draft_V[:shared]
        rows += [row_V for row_V in (np.maximum(difference_V, 0), np.abs(difference_V)) if row_V.sum() > 0]
    cumulative = [np.cumsum(row_V) / row_V.sum() for row_V in rows]
    return np.unique(np.concatenate([[0.0, 1.0], *cumulative]))


def inside(low: float, high: float, place: str) -> float:
    """A uniform in [low, high): next to its lower edge, in the middle, or next to its upper edge."""
    step = min(1e-12, (high - low) / 4)
    within = {"low": low + step if low > 0 else 0.0, "middle": (low + high) / 2, "high": high - step}
    return min(within[place], LARGEST_UNIFORM)


def output_joint(world: World) -> Floats:
    """The joint distribution (V, ..., V) of K + 1 tokens: a round's output, extended by the true target.

    Every cell of uniforms in which the correct verdict is constant enters with its length, found here without the
    production code. It is probed at both edges and in the middle, so that a verdict that changes elsewhere shows.
    """
    draft_len = world.draft_len
    tails = tail_joints(world.true_target)
    joint = np.zeros(tails[0].shape[1:])
    shared_vocabulary = min(world.true_target.shape[-1], world.sampled_draft.shape[-1])
    for path in itertools.product(range(shared_vocabulary), repeat=draft_len):
        before = [0, *path]
        path_weight = float(world.sampled_draft[range(draft_len), before[:-1], path].prod())
        if path_weight == 0:
            continue
        target_rows = world.declared_target[range(draft_len + 1), before]
        draft_rows = world.declared_draft[range(draft_len), before[:-1]]
        accept = [min(1.0, float(target_rows[i, x] / draft_rows[i, x])) for i, x in enumerate(path)]
        for num_accepted in range(draft_len + 1):
            tests = [(0.0, accept[i]) for i in range(num_accepted)]
            rejected = num_accepted < draft_len
            tests += [(accept[num_accepted], 1.0)] if rejected else []
            row_weight = path_weight * float(np.prod([high - low for low, high in tests]))
            if row_weight == 0:
                continue
            draft_row = draft_rows[num_accepted].numpy() if rejected else None
            edges = final_cells(target_rows[num_accepted].numpy(), draft_row)
            for low, high in itertools.pairwise(edges.tolist()):
                for place in ("low", "middle", "high"):
                    uniforms = [inside(*test, place) for test in tests]
                    uniforms += [0.5] * (draft_len - len(tests)) + [inside(low, high, place)]
                    verdict = world.verify(target_rows, Proposal.chain(path, draft_rows), uniforms)
                    emitted = (*path[: verdict.num_accepted], verdict.next_token)
                    tail = tails[len(emitted)][emitted[-1]] if len(emitted) <= draft_len else 1.0
                    joint[emitted] += row_weight * (high - low) / 3 * tail
    return joint


def exact_error(world: World) -> float:
    """The largest difference between the output's joint distribution and the target's."""
    return float(np.abs(output_joint(world) - tail_joints(world.true_target)[0][0]).max())


def random_rows(seed: int, num_positions: int, vocabulary: int) -> Tensor:
    """Rows without pattern in float64, (positions, V, V)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_positions, vocabulary, vocabulary, generator=generator, dtype=torch.float64)


def normalised(rows: Tensor) -> Tensor:
    return rows / rows.sum(dim=-1, keepdim=True)


def sparse_rows(seed: int, num_positions: int, vocabulary: int) -> Tensor:
    """Rows in which about half of the tokens, and never all, have probability zero."""
    rows = random_rows(seed, num_positions, vocabulary)
    kept = (random_rows(seed + 1, num_positions, vocabulary) < 0.5) | (rows == rows.amax(dim=-1, keepdim=True))
    return normalised(rows * kept)


@pytest.mark.parametrize(
    ("vocabulary", "draft_len"), [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3), (3, 3), (4, 3)]
)
def test_output_distribution_equals_the_targets_for_random_tables(vocabulary: int, draft_len: int) -> None:
    target_rows = normalised(random_rows(1, draft_len + 1, vocabulary))
    draft_rows = normalised(random_rows(2, draft_len, vocabulary))
    joint = output_joint(correct_world(target_rows, draft_rows))
    first_token_V = joint.reshape(vocabulary, -1).sum(axis=1)
    assert np.abs(first_token_V - target_rows[0, 0].numpy()).max() < 1e-12
    assert np.abs(joint - tail_joints(target_rows)[0][0]).max() < 1e-12


@pytest.mark.parametrize("seed", [10, 20, 30])
def test_output_distribution_equals_the_targets_where_probabilities_are_zero(seed: int) -> None:
    target_rows, draft_rows = sparse_rows(seed, 4, 4), sparse_rows(seed + 5, 3, 4)
    assert exact_error(correct_world(target_rows, draft_rows)) < 1e-12


def test_output_distribution_equals_the_targets_where_the_draft_is_the_target() -> None:
    target_rows = sparse_rows(3, 4, 4)
    assert exact_error(correct_world(target_rows, target_rows[:-1])) < 1e-12


def test_output_distribution_equals_the_targets_where_both_differ_by_rounding_only() -> None:
    target_rows = normalised(random_rows(4, 3, 4))
    draft_rows = torch.nextafter(target_rows[:-1], torch.ones((), dtype=torch.float64))
    assert exact_error(correct_world(target_rows, draft_rows)) < 1e-12


def test_output_distribution_equals_the_targets_where_the_supports_are_disjoint() -> None:
    target_rows = normalised(random_rows(5, 3, 4) * torch.tensor([1.0, 0.0, 1.0, 0.0]))
    draft_rows = normalised(random_rows(6, 2, 4) * torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert exact_error(correct_world(target_rows, draft_rows)) < 1e-12


def test_output_distribution_equals_the_targets_with_a_greedy_draft() -> None:
    target_rows = normalised(random_rows(7, 4, 3))
    draft_rows = sample_rows(random_rows(8, 3, 3), SamplingSettings(temperature=0.0))
    assert exact_error(correct_world(target_rows, draft_rows)) < 1e-12


def test_output_distribution_equals_the_targets_with_a_narrower_draft_vocabulary() -> None:
    target_rows = normalised(random_rows(9, 4, 4))
    assert exact_error(correct_world(target_rows, normalised(random_rows(10, 3, 3)))) < 1e-12


def test_output_distribution_equals_the_targets_with_a_wider_draft_vocabulary() -> None:
    target_rows = normalised(random_rows(11, 4, 3))
    draft_rows = functional.pad(normalised(random_rows(12, 3, 3)), (0, 2))
    assert exact_error(correct_world(target_rows, draft_rows)) < 1e-12


# L1: the production loop, sampled


def emitted_sequences(world: World, num_rounds: int, seed: int) -> npt.NDArray[np.int64]:
    """Tokens (N, K+1) of independent rounds; a round that stopped earlier goes on with draws from the true target."""
    uniforms = Uniforms(seed)
    sequences = np.empty((num_rounds, world.draft_len + 1), dtype=np.int64)
    target_positions, draft_positions = torch.arange(world.draft_len + 1), torch.arange(world.draft_len)
    for round_idx in range(num_rounds):
        tokens = [0]
        for rows_VV in world.sampled_draft:
            tokens.append(draw_token(rows_VV[tokens[-1]], uniforms.next()))
        before, path = torch.tensor(tokens), tokens[1:]
        target_rows = world.declared_target[target_positions, before]
        draft_rows = world.declared_draft[draft_positions, before[:-1]]
        verdict = world.verify(target_rows, Proposal.chain(path, draft_rows), [uniforms.next() for _ in tokens])
        emitted = [*path[: verdict.num_accepted], verdict.next_token]
        for rows_VV in world.true_target[len(emitted) :]:
            emitted.append(draw_token(rows_VV[emitted[-1]], uniforms.next()))
        sequences[round_idx] = emitted
    return sequences


def chi_square_p_value(counts_L: npt.NDArray[np.int64], probs_L: Floats) -> float:
    """Probability of counts at least this far from the distribution; cells are pooled to expected counts >= 5."""
    if counts_L[probs_L == 0].any():
        return 0.0
    order_L = np.argsort(probs_L)
    expected_L = probs_L[order_L] / probs_L.sum() * counts_L.sum()
    # Going up from the rarest cell, a pool closes as soon as it holds 5; what is left at the end joins the last.
    starts, held = [0], 0.0
    for cell_idx, expected in enumerate(expected_L.tolist()):
        held += expected
        if held >= 5 and expected_L[cell_idx + 1 :].sum() >= 5:
            starts.append(cell_idx + 1)
            held = 0.0
    pooled_expected, pooled_counts = np.add.reduceat(expected_L, starts), np.add.reduceat(counts_L[order_L], starts)
    return float(stats.chisquare(pooled_counts, pooled_expected).pvalue)


def marginals(world: World) -> tuple[Floats, Floats]:
    """The target's distributions of the token (K+1, V) and of the pair with the next (K, V, V) at each position."""
    rows = world.true_target.double().numpy()
    rows = rows / rows.sum(axis=-1, keepdims=True)
    tokens, pairs = [rows[0, 0]], []
    for rows_VV in rows[1:]:
        pairs.append(tokens[-1][:, None] * rows_VV)
        tokens.append(pairs[-1].sum(axis=0))
    return np.stack(tokens), np.stack(pairs)


def smallest_p_value(world: World, sequences: npt.NDArray[np.int64]) -> float:
    """The smallest p of the first token, the last (the bonus, where all were accepted), the first and last pair."""
    tokens, pairs = marginals(world)
    vocabulary = tokens.shape[-1]
    p_values = []
    for position in (0, world.draft_len):
        counts = np.bincount(sequences[:, position], minlength=vocabulary)
        p_values.append(chi_square_p_value(counts, tokens[position]))
    for position in (0, world.draft_len - 1):
        cells = sequences[:, position] * vocabulary + sequences[:, position + 1]
        counts = np.bincount(cells, minlength=vocabulary**2)
        p_values.append(chi_square_p_value(counts, pairs[position].ravel()))
    return min(p_values)


def largest_total_variation(world: World, sequences: npt.NDArray[np.int64]) -> float:
    """The larger total variation from the target of the first and of the last token."""
    tokens, _ = marginals(world)
    frequencies = [
        np.bincount(sequences[:, position], minlength=tokens.shape[-1]) / len(sequences)
        for position in (0, world.draft_len)
    ]
    return max(float(np.abs(f - tokens[p]).sum() / 2) for f, p in zip(frequencies, (0, -1), strict=True))


def related_logits(seed: int, draft_len: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Float32 logits of a target (K+1, V, V) and of a draft (K, V, V) that agrees with it to a degree."""
    generator = torch.Generator().manual_seed(seed)
    target_logits = torch.randn(draft_len + 1, vocabulary, vocabulary, generator=generator) * 1.5
    noise = torch.randn(draft_len, vocabulary, vocabulary, generator=generator)
    return target_logits, target_logits[:-1] + 0.7 * noise


def sampled_world(
    seed: int, draft_len: int, vocabulary: int, target: SamplingSettings, draft: SamplingSettings
) -> World:
    target_logits, draft_logits = related_logits(seed, draft_len, vocabulary)
    return correct_world(sample_rows(target_logits, target), sample_rows(draft_logits, draft))


WARM_TOP_K = SamplingSettings(temperature=0.7, top_k=20)
HOT_FILTERED = SamplingSettings(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02)


def test_20000_rounds_have_the_targets_distribution() -> None:
    torch.set_num_threads(1)
    world = sampled_world(1, 1, 64, target=WARM_TOP_K, draft=HOT_FILTERED)
    assert smallest_p_value(world, emitted_sequences(world, 20_000, seed=1)) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "draft", "draft_len"),
    [(RAW, RAW, 2), (HOT_FILTERED, WARM_TOP_K, 1)],
)
def test_100000_rounds_have_the_targets_distribution(
    target: SamplingSettings, draft: SamplingSettings, draft_len: int
) -> None:
    torch.set_num_threads(1)
    world = sampled_world(2, draft_len, 64, target, draft)
    sequences = emitted_sequences(world, 100_000, seed=2)
    assert smallest_p_value(world, sequences) > 1e-6
    assert largest_total_variation(world, sequences) <= 0.015


# L2: seeded bugs

TARGET = SamplingSettings(temperature=0.8)
DRAFT = SamplingSettings(temperature=0.9, top_k=2)


def verify_with_previous_row_as_bonus(target_rows: Tensor, proposal: Proposal, uniforms: Sequence[float]) -> Verdict:
    return verify_sampled(target_rows[[*range(len(proposal.tokens)), -2]], proposal, uniforms)


def residual_from_target(target_V: Tensor, draft_V: Tensor) -> Tensor:
    return target_V


def residual_of_absolute_difference(target_V: Tensor, draft_V: Tensor) -> Tensor:
    return (target_V - draft_V).abs()


BUGS = [
    "draft sampled from its top-k row, q declared raw",
    "greedy draft, soft q",
    "q before top-k",
    "target temperature 5 % off",
    "bonus from the row before",
    "resampled from p",
    "resampled from |p - q|",
]


def buggy_world(bug: str, logits: tuple[Tensor, Tensor], draft: SamplingSettings, patch: pytest.MonkeyPatch) -> World:
    """The correct world of these logits with one bug in what is declared, sampled or computed."""
    target_logits, draft_logits = logits
    world = correct_world(sample_rows(target_logits, TARGET), sample_rows(draft_logits, draft))
    before_top_k = sample_rows(draft_logits, replace(draft, top_k=None))
    match bug:
        case "draft sampled from its top-k row, q declared raw":
            return replace(world, declared_draft=sample_rows(draft_logits, RAW))
        case "greedy draft, soft q":
            greedy_rows = sample_rows(draft_logits, SamplingSettings(temperature=0.0))
            return replace(world, sampled_draft=greedy_rows, declared_draft=before_top_k)
        case "q before top-k":
            return replace(world, declared_draft=before_top_k)
        case "target temperature 5 % off":
            off = SamplingSettings(temperature=TARGET.temperature * 1.05)
            return replace(world, declared_target=sample_rows(target_logits, off))
        case "bonus from the row before":
            return replace(world, verify=verify_with_previous_row_as_bonus)
        case "resampled from p":
            patch.setattr(verify_module, "residual_probs", residual_from_target)
        case "resampled from |p - q|":
            patch.setattr(verify_module, "residual_probs", residual_of_absolute_difference)
        case _:
            assert bug == "none"
    return world


def small_logits() -> tuple[Tensor, Tensor]:
    """Logits of vocabulary 4 and K = 2 in float64, so that the enumeration of the correct world is exact."""
    target_logits, draft_logits = related_logits(3, 2, 4)
    return target_logits.double(), draft_logits.double()


def test_enumeration_accepts_the_world_without_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exact_error(buggy_world("none", small_logits(), DRAFT, monkeypatch)) < 1e-12


@pytest.mark.parametrize("bug", BUGS)
def test_enumeration_rejects_a_seeded_bug(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exact_error(buggy_world(bug, small_logits(), DRAFT, monkeypatch)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("bug", "num_rounds"), [(bug, 100_000 if "5 %" in bug else 20_000) for bug in BUGS])
def test_statistics_reject_a_seeded_bug(bug: str, num_rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    draft = SamplingSettings(temperature=0.9, top_k=20)
    world = buggy_world(bug, related_logits(4, 1, 64), draft, monkeypatch)
    assert smallest_p_value(world, emitted_sequences(world, num_rounds, seed=4)) < 1e-6
