"""Keys and values in memory allocated once; rolling back rejected tokens is a subtraction.

Drop-in layers for transformers' cache: full attention, and sliding windows that keep some slack so that tokens can be
rolled back after the window has filled. Other kinds of state (recurrent, convolutional) stay transformers' own; a cache
that holds one cannot roll back.

Shapes: B batch, H key-value heads, T tokens, D head width.
"""

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from planner.contracts.model_shape import KV_SLACK_TOKENS, kv_capacity_tokens


class PreallocatedLayer(CacheLayerMixin):
    """One layer's keys and values: `num_seen` tokens, the last of them at the end of `[0, num_kept)` of the buffers."""

    is_sliding = False

    def __init__(self, context_tokens: int, window_tokens: int | None) -> None:
        super().__init__()
        self.num_seen = 0
        self._num_kept = 0
        self._context_tokens = context_tokens
        self._window_tokens = window_tokens
        self._capacity_tokens = kv_capacity_tokens(context_tokens, window_tokens)
        if window_tokens is not None:
            self.is_sliding = True
            self.sliding_window = window_tokens

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate both buffers, and touch every page so that memory is taken now or never."""
        self.dtype, self.device = key_states.dtype, key_states.device
        shape = (*key_states.shape[:2], self._capacity_tokens)
        self._keys_BHTD = key_states.new_zeros(*shape, key_states.shape[-1])
        self._values_BHTD = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append the tokens' keys and values; returns views of all that these tokens may attend to.

        Raises: RuntimeError, where they would exceed the context.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        num_new, num_visible = key_states.shape[-2], self._num_visible()
        if self.num_seen + num_new > self._context_tokens:
            raise RuntimeError(f"the context of {self._context_tokens} tokens is full")
        if self._num_kept + num_new > self._capacity_tokens:
            assert self._window_tokens is not None
            self._move_to_front(min(self._num_kept, self._window_tokens - 1 + KV_SLACK_TOKENS))
            if self._num_kept + num_new > self._capacity_tokens:
                return self._append_beyond(key_states, value_states)
        start, stop = self._num_kept - num_visible, self._num_kept + num_new
        self._keys_BHTD[:, :, self._num_kept : stop] = key_states
        self._values_BHTD[:, :, self._num_kept : stop] = value_states
        self._num_kept = stop
        self.num_seen += num_new
        return self._keys_BHTD[:, :, start:stop], self._values_BHTD[:, :, start:stop]

    def drop(self, num_tokens: int) -> None:
        """Forget the last tokens. A sliding layer can forget as many as its slack."""
        if num_tokens == 0:
            return
        num_needed = min(self.num_seen - num_tokens, (self._window_tokens or 1) - 1)
        assert self._num_kept - num_tokens >= num_needed, "rolled back past the slack of a sliding window"
        self._num_kept -= num_tokens
        self.num_seen -= num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys that the next pass sees, and the position of the first."""
        num_visible = self._num_visible()
        return num_visible + query_length, self.num_seen - num_visible

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.num_seen

    def get_max_length(self) -> int:
        """Transformers' word for the window; -1 stands for none."""
        return -1 if self._window_tokens is None else self._window_tokens

    def reset(self) -> None:
        """Forget everything, keep the memory."""
        self._num_kept = self.num_seen = 0

    def _num_visible(self) -> int:
        return self._num_kept if self._window_tokens is None else min(self._num_kept, self._window_tokens - 1)

    def _move_to_front(self, num_kept: int) -> None:
        start = self._num_kept - num_kept
        for buffer_BHTD in (self._keys_BHTD, self._values_BHTD):
            buffer_BHTD[:, :, :num_kept] = buffer_BHTD[:, :, start : self._num_kept].clone()
        self._num_kept = num_kept

    def _append_beyond(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Append more tokens than the buffers hold: they see one another once, and the last of them are kept."""
        start = self._num_kept - self._num_visible()
        keys_BHTD = torch.cat([self._keys_BHTD[:, :, start : self._num_kept], key_states], dim=-2)
        values_BHTD = torch.cat([self._values_BHTD[:, :, start : self._num_kept], value_states], dim=-2)
        num_kept = min(keys_BHTD.shape[-2], self._capacity_tokens)
        self._keys_BHTD[:, :, :num_kept] = keys_BHTD[:, :, -num_kept:]
        self._values_BHTD[:, :, :num_kept] = values_BHTD[:, :, -num_kept:]
        self._num_kept = num_kept
        self.num_seen += key_states.shape[-2]
        return keys_BHTD, values_BHTD


class KvCache(Cache):
    """The caches of all layers of one decoder at one context."""

    def __init__(self, config: PretrainedConfig, context_tokens: int) -> None:
        stock = DynamicCache(config=config).layers
        if not stock:
            stock = [DynamicLayer() for _ in range(config.num_hidden_layers)]
        super().__init__(layers=[_preallocated(layer, context_tokens) for layer in stock])

    @property
    def num_seen(self) -> int:
        """Tokens seen."""
        return int(self.get_seq_length())

    @property
    def can_roll_back(self) -> bool:
        """Whether every layer's state can forget its last tokens."""
        return all(isinstance(layer, PreallocatedLayer) for layer in self.layers)

    def drop(self, num_tokens: int) -> None:
        """Forget the last tokens in every layer."""
        if num_tokens:
            for layer in self.layers:
                layer.drop(num_tokens)

    def drop_all(self) -> None:
        """Forget everything, keep the memory."""
        for layer in self.layers:
            layer.reset()


def _preallocated(layer: CacheLayerMixin, context_tokens: int) -> CacheLayerMixin:
    if type(layer) is DynamicLayer:
        return PreallocatedLayer(context_tokens, None)
    if type(layer) is DynamicSlidingWindowLayer:
        return PreallocatedLayer(context_tokens, int(layer.sliding_window))
    return layer
