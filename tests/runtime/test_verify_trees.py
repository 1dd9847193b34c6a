"""What of a tree is accepted and what is emitted instead; a chain is the narrowest tree. Distributions are in
test_exactness_trees."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, takewhile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.proposal import ROOT, Proposal, Source, Verdict
from runtime.sampling import draw_token
from runtime.verify import verify_greedy, verify_sampled, without

LARGEST_UNIFORM = float(np.nextafter(1.0, 0.0))

# Nodes: 0 and 1 below the root, 2 and 3 below node 0, 4 below node 1.
PARENTS = (ROOT, ROOT, 0, 0, 1)
TOKENS = (1, 2, 1, 0, 1)


def drawn(tokens: Sequence[int], parents: Sequence[int], rows_RV: Tensor, row_of: Sequence[int | None]) -> Proposal:
    """A tree of nodes that a model drew, but for those without a row, which came from earlier text."""
    sources: list[Source] = ["ngram" if row is None else "model" for row in row_of]
    return Proposal(tuple(tokens), tuple(parents), tuple(sources), rows_RV, tuple(row_of))


def copied(tokens: Sequence[int], parents: Sequence[int]) -> Proposal:
    """A tree of nodes that nobody drew."""
    sources: list[Source] = ["ngram" for _ in tokens]
    return Proposal(tuple(tokens), tuple(parents), tuple(sources))


def argmax_rows(*tokens: int) -> Tensor:
    """One row of vocabulary 3 per token, with that token's logit the largest."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), 3).float()


# greedy


@pytest.mark.parametrize(
    ("target_tokens", "verdict"),
    [
        ([1, 0, 0, 0, 2, 0], Verdict((0, 3), 2)),  # the second child of the first
        ([2, 0, 1, 0, 0, 2], Verdict((1, 4), 2)),
        ([2, 0, 0, 0, 0, 0], Verdict((1,), 0)),  # node 3 has token 0, but below another node
        ([0, 1, 1, 1, 1, 1], Verdict((), 0)),
    ],
)
def test_greedy_goes_down_the_tree_as_long_as_a_child_is_the_argmax(target_tokens: list[int], verdict: Verdict) -> None:
    assert verify_greedy(argmax_rows(*target_tokens), copied(TOKENS, PARENTS)) == verdict


@st.composite
def trees(draw: st.DrawFn, vocabulary: int) -> tuple[list[int], list[int]]:
    """Tokens and parents of up to 8 nodes; no two siblings have the same token."""
    tokens: list[int] = []
    parents: list[int] = []
    for node in range(draw(st.integers(0, 8))):
        parent = draw(st.integers(ROOT, node - 1))
        taken = {token for token, other in zip(tokens, parents, strict=True) if other == parent}
        if len(taken) < vocabulary:
            tokens.append(draw(st.sampled_from(sorted(set(range(vocabulary)) - taken))))
            parents.append(parent)
        else:
            break
    return tokens, parents


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), tree=trees(vocabulary=3))
def test_greedy_emits_the_walk_of_argmaxes(data: st.DataObject, tree: tuple[list[int], list[int]]) -> None:
    tokens, parents = tree
    target_tokens = data.draw(st.lists(st.integers(0, 2), min_size=len(tokens) + 1, max_size=len(tokens) + 1))
    texts: dict[tuple[int, ...], int] = {(): ROOT}  # from the tokens since the context to the node
    text_of: dict[int, tuple[int, ...]] = {ROOT: ()}
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        text_of[node] = (*text_of[parent], token)
        texts[text_of[node]] = node
    written: tuple[int, ...] = ()
    while written in texts:
        written = (*written, target_tokens[texts[written] + 1])
    verdict = verify_greedy(argmax_rows(*target_tokens), copied(tokens, parents))
    assert (*(tokens[node] for node in verdict.path), verdict.next_token) == written
    assert [texts[written[:length]] for length in range(1, len(written))] == list(verdict.path)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=6), bonus=st.integers(0, 2))
def test_greedy_takes_of_a_chain_the_longest_matching_prefix(pairs: list[tuple[int, int]], bonus: int) -> None:
    num_matching = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    target_tokens = [*(wanted for _, wanted in pairs), bonus]
    verdict = verify_greedy(argmax_rows(*target_tokens), Proposal.chain([token for token, _ in pairs]))
    assert verdict == Verdict(tuple(range(num_matching)), target_tokens[num_matching])


# sampled

# p = [1/2, 1/4, 1/4] and q = [1/4, 1/2, 1/4]: token 1 is accepted below 1/2. Then p = (p - q)+ normalised = [1, 0, 0]
# and q without token 1 = [1/2, 0, 1/2]: token 2 is never accepted, token 0 always.
TARGET = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
DRAFT = torch.tensor([[0.25, 0.5, 0.25]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("tokens", "uniforms", "verdict"),
    [
        ([1, 0], [0.49, 0.0, 0.5], Verdict((0,), 2)),
        ([1, 0], [0.51, LARGEST_UNIFORM, 0.5], Verdict((1,), 1)),
        ([1, 2], [0.51, 0.0, 0.5], Verdict((), 0)),
        ([0, 1], [LARGEST_UNIFORM, 0.0, 0.5], Verdict((0,), 2)),
    ],
)
def test_sampled_tries_a_rejected_tokens_sibling_on_what_is_left_of_both_rows(
    tokens: list[int], uniforms: list[float], verdict: Verdict, dtype: torch.dtype
) -> None:
    siblings = drawn(tokens, [ROOT, ROOT], DRAFT.to(dtype), [0, 0])
    assert verify_sampled(TARGET.to(dtype), siblings, uniforms) == verdict


def test_sampled_accepts_a_token_that_nobody_drew_with_the_targets_probability() -> None:
    # Token 0 below 1/2; without it p is [0, 1/2, 1/2]: token 2 below 1/2; then only token 1 is left.
    siblings = copied([0, 2], [ROOT, ROOT])
    assert verify_sampled(TARGET, siblings, [0.49, 0.9, 0.5]) == Verdict((0,), 2)
    assert verify_sampled(TARGET, siblings, [0.5, 0.49, 0.5]) == Verdict((1,), 1)
    assert verify_sampled(TARGET, siblings, [0.5, 0.5, 0.0]) == Verdict((), 1)


def test_sampled_takes_the_token_of_a_copied_sibling_out_of_the_drawn_ones_row() -> None:
    # Copied token 0 is rejected at 1/2 and leaves p = [0, 1/2, 1/2]; q without it is [0, 2/3, 1/3].
    siblings = drawn([0, 1], [ROOT, ROOT], DRAFT, [None, 0])
    assert verify_sampled(TARGET, siblings, [0.5, 0.74, 0.5]) == Verdict((1,), 1)
    assert verify_sampled(TARGET, siblings, [0.5, 0.76, 0.5]) == Verdict((), 2)


def test_a_copied_sibling_may_have_a_token_that_the_draft_lacks() -> None:
    siblings = drawn([2, 0], [ROOT, ROOT], torch.tensor([[1.0, 0.0]]), [None, 0])
    # Token 2 is rejected at 1/4 and leaves p = [2/3, 1/3, 0]; q is [1, 0].
    assert verify_sampled(TARGET, siblings, [0.25, 0.66, 0.5]) == Verdict((1,), 1)
    assert verify_sampled(TARGET, siblings, [0.25, 0.67, 0.5]) == Verdict((), 1)


def test_a_draw_that_its_row_excludes_is_a_bug_wherever_it_is_in_the_tree() -> None:
    for parents in ([ROOT, 0], [ROOT, ROOT]):
        unreached = drawn([0, 2], parents, torch.tensor([[1.0, 0.0, 0.0]]), [0, 0])
        with pytest.raises(AssertionError, match="not drawn from the draft row"):
            verify_sampled(TARGET, unreached, [0.0, 0.0, 0.0])


def test_a_token_that_was_drawn_twice_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="that of an earlier sibling"):
        verify_sampled(TARGET, drawn([1, 1], [ROOT, ROOT], DRAFT, [0, 0]), [0.51, 0.0, 0.0])


def test_drawn_tokens_without_any_row_are_a_bug() -> None:
    rowless = Proposal((0,), (ROOT,), ("model",), None, (0,))
    with pytest.raises(AssertionError, match="rows that are missing"):
        verify_sampled(TARGET[:2], rowless, [0.0, 0.0])


def test_rows_without_the_nodes_that_were_drawn_from_them_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="draft row is not named"):
        verify_sampled(TARGET[:2], Proposal((0,), (ROOT,), ("model",), DRAFT), [0.0, 0.0])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), tree=trees(vocabulary=4))
def test_no_token_of_target_probability_zero_is_ever_emitted_from_a_tree(
    data: st.DataObject, tree: tuple[list[int], list[int]]
) -> None:
    tokens, parents = tree
    weights = st.lists(st.sampled_from([0.0, 0.0, 1e-30, 0.1, 1.0, 3.0]), min_size=4, max_size=4).filter(any)
    target_TV = torch.tensor([data.draw(weights) for _ in range(len(tokens) + 1)])
    target_TV /= target_TV.sum(dim=-1, keepdim=True)
    positive = st.lists(st.sampled_from([1e-30, 0.1, 3.0]), min_size=4, max_size=4)
    rows_RV = torch.tensor([data.draw(positive) for _ in range(len(tokens) + 1)])
    rows_RV /= rows_RV.sum(dim=-1, keepdim=True)
    row_of = [parent + 1 if data.draw(st.booleans()) else None for parent in parents]
    extremes = st.sampled_from([0.0, LARGEST_UNIFORM]) | st.floats(0, LARGEST_UNIFORM)
    uniforms = data.draw(st.lists(extremes, min_size=len(tokens) + 1, max_size=len(tokens) + 1))
    verdict = verify_sampled(target_TV, drawn(tokens, parents, rows_RV, row_of), uniforms)
    before = [ROOT, *verdict.path]
    assert [parents[node] for node in verdict.path] == before[:-1]
    emitted = [*(tokens[node] for node in verdict.path), verdict.next_token]
    assert all(target_TV[node + 1, token] > 0 for node, token in zip(before, emitted, strict=True))


# a chain of exact fractions: rows of 64ths, and uniforms of odd multiples of 2**-21, which are never on an edge

fractional_rows = st.lists(st.integers(0, 16), min_size=3, max_size=3).flatmap(
    lambda parts: st.permutations([*(Fraction(part, 64) for part in parts), Fraction(64 - sum(parts), 64)])
)
fractional_uniforms = st.integers(0, 2**20 - 1).map(lambda k: Fraction(2 * k + 1, 2**21))


def drawn_at(weights: Sequence[Fraction], uniform: Fraction) -> int:
    """The token whose part of the weights' sum holds the uniform."""
    return next(i for i, up_to in enumerate(accumulate(weights)) if uniform * sum(weights) < up_to)


def leviathan(
    target_rows: Sequence[Sequence[Fraction]],
    draft_rows: Sequence[Sequence[Fraction]],
    tokens: Sequence[int],
    uniforms: Sequence[Fraction],
) -> Verdict:
    """The verdict on a chain, literally as published: keep while u <= p / q, then draw from (p - q)+ or the bonus."""
    for i, (p, q, token) in enumerate(zip(target_rows, draft_rows, tokens, strict=False)):
        if uniforms[i] > p[token] / q[token]:
            left = [max(a - b, Fraction(0)) for a, b in zip(p, q, strict=True)]
            return Verdict(tuple(range(i)), drawn_at(left, uniforms[-1]))
    return Verdict(tuple(range(len(tokens))), drawn_at(target_rows[-1], uniforms[-1]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data(), draft_len=st.integers(0, 4))
def test_sampled_verdict_on_a_chain_is_that_of_the_published_algorithm(data: st.DataObject, draft_len: int) -> None:
    draft_rows = [data.draw(fractional_rows) for _ in range(draft_len)]
    closeness = data.draw(st.booleans())  # draft rows that are the target's are accepted, others mostly not
    target_rows = [row if closeness and data.draw(st.booleans()) else data.draw(fractional_rows) for row in draft_rows]
    target_rows.append(data.draw(fractional_rows))
    tokens = [data.draw(st.sampled_from([i for i, p in enumerate(row) if p > 0])) for row in draft_rows]
    uniforms = data.draw(st.lists(fractional_uniforms, min_size=draft_len + 1, max_size=draft_len + 1))
    rows_KV = torch.tensor([[float(p) for p in row] for row in draft_rows], dtype=torch.float64).reshape(draft_len, 4)
    target_TV = torch.tensor([[float(p) for p in row] for row in target_rows], dtype=torch.float64)
    verdict = verify_sampled(target_TV, Proposal.chain(tokens, rows_KV), [float(uniform) for uniform in uniforms])
    assert verdict == leviathan(target_rows, draft_rows, tokens, uniforms)


# taking siblings out


def test_a_row_without_some_tokens_is_normalised_again() -> None:
    row_V = torch.tensor([0.5, 0.25, 0.125, 0.125])
    torch.testing.assert_close(without(row_V, [0]), torch.tensor([0.0, 0.5, 0.25, 0.25]).double(), rtol=0, atol=0)
    torch.testing.assert_close(without(row_V, [3, 1]), torch.tensor([0.8, 0.0, 0.2, 0.0]).double())
    assert row_V.tolist() == [0.5, 0.25, 0.125, 0.125]


def test_a_row_without_tokens_that_it_lacks_is_the_row() -> None:
    row_V = torch.tensor([0.75, 0.25])
    assert without(row_V, []) is row_V
    assert without(row_V, [2, 7]) is row_V
    assert without(row_V, [2, 0]).tolist() == [0.0, 1.0]


def test_what_is_left_of_a_row_is_exact_however_little_it_is() -> None:
    row_V = torch.tensor([1.0, 2.0**-140, 3 * 2.0**-140])
    assert without(row_V, [0]).tolist() == [0.0, 0.25, 0.75]
    assert draw_token(without(row_V, [0]), 0.3) == 2


def test_drawing_a_sibling_where_nothing_is_left_is_a_bug() -> None:
    with pytest.raises(AssertionError, match=r"nothing is left to draw a sibling from: tokens \[0, 1\]"):
        without(torch.tensor([0.5, 0.5, 0.0]), [0, 1])
