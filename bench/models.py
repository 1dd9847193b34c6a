"""Random models of a stated size, written once to a folder and reused; and what the benchmarks share.

Weights are random, so only times and bytes mean anything, never the text.
"""

import json
import os
import platform
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import Plan
from profiles import demo_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomLlama:
    """The sizes of a random Llama in bf16."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    is_decisive: bool = False  # each token has one clear successor, `successor` of it


SMALL = RandomLlama(
    name="llama-0.7GB",
    num_layers=28,
    hidden_size=1024,
    intermediate_size=2816,
    num_heads=16,
    num_kv_heads=8,
    vocab_size=4096,
)
LARGE = RandomLlama(
    name="llama-1.9GB",
    num_layers=18,
    hidden_size=2048,
    intermediate_size=5632,
    num_heads=32,
    num_kv_heads=4,
    vocab_size=32000,
)
TINY_LAYERS = RandomLlama(
    name="llama-32-tiny-layers",
    num_layers=32,
    hidden_size=32,
    intermediate_size=64,
    num_heads=2,
    num_kv_heads=1,
    vocab_size=4096,
)


DECISIVE = replace(SMALL, name="llama-0.7GB-decisive", is_decisive=True)
DECISIVE_DRAFT = replace(
    DECISIVE,
    name="llama-30MB-decisive",
    num_layers=6,
    hidden_size=512,
    intermediate_size=1024,
    num_heads=8,
    num_kv_heads=4,
)
_QUIET = ("self_attn.o_proj.weight", "mlp.down_proj.weight")  # what layers add to the residual stream


def successor(token: int, vocab_size: int) -> int:
    """The token that a decisive model writes after a token."""
    return (7 * token + 3) % vocab_size


def make_checkpoint(sizes: RandomLlama, folder: Path) -> Path:
    """A checkpoint of random weights below the folder, sharded by layer, with the demo pair's tokenizer."""
    target = folder / sizes.name
    if (target / "config.json").exists():
        return target
    target.mkdir(parents=True)
    config = LlamaConfig(
        num_hidden_layers=sizes.num_layers,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        vocab_size=sizes.vocab_size,
        max_position_embeddings=8192,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: _random(tensor.shape, generator) for name, tensor in model.state_dict().items()}
    if sizes.is_decisive:
        _decide(tensors, sizes.vocab_size)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((demo_folder("target") / name).read_bytes())
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(target)
    return target


def _decide(tensors: dict[str, torch.Tensor], vocab_size: int) -> None:
    """Let the head's row of each successor be the token's own embedding, and the layers add next to nothing."""
    embedding_VH = tensors["model.embed_tokens.weight"]
    head_VH = torch.empty_like(embedding_VH)
    head_VH[[successor(token, vocab_size) for token in range(vocab_size)]] = embedding_VH
    tensors["lm_head.weight"] = head_VH
    for name, tensor in tensors.items():
        if name.endswith(_QUIET):
            tensor *= 0.01


def _random(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)


def every_layer_streamed(plan: Plan) -> Plan:
    """The plan with all layers streamed and the head resident in one piece, so that all that travels is alike."""
    first = next(unit for unit in plan.units if unit.kind == "head_chunk")
    num_rows = max(unit.rows[1] for unit in plan.units if unit.rows is not None)
    head = first.model_copy(update={"placement": "resident", "rows": (0, num_rows)})
    units = [
        unit.model_copy(update={"placement": "streamed"}) if unit.kind == "layer" else unit
        for unit in plan.units
        if unit.kind != "head_chunk"
    ]
    return plan.model_copy(update={"units": (*units, head)})


def drop_from_page_cache(folder: Path) -> None:
    """Make the next read of every file below the folder come from the disk."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The three quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def print_header(title: str, folder: Path | None = None) -> None:
    """What was measured, on what."""
    print(f"# {title}")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}", end="")
    print(f", {torch.get_num_threads()} torch thread(s), Python {platform.python_version()}")
    if folder is not None:
        shape = ModelShape.from_config(folder)
        print(f"{folder.name}: {shape.num_layers} layers, {shape.weights_bytes(shape.stored_dtype) / 1e9:.2f} GB")


def print_json(result: object) -> None:
    """The last line: the same as JSON."""
    print(json.dumps(result))
