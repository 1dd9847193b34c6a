"""Preallocated keys and values hold what transformers' own cache holds, and forget rejected tokens exactly.

Shapes: H heads, T tokens, D head width. Keys and values are numbered: equal views are views of the same tokens.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, MistralConfig, Qwen2Config
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from planner.contracts.model_shape import KV_SLACK_TOKENS, kv_capacity_tokens
from runtime.kv_cache import KvCache, PreallocatedLayer

WINDOW = 8
NUM_HEADS, HEAD_WIDTH = 2, 4


def states(first: int, num_tokens: int, salt: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values (1, H, T, D) of tokens at positions from `first`; `salt` tells rejected tokens apart."""
    numbers_T1 = torch.arange(first, first + num_tokens, dtype=torch.float64)[:, None] + salt / 1000
    keys_HTD = numbers_T1 + 1e4 * torch.arange(NUM_HEADS)[:, None, None] + 1e6 * torch.arange(HEAD_WIDTH)
    return keys_HTD[None], -keys_HTD[None]


class Reference:
    """What a layer must show: all tokens kept, and transformers' own layer made anew of them for each pass."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.keys, self.values = states(0, 0)

    @property
    def num_tokens(self) -> int:
        return int(self.keys.shape[-2])

    def stock_layer(self) -> DynamicLayer:
        layer = DynamicLayer() if self.window is None else DynamicSlidingWindowLayer(sliding_window=self.window)
        if self.num_tokens:
            layer.update(self.keys, self.values)
        return layer

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What transformers' layer shows to the tokens appended."""
        layer = self.stock_layer()
        self.keys, self.values = torch.cat([self.keys, keys], dim=-2), torch.cat([self.values, values], dim=-2)
        seen_keys, seen_values = layer.update(keys, values)
        return seen_keys, seen_values


def check_append(layer: PreallocatedLayer, reference: Reference, num_tokens: int, salt: int) -> None:
    """Append to both, and compare what the pass sees."""
    assert layer.get_mask_sizes(num_tokens) == reference.stock_layer().get_mask_sizes(num_tokens)
    added = states(reference.num_tokens, num_tokens, salt)
    keys, values = layer.update(*added)
    expected_keys, expected_values = reference.append(*added)
    assert torch.equal(keys, expected_keys)
    assert torch.equal(values, expected_values)
    assert layer.get_seq_length() == reference.num_tokens


def check_drop(layer: PreallocatedLayer, reference: Reference, num_tokens: int) -> None:
    layer.drop(num_tokens)
    num_left = reference.num_tokens - num_tokens
    reference.keys, reference.values = reference.keys[:, :, :num_left], reference.values[:, :, :num_left]
    assert layer.get_seq_length() == num_left


@settings(max_examples=150, deadline=None)
@given(
    window=st.sampled_from([None, 2, WINDOW, 50]),
    passes=st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=25),
)
def test_any_schedule_of_passes_and_rollbacks_sees_what_the_stock_layer_sees(
    window: int | None, passes: list[tuple[int, float]]
) -> None:
    layer, reference = PreallocatedLayer(1000, window), Reference(window)
    for salt, (num_tokens, rejected_frac) in enumerate(passes):
        check_append(layer, reference, num_tokens, salt)
        check_drop(layer, reference, int(rejected_frac * num_tokens))


@settings(max_examples=100, deadline=None)
@given(
    context=st.integers(WINDOW, 60),
    window=st.sampled_from([None, 3, WINDOW, 40, 100]),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=20),
)
def test_context_can_be_filled_to_the_last_token_in_any_steps(
    context: int, window: int | None, lengths: list[int]
) -> None:
    layer, reference = PreallocatedLayer(context, window), Reference(window)
    for salt, length in enumerate([*lengths, context]):
        num_tokens = min(length, context - reference.num_tokens)
        if num_tokens:
            check_append(layer, reference, num_tokens, salt)
    assert layer.get_seq_length() == context
    check_drop(layer, reference, 1)
    check_append(layer, reference, 1, salt=99)


@pytest.mark.parametrize("window", [None, 20, 30], ids=["full", "window-of-the-context", "window-beyond-the-context"])
def test_one_token_more_than_the_context_raises(window: int | None) -> None:
    layer = PreallocatedLayer(20, window)
    layer.update(*states(0, 20))
    with pytest.raises(RuntimeError, match="context of 20 tokens is full"):
        layer.update(*states(20, 1))


def test_first_pass_longer_than_the_context_raises() -> None:
    with pytest.raises(RuntimeError, match="context of 20 tokens is full"):
        PreallocatedLayer(20, None).update(*states(0, 21))


@pytest.mark.parametrize("num_after_roll_over", [-1, 0, 1, 2, 60, 137, 138])
@pytest.mark.parametrize("num_rejected", [1, 64, KV_SLACK_TOKENS])
def test_full_window_rolls_back_by_as_much_as_its_slack(num_rejected: int, num_after_roll_over: int) -> None:
    # A draft appends its tokens one by one, and takes back all of them.
    layer, reference = PreallocatedLayer(10_000, WINDOW), Reference(WINDOW)
    for salt in range(kv_capacity_tokens(10_000, WINDOW) + num_after_roll_over):
        check_append(layer, reference, 1, salt)
    check_drop(layer, reference, num_rejected)
    check_append(layer, reference, 5, salt=999)


def test_rollback_beyond_the_slack_is_caught() -> None:
    layer = PreallocatedLayer(10_000, WINDOW)
    layer.update(*states(0, 1000))  # longer than the buffer: only its end is kept
    with pytest.raises(AssertionError, match="slack"):
        layer.drop(kv_capacity_tokens(10_000, WINDOW))


@pytest.mark.parametrize("num_before", [0, 1, WINDOW, 200, 300])
@pytest.mark.parametrize("num_rejected", [0, 1, KV_SLACK_TOKENS])
def test_pass_longer_than_the_buffer_sees_itself_whole_and_leaves_the_window(
    num_before: int, num_rejected: int
) -> None:
    layer, reference = PreallocatedLayer(10_000, WINDOW), Reference(WINDOW)
    if num_before:
        check_append(layer, reference, num_before, salt=1)
    check_append(layer, reference, kv_capacity_tokens(10_000, WINDOW) + 17, salt=2)
    check_drop(layer, reference, num_rejected)
    for salt in range(3, 8):
        check_append(layer, reference, salt, salt)


def test_all_tokens_of_a_pass_can_be_dropped_down_to_none() -> None:
    for window in (None, WINDOW):
        layer, reference = PreallocatedLayer(100, window), Reference(window)
        check_append(layer, reference, 30, salt=1)
        check_drop(layer, reference, 30)
        check_append(layer, reference, 12, salt=2)


@pytest.mark.parametrize("window", [None, WINDOW])
def test_memory_is_allocated_once_whatever_follows(window: int | None) -> None:
    layer = PreallocatedLayer(1000, window)
    layer.update(*states(0, 3))
    addresses = [layer._keys_BHTD.data_ptr(), layer._values_BHTD.data_ptr()]
    shape = (1, NUM_HEADS, kv_capacity_tokens(1000, window), HEAD_WIDTH)
    for step in range(300):
        num_tokens = 1 + step % 5
        layer.update(*states(layer.num_seen, num_tokens))
        layer.drop(num_tokens - 1)
    layer.reset()
    assert layer.get_seq_length() == 0
    layer.update(*states(0, 20))
    assert [layer._keys_BHTD.data_ptr(), layer._values_BHTD.data_ptr()] == addresses
    assert layer._keys_BHTD.shape == layer._values_BHTD.shape == shape


def test_reset_layer_shows_nothing_of_the_sequence_before() -> None:
    for window in (None, WINDOW):
        layer = PreallocatedLayer(100, window)
        layer.update(*states(0, 60, salt=1))
        layer.reset()
        reference = Reference(window)
        check_append(layer, reference, 5, salt=2)
        check_append(layer, reference, 5, salt=3)


def check_node_pass(
    layer: PreallocatedLayer, reference: Reference, nodes: tuple[Tensor, Tensor], first: int, stop: int
) -> None:
    """Append some of a tree's nodes, which must see the window before the tree and all nodes so far."""
    keys, values = (states_BHTD[:, :, first:stop] for states_BHTD in nodes)
    seen_keys, seen_values = layer.update(keys, values)
    start = 0 if reference.window is None else max(0, reference.num_tokens - (reference.window - 1))
    assert torch.equal(seen_keys, torch.cat([reference.keys[:, :, start:], nodes[0][:, :, :stop]], dim=2))
    assert torch.equal(seen_values, torch.cat([reference.values[:, :, start:], nodes[1][:, :, :stop]], dim=2))
    assert layer.get_seq_length() == reference.num_tokens


def check_keep_path(
    layer: PreallocatedLayer, reference: Reference, nodes: tuple[Tensor, Tensor], path: list[int]
) -> None:
    num_in_place = next((place for place, node in enumerate(path) if place != node), len(path))
    layer.keep_path(num_in_place, torch.tensor(path[num_in_place:], dtype=torch.long))
    reference.append(nodes[0][:, :, path], nodes[1][:, :, path])
    assert layer.get_seq_length() == reference.num_tokens


@settings(max_examples=150, deadline=None)
@given(
    window=st.sampled_from([None, 2, WINDOW, 50]),
    context=st.sampled_from([700, 10_000]),
    rounds=st.lists(
        st.tuples(
            st.lists(st.integers(1, 20), min_size=1, max_size=3), st.sets(st.integers(0, 59)), st.integers(0, 40)
        ),
        min_size=1,
        max_size=20,
    ),
)
def test_any_schedule_of_trees_and_passes_sees_the_window_and_the_nodes(
    window: int | None, context: int, rounds: list[tuple[list[int], set[int], int]]
) -> None:
    layer, reference = PreallocatedLayer(context, window, 60), Reference(window)
    check_append(layer, reference, 5, salt=0)
    for salt, (steps, chosen, num_after) in enumerate(rounds, start=1):
        num_nodes = sum(steps)
        nodes = states(reference.num_tokens, num_nodes, salt)
        path = sorted(node for node in chosen if node < num_nodes)[: context - reference.num_tokens]
        layer.has_tree = True
        first = 0
        for num_new in steps:
            check_node_pass(layer, reference, nodes, first, first + num_new)
            first += num_new
        check_keep_path(layer, reference, nodes, path)
        num_after = min(num_after, context - reference.num_tokens)
        if num_after:
            check_append(layer, reference, num_after, salt=-salt)
            check_drop(layer, reference, num_after // 2)


@pytest.mark.parametrize("window", [None, WINDOW, 30])
def test_tree_may_pass_the_context_by_its_nodes_and_what_is_kept_of_it_may_not(window: int | None) -> None:
    layer, reference = PreallocatedLayer(20, window, 12), Reference(window)
    check_append(layer, reference, 18, salt=1)
    nodes = states(18, 12, salt=2)
    layer.has_tree = True
    check_node_pass(layer, reference, nodes, 0, 7)
    check_node_pass(layer, reference, nodes, 7, 12)
    with pytest.raises(RuntimeError, match="context of 20 tokens is full"):
        layer.keep_path(0, torch.tensor([3, 5, 9]))
    check_keep_path(layer, reference, nodes, [3, 11])


@pytest.mark.parametrize("window", [None, WINDOW])
def test_tree_of_more_nodes_than_room_is_caught(window: int | None) -> None:
    layer = PreallocatedLayer(20, window, 4)
    layer.update(*states(0, 20))
    layer.has_tree = True
    with pytest.raises(AssertionError, match="more nodes than the cache has room for"):
        layer.update(*states(20, 5))


@pytest.mark.parametrize("num_rejected", [1, KV_SLACK_TOKENS])
def test_window_rolls_back_by_as_much_as_its_slack_after_trees_too(num_rejected: int) -> None:
    layer, reference = PreallocatedLayer(10_000, WINDOW, 60), Reference(WINDOW)
    check_append(layer, reference, 500, salt=1)
    for salt in range(2, 12):
        nodes = states(reference.num_tokens, 60, salt)
        layer.has_tree = True
        check_node_pass(layer, reference, nodes, 0, 60)
        check_keep_path(layer, reference, nodes, [*range(1, 40)])
    check_drop(layer, reference, num_rejected)
    check_append(layer, reference, 5, salt=99)


def test_reset_forgets_an_open_tree() -> None:
    for window in (None, WINDOW):
        layer = PreallocatedLayer(100, window, 10)
        layer.update(*states(0, 30))
        layer.has_tree = True
        layer.update(*states(30, 10))
        layer.reset()
        check_append(layer, Reference(window), 60, salt=1)


def test_keys_and_values_may_have_different_widths() -> None:
    layer = PreallocatedLayer(10, None)
    keys, values = layer.update(torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 4))
    assert (keys.shape[-1], values.shape[-1]) == (8, 4)


def test_layers_slide_where_the_configuration_says() -> None:
    mixed = Qwen2Config(
        num_hidden_layers=3,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        use_sliding_window=True,
        sliding_window=WINDOW,
    )
    assert KvCache(mixed, 100).is_sliding == [False, True, False]
    assert KvCache(MistralConfig(num_hidden_layers=2, sliding_window=WINDOW), 100).is_sliding == [True, True]
    assert KvCache(LlamaConfig(num_hidden_layers=2), 100).is_sliding == [False, False]


def test_cache_drops_in_every_layer_and_counts_what_it_has_seen() -> None:
    cache = KvCache(MistralConfig(num_hidden_layers=3, sliding_window=WINDOW), 100)
    assert cache.can_roll_back
    for index in range(3):
        cache.update(*states(0, 20), index)
    cache.drop(5)
    assert cache.num_seen == 15
    assert [layer.get_seq_length() for layer in cache.layers] == [15, 15, 15]
    cache.drop_all()
    assert [layer.get_seq_length() for layer in cache.layers] == [0, 0, 0]


def test_cache_keeps_the_path_in_every_layer() -> None:
    config = Qwen2Config(
        num_hidden_layers=2,
        layer_types=["full_attention", "sliding_attention"],
        use_sliding_window=True,
        sliding_window=WINDOW,
    )
    cache = KvCache(config, 100, 20)
    assert cache.windows == [None, WINDOW]
    for path in ([], [0, 1, 2], [0, 2, 19], [7]):
        tokens, nodes, after = states(0, 15), states(15, 20, salt=1), states(15 + len(path), 1)
        for index in range(2):
            cache.update(*tokens, index)
        cache.begin_tree()
        for index in range(2):
            cache.update(*nodes, index)
        assert cache.num_seen == 15
        cache.keep_path(path)
        assert [layer.num_seen for layer in cache.layers] == [15 + len(path)] * 2
        for index in range(2):
            keys, _ = cache.update(*after, index)
            assert torch.equal(keys[:, :, keys.shape[2] - 1 - len(path) : -1], nodes[0][:, :, path])
        cache.drop_all()
