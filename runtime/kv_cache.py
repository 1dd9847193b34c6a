"""Keys and values in memory allocated once; rolling back rejected tokens is a subtraction.

A tree of drafted tokens hangs behind the sequence until one of its paths becomes part of it: `begin_tree`, passes that
append nodes, `keep_path`.

Drop-in layers for transformers' cache: full attention, and sliding windows that keep some slack so that tokens can be
rolled back after the window has filled. Other kinds of state (recurrent, convolutional) stay transformers' own; a cache
that holds one cannot roll back.

Shapes: B batch, H key-value heads, T tokens, D head width, M nodes that move.
"""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from planner.contracts.model_shape import KV_SLACK_TOKENS, kv_capacity_tokens


class PreallocatedLayer(CacheLayerMixin):
    """One layer's keys and values: `num_seen` tokens, the last of them at the end of `[0, num_kept)` of the buffers.

    While a tree is open its nodes are behind them: kept, but not seen.
    """

    is_sliding = False

    def __init__(self, context_tokens: int, window_tokens: int | None, most_nodes: int = 0) -> None:
        super().__init__()
        self.num_seen = 0
        self.has_tree = False
        self._num_kept = 0
        self._num_nodes = 0
        self._context_tokens = context_tokens
        self.window_tokens = window_tokens
        self._capacity_tokens = kv_capacity_tokens(context_tokens, window_tokens, most_nodes)
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
        """Append the keys and values of tokens, or of an open tree's nodes; returns views of all within their reach.

        Raises: RuntimeError, where they would exceed the context.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        num_new, num_visible = key_states.shape[-2], self._num_visible()
        if not self.has_tree:
            self._check_room(num_new)
        if self._num_kept + num_new > self._capacity_tokens:
            assert self.window_tokens is not None, "a tree of more nodes than the cache has room for"
            num_needed = self.window_tokens - 1 + KV_SLACK_TOKENS + self._num_nodes
            self._move_to_front(min(self._num_kept, num_needed))
            if self._num_kept + num_new > self._capacity_tokens:
                assert not self.has_tree, "a tree of more nodes than the cache has room for"
                return self._append_beyond(key_states, value_states)
        start, stop = self._num_kept - num_visible, self._num_kept + num_new
        self._keys_BHTD[:, :, self._num_kept : stop] = key_states
        self._values_BHTD[:, :, self._num_kept : stop] = value_states
        self._num_kept = stop
        if self.has_tree:
            self._num_nodes += num_new
        else:
            self.num_seen += num_new
        return self._keys_BHTD[:, :, start:stop], self._values_BHTD[:, :, start:stop]

    def advance(self, num_new: int) -> None:
        """Count tokens, or nodes of an open tree, whose keys and values were written behind the others from outside."""
        if self.has_tree:
            self._num_nodes += num_new
        else:
            self.num_seen += num_new
        self._num_kept += num_new

    def drop(self, num_tokens: int) -> None:
        """Forget the last tokens. A sliding layer can forget as many as its slack."""
        if num_tokens == 0:
            return
        num_needed = min(self.num_seen - num_tokens, (self.window_tokens or 1) - 1)
        assert self._num_kept - num_tokens >= num_needed, "rolled back past the slack of a sliding window"
        self._num_kept -= num_tokens
        self.num_seen -= num_tokens

    def keep_path(self, num_in_place: int, moved_M: Tensor) -> None:
        """Append a tree's first `num_in_place` nodes to the sequence, then the nodes `moved_M`; forget the others.

        Raises: RuntimeError, where they would exceed the context.
        """
        num_moved = moved_M.shape[0]
        self._check_room(num_in_place + num_moved)
        start = self._num_kept - self._num_nodes
        stop = start + num_in_place + num_moved
        if num_moved:
            for buffer_BHTD in (self._keys_BHTD, self._values_BHTD):
                nodes_BHTD = buffer_BHTD[:, :, start : self._num_kept]
                buffer_BHTD[:, :, stop - num_moved : stop] = nodes_BHTD.index_select(2, moved_M)
        self._num_kept = stop
        self.num_seen += num_in_place + num_moved
        self._num_nodes, self.has_tree = 0, False

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys that the next pass sees, and the position of the first."""
        num_visible = self._num_visible()
        return num_visible + query_length, self.num_seen - num_visible

    @property
    def num_kept(self) -> int:
        """Places in use, from the first on."""
        return self._num_kept

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """The memory of keys and of values."""
        return self._keys_BHTD, self._values_BHTD

    def get_seq_length(self) -> int:
        """Tokens seen, without the nodes of a tree."""
        return self.num_seen

    def get_max_length(self) -> int:
        """Transformers' word for the window; -1 stands for none."""
        return -1 if self.window_tokens is None else self.window_tokens

    def reset(self) -> None:
        """Forget everything, keep the memory."""
        self._num_kept = self._num_nodes = self.num_seen = 0
        self.has_tree = False

    def _check_room(self, num_new: int) -> None:
        if self.num_seen + num_new > self._context_tokens:
            raise RuntimeError(f"the context of {self._context_tokens} tokens is full")

    def _num_visible(self) -> int:
        num_before = self._num_kept - self._num_nodes
        return self._num_nodes + num_visible_tokens(num_before, self.window_tokens)

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
    """The caches of all layers of one decoder at one context, with room for a tree of `most_nodes` behind it."""

    def __init__(self, config: PretrainedConfig, context_tokens: int, most_nodes: int = 0) -> None:
        stock = DynamicCache(config=config).layers
        if not stock:
            stock = [DynamicLayer() for _ in range(config.num_hidden_layers)]
        super().__init__(layers=[_preallocated(layer, context_tokens, most_nodes) for layer in stock])

    @property
    def num_seen(self) -> int:
        """Tokens seen, without the nodes of a tree."""
        return int(self.get_seq_length())

    @property
    def can_roll_back(self) -> bool:
        """Whether every layer's state can forget its last tokens."""
        return all(isinstance(layer, PreallocatedLayer) for layer in self.layers)

    @property
    def windows(self) -> list[int | None]:
        """The window of each layer that keeps keys and values, in tokens; None where it sees everything."""
        return [layer.window_tokens for layer in self.layers if isinstance(layer, PreallocatedLayer)]

    @property
    def num_kept(self) -> int:
        """Places in use in a layer that sees everything."""
        return int(self.layers[0].num_kept)

    @property
    def num_places(self) -> int:
        """Places of a layer that sees everything, once it has its memory."""
        return int(self.layers[0].buffers[0].shape[2])

    def begin_tree(self) -> None:
        """From now on passes append nodes of a tree, until `keep_path`."""
        for layer in self.layers:
            layer.has_tree = True

    def keep_path(self, path: Sequence[int]) -> None:
        """Make nodes of the tree, in ascending order, part of the sequence in every layer; forget the others.

        Raises: RuntimeError, where they would exceed the context.
        """
        num_in_place = next((place for place, node in enumerate(path) if place != node), len(path))
        device = self.layers[0].device if num_in_place < len(path) else None
        moved_M = torch.tensor(path[num_in_place:], dtype=torch.long, device=device)
        for layer in self.layers:
            layer.keep_path(num_in_place, moved_M)

    def drop(self, num_tokens: int) -> None:
        """Forget the last tokens in every layer."""
        if num_tokens:
            for layer in self.layers:
                layer.drop(num_tokens)

    def drop_all(self) -> None:
        """Forget everything, keep the memory."""
        for layer in self.layers:
            layer.reset()

    def wipe(self) -> None:
        """Forget everything, and set the memory to zero."""
        self.drop_all()
        for layer in self.layers:
            for buffer_BHTD in layer.buffers:
                buffer_BHTD.zero_()

    def advance(self, num_new: int) -> None:
        """Count tokens, or nodes of an open tree, that were written into every layer's memory from outside."""
        for layer in self.layers:
            layer.advance(num_new)


def cache_argument(model: PreTrainedModel) -> str:
    """What a model's forward calls its cache: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def num_visible_tokens(num_tokens: int, window_tokens: int | None) -> int:
    """How many of the tokens before the next one it may attend to."""
    return num_tokens if window_tokens is None else min(num_tokens, window_tokens - 1)


def _preallocated(layer: CacheLayerMixin, context_tokens: int, most_nodes: int) -> CacheLayerMixin:
    if type(layer) is DynamicLayer:
        return PreallocatedLayer(context_tokens, None, most_nodes)
    if type(layer) is DynamicSlidingWindowLayer:
        return PreallocatedLayer(context_tokens, int(layer.sliding_window), most_nodes)
    return layer
