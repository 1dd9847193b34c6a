"""What is trained and how: the two architectures and the settings of each run, as the demo pair had them."""

import math
from dataclasses import dataclass, replace

from transformers import LlamaConfig

from profiles import Role
from profiles.training.tokenizer import BOS_ID, CONTEXT_TOKENS, EOS_ID, VOCAB_SIZE

_SHAPES = {
    "target": {
        "hidden_size": 256,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 704,
    },
    "draft": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 352,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """One training run; `rate` is AdamW's learning rate, `batch_sequences` windows of `sequence_tokens` make a step."""

    num_steps: int
    batch_sequences: int
    sequence_tokens: int
    peak_rate: float
    max_warmup_steps: int = 100
    final_rate_frac: float = 0.05
    weight_decay: float = 0.1
    max_gradient_norm: float = 1.0

    @property
    def warmup_steps(self) -> int:
        """100, or a fifth of a run that is too short for that."""
        return min(self.max_warmup_steps, max(1, self.num_steps // 5))

    @property
    def num_tokens(self) -> int:
        """Tokens predicted over the whole run."""
        return self.num_steps * self.batch_sequences * self.sequence_tokens

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: linear warm-up to the peak, then half a cosine down to its final fraction."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        done_frac = (step - self.warmup_steps) / max(1, self.num_steps - 1 - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * done_frac))
        return self.peak_rate * (self.final_rate_frac + (1 - self.final_rate_frac) * cosine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Both runs and the text they see; `None` for a bound means all of it."""

    target: TrainSettings
    draft: TrainSettings
    seed: int = 0
    max_training_chars: int | None = None
    max_held_out: int = 8


# 14.2 M and 7.4 M tokens.
FULL = Recipe(
    target=TrainSettings(num_steps=3_470, batch_sequences=16, sequence_tokens=256, peak_rate=2e-3),
    draft=TrainSettings(num_steps=900, batch_sequences=32, sequence_tokens=256, peak_rate=3e-3),
)

# Seconds instead of an hour: the same models and the same path through the code, and text enough for the vocabulary.
QUICK = Recipe(
    target=TrainSettings(num_steps=12, batch_sequences=4, sequence_tokens=64, peak_rate=2e-3),
    draft=TrainSettings(num_steps=12, batch_sequences=4, sequence_tokens=64, peak_rate=3e-3),
    max_training_chars=1_000_000,
)


def with_choices(recipe: Recipe, *, target_steps: int | None, draft_steps: int | None, seed: int) -> Recipe:
    """The recipe with the user's numbers of steps and seed in place of its own."""
    return replace(
        recipe,
        target=replace(recipe.target, num_steps=target_steps or recipe.target.num_steps),
        draft=replace(recipe.draft, num_steps=draft_steps or recipe.draft.num_steps),
        seed=seed,
    )


def llama_config(role: Role) -> LlamaConfig:
    """The architecture of the demo pair's target or draft."""
    return LlamaConfig(
        **_SHAPES[role],
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
