"""From logits to the probability row a token is drawn from, and the draw itself.

Draft and target go through the same functions, so the row that verification sees is the row that was sampled.
Covered: temperature, top-k, top-p and min-p, in the order and with the meaning of `transformers.generate`.
Not covered: penalties, grammars and everything else that depends on the tokens before.

Shapes: T rows (positions of one pass), V vocabulary, C candidates of top-p, P tokens of positive probability.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.contracts.errors import UsageError

_SEED_BOUND = 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How a token is chosen from logits; None leaves a filter out, temperature 0 is greedy.

    Raises: UsageError, naming the field, its value and its bound.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        # Written so that NaN, for which every comparison is false, is refused too.
        if not 0 <= self.temperature < math.inf:
            raise _out_of_bounds("temperature", self.temperature, "finite and at least 0", "0 for greedy, or 0.7")
        if self.top_k is not None and not self.top_k >= 1:
            raise _out_of_bounds("top_k", self.top_k, "at least 1", "40, or leave top_k out to keep every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise _out_of_bounds("top_p", self.top_p, "above 0 and at most 1", "0.95, or leave top_p out")
        if self.min_p is not None and not 0 <= self.min_p < 1:
            raise _out_of_bounds("min_p", self.min_p, "at least 0 and below 1", "0.05, or leave min_p out")
        if self.seed is not None and not 0 <= self.seed < _SEED_BOUND:
            raise _out_of_bounds("seed", self.seed, "at least 0 and below 2**64", "0, or leave seed out for a new one")

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken, so that no uniform is needed."""
        return self.temperature == 0


def _out_of_bounds(field: str, value: float, bound: str, remedy: str) -> UsageError:
    return UsageError(
        f"{field} = {value} cannot be sampled with", why=f"{field} must be {bound}", remedy=f"use {remedy}"
    )


def probability_rows(logits_TV: Tensor, settings: SamplingSettings) -> Tensor:
    """The probability rows (T, V) that tokens are drawn from: temperature, top-k, top-p, min-p, then softmax.

    Float64 for float64 logits, else float32, on the device of the logits. -inf logits get probability 0; a row
    needs one finite logit and no NaN (see `runtime.verify.check_finite`). Temperature 0 puts all mass on the first
    largest logit, so a greedy draft has the row that exact verification needs. Each row depends on its own logits
    alone: it is the same in a pass of one position and of many.

    Source: the order and meaning of transformers 5 (generation/utils.py, `_get_logits_processor`).
    """
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    if settings.is_greedy:
        return torch.zeros_like(logits_TV).scatter_(-1, logits_TV.argmax(dim=-1, keepdim=True), 1.0)
    # With the largest score at 0, and a temperature that the dtype can hold, no finite logit can overflow.
    temperature = max(settings.temperature, torch.finfo(logits_TV.dtype).tiny)
    scores_TV = (logits_TV - logits_TV.amax(dim=-1, keepdim=True)) / temperature
    if settings.top_k is not None and settings.top_k < scores_TV.shape[-1]:
        smallest_kept_T1 = scores_TV.topk(settings.top_k, dim=-1).values[:, -1:]
        scores_TV = scores_TV.masked_fill(scores_TV < smallest_kept_T1, -math.inf)
    if settings.top_p is not None and settings.top_p < 1:
        scores_TV = scores_TV.masked_fill(~_top_p_mask(scores_TV.softmax(dim=-1), settings.top_p), -math.inf)
    if settings.min_p:
        # p < min_p * p_max, where the score of p_max is 0.
        scores_TV = scores_TV.masked_fill(scores_TV < math.log(settings.min_p), -math.inf)
    return scores_TV.softmax(dim=-1)


def _top_p_mask(probs_TV: Tensor, top_p: float) -> Tensor:
    """True (T, V) for the fewest most probable tokens that hold at least top_p; of equal ones the lowest ids.

    Tokens below (1 - top_p) / V hold less than 1 - top_p together, so all of them go; only the others, at a real
    vocabulary a few hundred of 150,000, are sorted. Half of that threshold leaves room for rounding.
    """
    threshold = (1 - top_p) / (2 * probs_TV.shape[-1])
    num_candidates = int((probs_TV >= threshold).sum(dim=-1).max())
    # Candidates in order of their ids and a stable sort: ties, common in bf16, must not depend on the other rows.
    candidate_ids_TC = probs_TV.topk(num_candidates, dim=-1, sorted=False).indices.sort(dim=-1).values
    descending_TC, order_TC = probs_TV.gather(-1, candidate_ids_TC).sort(dim=-1, descending=True, stable=True)
    mass_before_TC = descending_TC.cumsum(dim=-1) - descending_TC
    kept_TC = (mass_before_TC < top_p) & (descending_TC >= threshold)
    kept_TC[:, 0] = True  # also where float32 rounds a tiny top_p to 0
    return torch.zeros_like(probs_TV, dtype=torch.bool).scatter_(-1, candidate_ids_TC.gather(-1, order_TC), kept_TC)


def draw_token(probs_V: Tensor, uniform: float) -> int:
    """The token whose interval of the cumulative distribution holds `uniform`, which is in [0, 1).

    Summed in float64 and scaled by the row's own sum, over the tokens of positive probability only: no rounding of
    the row, of the sum or of a parallel scan can return a token of probability zero.
    """
    assert 0 <= uniform < 1, f"uniform {uniform} is outside [0, 1)"
    weights_V = probs_V.double()
    positive_ids_P = weights_V.nonzero().squeeze(-1)
    assert positive_ids_P.numel() > 0, "no token has a positive probability"
    cumulative_P = weights_V.index_select(0, positive_ids_P).cumsum(dim=0)
    drawn = torch.searchsorted(cumulative_P, uniform * cumulative_P[-1], right=True).clamp_(
        max=positive_ids_P.numel() - 1
    )
    return int(positive_ids_P[drawn])


class Uniforms:
    """Uniforms in [0, 1), drawn on the CPU so that a seed means the same run on every device.

    `seed` is the one given, or the fresh one that was taken: with it the run can be repeated.
    """

    def __init__(self, seed: int | None) -> None:
        self._generator = torch.Generator(device="cpu")
        self.seed = self._generator.seed() if seed is None else seed
        self._generator.manual_seed(self.seed)

    def next(self) -> float:
        """The next uniform, with all 53 bits of a float64."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))
