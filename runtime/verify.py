"""Which drafted tokens the target accepts, and the token that it adds itself: greedy and sampled, trees and chains.

Pure functions of tensors and of uniforms that the caller draws. Whatever the draft, greedy output is the target's
greedy output and sampled output has the target's distribution, provided that each drafted token was drawn from the
very row that the proposal names, and that none was left out, or moved, because of its value.

Shapes: T = N + 1 target rows (the root's, then one per node), N drafted nodes, R draft rows, V vocabulary (a padded
draft's may differ from the target's).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from planner.contracts.errors import SelfCheckError
from runtime.proposal import ROOT, Proposal, Verdict
from runtime.sampling import draw_token


def verify_greedy(target_logits_TV: Tensor, proposal: Proposal) -> Verdict:
    """From the root on, the child that is the argmax of its parent's row; then the argmax of the last one's row.

    Of equal logits the first is the largest, as in `torch.argmax`. One transfer from the device.
    """
    assert target_logits_TV.shape[0] == len(proposal.tokens) + 1, "one row for the root and one per node"
    # Not argmax, which takes four times as long for bf16 rows on a CPU; both take the first of equals.
    target_tokens: list[int] = target_logits_TV.max(dim=-1).indices.tolist()
    path: list[int] = []
    node = ROOT
    while True:
        wanted = target_tokens[node + 1]
        accepted = [child for child in proposal.children.get(node, ()) if proposal.tokens[child] == wanted]
        if not accepted:
            return Verdict(tuple(path), wanted)
        node = accepted[0]
        path.append(node)


def verify_sampled(target_probs_TV: Tensor, proposal: Proposal, uniforms: Sequence[float]) -> Verdict:
    """Exact rejection sampling down a tree: emitted tokens have the target's distribution, whatever the draft's.

    The children of a node are tried in turn. Child x, drawn from q, is accepted if u * q(x) < p(x); if not, p becomes
    `residual_probs(p, q)` for the next one, whose q has the tokens of its earlier siblings taken out. A token that
    nobody drew has a q of 1 on itself. After the last child the token is drawn from what p has become. Rows sum to one
    up to their rounding. `uniforms` are N + 1: that of node i's test, and the last for the final draw. The draft's
    vocabulary may be narrower (its missing tokens have probability 0) or wider (no surplus token may be proposed).

    Transfers from the device: one for the first children, two for every other child that is tried, and the draw's.

    Source: Leviathan, Kalman, Matias 2022 (arXiv 2211.17192); several candidates without replacement as in Miao et al.
    2023 (SpecInfer, arXiv 2305.09781, algorithm 2) and Chen et al. 2024 (Sequoia, arXiv 2402.12374, section 3.2).
    """
    assert target_probs_TV.shape[0] == len(proposal.tokens) + 1, "one row for the root and one per node"
    assert len(uniforms) == len(proposal.tokens) + 1, "one uniform per node and one for the final draw"
    probs_of_nodes = _probs_of_nodes(target_probs_TV, proposal)
    path: list[int] = []
    node = ROOT
    while True:
        accepted, target_V = _accepted_child(target_probs_TV[node + 1], proposal, node, probs_of_nodes, uniforms)
        if accepted is None:
            return Verdict(tuple(path), draw_token(target_V, uniforms[-1]))
        node = accepted
        path.append(node)


def _probs_of_nodes(target_probs_TV: Tensor, proposal: Proposal) -> list[tuple[float, float]]:
    """(p, q) of each node's token in its parent's target row and in its draft row, before any sibling; one transfer."""
    if not proposal.tokens:
        return []
    vocab_size = target_probs_TV.shape[-1]
    assert all(0 <= token < vocab_size for token in proposal.tokens), "a drafted token is outside a vocabulary"
    target_N = target_probs_TV[[parent + 1 for parent in proposal.parents], proposal.tokens].double()
    draft_N = torch.ones_like(target_N)
    drawn = [node for node, row in enumerate(proposal.row_of) if row is not None]
    assert proposal.rows_RV is None or len(proposal.row_of) == len(proposal.tokens), "a node's draft row is not named"
    if drawn:
        rows_RV, rows = proposal.rows_RV, [proposal.row_of[node] for node in drawn]
        tokens = [proposal.tokens[node] for node in drawn]
        assert rows_RV is not None, "tokens were drawn, from rows that are missing"
        assert all(row is not None and 0 <= row < rows_RV.shape[0] for row in rows), "a draft row is missing"
        assert max(tokens) < rows_RV.shape[-1], "a drafted token is outside a vocabulary"
        draft_N[drawn] = rows_RV[rows, tokens].to(draft_N)
    target_probs, draft_probs = torch.stack([target_N, draft_N]).tolist()
    assert all(prob > 0 for prob in draft_probs), "a drafted token was not drawn from the draft row given with it"
    return list(zip(target_probs, draft_probs, strict=True))


def _accepted_child(
    target_V: Tensor,
    proposal: Proposal,
    parent: int,
    probs_of_nodes: Sequence[tuple[float, float]],
    uniforms: Sequence[float],
) -> tuple[int | None, Tensor]:
    """The first child that is accepted, and what the target's row has become after those that were not."""
    for rank, child in enumerate(proposal.children.get(parent, ())):
        draft_V = draft_row(proposal, child, target_V)
        target_prob, draft_prob = probs_of_nodes[child]
        if rank > 0:
            token = proposal.tokens[child]
            target_prob, draft_prob = torch.stack([target_V[token], draft_V[token].to(target_V)]).tolist()
            assert draft_prob > 0, "a drawn token is that of an earlier sibling"
        # Strict, so that a token of target probability 0 is rejected even by a uniform of 0.
        if uniforms[child] * draft_prob < target_prob:
            return child, target_V
        target_V = residual_probs(target_V, draft_V)
    return None, target_V


def draft_row(proposal: Proposal, node: int, target_V: Tensor) -> Tensor:
    """The row that a node was drawn from, its earlier siblings' tokens taken out.

    Of a token that nobody drew, a row like the target's with all its mass on that token.
    """
    row = proposal.row_of[node] if proposal.row_of else None
    if row is None:
        draft_V = torch.zeros_like(target_V)
        draft_V[proposal.tokens[node]] = 1.0
        return draft_V
    assert proposal.rows_RV is not None
    siblings = proposal.children[proposal.parents[node]]
    earlier_siblings = siblings[: siblings.index(node)]
    return without(proposal.rows_RV[row], [proposal.tokens[sibling] for sibling in earlier_siblings])


def without(row_V: Tensor, tokens: Sequence[int]) -> Tensor:
    """The row that the next sibling is drawn from: a row with the tokens of the earlier ones taken out, in float64.

    Tokens beyond the row's vocabulary are not in it. The row itself where none is taken out; else one transfer from
    the device, for the check that something is left: where nothing is, no further sibling can be drawn.
    """
    present = [token for token in tokens if token < row_V.shape[-1]]
    if not present:
        return row_V
    rest_V = row_V.to(torch.float64, copy=True)
    for token in present:
        rest_V[token] = 0.0
    mass = float(rest_V.sum())
    assert mass > 0, f"nothing is left to draw a sibling from: tokens {present} held all of the draft row"
    return rest_V / mass


def residual_probs(target_probs_V: Tensor, draft_probs_V: Tensor) -> Tensor:
    """The float64 row (V of the target) that replaces a rejected token: (p - q)+ normalised.

    Where (p - q)+ has no mass, p equals q up to rounding and the row is p itself. The draft's row may lie on
    another device and be narrower or wider.
    """
    target_probs_V = target_probs_V.double()
    num_missing = target_probs_V.shape[0] - draft_probs_V.shape[0]  # negative padding cuts a wider draft
    excess_V = (target_probs_V - functional.pad(draft_probs_V.to(target_probs_V), (0, num_missing))).clamp_(min=0)
    mass = excess_V.sum()
    return torch.where(mass > 0, excess_V / mass, target_probs_V)


def check_finite(logits_TV: Tensor) -> None:
    """Nothing, if every row can be sampled: no NaN, no +inf, at least one finite logit; -inf is a mask.

    One reduction and one transfer from the device: a row's maximum is NaN, +inf or -inf exactly if the row is bad.

    Raises: SelfCheckError, naming the first bad row, before any token of the pass is emitted.
    """
    row_maxima: list[float] = logits_TV.amax(dim=-1).tolist()
    for row_idx, row_maximum in enumerate(row_maxima):
        if not math.isfinite(row_maximum):
            found = {math.inf: "+inf among its logits", -math.inf: "only -inf as logits"}
            raise SelfCheckError(
                f"row {row_idx} of {len(row_maxima)} of the model's output cannot be sampled",
                why=f"it has {found.get(row_maximum, 'NaN among its logits')}",
                remedy="check the checkpoint for damage, or load it in bfloat16 or float32 if it runs in float16",
            )
