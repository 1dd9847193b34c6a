"""How good a saved pair is on its held-out text, by teacher forcing, in float32.

Each text is scored in windows as long as those of the training: past them the models are out of their depth.
Agreement here is on the held-out text itself; the demo pair's README counts it on text that the target wrote.
Shape suffixes: T tokens predicted, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone uses)
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from profiles.training.corpus import Domain, read_held_out
from profiles.training.tokenizer import BOS_ID


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainScore:
    """Means over the held-out tokens of one domain: losses in nats per token, agreement of the two first choices."""

    domain: Domain
    num_tokens: int
    target_loss_nats: float
    draft_loss_nats: float
    agreement_frac: float


def score_pair(folder: Path, window_tokens: int = 256) -> tuple[DomainScore, ...]:
    """The scores of `folder/target` and `folder/draft` on `folder/heldout.jsonl`, one for each domain."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "target")
    target = AutoModelForCausalLM.from_pretrained(folder / "target", dtype=torch.float32).eval()
    draft = AutoModelForCausalLM.from_pretrained(folder / "draft", dtype=torch.float32).eval()
    rows_by_domain: dict[Domain, list[Tensor]] = {}
    for document in read_held_out(folder / "heldout.jsonl"):
        token_ids = [BOS_ID, *tokenizer.encode(document.text, add_special_tokens=False)]
        for start in range(0, len(token_ids) - 1, window_tokens):
            tokens_1S = torch.tensor([token_ids[start : start + window_tokens + 1]])
            with torch.inference_mode():
                target_logits_TV = target(tokens_1S[:, :-1], use_cache=False).logits[0]
                draft_logits_TV = draft(tokens_1S[:, :-1], use_cache=False).logits[0]
            rows_T3 = _token_scores(target_logits_TV, draft_logits_TV, tokens_1S[0, 1:])
            rows_by_domain.setdefault(document.domain, []).append(rows_T3)
    return tuple(_domain_score(domain, torch.cat(rows)) for domain, rows in rows_by_domain.items())


def _token_scores(target_logits_TV: Tensor, draft_logits_TV: Tensor, next_tokens_T: Tensor) -> Tensor:
    """For each token the target's loss, the draft's loss, and 1 where both would choose the same token: (T, 3)."""
    return torch.stack(
        (
            F.cross_entropy(target_logits_TV, next_tokens_T, reduction="none"),
            F.cross_entropy(draft_logits_TV, next_tokens_T, reduction="none"),
            (target_logits_TV.argmax(-1) == draft_logits_TV.argmax(-1)).float(),
        ),
        dim=-1,
    )


def _domain_score(domain: Domain, rows_T3: Tensor) -> DomainScore:
    target_loss_nats, draft_loss_nats, agreement_frac = rows_T3.double().mean(0).tolist()
    return DomainScore(
        domain=domain,
        num_tokens=len(rows_T3),
        target_loss_nats=target_loss_nats,
        draft_loss_nats=draft_loss_nats,
        agreement_frac=agreement_frac,
    )
