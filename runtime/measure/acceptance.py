"""Records what drafts make of a target's own greedy text: one teacher-forced pass each, and every draft length follows.

The target writes through the streaming runtime, so that it need not fit the device; a draft may speed it up, since that
changes nothing in a greedy text. What a draft would say off the target's path is not recorded.

Shapes: T positions of the text, V the target's vocabulary, J first choices of the draft.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from planner.contracts.profile import NUM_TOP_PROBS, AcceptanceRecording
from runtime.cached import CachedModel
from runtime.engine import Engine
from runtime.measure.matches import longest_matches
from runtime.measure.prompts import Prompt
from runtime.tokenizer import encode_prompt

_MOST_ROWS_BYTES = 64 * 2**20  # of logits in float32, in one pass
_CHUNK_TOKENS = 512
_LOGIT_BYTES = 4
_LEAST_TEXT_TOKENS = 8
_KEPT_DIGITS = 4  # of shares that a file keeps in ten-thousandths


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingLimits:
    """How much of each prompt is taken, how much is written, and until when (by time.monotonic)."""

    prompt_tokens: int
    new_tokens: int
    stop_at_s: float
    keeps_text: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a draft makes of each position of the text."""

    ranks: tuple[int, ...]
    draft_probs: tuple[float, ...]
    overlaps: tuple[float, ...]
    top_probs: tuple[float, ...]  # J of each position


def record(
    engine: Engine, drafts: Sequence[tuple[str, CachedModel]], prompt: Prompt, limits: RecordingLimits
) -> list[AcceptanceRecording]:
    """The recordings of one prompt: of its text alone, and of each draft (by fingerprint). None if it ended at once."""
    context = encode_prompt(engine.tokenizer, prompt.text, is_chat=None, system=None)
    room = engine.plan.context_tokens - limits.new_tokens
    tokens = context[: min(limits.prompt_tokens, room)]
    written: list[int] = []
    for token in engine.generate(tokens, max_tokens=limits.new_tokens):
        if token.token_id is not None:
            written.append(token.token_id)
        if time.monotonic() > limits.stop_at_s:
            break
    if len(written) < min(_LEAST_TEXT_TOKENS, limits.new_tokens):
        return []
    matches = longest_matches([*tokens, *written], first=len(tokens))
    target_TV = list(_rows(engine.target, tokens, written))
    of_text = AcceptanceRecording(
        domain=prompt.domain,
        prompt_tokens=len(tokens),
        match_lengths=tuple(match.num_tokens for match in matches),
        match_hits=tuple(int(match.is_hit) for match in matches),
        match_shares=tuple(round(match.share, _KEPT_DIGITS) for match in matches),
        match_probs=_probs_of([match.token for match in matches], target_TV),
        text=str(engine.tokenizer.decode(written)) if limits.keeps_text else None,
    )
    recordings = [of_text]
    for fingerprint, draft in drafts:
        judged = judge(draft, target_TV, tokens, written)
        recordings.append(
            AcceptanceRecording(
                domain=prompt.domain,
                prompt_tokens=len(tokens),
                fingerprint=fingerprint,
                ranks=judged.ranks,
                draft_probs=judged.draft_probs,
                overlaps=judged.overlaps,
                top_probs=judged.top_probs,
            )
        )
    return recordings


def judge(draft: CachedModel, target_logits: Sequence[Tensor], prompt: Sequence[int], written: Sequence[int]) -> Judged:
    """Ranks, probabilities and overlaps of a draft over the text; `target_logits` are chunks of (T, V).

    Ranks count as `argmax` does: of equal logits the first is the largest. A token that the draft does not know has the
    rank of its vocabulary's size and no probability, and so has whatever follows it: the draft proposes nothing there.
    """
    vocab_size = target_logits[0].shape[-1]
    known = min(draft.streamed.vocab_size, vocab_size)
    context = [*prompt, *written]
    strangers = (index for index, token in enumerate(context) if token >= draft.streamed.vocab_size)
    most_tokens = min(next(strangers, len(context)) + 1, draft.context_tokens, len(context))
    num_judged = max(0, most_tokens - len(prompt))
    target_TV = torch.cat(list(target_logits))
    ranks, probs, overlaps = [], [], []
    top_probs: list[float] = []
    start = 0
    for draft_TV in _rows(draft, prompt, written[:num_judged]) if num_judged else ():
        stop = start + draft_TV.shape[0]
        logits_TV = draft_TV[:, :known].float()
        tokens_T = torch.tensor(written[start:stop], device=logits_TV.device)
        ranks += _ranks(logits_TV, tokens_T)
        probs_TV = logits_TV.softmax(-1)
        target_probs_TV = target_TV[start:stop].to(logits_TV.device).float().softmax(-1)
        inside_T = tokens_T < known
        taken_T = probs_TV.gather(-1, tokens_T.clamp(max=known - 1)[:, None])[:, 0]
        probs += torch.where(inside_T, taken_T, 0.0).tolist()
        overlaps += torch.minimum(probs_TV, target_probs_TV[:, :known]).sum(-1).clamp(max=1.0).tolist()
        top_TJ = functional.pad(probs_TV.topk(min(NUM_TOP_PROBS, known)).values, (0, max(0, NUM_TOP_PROBS - known)))
        top_probs += [round(prob, _KEPT_DIGITS) for prob in top_TJ.flatten().tolist()]
        start = stop
    num_missing = len(written) - start
    return Judged(
        ranks=(*ranks, *[known] * num_missing),
        draft_probs=_as_kept([*probs, *[0.0] * num_missing]),
        overlaps=_as_kept([*overlaps, *[0.0] * num_missing]),
        top_probs=(*top_probs, *[0.0] * (NUM_TOP_PROBS * num_missing)),
    )


def _probs_of(copied: Sequence[int | None], target_logits: Sequence[Tensor]) -> tuple[float, ...]:
    """The target's probability of each copied token, at temperature 1; 0 where nothing is copied."""
    probs: list[float] = []
    for logits_TV in target_logits:
        tokens = copied[len(probs) : len(probs) + logits_TV.shape[0]]
        tokens_T1 = torch.tensor([[token or 0] for token in tokens], device=logits_TV.device)
        taken_T = logits_TV.float().softmax(-1).gather(-1, tokens_T1)[:, 0].tolist()
        probs += [0.0 if token is None else prob for token, prob in zip(tokens, taken_T, strict=True)]
    return tuple(round(prob, _KEPT_DIGITS) for prob in probs)


def _as_kept(shares: Sequence[float]) -> tuple[float, ...]:
    """Shares with the four digits that a file keeps, so that a profile is the same when read back."""
    return tuple(float(f"{share:.4g}") for share in shares)


def _ranks(logits_TV: Tensor, tokens_T: Tensor) -> list[int]:
    known = logits_TV.shape[-1]
    inside_T = tokens_T < known
    index_T1 = tokens_T.clamp(max=known - 1)[:, None]
    own_T1 = logits_TV.gather(-1, index_T1)
    order_V = torch.arange(known, device=logits_TV.device)
    is_before_TV = (logits_TV > own_T1) | ((logits_TV == own_T1) & (order_V < index_T1))
    ranks: list[int] = torch.where(inside_T, is_before_TV.sum(-1), known).tolist()
    return ranks


def _rows(model: CachedModel, prompt: Sequence[int], written: Sequence[int]) -> Iterator[Tensor]:
    """The logits that predict each token of the text, in chunks that fit."""
    model.reset()
    for start in range(0, len(prompt) - 1, _CHUNK_TOKENS):
        model.forward(prompt[start : min(start + _CHUNK_TOKENS, len(prompt) - 1)], 1)
    pending = [prompt[-1], *written[:-1]]
    num_rows = max(1, min(_CHUNK_TOKENS, _MOST_ROWS_BYTES // (model.streamed.vocab_size * _LOGIT_BYTES)))
    for start in range(0, len(pending), num_rows):
        chunk = pending[start : start + num_rows]
        yield model.forward(chunk, len(chunk))
