"""The parts of a decoder layer: which tensor belongs to which, and which models may have a place for each part.

A layer may be split where its attention and its MLP are one child module each, whose weights nobody reads but that
child's own forward; all else of it (norms) stays on the device.
"""

import re
from typing import Literal

LayerPart = Literal["attention", "mlp", "expert", "rest"]
DecoderKind = Literal["layer", "attention", "mlp"]
Granularity = Literal["layers", "parts"]

DECODER_KINDS: tuple[DecoderKind, ...] = ("layer", "attention", "mlp")
PART_KINDS: tuple[DecoderKind, ...] = ("attention", "mlp")  # in the order in which a layer computes them
TENSORS_OF: dict[DecoderKind, tuple[LayerPart, ...]] = {  # none named: all
    "layer": (),
    "attention": ("attention",),
    "mlp": ("mlp", "expert"),
}

# Those whose parts were streamed, bit for bit the resident model (tests/runtime/test_split_layers.py).
SPLIT_MODEL_TYPES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt_neox",
    "olmo2",
    "mixtral",
    "qwen3_moe",
)

_PATTERNS: tuple[tuple[LayerPart, re.Pattern[str]], ...] = (  # the first that a name within the layer matches
    ("expert", re.compile(r"(^|\.)experts(\.|$)")),
    ("mlp", re.compile(r"^(mlp|feed_forward|ffn|block_sparse_moe|shared_expert|shared_mlp)(\.|$)")),
    ("attention", re.compile(r"^(self_attn|self_attention|attention|attn|linear_attn|mixer|mamba|conv)(\.|$)")),
)


def part_of(name: str) -> LayerPart:
    """The part of its layer that a tensor or a module belongs to, by its name within the layer."""
    return next((part for part, pattern in _PATTERNS if pattern.search(name)), "rest")
