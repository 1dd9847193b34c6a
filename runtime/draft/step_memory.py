"""The memory of a draft's steps, allocated once for the widest and sliced: inputs, mask, logits, and the cache's own
keys and values.

Shapes: W rows of a step (its width), T of them wanted, P places for keys, N nodes of a tree so far, V vocabulary;
B batch, H key-value heads, D head width.
"""

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from runtime.kv_cache import KvCache, PreallocatedLayer, cache_argument

ALIGN_PLACES = 16  # fused attention reads masks of aligned rows, and would copy others


class StepMemory:
    """The memory of all steps, and what a step does with it."""

    def __init__(
        self, model: PreTrainedModel, cache: KvCache, widths: Sequence[int], logits_1V: Tensor, *, device: torch.device
    ) -> None:
        widest = widths[-1]
        self.widths = tuple(widths)
        self.num_places = cache.num_places - cache.num_places % ALIGN_PLACES
        self.mask = StepMask(widest, self.num_places, dtype=model.dtype, device=device)
        self.logits_WV = logits_1V.new_zeros(widest, logits_1V.shape[-1])
        self._model = model
        self._inputs_3W = torch.zeros(3, widest, dtype=torch.long, device=device)  # tokens, positions, places
        self._host_3W = self._inputs_3W
        if device.type != "cpu":
            self._host_3W = torch.zeros(3, widest, dtype=torch.long, pin_memory=True)
        self._written_3W = self._host_3W.numpy()
        self._cache_argument = cache_argument(model)
        self._cache = Cache(layers=[PlacedLayer(layer, self._inputs_3W[2], self.num_places) for layer in cache.layers])

    def width_of(self, num_tokens: int) -> int:
        """The narrowest width that so many tokens fit into."""
        return self.widths[bisect_left(self.widths, num_tokens)]

    def fill(self, tokens: Sequence[int], positions: Sequence[int], first_place: int, width: int) -> None:
        """Set the inputs of a step: the tokens lie from `first_place` on. The step before must have ended."""
        num_tokens, written_3W = len(tokens), self._written_3W
        written_3W[0, :num_tokens] = tokens
        written_3W[1, :num_tokens] = positions
        written_3W[2, :num_tokens] = range(first_place, first_place + num_tokens)
        if num_tokens < width:
            written_3W[0, num_tokens:width] = tokens[-1]
            written_3W[1, num_tokens:width] = positions[-1]
            written_3W[2, num_tokens:width] = self.num_places - 1
        if self._host_3W is not self._inputs_3W:
            self._inputs_3W.copy_(self._host_3W, non_blocking=True)

    @torch.inference_mode()
    def step(self, width: int) -> None:
        """One pass over the first W rows of the inputs, into the first W rows of the logits."""
        output = self._model(
            input_ids=self._inputs_3W[0:1, :width],
            attention_mask=self.mask.rows_11WP[:, :, :width],
            position_ids=self._inputs_3W[1:2, :width],
            use_cache=True,
            logits_to_keep=width,
            **{self._cache_argument: self._cache},
        )
        self.logits_WV[:width].copy_(output.logits[0])


class StepMask:
    """Which places the rows of a step see, as the additive mask of the widest one; only what changes is written.

    All rows see the first `num_shown` places, and the rows of the last step what its tail says of those behind.
    """

    def __init__(self, num_rows: int, num_places: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._hidden = torch.finfo(dtype).min
        self.rows_11WP = torch.full((1, 1, num_rows, num_places), self._hidden, dtype=dtype, device=device)
        self._rows_WP = self.rows_11WP[0, 0]
        self._num_shown = 0
        self._tail_WN: Tensor | None = None
        self._causal_WW = torch.full((num_rows, num_rows), self._hidden, dtype=dtype, device=device).triu_(1)

    def show_chain(self, num_seen: int, num_tokens: int, width: int) -> None:
        """Each row sees the sequence, and of the new tokens those up to its own."""
        self._tail(num_seen, num_tokens, width).copy_(self._causal_WW[:width, :num_tokens])

    def show_tree(self, num_seen: int, hidden_TN: Tensor, width: int) -> None:
        """Each row sees the sequence, and of a tree's nodes those that are not hidden from it."""
        num_new, num_nodes = hidden_TN.shape
        tail_WN = self._tail(num_seen, num_nodes, width).zero_()
        tail_WN[:num_new].masked_fill_(hidden_TN.to(tail_WN.device), self._hidden)

    def _tail(self, num_seen: int, num_nodes: int, width: int) -> Tensor:
        """The part of the rows that a step must write, all else being ready for it."""
        if self._tail_WN is not None:
            self._tail_WN.fill_(self._hidden)
        if num_seen > self._num_shown:
            self._rows_WP[:, self._num_shown : num_seen].zero_()
        elif num_seen < self._num_shown:
            self._rows_WP[:, num_seen : self._num_shown].fill_(self._hidden)
        self._num_shown = num_seen
        self._tail_WN = self._rows_WP[:width, num_seen : num_seen + num_nodes]
        return self._tail_WN


class PlacedLayer(CacheLayerMixin):
    """The memory of a layer that sees everything, written at places that a tensor names and always read whole.

    All addresses and shapes are those of the width W of a pass: its keys and values go to the first W places. The mask
    must hide the places that hold nothing.
    """

    is_sliding = False

    def __init__(self, layer: PreallocatedLayer, places: Tensor, num_places: int) -> None:
        """`places` are as many as the widest pass has rows; they lie below `num_places`, as many as are read."""
        super().__init__()
        assert layer.window_tokens is None, "layers with a window move what they keep"
        self.is_initialized = True
        self._keys_BHTD, self._values_BHTD = (buffer[:, :, :num_places] for buffer in layer.buffers)
        self._places = places
        self._num_places = num_places

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the memory is the other layer's."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write the keys and values at their places; returns all places."""
        places_W = self._places[: key_states.shape[-2]]
        self._keys_BHTD.index_copy_(2, places_W, key_states)
        self._values_BHTD.index_copy_(2, places_W, value_states)
        return self._keys_BHTD, self._values_BHTD

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys that every pass sees, and the position of the first."""
        return self._num_places, 0

    def get_seq_length(self) -> int:
        """As many as there are places; which of them count, the mask says."""
        return self._num_places

    def get_max_length(self) -> int:
        """As many as there are places."""
        return self._num_places
