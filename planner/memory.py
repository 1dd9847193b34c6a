"""Bytes that a plan takes on the device and on the host, part by part; estimated so as never to fall short.

Weights and caches are counted exactly. Activations are a bound from the shapes of transformers' own forward passes;
they were held against measured peaks (docs/LOG.md). The overhead of a CUDA context is an estimate.
"""

from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import DTYPE_BYTES, Dtype

CUDA_OVERHEAD_BYTES = 640 * 2**20  # context, kernels and library workspaces; estimated
HOST_OVERHEAD_BYTES = 27 * 2**20  # on the host: kernels made for the target's shapes, tokenizer, threads
DRAFT_HOST_OVERHEAD_BYTES = 12 * 2**20  # the same, of a draft
MARGIN_FRAC = 0.01

_FLOAT32_BYTES = 4


def activation_bytes(
    shape: ModelShape, dtype: Dtype, *, num_tokens: int, num_logit_rows: int, context_tokens: int
) -> int:
    """Bytes that one pass takes beside weights and caches, at the widest point of a layer or at the logits.

    Holds for attention by fused kernels and for transformers' eager attention, whose scores are counted for the
    architectures that fall back to it.
    """
    item = DTYPE_BYTES[dtype]
    residual = num_tokens * shape.hidden_size * (4 * item + 3 * _FLOAT32_BYTES)
    projections = 3 * num_tokens * (shape.query_values_per_token + shape.key_values_per_token) * item
    repeated_keys = 2 * context_tokens * shape.query_values_per_token * item
    mask = num_tokens * context_tokens * (1 + item)
    scores = num_tokens * context_tokens * shape.num_heads * 2 * _FLOAT32_BYTES if _is_eager(shape) else 0
    num_mlp_tokens = num_tokens * max(1, shape.experts_per_token)
    mlp = 3 * num_mlp_tokens * shape.intermediate_size * item
    logits = num_logit_rows * shape.vocab_size * (2 * item + 2 * _FLOAT32_BYTES)
    return residual + max(projections + repeated_keys + mask + scores, mlp, logits)


def host_overhead_bytes(*, has_draft: bool) -> int:
    """Bytes of host memory beside weights; measured on a CPU with the demo pair and with a 1.9 GB model."""
    return HOST_OVERHEAD_BYTES + (DRAFT_HOST_OVERHEAD_BYTES if has_draft else 0)


def _is_eager(shape: ModelShape) -> bool:
    return shape.model_type in ("gemma2",)
