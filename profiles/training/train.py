"""The training loop, the two losses, and the pair from text to folder.

Shape suffixes: N tokens of the stream, B sequences, T tokens of a sequence, S = T + 1, V vocabulary.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone uses)
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from profiles.training.corpus import Corpus, sample, write_held_out
from profiles.training.recipe import Recipe, TrainSettings, llama_config
from profiles.training.tokenizer import encode_stream, save_tokenizer, train_tokenizer

PROGRESS_EVERY_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLosses:
    """The loss of every step, in nats per token; the draft's is its cross-entropy against the target."""

    target: tuple[float, ...]
    draft: tuple[float, ...]


def train_pair(corpus: Corpus, recipe: Recipe, out: Path) -> TrainingLosses:
    """Train tokenizer, target and draft, and write `out/target`, `out/draft` and `out/heldout.jsonl`."""
    if recipe.max_training_chars is not None:
        corpus = sample(corpus, recipe.max_training_chars, recipe.max_held_out, recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    texts = [document.text for document in corpus.training]
    _progress(f"text: {len(texts)} files, {sum(map(len, texts)):,} characters; {len(corpus.held_out)} files held out")
    tokenizer = train_tokenizer(texts)
    tokens_N = encode_stream(tokenizer, texts)
    _progress(f"tokenizer: {tokenizer.get_vocab_size():,} entries; the text is {len(tokens_N):,} tokens")

    target = build_model(llama_config("target"), recipe.seed)
    target_losses = train(target, tokens_N, partial(next_token_loss, target), recipe.target, recipe.seed, "target")
    target.eval().requires_grad_(False)
    draft = build_model(llama_config("draft"), recipe.seed + 1)
    draft_losses = train(
        draft,
        tokens_N,
        partial(distillation_loss, draft, target),
        recipe.draft,
        recipe.seed + 1,
        "draft",
    )

    write_held_out(corpus.held_out, out / "heldout.jsonl")
    for model, folder in ((target, out / "target"), (draft, out / "draft")):
        model.to(torch.bfloat16).save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
    return TrainingLosses(target=target_losses, draft=draft_losses)


def build_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A float32 model with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def train(
    model: nn.Module,
    tokens_N: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    settings: TrainSettings,
    seed: int,
    label: str,
) -> tuple[float, ...]:
    """Train the model in place and return the loss of every step, in nats per token."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(model, settings)
    losses: list[float] = []
    model.train()
    for step in range(settings.num_steps):
        windows_BS = random_windows(tokens_N, settings.batch_sequences, settings.sequence_tokens + 1, generator)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(windows_BS)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % PROGRESS_EVERY_STEPS == 0 or step + 1 == settings.num_steps:
            _progress(f"{label}: step {step + 1} of {settings.num_steps}, loss {losses[-1]:.3f} nats per token")
    return tuple(losses)


def random_windows(tokens_N: Tensor, num_windows: int, window_tokens: int, generator: torch.Generator) -> Tensor:
    """Windows of the stream at random positions, shape (num_windows, window_tokens), int64.

    Raises:
        ValueError: the stream is shorter than one window.
    """
    if len(tokens_N) < window_tokens:
        raise ValueError(f"the text is {len(tokens_N)} tokens, a window needs {window_tokens}: train on more text")
    starts_B1 = torch.randint(len(tokens_N) - window_tokens + 1, (num_windows, 1), generator=generator)
    return tokens_N[starts_B1 + torch.arange(window_tokens)].long()


def next_token_loss(model: nn.Module, windows_BS: Tensor) -> Tensor:
    """Cross-entropy of the next token, in nats per token."""
    logits_BTV = model(windows_BS[:, :-1], use_cache=False).logits.float()
    return F.cross_entropy(logits_BTV.flatten(0, 1), windows_BS[:, 1:].flatten())


def distillation_loss(draft: nn.Module, target: nn.Module, windows_BS: Tensor) -> Tensor:
    """Cross-entropy of the draft's next token against the target's full distribution, in nats per token."""
    tokens_BT = windows_BS[:, :-1]
    with torch.no_grad():
        target_probs_BTV = target(tokens_BT, use_cache=False).logits.float().softmax(-1)
    draft_logits_BTV = draft(tokens_BT, use_cache=False).logits.float()
    return F.cross_entropy(draft_logits_BTV.flatten(0, 1), target_probs_BTV.flatten(0, 1))


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW that decays matrices and leaves the norms' vectors alone."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.peak_rate, betas=(0.9, 0.95))


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
