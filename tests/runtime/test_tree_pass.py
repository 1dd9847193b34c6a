"""One pass over a tree gives every node the logits of a plain pass over its path alone, and the path that is kept is as
if nothing else had ever been there.

Shapes: T nodes or tokens fed, V vocabulary.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from test_families import SETTINGS, Setting, streaming
from test_tree_mask import lineage, random_parents
from tiny_models import FAMILIES, RECURRENT_FAMILIES, VOCAB_SIZE, WINDOW_TOKENS, TinyModel, resident
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    DeepseekV3Config,
    FalconConfig,
    GPT2Config,
    GptOssConfig,
    Llama4TextConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    StableLmConfig,
    Starcoder2Config,
)

from planner.contracts.errors import BadInputError
from runtime import tree_mask
from runtime.cached import CachedModel
from runtime.model import StreamedModel
from runtime.proposal import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
CONTEXT_TOKENS = 96
MOST_NODES = 40
CLOSE = 1e-9
FLOAT32_CLOSE = 1e-5
FLOAT32_WITHIN = ("gemma2", "llama4", "deepseek-v3")  # a softmax or a router that is float32 whatever the model is


def random_tokens(num_tokens: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(VOCAB_SIZE) for _ in range(num_tokens)]


def whole(model: PreTrainedModel) -> StreamedModel:
    """A stock model in place of a streamed one: all that a cached model asks of it."""
    return cast(StreamedModel, SimpleNamespace(model=model, link=SimpleNamespace(device=torch.device("cpu"))))


def stock_cached(folder: Path, most_nodes: int = MOST_NODES) -> CachedModel:
    """The stock model in float64, with our cache."""
    return CachedModel(whole(resident(folder, "fp64")), CONTEXT_TOKENS, most_nodes)


@torch.inference_mode()
def plain_rows(model: PreTrainedModel, tokens: Sequence[int], num_rows: int = 1) -> Tensor:
    """The last rows (R, V) of a pass over whole text without a cache."""
    rows: Tensor = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0, -num_rows:]
    return rows


def check_equal(rows_TV: Tensor, expected_TV: Tensor, family: str) -> None:
    torch.testing.assert_close(rows_TV, expected_TV, rtol=0, atol=FLOAT32_CLOSE if family in FLOAT32_WITHIN else CLOSE)


def path_rows(model: PreTrainedModel, before: Sequence[int], tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
    """Rows (T, V): for each node the last of a plain pass over the text before it and its path alone."""
    paths = [lineage(parents, node) for node in range(len(tokens))]
    return torch.cat([plain_rows(model, [*before, *(tokens[node] for node in path)]) for path in paths])


def tree_rows(cached: CachedModel, tokens: Sequence[int], parents: Sequence[int], num_calls: int = 1) -> Tensor:
    """Rows (T, V) of a tree that grows in so many calls."""
    cuts = [round(call * len(tokens) / num_calls) for call in range(num_calls + 1)]
    rows = [cached.forward_tree(tokens[first:stop], parents[first:stop]) for first, stop in itertools.pairwise(cuts)]
    return torch.cat(rows)


# --- rows ---


@EVERY_FAMILY
@pytest.mark.parametrize("num_before", [3, WINDOW_TOKENS, 3 * WINDOW_TOKENS + 1])
def test_rows_of_a_tree_are_those_of_plain_passes_over_its_paths(
    family: str, num_before: int, tiny_model: TinyModel
) -> None:
    folder = tiny_model(family, "fp64")
    cached = stock_cached(folder)
    before = random_tokens(num_before, seed=1)
    cached.forward(before, 1)
    for seed, (num_nodes, num_calls) in enumerate([(1, 1), (12, 1), (MOST_NODES, 3), (MOST_NODES, 1)]):
        tokens, parents = random_tokens(num_nodes, seed), random_parents(num_nodes, seed)
        rows_TV = tree_rows(cached, tokens, parents, num_calls)
        check_equal(rows_TV, path_rows(cached.streamed.model, before, tokens, parents), family)
        cached.keep_path([])
        assert cached.num_seen == num_before


@EVERY_FAMILY
def test_any_rounds_of_trees_and_kept_paths_stay_equal_to_the_plain_model(family: str, tiny_model: TinyModel) -> None:
    cached = stock_cached(tiny_model(family, "fp64"))
    model, generator = cached.streamed.model, random.Random(7)
    text = random_tokens(5, seed=2)
    cached.forward(text, 1)
    for seed in range(12):
        num_nodes = generator.randint(1, 20)
        tokens, parents = random_tokens(num_nodes, seed), random_parents(num_nodes, seed)
        rows_TV = tree_rows(cached, tokens, parents, num_calls=1 + seed % min(3, num_nodes))
        path = lineage(parents, generator.randrange(num_nodes))[: CONTEXT_TOKENS - len(text) - 2]
        if path:
            kept = [*text, *(tokens[node] for node in path)]
            check_equal(rows_TV[path], plain_rows(model, kept, len(path)), family)
        cached.keep_path(path)
        text += [tokens[node] for node in path]
        assert cached.num_seen == len(text)
        if seed % 3 == 0:  # and a plain pass of which one token is forgotten again
            rows_TV = cached.forward([tokens[0], tokens[-1]], 2)
            check_equal(rows_TV, plain_rows(model, [*text, tokens[0], tokens[-1]], 2), family)
            cached.drop(1)
            text.append(tokens[0])
    assert len(text) > 2 * WINDOW_TOKENS


def test_deep_path_is_kept_past_the_memory_of_a_window(tiny_model: TinyModel) -> None:
    # 40 rounds of 30 tokens pass the 2 * (8 + 128) + 40 tokens that a window's layer holds.
    model = resident(tiny_model("gemma3", "fp64"), "fp64")
    cached = CachedModel(whole(model), 500, MOST_NODES)
    text = random_tokens(4, seed=3)
    cached.forward(text, 1)
    for seed in range(14):
        tokens = random_tokens(MOST_NODES, seed)
        parents = [ROOT, ROOT, *range(1, MOST_NODES - 1)]
        tree_rows(cached, tokens, parents, num_calls=3)
        cached.keep_path(list(range(1, 31)))
        text += tokens[1:31]
    check_equal(cached.forward([5], 1), plain_rows(model, [*text, 5]), "gemma3")


def test_tree_may_reach_past_the_context_and_the_sequence_may_not(tiny_model: TinyModel) -> None:
    cached = stock_cached(tiny_model("qwen2-mixed", "fp64"))
    text = random_tokens(CONTEXT_TOKENS - 2, seed=4)
    cached.forward(text, 1)
    tokens, parents = random_tokens(10, seed=5), [ROOT, 0, 1, 2, 3, 0, 5, 6, 7, 8]
    rows_TV = tree_rows(cached, tokens, parents)
    check_equal(rows_TV, path_rows(cached.streamed.model, text, tokens, parents), "qwen2-mixed")
    with pytest.raises(RuntimeError, match="context of 96 tokens is full"):
        cached.keep_path([0, 1, 2])
    cached.keep_path([0, 5])
    assert cached.num_seen == CONTEXT_TOKENS
    with pytest.raises(RuntimeError, match="context of 96 tokens is full"):
        cached.forward([1], 1)


def test_reset_forgets_an_open_tree(tiny_model: TinyModel) -> None:
    cached = stock_cached(tiny_model("gemma2", "fp64"))
    cached.forward(random_tokens(20, seed=6), 1)
    tree_rows(cached, random_tokens(20, seed=7), random_parents(20, 7))
    cached.reset()
    text, tokens, parents = random_tokens(11, seed=8), random_tokens(15, seed=9), random_parents(15, 9)
    cached.forward(text, 1)
    rows_TV = tree_rows(cached, tokens, parents, num_calls=2)
    check_equal(rows_TV, path_rows(cached.streamed.model, text, tokens, parents), "gemma2")


def test_prefix_that_is_kept_is_not_copied(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = stock_cached(tiny_model("llama", "fp64"))
    cached.forward([1, 2, 3], 1)
    copies: list[int] = []
    index_select = Tensor.index_select

    def counted(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
        copies.append(len(index))
        return index_select(tensor, dim, index)

    monkeypatch.setattr(Tensor, "index_select", counted)
    for parents, path, num_copied in (
        ([ROOT, 0, 1, 2, 0], [0, 1, 2], 0),
        ([ROOT, 0, 1, 0, 3], [0, 3, 4], 2),
        ([ROOT], [], 0),
    ):
        copies.clear()
        cached.forward_tree([7] * len(parents), parents)
        cached.keep_path(path)
        assert set(copies) == ({num_copied} if num_copied else set())


# --- bit for bit ---


@EVERY_FAMILY
def test_streamed_trees_are_bit_equal_to_resident_ones(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family)
    twin = Setting(streamed_layers=(), streamed_chunks=(), is_embedding_resident=True)
    expected: list[Tensor] = []
    for setting in (twin, *SETTINGS):
        with streaming(folder, setting.plan(folder)) as streamed:
            rows = grown_and_kept(CachedModel(streamed, CONTEXT_TOKENS, MOST_NODES))
        expected = expected or rows
        assert all(torch.equal(one, other) for one, other in zip(rows, expected, strict=True)), setting


def grown_and_kept(cached: CachedModel) -> list[Tensor]:
    """Rows of trees and of plain passes by turns."""
    rows = [cached.forward(random_tokens(12, seed=1), 1)]
    for seed in range(3):
        parents = random_parents(20, seed)
        rows.append(tree_rows(cached, random_tokens(20, seed), parents, num_calls=1 + seed))
        cached.keep_path(lineage(parents, 19))
        rows.append(cached.forward([seed, 7], 2))
    return rows


# --- more families ---

SIZES: dict[str, object] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MIXED: dict[str, object] = {
    "sliding_window": WINDOW_TOKENS,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
EXPERTS: dict[str, object] = {"num_local_experts": 4, "num_experts_per_tok": 2}
OTHERS: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB_SIZE, n_embd=64, n_head=4, n_layer=3, n_positions=256),
    "opt": lambda: OPTConfig(**SIZES, ffn_dim=96, word_embed_proj_dim=64),
    "cohere2": lambda: Cohere2Config(**SIZES | MIXED),
    "gpt-oss": lambda: GptOssConfig(**SIZES | MIXED | EXPERTS),
    "llama4": lambda: Llama4TextConfig(
        **SIZES
        | EXPERTS
        | {"attention_chunk_size": WINDOW_TOKENS, "layer_types": ["chunked_attention", "full_attention"] * 2}
        | {"intermediate_size_mlp": 96, "num_experts_per_tok": 1}
    ),
    "deepseek-v3": lambda: DeepseekV3Config(
        **SIZES
        | {"q_lora_rank": 16, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 10}
        | {"num_key_value_heads": 4, "head_dim": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    ),
    "starcoder2": lambda: Starcoder2Config(**SIZES | {"sliding_window": WINDOW_TOKENS}),
    "stablelm": lambda: StableLmConfig(**SIZES),
    "falcon-rotary": lambda: FalconConfig(
        vocab_size=VOCAB_SIZE, hidden_size=64, num_attention_heads=4, num_hidden_layers=3
    ),
}


def other_model(name: str) -> PreTrainedModel:
    """A random model in float64 whose logits differ clearly from token to token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(OTHERS[name](), dtype=torch.float64)
        model.set_experts_implementation("eager")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", OTHERS)
def test_rows_of_a_tree_are_those_of_its_paths_in_other_families(name: str) -> None:
    model = other_model(name)
    cached = CachedModel(whole(model), CONTEXT_TOKENS, MOST_NODES)
    text = random_tokens(WINDOW_TOKENS + 3, seed=1)
    cached.forward(text, 1)
    for seed in range(4):
        tokens, parents = random_tokens(MOST_NODES - 12, seed), random_parents(MOST_NODES - 12, seed)
        rows_TV = tree_rows(cached, tokens, parents, num_calls=1 + 2 * (seed % 2))
        check_equal(rows_TV, path_rows(model, text, tokens, parents), name)
        path = lineage(parents, len(parents) - 1)
        cached.keep_path(path)
        text += [tokens[node] for node in path]
    check_equal(cached.forward([3], 1), plain_rows(model, [*text, 3]), name)


# --- refusals ---


@pytest.mark.parametrize("family", RECURRENT_FAMILIES)
def test_recurrent_family_is_refused_by_name_where_trees_are_wanted(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family)
    model = resident(folder)
    assert CachedModel(whole(model), CONTEXT_TOKENS).why_no_trees is not None
    with pytest.raises(
        BadInputError, match=rf"a {model.config.model_type} cannot run over a tree[^\n]*\n  why: .*state"
    ):
        CachedModel(whole(model), CONTEXT_TOKENS, MOST_NODES)


def test_refusal_is_bad_input_and_offers_chains() -> None:
    model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=32, n_head=2, n_layer=2))
    with pytest.raises(BadInputError, match="try: draft chains") as refusal:
        CachedModel(whole(model), CONTEXT_TOKENS, 1)
    assert refusal.value.exit_code == 3


@EVERY_FAMILY
def test_no_reason_is_given_where_trees_run(family: str, tiny_model: TinyModel) -> None:
    assert stock_cached(tiny_model(family, "fp64"), most_nodes=0).why_no_trees is None


def test_misuse_is_caught(tiny_model: TinyModel) -> None:
    cached = stock_cached(tiny_model("llama", "fp64"), most_nodes=3)
    cached.forward([1, 2], 1)
    with pytest.raises(AssertionError, match="no tree"):
        cached.keep_path([])
    cached.forward_tree([1, 2], [ROOT, ROOT])
    for misuse in (lambda: cached.forward([3], 1), lambda: cached.drop(1)):
        with pytest.raises(AssertionError, match="a tree hangs"):
            misuse()
    with pytest.raises(AssertionError, match="follow one another"):
        cached.keep_path([0, 1])
    with pytest.raises(AssertionError, match="more nodes than room"):
        cached.forward_tree([1, 2], [0, 1])
    with pytest.raises(AssertionError, match="no room for trees"):
        stock_cached(tiny_model("llama", "fp64"), most_nodes=0).forward_tree([1], [ROOT])


# --- would these tests see an error? ---


def largest_error(cached: CachedModel, fed_parents: Sequence[int] | None = None) -> float:
    """Of a tree's rows against plain passes; `fed_parents` are what the model is told."""
    text, tokens, parents = random_tokens(12, seed=1), random_tokens(20, seed=2), random_parents(20, 3)
    cached.reset()
    cached.forward(text, 1)
    rows_TV = tree_rows(cached, tokens, fed_parents or parents)
    return float((rows_TV - path_rows(cached.streamed.model, text, tokens, parents)).abs().max())


@pytest.mark.parametrize("shift", [-1, 1])
def test_window_off_by_one_would_be_seen(shift: int, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = stock_cached(tiny_model("mistral", "fp64"))
    assert largest_error(cached) < CLOSE
    first_visible = tree_mask.Reach.first_visible
    monkeypatch.setattr(
        tree_mask.Reach, "first_visible", lambda reach, position: first_visible(reach, position) + shift
    )
    assert largest_error(cached) > 0.01


def test_wrong_parent_would_be_seen(tiny_model: TinyModel) -> None:
    cached = stock_cached(tiny_model("llama", "fp64"))
    parents = random_parents(20, 3)
    assert parents[10] != parents[11]
    swapped = [*parents[:10], parents[11], *parents[11:]]
    assert largest_error(cached) < CLOSE
    assert largest_error(cached, swapped) > 0.01


def test_wrong_position_would_be_seen(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = stock_cached(tiny_model("llama", "fp64"))
    grow = tree_mask.GrowingTree.grow

    def grown_one_too_deep(tree: tree_mask.GrowingTree, parents: Sequence[int]) -> None:
        grow(tree, parents)
        tree.depths[-1] += 1

    monkeypatch.setattr(tree_mask.GrowingTree, "grow", grown_one_too_deep)
    assert largest_error(cached) > 0.01
