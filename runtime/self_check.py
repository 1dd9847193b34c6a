"""Was the text what the target writes? The run is scored again by teacher forcing, in passes of other widths.

Two sweeps of different widths also measure by how much this machine's arithmetic differs between widths; an emitted
token may fall short of the best by twice that, since both of their logits may be off.

Shapes: R rows of one pass, V vocabulary, T emitted tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.contracts.report import NearTie, VerifyResult
from runtime.cached import CachedModel
from runtime.sampling import SamplingSettings, probability_rows


@dataclass(slots=True)
class _Scores:
    """Per emitted token: its logit, the best token and that one's logit, and whether sampling could draw it."""

    emitted: list[float]
    best: list[float]
    best_tokens: list[int]
    is_possible: list[bool]


def verify_run(
    target: CachedModel, prompt: Sequence[int], emitted: Sequence[int], settings: SamplingSettings, num_rows: int
) -> VerifyResult:
    """The re-scored run, at most `num_rows` rows of logits at a time.

    A greedy token must be the best, or a near-tie with it; a sampled one must have a probability above zero.
    """
    scores = _score(target, prompt, emitted, settings, num_rows)
    other = _score(target, prompt, emitted, settings, max(1, num_rows // 2))
    rounding = torch.finfo(target.streamed.model.dtype).eps * max(map(abs, scores.best))
    pairs = [*zip(scores.emitted, other.emitted, strict=True), *zip(scores.best, other.best, strict=True)]
    allowed_gap = 2 * max(rounding, *(abs(first - second) for first, second in pairs))
    ties = []
    for position, token in enumerate(emitted):
        is_agreeing = scores.best_tokens[position] == token if settings.is_greedy else scores.is_possible[position]
        if not is_agreeing:
            ties.append(
                NearTie(
                    position=position,
                    emitted_token=token,
                    preferred_token=scores.best_tokens[position],
                    logit_gap=scores.best[position] - scores.emitted[position],
                )
            )
    return VerifyResult(
        num_checked_tokens=len(emitted),
        num_agreeing_tokens=len(emitted) - len(ties),
        allowed_logit_gap=allowed_gap,
        near_ties=tuple(ties),
        passed=not ties or (settings.is_greedy and all(tie.logit_gap <= allowed_gap for tie in ties)),
    )


def _score(
    target: CachedModel, prompt: Sequence[int], emitted: Sequence[int], settings: SamplingSettings, num_rows: int
) -> _Scores:
    target.reset()
    scores = _Scores([], [], [], [])
    for start in range(0, len(prompt) - 1, num_rows):
        target.forward(prompt[start : min(start + num_rows, len(prompt) - 1)], num_rows=1)
    fed = [prompt[-1], *emitted[:-1]]
    for start in range(0, len(fed), num_rows):
        chunk = fed[start : start + num_rows]
        logits_RV = target.forward(chunk, num_rows=len(chunk))
        _add(scores, logits_RV, emitted[start : start + num_rows], settings)
    return scores


def _add(scores: _Scores, logits_RV: Tensor, emitted: Sequence[int], settings: SamplingSettings) -> None:
    best_R = logits_RV.max(dim=-1)
    column_R1 = torch.tensor(emitted, device=logits_RV.device)[:, None]
    scores.emitted += logits_RV.gather(1, column_R1)[:, 0].tolist()
    scores.best += best_R.values.tolist()
    scores.best_tokens += best_R.indices.tolist()
    if not settings.is_greedy:
        scores.is_possible += (probability_rows(logits_RV, settings).gather(1, column_R1)[:, 0] > 0).tolist()
