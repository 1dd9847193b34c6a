"""Bytes that a plan takes on the device and on the host, part by part; estimated so as never to fall short.

Weights and caches are counted exactly. Activations are a bound from the shapes of transformers' own forward passes;
they were held against measured peaks (docs/LOG.md). The overhead of a CUDA context is an estimate.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import DTYPE_BYTES, Dtype
from planner.contracts.profile import MemoryMeasurement

CUDA_OVERHEAD_BYTES = 640 * 2**20  # context, kernels and library workspaces; estimated
HOST_OVERHEAD_BYTES = 27 * 2**20  # on the host: kernels made for the target's shapes, tokenizer, threads
DRAFT_HOST_OVERHEAD_BYTES = 12 * 2**20  # the same, of a draft
MARGIN_FRAC = 0.01
SCATTER_BYTES = 4 * 2**20  # by which runs exceed the host overhead that a profile measured (docs/LOG.md)
DRAFT_SCATTER_BYTES = 2**20
ROUND_RECORD_BYTES = 2**11  # that a report keeps of each round
WIDTH_BYTES = 7 * 2**19  # of kernels that a CPU's library keeps for each width of a 16-bit pass (docs/LOG.md)
WIDTH_SCATTER_FRAC = 0.05  # by which many widths take more for each than the few that are measured (docs/LOG.md)
_MEASURED_WIDTHS = 2  # of the chains with which a draft's overhead is measured

_FLOAT32_BYTES = 4
_MASK_STRIDE = 16  # values, that rows of a mask are padded to
_SAMPLED_ROWS = 4  # of a verified token where one samples: the target's row, the draft's, and two on the way to them


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
    logits = num_logit_rows * shape.vocab_size * (2 * item + _SAMPLED_ROWS * _FLOAT32_BYTES)
    return residual + max(projections + repeated_keys + mask + scores, mlp, logits)


def tree_mask_bytes(shape: ModelShape, dtype: Dtype, *, num_nodes: int, context_tokens: int) -> int:
    """Bytes of the masks that stay allocated for trees: one for each reach that its layers have."""
    num_reaches = len({layer.window_tokens for layer in shape.layers})
    row_values = -(-(context_tokens + num_nodes) // _MASK_STRIDE) * _MASK_STRIDE
    return num_reaches * num_nodes * row_values * DTYPE_BYTES[dtype]


def step_bytes(shape: ModelShape, dtype: Dtype, *, pass_nodes: int, num_places: int) -> int:
    """Bytes that a draft's captured steps keep on a device: a row of the mask and one of logits for each node."""
    width = 1 << (pass_nodes - 1).bit_length()
    return width * (num_places + shape.vocab_size) * DTYPE_BYTES[dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """Bytes that libraries and devices take beside weights: measured, or the defaults above."""

    host_bytes: int = HOST_OVERHEAD_BYTES
    draft_host_bytes: int = DRAFT_HOST_OVERHEAD_BYTES
    device_bytes: int = CUDA_OVERHEAD_BYTES
    width_bytes: int | None = None  # of each width of the target's passes on a CPU; None: not measured
    draft_width_bytes: int | None = None
    round_bytes: int = 0  # of host memory more for each round; the default's are in host_bytes

    @classmethod
    def of(cls, measured: Iterable[MemoryMeasurement]) -> Self:
        """The measured ones, with what runs scatter by: a plan never under-predicts memory.

        A device's own counts only where it exceeds the default, which no run has been held against.
        """
        found = {entry.part: entry.num_bytes for entry in measured}
        device_bytes = max(CUDA_OVERHEAD_BYTES, found.get("device_overhead", 0))
        if "host_overhead" not in found:
            return cls(device_bytes=device_bytes)
        draft_bytes = found.get("draft_host_overhead")
        return cls(
            host_bytes=found["host_overhead"] + SCATTER_BYTES,
            draft_host_bytes=DRAFT_HOST_OVERHEAD_BYTES if draft_bytes is None else draft_bytes + DRAFT_SCATTER_BYTES,
            device_bytes=device_bytes,
            width_bytes=_with_scatter(found.get("width")),
            draft_width_bytes=_with_scatter(found.get("draft_width")),
            round_bytes=ROUND_RECORD_BYTES,
        )

    def kernels_bytes(self, dtype: Dtype, *, num_widths: int, num_draft_widths: int, has_draft: bool) -> int:
        """Bytes of the kernels that passes of so many widths make on a CPU, beyond those of a measured draft's run."""
        if has_draft and self.draft_width_bytes is not None:
            num_widths = max(0, num_widths - _MEASURED_WIDTHS)
        default_bytes = WIDTH_BYTES if DTYPE_BYTES[dtype] == DTYPE_BYTES["bf16"] else 0
        width_bytes = default_bytes if self.width_bytes is None else self.width_bytes
        draft_width_bytes = default_bytes if self.draft_width_bytes is None else self.draft_width_bytes
        return num_widths * width_bytes + num_draft_widths * draft_width_bytes


DEFAULT_OVERHEADS = Overheads()


def _with_scatter(width_bytes: int | None) -> int | None:
    return None if width_bytes is None else math.ceil(width_bytes * (1 + WIDTH_SCATTER_FRAC))


def _is_eager(shape: ModelShape) -> bool:
    return shape.model_type in ("gemma2",)
