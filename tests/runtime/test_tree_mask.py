"""The masks of growing trees, against the rule spelled out for every pair of a node and a key.

Shapes: R rows, C columns.
"""

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPTNeoConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from runtime.kv_cache import KvCache
from runtime.proposal import ROOT
from runtime.tree_mask import GrowingTree, Reach, TreeMasks, reaches, why_no_trees

MOST_NODES = 40
CONTEXT_TOKENS = 60
REACHES = [Reach(None), Reach(1), Reach(2), Reach(8), Reach(100), Reach(8, is_chunked=True), Reach(32, is_chunked=True)]


def random_parents(num_nodes: int, seed: int) -> list[int]:
    """Of a random tree; half of the seeds make it deep."""
    generator = random.Random(seed)
    nearest = 3 if seed % 2 else num_nodes
    return [generator.randint(max(ROOT, node - nearest), node - 1) for node in range(num_nodes)]


def lineage(parents: Sequence[int], node: int) -> list[int]:
    """The path from the root to a node."""
    path = []
    while node != ROOT:
        path.append(node)
        node = parents[node]
    return path[::-1]


def sees(reach: Reach, position: int, key_position: int) -> bool:
    """Whether a token attends to one at or before its own position."""
    if reach.window_tokens is None:
        return True
    if reach.is_chunked:
        return key_position // reach.window_tokens == position // reach.window_tokens
    return key_position > position - reach.window_tokens


def expected_rows(parents: Sequence[int], first: int, num_seen: int, reach: Reach) -> list[list[bool]]:
    """What each node from `first` on sees of the tokens that its layer holds, and of the nodes."""
    num_held = num_seen if reach.window_tokens is None else min(num_seen, reach.window_tokens - 1)
    rows = []
    for node in range(first, len(parents)):
        path = lineage(parents, node)
        position = num_seen + len(path) - 1
        tokens = [sees(reach, position, key) for key in range(num_seen - num_held, num_seen)]
        nodes = [
            key in path and sees(reach, position, num_seen + path.index(key)) if key in path else False
            for key in range(len(parents))
        ]
        rows.append(tokens + nodes)
    return rows


def what_is_seen(mask: Tensor) -> list[list[bool]]:
    """A mask as booleans; every value is either 0 or the least of its dtype."""
    assert mask.ndim == 4
    assert bool(((mask == 0) | (mask == torch.finfo(mask.dtype).min)).all())
    seen: list[list[bool]] = (mask[0, 0] == 0).tolist()
    return seen


def masks_of(**by_name: Reach) -> TreeMasks:
    return TreeMasks(by_name, CONTEXT_TOKENS, MOST_NODES, dtype=torch.float32, device=torch.device("cpu"))


@settings(max_examples=150, deadline=None)
@given(
    reach=st.sampled_from(REACHES),
    rounds=st.lists(
        st.tuples(st.integers(0, CONTEXT_TOKENS), st.lists(st.integers(1, 13), min_size=1, max_size=3)),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 1000),
)
def test_rows_of_trees_grown_in_any_steps_after_one_another_follow_the_rule(
    reach: Reach, rounds: list[tuple[int, list[int]]], seed: int
) -> None:
    masks = masks_of(one=reach)
    for index, (num_seen, steps) in enumerate(rounds):
        tree, parents = GrowingTree(), random_parents(sum(steps), seed + index)
        for num_new in steps:
            first = len(tree)
            tree.grow(parents[first : first + num_new])
            mask = masks.rows(tree, num_new, num_seen)
            assert isinstance(mask, Tensor)
            assert what_is_seen(mask) == expected_rows(parents[: len(tree)], first, num_seen, reach)
        masks.clear()


def test_rows_of_a_small_tree_in_a_window_of_three() -> None:
    # The last 2 of 5 tokens are held. Nodes 0 -> 1 -> 2 -> 4 and 0 -> 3, at positions 5, 6, 7, 8 and 6.
    tree = GrowingTree()
    tree.grow([ROOT, 0, 1, 0, 2])
    mask = masks_of(one=Reach(3)).rows(tree, 5, 5)
    assert isinstance(mask, Tensor)
    assert [[int(seen) for seen in row] for row in what_is_seen(mask)] == [
        [1, 1, 1, 0, 0, 0, 0],  # position 5 sees 3, 4 and itself
        [0, 1, 1, 1, 0, 0, 0],  # 6 sees 4, 5 and itself
        [0, 0, 1, 1, 1, 0, 0],  # 7 sees 5, 6 and itself
        [0, 1, 1, 0, 0, 1, 0],  # 6 again, the sibling of node 1
        [0, 0, 0, 1, 1, 0, 1],  # 8 no longer sees node 0
    ]


def test_masks_lie_in_the_same_memory_in_every_pass_and_their_rows_are_aligned() -> None:
    masks = masks_of(one=Reach(None))
    addresses = set()
    for num_seen in (3, 17, 4):
        tree = GrowingTree()
        for first in (0, 5):
            tree.grow(random_parents(10, 1)[first : first + 5])
            mask = masks.rows(tree, 5, num_seen)
            assert isinstance(mask, Tensor)
            assert mask.stride(-1) == 1
            assert mask.stride(-2) % 16 == 0
            addresses.add(mask.data_ptr() - first * mask.stride(-2) * mask.element_size())
        masks.clear()
    assert len(addresses) == 1


def test_layers_that_look_equally_far_share_one_mask_and_others_find_theirs_by_name() -> None:
    tree = GrowingTree()
    tree.grow([ROOT, 0, 0])
    assert isinstance(masks_of(full_attention=Reach(None), other=Reach(None)).rows(tree, 3, 9), Tensor)
    by_name = masks_of(full_attention=Reach(None), sliding_attention=Reach(4)).rows(tree, 3, 9)
    assert isinstance(by_name, dict)
    assert {name: mask.shape[-1] for name, mask in by_name.items()} == {
        "full_attention": 9 + 3,
        "sliding_attention": 3 + 3,
    }


def test_path_is_a_child_after_a_parent_from_the_root_on() -> None:
    tree = GrowingTree()
    tree.grow([ROOT, 0, 0, 1, ROOT])
    assert [tree.is_path(path) for path in ([], [0], [4], [0, 1, 3], [0, 2])] == [True] * 5
    assert [tree.is_path(path) for path in ([1], [0, 3], [0, 1, 2], [4, 0], [0, 0])] == [False] * 5


def test_node_listed_before_its_parent_is_caught() -> None:
    for parents in ([0], [ROOT, 2, 0], [-2]):
        with pytest.raises(AssertionError, match="parent"):
            GrowingTree().grow(parents)


# --- which models ---

SIZES: dict[str, object] = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 64}
TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}


def built(config: PretrainedConfig, **kwargs: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **kwargs)
    return model


def test_reaches_are_those_of_the_configuration() -> None:
    chunked = {"attention_chunk_size": 8, "layer_types": ["chunked_attention", "full_attention"]}
    expected: list[tuple[PretrainedConfig, dict[str, Reach]]] = [
        (LlamaConfig(**SIZES), {"": Reach(None)}),
        (MistralConfig(**SIZES, sliding_window=8), {"": Reach(8)}),
        (Gemma2Config(**SIZES, **TWO_KINDS), {"sliding_attention": Reach(8), "full_attention": Reach(None)}),
        (
            Llama4TextConfig(**SIZES, **chunked),
            {"chunked_attention": Reach(8, is_chunked=True), "full_attention": Reach(None)},
        ),
    ]
    for config, by_kind in expected:
        assert reaches(config, KvCache(config, 100)) == by_kind, config.model_type


def test_layers_of_one_name_and_several_reaches_are_told_by_nothing() -> None:
    config = Gemma2Config(**SIZES, **TWO_KINDS)
    cache = KvCache(config, 100)
    config.layer_types = ["sliding_attention", "sliding_attention"]
    assert reaches(config, cache) is None
    config.layer_types = None
    assert reaches(config, cache) is None


NO_TREES: list[tuple[PretrainedConfig, str]] = [
    (BloomConfig(vocab_size=64, hidden_size=32, n_head=2, n_layer=2), "takes no positions"),
    (MptConfig(vocab_size=64, d_model=32, n_heads=2, n_layers=2), "takes no positions"),
    (FalconConfig(**SIZES, alibi=True), "ALiBi"),
    (
        GPTNeoConfig(
            vocab_size=64,
            hidden_size=32,
            num_heads=2,
            num_layers=2,
            attention_types=[[["global", "local"], 1]],
            window_size=8,
            max_position_embeddings=64,
        ),
        "by the order in the pass",
    ),
    (JambaConfig(**SIZES, num_key_value_heads=1, attn_layer_period=2, attn_layer_offset=1), "state of their own"),
]


@pytest.mark.parametrize(("config", "reason"), NO_TREES, ids=lambda value: getattr(value, "model_type", ""))
def test_model_that_cannot_tell_nodes_apart_says_why(config: PretrainedConfig, reason: str) -> None:
    why = why_no_trees(built(config), KvCache(config, 100))
    assert why is not None
    assert reason in why


def test_attention_without_a_mask_per_token_is_refused() -> None:
    config = LlamaConfig(**SIZES)
    cache = KvCache(config, 100)
    for implementation in ("eager", "sdpa"):
        assert why_no_trees(built(config, attn_implementation=implementation), cache) is None
    why = why_no_trees(built(config, attn_implementation="flex_attention"), cache)
    assert why is not None
    assert "flex_attention" in why
