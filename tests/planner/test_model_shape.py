"""ModelShape against the models themselves: every byte that it states is one that transformers or the runtime takes."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from planner.contracts.errors import BadInputError
from planner.contracts.model_shape import KV_SLACK_TOKENS, REGION_ALIGN_BYTES, ModelShape, align, kv_capacity_tokens
from planner.contracts.plan import DTYPE_BYTES, Dtype
from profiles import demo_folder
from runtime.checkpoint import Layout
from runtime.kv_cache import KvCache, cache_argument

NUM_LAYERS = 4
SIZES: dict[str, object] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 20,  # not hidden_size / heads
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
WINDOW: dict[str, object] = {"sliding_window": 16}
MIXED: dict[str, object] = {"layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS: dict[str, object] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT: dict[str, object] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "num_key_value_heads": 4,
    "head_dim": 4,
}
SQUARE_HEADS: dict[str, object] = {"hidden_size": 64, "head_dim": 16}  # hidden_size / heads

FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama-tied": lambda: LlamaConfig(**SIZES | {"tie_word_embeddings": True}),
    "llama-biased": lambda: LlamaConfig(**SIZES | {"attention_bias": True, "mlp_bias": True}),
    "qwen2-window": lambda: Qwen2Config(**SIZES | SQUARE_HEADS | WINDOW | MIXED | {"use_sliding_window": True}),
    "qwen2-window-off": lambda: Qwen2Config(**SIZES | SQUARE_HEADS | WINDOW | {"use_sliding_window": False}),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES | WINDOW),
    "gemma2": lambda: Gemma2Config(**SIZES | WINDOW | MIXED),
    "gemma3-tied": lambda: Gemma3TextConfig(**SIZES | WINDOW | MIXED | {"tie_word_embeddings": True}),
    "phi3": lambda: Phi3Config(**SIZES | SQUARE_HEADS),
    "gpt-neox": lambda: GPTNeoXConfig(**SIZES | SQUARE_HEADS | {"num_key_value_heads": 4}),
    "mixtral": lambda: MixtralConfig(**SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": lambda: OlmoeConfig(**SIZES | SQUARE_HEADS | {"num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek-v3": lambda: DeepseekV3Config(
        **SIZES | LATENT | EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    ),
}
RECURRENT: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen3-next": lambda: Qwen3NextConfig(
        **SIZES
        | EXPERTS
        | {"layer_types": ["linear_attention", "full_attention"] * 2}
        | {"num_experts": 4, "shared_expert_intermediate_size": 24}
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    ),
}
EACH_FAMILY = pytest.mark.parametrize("family", [*FAMILIES, *RECURRENT])
EACH_ATTENTION = pytest.mark.parametrize("family", list(FAMILIES))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[PreTrainedModel, Path]]:
    """A model of a family and the folder it was saved in; made once."""
    made: dict[tuple[str, Dtype], tuple[PreTrainedModel, Path]] = {}

    def get(family: str, dtype: Dtype = "fp32") -> tuple[PreTrainedModel, Path]:
        if (family, dtype) not in made:
            torch.manual_seed(0)
            torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
            model = AutoModelForCausalLM.from_config({**FAMILIES, **RECURRENT}[family](), dtype=torch_dtype).eval()
            folder = tmp_path_factory.mktemp(family)
            model.save_pretrained(folder)
            made[family, dtype] = model, folder
        return made[family, dtype]

    return get


Checkpoints = Callable[..., tuple[PreTrainedModel, Path]]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == NUM_LAYERS]
    return lists[0]


def bytes_of(parameters: Iterator[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


# --- weights ---


@EACH_FAMILY
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_layer_bytes_are_those_of_what_is_stored_of_the_layer(
    family: str, dtype: Dtype, checkpoint: Checkpoints
) -> None:
    model, folder = checkpoint(family, dtype)
    shape = ModelShape.from_config(folder)
    assert shape.stored_dtype == dtype
    stored = [sum(tensor.numel() for tensor in layer.state_dict().values()) for layer in layers_of(model)]
    assert [layer.wire_bytes(dtype) for layer in shape.layers] == [DTYPE_BYTES[dtype] * count for count in stored]


@EACH_FAMILY
def test_region_is_never_smaller_than_the_runtimes_layout(family: str, checkpoint: Checkpoints) -> None:
    model, folder = checkpoint(family)
    for layer, module in zip(ModelShape.from_config(folder).layers, layers_of(model), strict=True):
        layout_bytes = Layout.of(module.named_parameters()).num_bytes
        # experts lie apart in the checkpoint and fused in the model: each adds its own padding at most
        num_tensors = sum(group.count for group in layer.tensors)
        assert layout_bytes <= layer.region_bytes("fp32") <= layout_bytes + num_tensors * REGION_ALIGN_BYTES


@EACH_FAMILY
def test_all_bytes_are_those_of_all_parameters_up_to_alignment(family: str, checkpoint: Checkpoints) -> None:
    model, folder = checkpoint(family)
    shape = ModelShape.from_config(folder)
    num_tensors = sum(group.count for layer in shape.layers for group in layer.tensors) + len(shape.rest) * 8
    actual = bytes_of(model.parameters())  # a tied head counts once
    assert actual <= shape.weights_bytes("fp32") <= actual + num_tensors * REGION_ALIGN_BYTES


@EACH_FAMILY
def test_tables_and_tie_are_those_of_the_model(family: str, checkpoint: Checkpoints) -> None:
    model, folder = checkpoint(family)
    shape = ModelShape.from_config(folder)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (shape.embedding_params, shape.head_params) == (embedding.numel(), head.numel())
    assert shape.is_tied == (head is embedding)
    assert (shape.vocab_size, shape.hidden_size, shape.num_layers) == (96, model.config.hidden_size, NUM_LAYERS)


@EACH_FAMILY
def test_rest_is_what_is_neither_layer_nor_table(family: str, checkpoint: Checkpoints) -> None:
    model, folder = checkpoint(family)
    tables = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    within = {parameter for layer in layers_of(model) for parameter in layer.parameters()}
    rest = [parameter for parameter in model.parameters() if parameter not in tables | within]
    assert ModelShape.from_config(folder).rest_bytes("fp32") == sum(align(4 * parameter.numel()) for parameter in rest)


def test_experts_are_counted_and_routed_as_the_config_says(checkpoint: Checkpoints) -> None:
    for family in ("mixtral", "olmoe", "deepseek-v3", "qwen3-next"):
        shape = ModelShape.from_config(checkpoint(family)[1])
        assert (shape.num_experts, shape.experts_per_token) == (4, 2), family
    dense = ModelShape.from_config(checkpoint("llama")[1])
    assert (dense.num_experts, dense.experts_per_token) == (0, 0)


def test_shards_are_counted_together(checkpoint: Checkpoints, tmp_path: Path) -> None:
    model, folder = checkpoint("llama")
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole, sharded = ModelShape.from_config(folder), ModelShape.from_config(tmp_path)
    assert sharded.model_copy(update={"name": whole.name, "fingerprint": whole.fingerprint}) == whole
    assert sharded.fingerprint != whole.fingerprint


def test_sizes_follow_the_dtype_that_it_runs_in(checkpoint: Checkpoints) -> None:
    shape = ModelShape.from_config(checkpoint("llama")[1])
    num_params = shape.layers[0].wire_bytes("fp32") // 4
    for dtype, num_bytes in DTYPE_BYTES.items():
        assert shape.layers[0].wire_bytes(dtype) == num_params * num_bytes


# --- caches ---


@torch.inference_mode()
def allocated_kv_bytes(model: PreTrainedModel, context_tokens: int, num_nodes: int = 0) -> int:
    cache = KvCache(model.config, context_tokens, num_nodes)
    model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=True, **{cache_argument(model): cache})
    buffers = [buffer for layer in cache.layers for buffer in (layer._keys_BHTD, layer._values_BHTD)]
    return sum(buffer.numel() * buffer.element_size() for buffer in buffers)


@EACH_ATTENTION
@pytest.mark.parametrize("context_tokens", [8, 200, 300, 4096])
def test_kv_bytes_are_what_the_cache_allocates(family: str, context_tokens: int, checkpoint: Checkpoints) -> None:
    # windows of 16 keep 2 * (16 + 128) = 288 tokens: contexts below and above that
    model, folder = checkpoint(family)
    assert ModelShape.from_config(folder).kv_bytes(context_tokens, "fp32") == allocated_kv_bytes(model, context_tokens)


@EACH_ATTENTION
def test_kv_bytes_of_a_tree_are_what_the_cache_allocates_for_it(family: str, checkpoint: Checkpoints) -> None:
    model, folder = checkpoint(family)
    for context_tokens in (200, 300):
        planned = ModelShape.from_config(folder).kv_bytes(context_tokens, "fp32", 64)
        assert planned == allocated_kv_bytes(model, context_tokens, 64)


def test_kinds_and_windows_are_those_of_the_configuration(checkpoint: Checkpoints) -> None:
    expected: dict[str, list[tuple[str, int | None]]] = {
        "llama": [("full", None)] * 4,
        "mistral": [("sliding", 16)] * 4,
        "gemma2": [("sliding", 16), ("full", None)] * 2,
        "gemma3-tied": [("sliding", 16), ("full", None)] * 2,
        "qwen2-window": [("sliding", 16), ("full", None)] * 2,
        "qwen2-window-off": [("full", None)] * 4,
        "qwen3-next": [("recurrent", None), ("full", None)] * 2,
    }
    for family, kinds in expected.items():
        shape = ModelShape.from_config(checkpoint(family)[1])
        assert [(layer.kind, layer.window_tokens) for layer in shape.layers] == kinds, family


def test_window_keeps_twice_itself_and_its_slack_but_no_more_than_the_context() -> None:
    assert kv_capacity_tokens(1000, None) == 1000
    assert kv_capacity_tokens(1000, 16) == 2 * (16 + KV_SLACK_TOKENS)
    assert kv_capacity_tokens(100, 16) == 100


def test_every_layer_keeps_all_nodes_of_a_tree_as_well() -> None:
    assert kv_capacity_tokens(1000, None, 64) == 1000 + 64
    assert kv_capacity_tokens(1000, 16, 64) == 2 * (16 + KV_SLACK_TOKENS) + 64
    assert kv_capacity_tokens(100, 16, 64) == 100 + 64


# --- configurations that lie ---


def write_folder(folder: Path, tensors: dict[str, list[int]], **config: object) -> Path:
    """A folder of zeros in float32 with a small configuration."""
    folder.mkdir(exist_ok=True)
    header, start = {}, 0
    for name, dims in tensors.items():
        num_bytes = 4
        for extent in dims:
            num_bytes *= extent
        header[name] = {"dtype": "F32", "shape": dims, "data_offsets": [start, start + num_bytes]}
        start += num_bytes
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(start))
    (folder / "config.json").write_text(json.dumps({**SMALL, **config}))
    return folder


SMALL: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 4,
    "intermediate_size": 8,
    "vocab_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
TENSORS = {
    "model.embed_tokens.weight": [8, 4],
    "model.layers.0.mlp.up_proj.weight": [8, 4],
    "model.layers.1.mlp.up_proj.weight": [8, 4],
    "model.norm.weight": [4],
    "lm_head.weight": [8, 4],
}


def test_small_folder_is_read(tmp_path: Path) -> None:
    shape = ModelShape.from_config(write_folder(tmp_path, TENSORS))
    assert [layer.wire_bytes("fp32") for layer in shape.layers] == [128, 128]
    assert (shape.head_params, shape.embedding_params, shape.rest_bytes("fp32")) == (32, 32, REGION_ALIGN_BYTES)


def test_text_part_of_a_model_that_also_sees_is_what_counts(tmp_path: Path) -> None:
    text = {key: value for key, value in SMALL.items() if key != "model_type"}
    seeing = {f"model.language_model.{name.removeprefix('model.')}": dims for name, dims in TENSORS.items()}
    seeing |= {f"model.vision_tower.layers.{index}.mlp.weight": [100, 100] for index in range(9)}
    (tmp_path / "config.json").write_text("{}")
    write_folder(tmp_path, seeing)
    config = {"model_type": "seeing", "text_config": text, "vision_config": {"num_hidden_layers": 9}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = ModelShape.from_config(tmp_path)
    assert [layer.wire_bytes("fp32") for layer in shape.layers] == [128, 128]


def test_layer_behind_the_decoders_own_is_left_out(tmp_path: Path) -> None:
    behind = {**TENSORS, "model.layers.2.eh_proj.weight": [8, 4]}
    shape = ModelShape.from_config(write_folder(tmp_path, behind))
    assert shape.num_layers == 2
    assert shape.rest_bytes("fp32") == REGION_ALIGN_BYTES


HOSTILE: list[object] = [0, -1, 2**40, 2**70, 1.5, "2", True, [], {}]
FIELDS = [key for key in SMALL if key not in ("model_type", "tie_word_embeddings")]


@pytest.mark.parametrize("field", FIELDS)
def test_size_that_is_no_positive_whole_number_is_refused_by_name(field: str, tmp_path: Path) -> None:
    for value in HOSTILE:
        write_folder(tmp_path, TENSORS, **{field: value})
        with pytest.raises(BadInputError, match=f"{field} is "):
            ModelShape.from_config(tmp_path)


@pytest.mark.parametrize(
    "field", ["hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"]
)
def test_size_that_is_missing_is_refused_by_name(field: str, tmp_path: Path) -> None:
    write_folder(tmp_path, TENSORS, **{field: None})
    with pytest.raises(BadInputError, match=f"{field} is None"):
        ModelShape.from_config(tmp_path)


def test_more_layers_than_tensors_are_refused_before_any_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path, TENSORS, num_hidden_layers=2**39)
    with pytest.raises(BadInputError, match="num_hidden_layers is 549755813888, and it has 5 tensors"):
        ModelShape.from_config(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (TENSORS, {"num_hidden_layers": 3}, "no tensor of decoder layer 2"),
        ({name: TENSORS[name] for name in TENSORS if "embed" not in name}, {}, "no tensor of the token embedding"),
        (TENSORS, {"vocab_size": 7}, "vocab_size is 7, and the head has 32 parameters"),
        (TENSORS, {"vocab_size": 64}, "vocab_size is 64, and the head has 32 parameters"),
        ({**TENSORS, "lm_head.weight": [0, 4]}, {}, "the head has 0 parameters"),
        (TENSORS, {"layer_types": ["full_attention"]}, "layer_types has 1 entries, num_hidden_layers is 2"),
        (TENSORS, {"kv_lora_rank": 4}, "qk_rope_head_dim is None"),
        (TENSORS, {"sliding_window": -1}, "sliding_window is -1"),
        (TENSORS, {"num_experts_per_tok": "2"}, "num_experts_per_tok is '2'"),
    ],
)
def test_configuration_that_contradicts_the_weights_is_refused(
    tensors: dict[str, list[int]], config: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=message):
        ModelShape.from_config(write_folder(tmp_path, tensors, **config))


def test_tensor_with_a_number_of_many_digits_is_no_layer(tmp_path: Path) -> None:
    name = f"model.layers.{'9' * 5000}.weight"
    shape = ModelShape.from_config(write_folder(tmp_path, {**TENSORS, name: [4]}))
    assert shape.num_layers == 2


def test_weights_in_a_dtype_that_does_not_run_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, TENSORS)
    content = (tmp_path / "model.safetensors").read_bytes().replace(b'"F32"', b'"I32"')
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BadInputError, match="I32"):
        ModelShape.from_config(tmp_path)


# --- light ---


def test_shape_is_read_without_torch() -> None:
    script = (
        "import sys; from pathlib import Path; from planner.contracts.model_shape import ModelShape; "
        "print(ModelShape.from_config(Path(sys.argv[1])).num_layers); "
        "print([name for name in ('torch', 'transformers', 'numpy', 'safetensors') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, demo_folder("target")], capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.stdout, run.stderr) == ("12\n[]\n", "")


def test_older_names_of_the_sizes_are_read(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(n_layer=3, n_embd=32, n_head=2, vocab_size=64, n_positions=48)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    shape = ModelShape.from_config(tmp_path)
    assert (shape.num_layers, shape.hidden_size, shape.num_heads, shape.max_context_tokens) == (3, 32, 2, 48)
    assert shape.is_tied
