"""Which drafted tokens the target accepts, and the token that it adds itself: greedy and sampled, for
trees and for chains.

Pure functions of tensors and of uniforms that the caller draws. Whatever the draft, greedy output is the target's
greedy output and sampled output has the target's distribution, provided that each drafted token was drawn from the
very row that the proposal names.

Shapes: T = N + 1 target rows (the root's, then one per node), N drafted nodes, V vocabulary (a padded draft's may differ
from the target's).
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
    target_tokens: list[int] = target_logits_TV.argmax(dim=-1).tolist()
    path: list[int] = []
    node: int | None = ROOT
    while node is not None:
        wanted = target_tokens[node + 1]
        node = next((child for child in proposal.children.get(node, ()) if proposal.tokens[child] == wanted), None)
        if node is not None:
            path.append(node)
    return Verdict(tuple(path), wanted)


def verify_sampled(target_probs_TV: Tensor, proposal: Proposal, uniforms: Sequence[float]) -> Verdict:
    """Exact rejection sampling down a tree: emitted tokens have the target's distribution, whatever the draft's.

    The children of a node are tried in turn. Child x, drawn from q, is accepted if u * q(x) < p(x); if not, p becomes
    `residual_probs(p, q)` for the next one, whose q has the tokens of its earlier siblings taken out. A token that
    nobody drew has a q of 1 on itself. After the last child the token is drawn from what p has become. Rows sum to one
    up to their rounding. `uniforms` are N + 1: that of node i's test, and the last for the final draw.

    Source: Leviathan, Kalman, Matias 2022 (arXiv 2211.17192); several candidates without replacement as in Miao et al.
    2023 (SpecInfer, arXiv 2305.09781, algorithm 2) and Chen et al. 2024 (Sequoia, arXiv 2402.12374, section 3.2).
    """
    assert target_probs_TV.shape[0] == len(proposal.tokens) + 1, "one row for the root and one per node"
    assert len(uniforms) == len(proposal.tokens) + 1, "one uniform per node and one for the final draw"
    path: list[int] = []
    node, target_V = ROOT, target_probs_TV[0]
    while True:
        accepted, target_V = _accepted_child(target_V, proposal, proposal.children.get(node, ()), uniforms)
        if accepted is None:
            return Verdict(tuple(path), draw_token(target_V, uniforms[-1]))
        path.append(accepted)
        node, target_V = accepted, target_probs_TV[accepted + 1]


def _accepted_child(
    target_V: Tensor, proposal: Proposal, children: Sequence[int], uniforms: Sequence[float]
) -> tuple[int | None, Tensor]:
    """The first child that is accepted, and what the target's row has become after those that were not."""
    vocab_size = target_V.shape[-1]
    for rank, child in enumerate(children):
        token = proposal.tokens[child]
        assert 0 <= token < vocab_size, "a drafted token is outside the target's vocabulary"
        earlier = [proposal.tokens[sibling] for sibling in children[:rank]]
        draft_V = draft_row(proposal, child, earlier, vocab_size)
        # One transfer; strict, so that a token of target probability 0 is rejected even by a uniform of 0.
        target_prob, draft_prob = torch.stack([target_V[token].double().cpu(), draft_V[token].double().cpu()]).tolist()
        assert draft_prob > 0, "a drafted token was not drawn from the row given with it"
        if uniforms[child] * draft_prob < target_prob:
            return child, target_V
        target_V = residual_probs(target_V, draft_V)
    return None, target_V


def draft_row(proposal: Proposal, node: int, earlier_siblings: Sequence[int], vocab_size: int) -> Tensor:
    """The row (V) that a node was drawn from, its earlier siblings' tokens taken out; 1 on a token not drawn."""
    row = proposal.row_of[node] if proposal.row_of else None
    if row is None or proposal.rows_RV is None:
        return functional.one_hot(torch.tensor(proposal.tokens[node]), vocab_size).double()
    return without(proposal.rows_RV[row], earlier_siblings)


def without(row_V: Tensor, tokens: Sequence[int]) -> Tensor:
    """A row of probabilities with some tokens taken out, normalised again; the row itself where there are none."""
    if not tokens:
        return row_V
    rest_V = row_V.double().index_fill(0, torch.tensor(tokens, device=row_V.device), 0.0)
    return rest_V / rest_V.sum()


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
