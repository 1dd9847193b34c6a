"""Tiny random checkpoints of many families, written as transformers writes them, and plans that place them as a test
wants.

Weights are scaled so that the best logit is decisive; windows are small enough to fill and roll over within a test.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from planner.budget import counted_memory
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import Dtype, EmulatedLink, LinkChoice, ModelDraft, Plan, Staging, Unit
from runtime.api import make_plan
from runtime.skeleton import DTYPES

VOCAB_SIZE = 448  # three head chunks of more than 64 x 64 values: smaller bf16 products run on another kernel
WINDOW_TOKENS = 8
NUM_LAYERS = 3
MAX_CONTEXT_TOKENS = 512
FAST_LINK = EmulatedLink(bytes_per_s=100e9)

_SIZES: dict[str, object] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": MAX_CONTEXT_TOKENS,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_SLIDING: dict[str, object] = {"sliding_window": WINDOW_TOKENS}
_EXPERTS: dict[str, object] = {"num_experts_per_tok": 2}
_MAMBA: dict[str, object] = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_chunk_size": 8}


def _mixed(*kinds: Literal["sliding", "full", "linear"]) -> dict[str, object]:
    return {"layer_types": [f"{kind}_attention" for kind in kinds]}


FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "llama-tied": lambda: LlamaConfig(**_SIZES | {"tie_word_embeddings": True}),
    "qwen2-mixed": lambda: Qwen2Config(
        **_SIZES | _SLIDING | _mixed("full", "sliding", "sliding") | {"use_sliding_window": True}
    ),
    "qwen3": lambda: Qwen3Config(**_SIZES),
    "mistral": lambda: MistralConfig(**_SIZES | _SLIDING),
    "gemma2": lambda: Gemma2Config(
        **_SIZES | _SLIDING | _mixed("sliding", "full", "sliding") | {"query_pre_attn_scalar": 16}
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **_SIZES | _SLIDING | _mixed("sliding", "sliding", "full") | {"query_pre_attn_scalar": 16}
    ),
    "phi3": lambda: Phi3Config(**_SIZES),
    "gpt-neox": lambda: GPTNeoXConfig(**_SIZES),
    "olmo2": lambda: Olmo2Config(**_SIZES),
    "mixtral": lambda: MixtralConfig(**_SIZES | _EXPERTS | {"num_local_experts": 4}),
    "qwen3-moe": lambda: Qwen3MoeConfig(**_SIZES | _EXPERTS | {"num_experts": 4, "moe_intermediate_size": 48}),
}

RECURRENT_FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen3-next": lambda: Qwen3NextConfig(
        **_SIZES
        | _EXPERTS
        | _mixed("linear", "full", "linear")
        | {"num_experts": 4, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 48}
        | {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    ),
    "jamba": lambda: JambaConfig(
        **_SIZES
        | _EXPERTS
        | {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}
        | {"expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4}
    ),
    "bamba": lambda: BambaConfig(**_SIZES | _MAMBA | {"attn_layer_indices": [1]}),
    "falcon-h1": lambda: FalconH1Config(**_SIZES | _MAMBA | {"mamba_d_ssm": 128}),
    "lfm2": lambda: Lfm2Config(**_SIZES | {"layer_types": ["conv", "full_attention", "conv"]}),
}


class TinyModel(Protocol):
    """Writes a checkpoint on its first call with some arguments, and gives its folder on every call.

    `noise` perturbs the weights of the same seed, by that share of their own spread: a draft that is often right.
    """

    def __call__(self, family: str, dtype: Dtype = "fp32", *, seed: int = 0, noise: float = 0.0) -> Path:
        """The folder."""


def write_checkpoint(folder: Path, family: str, dtype: Dtype, *, seed: int, noise: float) -> None:
    """Write a seeded random model of a family, with a byte-level tokenizer."""
    config = {**FAMILIES, **RECURRENT_FAMILIES}[family]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        _scale(model, torch.Generator().manual_seed(seed), noise)
    model.to(DTYPES[dtype]).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def _scale(model: PreTrainedModel, generator: torch.Generator, noise: float) -> None:
    """Draw matrices of unit gain, a head of gain 3 and norms off their start; recurrences keep their own start."""
    noise_generator = torch.Generator().manual_seed(1)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for name, parameter in model.named_parameters():
        is_norm = parameter.ndim == 1 and "norm" in name
        is_matrix = parameter.ndim == 2 or (parameter.ndim == 3 and "experts" in name)
        if not is_norm and (not is_matrix or name.endswith("A_log")):
            continue
        gain = 0.2 if is_norm else (3.0 if parameter is head else 1.5) / parameter.shape[-1] ** 0.5
        if parameter is embedding and parameter is not head:
            gain = 1.0
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        drawn += noise * torch.randn(parameter.shape, generator=noise_generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.copy_(gain * drawn + (parameter if is_norm else 0.0))


def byte_tokenizer(extra_tokens: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token per byte (its id is the byte's rank in the byte-level alphabet), then the extra tokens."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *extra_tokens]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def copy_of(folder: Path, to: Path, **generation_config: object) -> Path:
    """A copy of a checkpoint that a test may damage, with changes to its generation settings."""
    shutil.copytree(folder, to)
    file = to / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(settings | generation_config), encoding="utf-8")
    return to


def copy_with_weights(folder: Path, to: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a checkpoint whose tensors a function has changed in place."""
    copy = copy_of(folder, to)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def twin_rows(tensors: dict[str, Tensor], difference: float) -> None:
    """Make the second half of the head's rows copies of the first, but for a relative difference."""
    (name,) = [name for name in ("lm_head.weight", "embed_out.weight") if name in tensors]
    half = VOCAB_SIZE // 2
    tensors[name][half:] = tensors[name][:half] * (1 + difference)


def resident(folder: Path, dtype: Dtype = "fp32") -> PreTrainedModel:
    """The stock model, whole in memory of its own, for inference.

    from_pretrained maps the file, where tensors lie at any multiple of 8 bytes; the vector products of some kernels
    round otherwise there than at the aligned addresses of any other memory. And torch multiplies a batch by a matrix
    that requires a gradient in another shape than by one that does not.
    """
    kwargs = {"experts_implementation": "eager"} if dtype == "fp64" else {}  # grouped products know no float64
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], **kwargs)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def stock_greedy(model: PreTrainedModel, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """The tokens that transformers' own greedy `generate` adds to the prompt."""
    output = model.generate(torch.tensor([list(prompt)]), max_new_tokens=max_tokens, do_sample=False)
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def placed(
    folder: Path,
    *,
    streamed_layers: Iterable[int] = range(NUM_LAYERS),
    head_rows: Sequence[int] = (VOCAB_SIZE,),
    streamed_chunks: Iterable[int] = (0,),
    num_slots: int = 2,
    link: LinkChoice = FAST_LINK,
    layers_on_disk: Iterable[int] = (),
    is_embedding_resident: bool = False,
    dtype: Dtype | None = None,
    draft: Path | None = None,
    draft_len: int = 4,
    context_tokens: int = 128,
    prefill_chunk_tokens: int = 16,
) -> Plan:
    """A plan with every placement as stated; `head_rows` are the rows after each chunk's last.

    Under another link than disk, what travels lies in host memory but for the layers stated, which pass through staging
    buffers.
    """
    plan = make_plan(folder, draft=draft, draft_len=draft_len, context_tokens=context_tokens, dtype=dtype, link=link)
    is_disk = link.kind == "disk"
    layers, chunks, on_disk = set(streamed_layers), set(streamed_chunks), set(layers_on_disk)
    (template,) = [unit for unit in plan.units if unit.kind == "head_chunk"]
    edges = [0, *head_rows]
    units: list[Unit] = []
    for unit in plan.units:
        if unit.kind == "layer":
            is_streamed, is_read = unit.index in layers, is_disk or unit.index in on_disk
            units.append(_moved(unit, is_streamed=is_streamed, is_in_ram=is_streamed and not is_read))
        elif unit.kind == "embedding" and not is_embedding_resident:
            in_ram: Literal["ram", "disk"] = "disk" if is_disk else "ram"
            units.append(unit.model_copy(update={"placement": "host", "source": in_ram}))
        elif unit.kind == "embedding":
            units.append(unit)
    for index, (first, stop) in enumerate(itertools.pairwise(edges)):
        chunk = template.model_copy(update={"index": index, "rows": (first, stop)})
        units.append(_moved(chunk, is_streamed=index in chunks, is_in_ram=index in chunks and not is_disk))
    is_staged = not is_disk and bool(layers & on_disk)
    changes = {
        "units": tuple(units),
        "slots": num_slots if any(unit.placement == "streamed" for unit in units) else 0,
        "staging": Staging(num_buffers=2, buffer_bytes=units[1].dense_bytes) if is_staged else None,
        "prefill_chunk_tokens": prefill_chunk_tokens,
    }
    return recounted(plan, **changes)


def recounted(plan: Plan, **changes: object) -> Plan:
    """The plan with changes, its memory counted anew by the models in the folders that it names."""
    changed = Plan.model_validate(plan.model_copy(update=changes).model_dump())
    draft = changed.draft.model if isinstance(changed.draft, ModelDraft) else None
    target_shape, draft_shape = (name and ModelShape.from_config(Path(name)) for name in (plan.target.name, draft))
    assert isinstance(target_shape, ModelShape)
    assert not isinstance(draft_shape, str)
    memory = changed.memory.model_copy(update=counted_memory(changed, target_shape, draft_shape))
    return changed.model_copy(update={"memory": memory})


def _moved(unit: Unit, *, is_streamed: bool, is_in_ram: bool) -> Unit:
    return unit.model_copy(
        update={
            "placement": "streamed" if is_streamed else "resident",
            "source": "ram" if is_in_ram else "disk",
        }
    )
