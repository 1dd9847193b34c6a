"""Modules that the user puts in place of others keep streaming, with the very outputs of the same swap in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import VOCAB_SIZE, TinyModel, placed, resident, stock_greedy
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

import runtime
from planner.contracts.errors import BadInputError
from planner.contracts.plan import DiskLink, Plan

pytestmark = pytest.mark.usefixtures("one_thread")

INPUT_IDS = torch.arange(3, 40)[None]
FAMILIES = ["llama", "llama-tied", "gpt-neox", "phi3", "gemma2", "mixtral"]
Swap = Callable[[PreTrainedModel], None]


class RoundedLinear(nn.Module):
    """Weights rounded to 8 bits per row, as a quantised layer computes with them."""

    def __init__(self, replaced: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = replaced.weight, replaced.bias

    def forward(self, inputs: Tensor) -> Tensor:
        scale = self.weight.abs().amax(dim=-1, keepdim=True) / 127
        return functional.linear(inputs, (self.weight / scale).round() * scale, self.bias)


class HalvesLinear(nn.Module):
    """A product in two halves of the inputs: a kernel of the user's own, which rounds otherwise."""

    def __init__(self, replaced: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = replaced.weight, replaced.bias

    def forward(self, inputs: Tensor) -> Tensor:
        half = self.weight.shape[1] // 2
        product = inputs[..., :half] @ self.weight[:, :half].T + inputs[..., half:] @ self.weight[:, half:].T
        return product if self.bias is None else product + self.bias


def swap_linears(replacement: Callable[[nn.Linear], nn.Module]) -> Swap:
    """A user's function: every nn.Linear, the head included, becomes another module."""

    def swap(model: PreTrainedModel) -> None:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Linear:
                    setattr(module, name, replacement(child))

    return swap


SWAPS = {"rounded": swap_linears(RoundedLinear), "in halves": swap_linears(HalvesLinear)}


def plans(folder: Path) -> list[Plan]:
    """All layers streamed, some resident, the head whole and in chunks."""
    chunks = (128, 256, VOCAB_SIZE)
    return [
        placed(folder, num_slots=1, link=DiskLink()),
        placed(folder, streamed_layers=(0, 2), head_rows=chunks, streamed_chunks=(1, 2)),
        placed(
            folder, num_slots=3, layers_on_disk=(1,), head_rows=chunks, streamed_chunks=(), is_embedding_resident=True
        ),
    ]


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    output: Tensor = model(INPUT_IDS).logits
    return output


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SWAPS)
def test_swap_of_every_linear_streams_bit_equal_to_the_swap_in_memory(
    family: str, name: str, tiny_model: TinyModel
) -> None:
    folder, swap = tiny_model(family), SWAPS[name]
    stock = resident(folder)
    unswapped = logits(stock)
    swap(stock)
    expected = logits(stock)
    assert not torch.equal(expected, unswapped)
    for plan in plans(folder):
        model = runtime.stream(folder, plan, replace_modules=swap)
        assert not [module for module in model.modules() if type(module) is nn.Linear]
        assert torch.equal(logits(model), expected), plan
        assert torch.equal(logits(model), expected), "a second pass"
        model.streamed.close()


def test_swapped_model_generates_as_the_swap_in_memory(tiny_model: TinyModel) -> None:
    folder, swap = tiny_model("llama"), SWAPS["rounded"]
    stock = resident(folder)
    swap(stock)
    prompt = [5, 6, 7]
    with runtime.load(plan=plans(folder)[1], replace_modules=swap) as engine:
        assert [piece.token_id for piece in engine.generate(prompt, max_tokens=12)] == stock_greedy(stock, prompt, 12)


def test_swap_may_make_parameters_of_its_own_under_the_same_names(tiny_model: TinyModel) -> None:
    class Empty(RoundedLinear):
        def __init__(self, replaced: nn.Linear) -> None:
            super().__init__(replaced)
            self.weight = nn.Parameter(torch.empty(replaced.weight.shape, dtype=replaced.weight.dtype))

    for family in ("llama", "llama-tied"):
        folder = tiny_model(family)
        stock = resident(folder)
        SWAPS["rounded"](stock)
        model = runtime.stream(folder, plans(folder)[1], replace_modules=swap_linears(Empty))
        assert torch.equal(logits(model), logits(stock)), family
        model.streamed.close()


def test_swap_of_norms_and_embedding_keeps_working(tiny_model: TinyModel) -> None:
    class Doubled(nn.Module):
        def __init__(self, replaced: nn.Module) -> None:
            super().__init__()
            self.weight = replaced.get_parameter("weight")

    class DoubledNorm(Doubled):
        def forward(self, hidden: Tensor) -> Tensor:
            return 2 * functional.rms_norm(hidden, self.weight.shape, self.weight, 1e-6)

    class DoubledEmbedding(Doubled):
        def forward(self, tokens: Tensor) -> Tensor:
            return 2 * functional.embedding(tokens, self.weight)

    def swap(model: PreTrainedModel) -> None:
        model.set_input_embeddings(DoubledEmbedding(model.get_input_embeddings()))
        for module in list(model.modules()):
            for name, child in module.named_children():
                if "RMSNorm" in type(child).__name__:
                    setattr(module, name, DoubledNorm(child))

    folder = tiny_model("llama")
    stock = resident(folder)
    swap(stock)
    for plan in plans(folder):
        model = runtime.stream(folder, plan, replace_modules=swap)
        assert torch.equal(logits(model), logits(stock)), plan
        model.streamed.close()


# --- what cannot be bound is refused by name ---


def refused(folder: Path, swap: Swap, match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        runtime.stream(folder, placed(folder), replace_modules=swap)


def test_renamed_parameter_is_refused_by_name(tiny_model: TinyModel) -> None:
    class Renamed(nn.Module):
        def __init__(self, replaced: nn.Linear) -> None:
            super().__init__()
            self.matrix = replaced.weight

    def swap(model: PreTrainedModel) -> None:
        model.model.layers[1].mlp.up_proj = Renamed(model.model.layers[1].mlp.up_proj)

    refused(tiny_model("llama"), swap, r"model\.layers\.1\.mlp\.up_proj\.matrix\n.*absent.*\n.*keep the names")


def test_parameter_of_another_shape_is_refused_by_name_with_both_shapes(tiny_model: TinyModel) -> None:
    def swap(model: PreTrainedModel) -> None:
        model.model.layers[2].self_attn.q_proj = nn.Linear(64, 32, bias=False)

    refused(tiny_model("llama"), swap, r"model\.layers\.2\.self_attn\.q_proj\.weight\n.*\(64, 64\).*\(32, 64\)")


def test_parameter_of_another_dtype_is_refused_by_name_with_both(tiny_model: TinyModel) -> None:
    def swap(model: PreTrainedModel) -> None:
        weight = torch.empty(96, 64, dtype=torch.int8)
        model.model.layers[0].mlp.up_proj.weight = nn.Parameter(weight, requires_grad=False)

    refused(tiny_model("llama"), swap, r"layers\.0\.mlp\.up_proj\.weight\n.*torch\.float32.*torch\.int8")


def test_added_parameter_is_refused_by_name(tiny_model: TinyModel) -> None:
    def swap(model: PreTrainedModel) -> None:
        model.lm_head = nn.Linear(64, VOCAB_SIZE, bias=True)

    refused(tiny_model("llama"), swap, r"lm_head\.bias\n.*absent.*\(448,\)")


def test_removed_parameter_is_refused_by_name(tiny_model: TinyModel) -> None:
    def swap(model: PreTrainedModel) -> None:
        model.model.layers[0].mlp.down_proj = nn.Identity()

    refused(tiny_model("llama"), swap, r"model\.layers\.0\.mlp\.down_proj\.weight\n.*\(64, 96\).*absent")


def test_buffer_without_content_is_refused_by_name(tiny_model: TinyModel) -> None:
    # The skeleton has no weights, so that nothing can be computed from them ahead of time.
    class Scaled(RoundedLinear):
        def __init__(self, replaced: nn.Linear) -> None:
            super().__init__(replaced)
            self.register_buffer("scale", self.weight.abs().amax(dim=-1), persistent=False)

    def swap(model: PreTrainedModel) -> None:
        model.model.layers[1].mlp.up_proj = Scaled(model.model.layers[1].mlp.up_proj)

    refused(tiny_model("llama"), swap, r"model\.layers\.1\.mlp\.up_proj\.scale")
