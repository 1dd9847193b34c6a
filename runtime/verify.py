"""How many drafted tokens the target accepts, and the token that it adds itself: greedy and sampled, for one chain.

Pure functions of tensors and of uniforms that the caller draws. Whatever the draft, greedy output is the target's
greedy output and sampled output has the target's distribution, provided that each drafted token was drawn from the
very row that is passed here. Not covered: trees.

Shapes: T = K + 1 target rows, K drafted tokens, V vocabulary (a padded draft's may differ from the target's).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from planner.contracts.errors import SelfCheckError
from runtime.sampling import draw_token


@dataclass(frozen=True, slots=True)
class Verdict:
    """A round's result: how many drafted tokens stay, and the target's own token after them.

    `next_token` is the bonus if all were accepted, else the correction of the first rejected one.
    """

    num_accepted: int
    next_token: int


def verify_greedy(target_logits_TV: Tensor, draft_tokens: Sequence[int]) -> Verdict:
    """The longest prefix in which draft token i is the argmax of row i, and the argmax of the row after it.

    Of equal logits the first is the largest, as in `torch.argmax`. One transfer from the device.
    """
    assert target_logits_TV.shape[0] == len(draft_tokens) + 1, "one row per draft token and one for the bonus"
    target_tokens: list[int] = target_logits_TV.argmax(dim=-1).tolist()
    num_accepted = 0
    while num_accepted < len(draft_tokens) and draft_tokens[num_accepted] == target_tokens[num_accepted]:
        num_accepted += 1
    return Verdict(num_accepted, target_tokens[num_accepted])


def verify_sampled(
    target_probs_TV: Tensor, draft_probs_KV: Tensor, draft_tokens: Sequence[int], uniforms: Sequence[float]
) -> Verdict:
    """Exact rejection sampling: the emitted tokens have the target's distribution, whatever the draft's.

    Draft token x is accepted if u * q(x) < p(x); the first rejected one is replaced by a draw from
    `residual_probs`; after K acceptances the bonus is drawn from row K. Rows sum to one up to their rounding.
    `uniforms` are K + 1: one per test, and the last for the final draw. The draft's vocabulary may be narrower
    (its missing tokens have probability 0) or wider (its surplus tokens must not have been proposed).

    Source: Leviathan, Kalman, Matias 2022 (arXiv 2211.17192), algorithm 1 and appendix A.1.
    """
    num_draft_tokens = len(draft_tokens)
    assert target_probs_TV.shape[0] == num_draft_tokens + 1, "one row per draft token and one for the bonus"
    assert draft_probs_KV.shape[0] == num_draft_tokens, "one draft row per draft token"
    assert len(uniforms) == num_draft_tokens + 1, "one uniform per draft token and one for the final draw"
    vocabulary = min(target_probs_TV.shape[-1], draft_probs_KV.shape[-1])
    assert all(0 <= token < vocabulary for token in draft_tokens), "a drafted token is outside a vocabulary"

    num_accepted = 0
    for target_prob, draft_prob in _drafted_probs(target_probs_TV, draft_probs_KV, draft_tokens):
        assert draft_prob > 0, "a drafted token was not drawn from the draft row given with it"
        # Strict, so that a token of target probability 0 is rejected even by a uniform of 0.
        if not uniforms[num_accepted] * draft_prob < target_prob:
            rejected_V = residual_probs(target_probs_TV[num_accepted], draft_probs_KV[num_accepted])
            return Verdict(num_accepted, draw_token(rejected_V, uniforms[-1]))
        num_accepted += 1
    return Verdict(num_accepted, draw_token(target_probs_TV[-1], uniforms[-1]))


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


def _drafted_probs(
    target_probs_TV: Tensor, draft_probs_KV: Tensor, draft_tokens: Sequence[int]
) -> list[tuple[float, float]]:
    """(p, q) of each drafted token, in one transfer where both lie on the same device."""
    tokens_K1 = torch.tensor(draft_tokens, dtype=torch.long).unsqueeze(-1)
    target_K = target_probs_TV[: len(draft_tokens)].gather(-1, tokens_K1.to(target_probs_TV.device)).squeeze(-1)
    draft_K = draft_probs_KV.gather(-1, tokens_K1.to(draft_probs_KV.device)).squeeze(-1)
    pairs: list[tuple[float, float]] = torch.stack(
        [target_K.double(), draft_K.to(target_K.device).double()], -1
    ).tolist()
    return pairs
