"""What of a chain is accepted, what is emitted instead, and what cannot be verified; trees are in test_verify_trees,
distributions in test_exactness_sampling."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planner.contracts.errors import SelfCheckError
from runtime.proposal import NOTHING, Proposal, Verdict
from runtime.verify import check_finite, residual_probs, verify_greedy, verify_sampled

LARGEST_UNIFORM = float(np.nextafter(1.0, 0.0))
NAN, INF = math.nan, math.inf


def logits_with_argmax(*tokens: int) -> Tensor:
    """One row per token, of vocabulary 8, with that token's logit the largest."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), 8).float() * 5 - 2


# greedy


@pytest.mark.parametrize(
    ("draft_tokens", "verdict"),
    [
        ([4, 2, 7], Verdict((0, 1, 2), 1)),  # all accepted: the bonus is row 3's
        ([4, 2, 6], Verdict((0, 1), 7)),
        ([4, 0, 7], Verdict((0,), 2)),  # the later match does not count
        ([0, 2, 7], Verdict((), 4)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_greedy_accepts_the_longest_matching_prefix_and_adds_the_targets_token(
    draft_tokens: list[int], verdict: Verdict, dtype: torch.dtype
) -> None:
    assert verify_greedy(logits_with_argmax(4, 2, 7, 1).to(dtype), Proposal.chain(draft_tokens)) == verdict


def test_greedy_without_a_draft_is_the_targets_token() -> None:
    assert verify_greedy(logits_with_argmax(5), NOTHING) == Verdict((), 5)


def test_greedy_takes_the_first_of_equal_logits() -> None:
    logits_TV = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.bfloat16)
    assert verify_greedy(logits_TV, Proposal.chain([1])) == Verdict((0,), 0)
    assert verify_greedy(logits_TV, Proposal.chain([2])) == Verdict((), 1)


def test_greedy_never_takes_a_masked_token() -> None:
    logits_TV = torch.tensor([[-INF, -9.0, -INF], [-INF, -INF, -3e38]])
    assert verify_greedy(logits_TV, Proposal.chain([1])) == Verdict((0,), 2)


def test_greedy_rejects_a_drafted_token_beyond_the_targets_vocabulary() -> None:
    assert verify_greedy(logits_with_argmax(5, 3), Proposal.chain([8])) == Verdict((), 5)


def test_greedy_needs_one_row_more_than_drafted_tokens() -> None:
    with pytest.raises(AssertionError, match="one row for the root and one per node"):
        verify_greedy(logits_with_argmax(5, 3), Proposal.chain([5, 3]))


# sampled

# The target is [1/2, 1/2, 0], the draft [3/4, 1/4, 0]; token 0 is accepted below 2/3, token 1 always.
TARGET = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.25, 0.0, 0.75]])
DRAFT = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("draft_tokens", "uniforms", "verdict"),
    [
        ([0, 2], [0.66, 0.5, 0.24], Verdict((0, 1), 0)),
        ([0, 2], [0.66, 0.5, 0.25], Verdict((0, 1), 2)),  # the bonus of row 2: token 0 below 1/4
        ([0, 2], [0.67, 0.5, 0.0], Verdict((), 1)),  # (p - q)+ is [0, 1/4, 0]: token 1, whatever the last uniform
        ([0, 2], [0.67, 0.0, 0.99], Verdict((), 1)),
        ([1, 2], [LARGEST_UNIFORM, LARGEST_UNIFORM, LARGEST_UNIFORM], Verdict((0, 1), 2)),
    ],
)
def test_sampled_accepts_below_p_over_q_and_else_draws_from_the_residual(
    draft_tokens: list[int], uniforms: list[float], verdict: Verdict, dtype: torch.dtype
) -> None:
    assert verify_sampled(TARGET.to(dtype), Proposal.chain(draft_tokens, DRAFT.to(dtype)), uniforms) == verdict


def test_sampled_without_a_draft_draws_from_the_only_row() -> None:
    for uniform, token in ((0.0, 0), (0.49, 0), (0.5, 1), (LARGEST_UNIFORM, 1)):
        assert verify_sampled(TARGET[:1], NOTHING, [uniform]) == Verdict((), token)
        assert verify_sampled(TARGET[:1], Proposal.chain([], torch.empty(0, 3)), [uniform]) == Verdict((), token)


def test_a_token_that_the_target_excludes_is_rejected_even_by_a_uniform_of_zero() -> None:
    target_TV, draft_KV = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert verify_sampled(target_TV, Proposal.chain([0], draft_KV), [0.0, 0.0]) == Verdict((), 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    weights=st.lists(st.floats(2.0**-140, 1.0, width=32), min_size=2, max_size=20),
    uniform=st.floats(0, LARGEST_UNIFORM),
)
def test_a_draft_equal_to_the_target_is_always_accepted(weights: list[float], uniform: float) -> None:
    row_V = torch.tensor(weights)
    row_V = row_V / row_V.sum()
    target_TV = torch.stack([row_V, row_V])
    for test_uniform in (uniform, LARGEST_UNIFORM):
        token = int(row_V.argmax())
        assert (
            verify_sampled(target_TV, Proposal.chain([token], row_V[None]), [test_uniform, uniform]).num_accepted == 1
        )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), vocabulary=st.integers(1, 6), draft_vocabulary=st.integers(1, 6), draft_len=st.integers(0, 3))
def test_no_token_of_target_probability_zero_is_ever_emitted(
    data: st.DataObject, vocabulary: int, draft_vocabulary: int, draft_len: int
) -> None:
    weight = st.sampled_from([0.0, 0.0, 1e-30, 0.1, 1.0, 3.0])
    shared = min(vocabulary, draft_vocabulary)

    def row(width: int, total: int) -> list[float]:
        weights = data.draw(st.lists(weight, min_size=width, max_size=width).filter(any))
        return [value / sum(weights) for value in weights] + [0.0] * (total - width)

    target_TV = torch.tensor([row(vocabulary, vocabulary) for _ in range(draft_len + 1)])
    draft_rows = [row(shared, draft_vocabulary) for _ in range(draft_len)]
    tokens = [data.draw(st.sampled_from([i for i, p in enumerate(r) if np.float32(p) > 0])) for r in draft_rows]
    extremes = st.sampled_from([0.0, LARGEST_UNIFORM]) | st.floats(0, LARGEST_UNIFORM)
    uniforms = data.draw(st.lists(extremes, min_size=draft_len + 1, max_size=draft_len + 1))
    draft_KV = torch.tensor(draft_rows).reshape(draft_len, draft_vocabulary)
    verdict = verify_sampled(target_TV, Proposal.chain(tokens, draft_KV), uniforms)
    emitted = [*tokens[: verdict.num_accepted], verdict.next_token]
    assert all(target_TV[position, token] > 0 for position, token in enumerate(emitted))


def test_uniforms_after_the_first_rejection_are_not_used() -> None:
    proposal = Proposal.chain([0, 2], DRAFT)
    verdicts = {verify_sampled(TARGET, proposal, [0.9, unused, 0.5]) for unused in (0.0, 0.3, LARGEST_UNIFORM)}
    assert verdicts == {Verdict((), 1)}


def test_the_final_draw_has_a_uniform_of_its_own() -> None:
    # Rejected at position 0 with uniform 0.95; (p - q)+ is [0, 1/4, 1/4], cut at 1/2 by the last uniform.
    target_TV = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    draft_KV = torch.tensor([[1.0, 0.0, 0.0]])
    assert verify_sampled(target_TV, Proposal.chain([0], draft_KV), [0.95, 0.49]) == Verdict((), 1)
    assert verify_sampled(target_TV, Proposal.chain([0], draft_KV), [0.95, 0.51]) == Verdict((), 2)


def test_a_rejection_that_leaves_no_residual_draws_from_the_target() -> None:
    # Rows that rounding made a little too large; here by a fifth, so that a rejection can be forced.
    target_TV, draft_KV = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([[0.6, 0.6, 0.0]])
    assert verify_sampled(target_TV, Proposal.chain([0], draft_KV), [0.9, 0.49]) == Verdict((), 0)
    assert verify_sampled(target_TV, Proposal.chain([0], draft_KV), [0.9, 0.51]) == Verdict((), 1)


def test_a_narrower_draft_vocabulary_can_be_corrected_to_a_token_it_lacks() -> None:
    target_TV, draft_KV = torch.tensor([[0.25, 0.0, 0.75], [1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert verify_sampled(target_TV, Proposal.chain([0], draft_KV), [0.24, 0.5]) == Verdict((0,), 0)
    assert verify_sampled(target_TV, Proposal.chain([0], draft_KV), [0.25, 0.5]) == Verdict((), 2)


def test_a_wider_draft_vocabulary_is_cut_to_the_targets() -> None:
    target_TV, draft_KV = torch.tensor([[0.25, 0.75], [0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert verify_sampled(target_TV, Proposal.chain([0], draft_KV), [0.24, 0.5]) == Verdict((0,), 1)
    assert verify_sampled(target_TV, Proposal.chain([0], draft_KV), [0.25, 0.5]) == Verdict((), 1)


@pytest.mark.parametrize("token", [2, 3, -1])
def test_a_drafted_token_outside_the_targets_vocabulary_is_a_bug(token: int) -> None:
    with pytest.raises(AssertionError, match="outside a vocabulary"):
        verify_sampled(torch.full((2, 2), 0.5), Proposal.chain([token], torch.full((1, 4), 0.25)), [0.0, 0.0])


def test_a_drafted_token_that_its_row_excludes_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="not drawn from the draft row"):
        verify_sampled(TARGET, Proposal.chain([2, 2], DRAFT), [0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("num_target_rows", "num_draft_rows", "num_uniforms"), [(2, 2, 3), (3, 1, 3), (3, 2, 2), (3, 2, 4)]
)
def test_a_row_or_uniform_too_few_or_too_many_is_a_bug(
    num_target_rows: int, num_draft_rows: int, num_uniforms: int
) -> None:
    with pytest.raises(AssertionError, match=r"one .* per node|a draft row is missing"):
        verify_sampled(TARGET[:num_target_rows], Proposal.chain([0, 2], DRAFT[:num_draft_rows]), [0.5] * num_uniforms)


# residual


@pytest.mark.parametrize(
    ("target", "draft", "residual"),
    [
        ([0.5, 0.5, 0.0], [0.75, 0.25, 0.0], [0.0, 1.0, 0.0]),
        ([0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [2 / 3, 0.0, 1 / 3]),
        ([0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.5, 0.25, 0.25]),  # no mass: the target itself
        ([0.5, 0.25, 0.25], [0.25, 0.75], [0.5, 0.0, 0.5]),  # narrower
        ([0.5, 0.5], [0.25, 0.75, 0.0, 0.0], [1.0, 0.0]),  # wider
    ],
)
def test_the_residual_is_what_the_target_has_more_of(
    target: list[float], draft: list[float], residual: list[float]
) -> None:
    row_V = residual_probs(torch.tensor(target), torch.tensor(draft))
    torch.testing.assert_close(row_V, torch.tensor(residual, dtype=torch.float64), rtol=1e-15, atol=0)


def test_the_residual_leaves_its_rows_as_they_were() -> None:
    target_V, draft_V = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.75, 0.25]).double()
    residual_probs(target_V, draft_V)
    assert (target_V.tolist(), draft_V.tolist()) == ([0.5, 0.5], [0.75, 0.25])


# finite logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("bad_row", "reason"),
    [
        ([0.0, NAN, 1.0], "NaN"),
        ([NAN, INF, -INF], "NaN"),
        ([0.0, INF, 1.0], r"\+inf"),
        ([-INF, INF, -INF], r"\+inf"),
        ([-INF, -INF, -INF], "only -inf"),
    ],
)
@pytest.mark.parametrize("row_idx", [0, 2])
def test_a_row_that_cannot_be_sampled_is_named(
    bad_row: list[float], reason: str, row_idx: int, dtype: torch.dtype
) -> None:
    logits_TV = torch.zeros(3, 3)
    logits_TV[row_idx] = torch.tensor(bad_row)
    with pytest.raises(SelfCheckError, match=rf"row {row_idx} of 3 .*\n.*{reason}"):
        check_finite(logits_TV.to(dtype))


def test_the_first_of_several_bad_rows_is_named() -> None:
    with pytest.raises(SelfCheckError, match="row 1 of 3"):
        check_finite(torch.tensor([[0.0], [NAN], [INF]]))


def test_rows_with_masked_tokens_pass() -> None:
    check_finite(torch.tensor([[-INF, 0.0, -INF], [1.0, -INF, 3e38], [-3e38, -3e38, -INF]]))
