"""The catalogue against published numbers, and its shapes against the models that transformers builds."""

import itertools
import math
import subprocess
import sys

import pytest

from planner.contracts.errors import BadInputError
from planner.contracts.model_shape import ModelShape
from profiles import catalogue
from profiles.models.generate import FOLDER, read_configs, shape_of, text_of

# Parameters as the model cards and safetensors totals state them.
PUBLISHED_PARAMS = {
    "llama-3.2-1b": 1.236e9,
    "llama-3.2-3b": 3.213e9,
    "llama-3.1-8b": 8.030e9,
    "llama-3.1-70b": 70.55e9,
    "llama-3.3-70b": 70.55e9,
    "llama-3.1-405b": 405.85e9,
    "qwen2.5-0.5b": 0.494e9,
    "qwen2.5-1.5b": 1.544e9,
    "qwen2.5-7b": 7.616e9,
    "qwen2.5-coder-14b": 14.77e9,
    "qwen2.5-32b": 32.76e9,
    "qwen2.5-72b": 72.71e9,
    "qwen3-0.6b": 0.596e9,
    "qwen3-8b": 8.19e9,
    "qwen3-32b": 32.76e9,
    "qwen3-30b-a3b": 30.53e9,
    "qwen3-235b-a22b": 235.1e9,
    "mistral-7b-v0.3": 7.248e9,
    "mixtral-8x7b": 46.70e9,
    "mixtral-8x22b": 140.6e9,
    "gemma-2-2b": 2.614e9,
    "gemma-2-9b": 9.242e9,
    "gemma-2-27b": 27.23e9,
    "gemma-3-1b": 1.000e9,
    "phi-3-mini": 3.821e9,
    "phi-4": 14.66e9,
    "deepseek-v2-lite": 15.71e9,
    "deepseek-v3": 671.0e9,
}
SMALL = ("llama-3.2-1b", "qwen2.5-0.5b", "qwen3-0.6b", "gemma-3-1b", "deepseek-v2-lite")


def params_of(shape: ModelShape) -> int:
    tables = shape.embedding_params + (0 if shape.is_tied else shape.head_params)
    return sum(layer.num_params() for layer in shape.layers) + tables + sum(g.num_params * g.count for g in shape.rest)


def tokens_per_round(hazard: float, draft_len: int) -> float:
    return sum(hazard**i for i in range(draft_len + 1))


# --- machines ---


def test_every_machine_bears_the_name_of_its_file() -> None:
    assert len(catalogue.machine_names()) >= 22
    for name in catalogue.machine_names():
        assert catalogue.machine(name).name == name


def test_every_machine_has_the_numbers_an_estimate_needs() -> None:
    for name in catalogue.machine_names():
        machine = catalogue.machine(name)
        (device,) = machine.devices
        assert device.memory_bytes_per_s is not None
        assert device.matmul_flops_per_s is not None
        assert machine.host_memory_bytes_per_s is not None
        assert machine.host_matmul_flops_per_s is not None
        kinds = ["disk_to_host"] if device.name == "cpu" else ["host_to_device", "device_to_host", "disk_to_host"]
        assert [link.kind for link in machine.links] == kinds
        assert all(link.latency_s is not None for link in machine.links)


@pytest.mark.parametrize(
    ("name", "memory_gib", "gb_per_s", "tflops"),
    [
        ("rtx-3060-12gb", 12, 360, 25.5),  # 3584 cores x 1.777 GHz x 4
        ("rtx-4090", 24, 1008, 165.2),  # the Ada whitepaper's fp16 with fp32 accumulation, dense
        ("rtx-5090", 32, 1792, 209.5),
        ("a100-80gb", 80, 1935, 312),
        ("h100-sxm", 79.6, 3350, 989),
    ],
)
def test_cards_have_the_numbers_of_their_datasheets(
    name: str, memory_gib: float, gb_per_s: float, tflops: float
) -> None:
    (device,) = catalogue.machine(name).devices
    assert device.memory_bytes_per_s is not None
    assert device.matmul_flops_per_s is not None
    assert device.memory_bytes.value / 2**30 == pytest.approx(memory_gib, rel=0.01)
    assert device.memory_bytes_per_s.value == gb_per_s * 1e9
    assert device.matmul_flops_per_s.value == pytest.approx(tflops * 1e12, rel=0.005)


def test_links_of_eight_lanes_are_half_as_fast() -> None:
    wide, narrow = (catalogue.machine(name).links[0].bytes_per_s.value for name in ("rtx-4070", "rtx-4060"))
    assert narrow == pytest.approx(wide / 2)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("RTX 4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "rtx-4060-laptop"),
        ("RTX 4070 Ti SUPER", "rtx-4070-ti-super"),
        ("rtx 3060", "rtx-3060-12gb"),
        ("a100_80gb", "a100-80gb"),
        ("EPYC 9354", "epyc-9354"),
    ],
)
def test_machines_are_found_as_people_type_them(typed: str, name: str) -> None:
    assert catalogue.machine(typed).name == name


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("rtx 4095", "did you mean .*rtx-4090"),
        ("a100", "a100-40gb or|or a100-40gb"),  # two of them: none is guessed
        ("RTX 3080 12GB", "rtx-3080-10gb"),  # another card
        ("../models/configs", "nothing is guessed"),
    ],
)
def test_an_unknown_machine_is_refused_with_the_nearest(typed: str, nearest: str) -> None:
    with pytest.raises(BadInputError, match=nearest):
        catalogue.machine(typed)


# --- models ---


def test_there_is_a_shape_for_every_configuration() -> None:
    assert sorted(catalogue.model_names()) == sorted(read_configs())
    assert len(catalogue.model_names()) >= 26


@pytest.mark.parametrize("name", catalogue.model_names())
def test_shape_has_the_published_number_of_parameters(name: str) -> None:
    shape = catalogue.model(name)
    assert (shape.name, shape.fingerprint) == (name, f"catalogue:{name}")
    if name in PUBLISHED_PARAMS:
        assert params_of(shape) == pytest.approx(PUBLISHED_PARAMS[name], rel=0.005)


@pytest.mark.parametrize("name", SMALL)
def test_small_shape_is_that_of_its_configuration(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == text_of(shape_of(name, read_configs()[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in catalogue.model_names() if name not in SMALL])
def test_shape_is_that_of_its_configuration(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == text_of(shape_of(name, read_configs()[name]))


def test_experts_are_told_apart_from_the_rest_of_a_layer() -> None:
    mixtral = catalogue.model("mixtral-8x7b")
    # 8 experts of three matrices, 4096 x 14336
    assert mixtral.layers[0].num_params("expert") == 8 * 3 * 4096 * 14336
    assert (mixtral.num_experts, mixtral.experts_per_token) == (8, 2)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("Qwen/Qwen2.5-Coder-32B-Instruct", "qwen2.5-coder-32b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("google/gemma-2-9b-it@main", "gemma-2-9b"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi-3-mini"),
        ("LLAMA 3.2 1B", "llama-3.2-1b"),
    ],
)
def test_models_are_found_by_hub_id(typed: str, name: str) -> None:
    assert catalogue.model(typed).name == name


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("llama-3.1-7b", "llama-3.1-8b"), ("meta-llama/Llama-31-70B", "llama-3.1-70b"), ("configs", "nothing is guessed")],
)
def test_an_unknown_model_is_refused_with_the_nearest(typed: str, nearest: str) -> None:
    with pytest.raises(BadInputError, match=nearest):
        catalogue.model(typed)


def test_every_model_belongs_to_one_tokenizer() -> None:
    for name in catalogue.model_names():
        assert catalogue.shares_tokenizer(name, name)
    assert catalogue.shares_tokenizer("meta-llama/Llama-3.1-70B-Instruct", "llama-3.2-1b")
    assert not catalogue.shares_tokenizer("llama-3.1-70b", "qwen2.5-0.5b")
    assert not catalogue.shares_tokenizer("mixtral-8x7b", "mistral-7b-v0.3")


# --- acceptance ---


def test_a_published_pair_is_returned_as_it_was_published() -> None:
    curve = catalogue.acceptance("Qwen/Qwen2.5-Coder-32B-Instruct", "qwen2.5-coder-3b", "code")
    assert curve.is_same_pair
    # 313 accepted in 912 / 16 = 57 rounds of 16 tokens: 6.49 tokens a round
    assert tokens_per_round(curve.survival[0], 16) == pytest.approx(1 + 313 / 57, rel=0.002)


@pytest.mark.parametrize(
    ("draft", "domain", "draft_len", "draft_cost", "speedup"),
    [  # llama.cpp discussion 10466; costs are 0.494, 1.544 and 3.086 of 14.77e9 parameters, and 0.03
        ("qwen2.5-coder-0.5b", "code", 10, 0.0634, 2.5),
        ("qwen2.5-coder-1.5b", "code", 4, 0.1345, 1.63),
        ("qwen2.5-coder-3b", "code", 4, 0.2389, 1.33),
        ("qwen2.5-coder-0.5b", "general", 4, 0.0634, 1.4),
        ("qwen2.5-coder-1.5b", "general", 4, 0.1345, 1.17),
        ("qwen2.5-coder-3b", "general", 1, 0.2389, 1.08),
    ],
)
def test_fitted_hazards_reproduce_the_published_speedups(
    draft: str, domain: str, draft_len: int, draft_cost: float, speedup: float
) -> None:
    curve = catalogue.acceptance("qwen2.5-coder-14b", draft, domain)
    assert curve.is_same_pair
    round_cost = 1 + 0.1 * min(draft_len, 4) + draft_cost * draft_len
    assert tokens_per_round(curve.survival[0], draft_len) / round_cost == pytest.approx(speedup, rel=0.08)


def test_a_curve_is_as_long_as_what_was_drafted() -> None:
    assert len(catalogue.acceptance("qwen2.5-coder-32b", "qwen2.5-coder-3b", "code").survival) == 16
    assert len(catalogue.acceptance("llama-3.1-8b", "llama-3.2-1b", "prose").survival) == 5


def test_the_eagle_head_of_vllm_has_its_published_length() -> None:
    curve = catalogue.acceptance("llama-3.1-8b", "eagle", "chat")
    assert 1 + sum(curve.survival) == pytest.approx(3.64, abs=0.02)  # of rounded shares
    assert not curve.is_same_pair


def test_ngram_survival_counts_rounds_without_a_draft() -> None:
    curve = catalogue.acceptance("llama-3.1-8b", "ngram", "edit")
    assert 1 + sum(curve.survival) == pytest.approx(2.96, abs=0.01)  # vLLM's length normalised by sequence


def test_ngrams_on_other_text_are_not_taken_for_edits() -> None:
    assert catalogue.acceptance("llama-3.1-8b", "ngram", "code").survival[0] == 0.405


@pytest.mark.parametrize(
    ("target", "draft", "domain", "nearest"),
    [
        ("llama-3.1-70b", "llama-3.2-1b", "code", "llama-3.3-70b with llama-3.2-1b on code"),
        ("llama-3.1-70b", "llama-3.2-3b", "chat", "llama-3.1-70b with llama-3.1-8b on general"),
        ("qwen2.5-coder-32b", "qwen2.5-coder-0.5b", "code", "qwen2.5-coder-14b with qwen2.5-coder-0.5b on code"),
        ("qwen2.5-coder-32b", "qwen2.5-coder-1.5b", "prose", "qwen2.5-coder-14b with qwen2.5-coder-0.5b on general"),
    ],
)
def test_an_unpublished_pair_gets_the_nearest_and_says_so(target: str, draft: str, domain: str, nearest: str) -> None:
    curve = catalogue.acceptance(target, draft, domain)
    assert (curve.target, curve.draft, curve.domain, curve.is_same_pair) == (target, draft, domain, False)
    assert f"nothing published for this pair on this text; of {nearest}: " in curve.source


def test_a_draft_of_another_tokenizer_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"qwen2\.5-0\.5b cannot draft for llama-3\.1-70b"):
        catalogue.acceptance("llama-3.1-70b", "qwen2.5-0.5b", "code")


def test_published_survival_never_rises() -> None:
    for curve in catalogue.read_curves():
        survival = (1.0, *curve.survival)
        assert all(0 < later <= earlier for earlier, later in itertools.pairwise(survival))
        assert math.isfinite(sum(survival))


# --- how it loads ---


def test_the_catalogue_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from profiles import catalogue as c;"
        " c.machine('rtx-4090'); c.model('llama-3.1-70b'); c.acceptance('llama-3.1-70b', 'llama-3.2-1b', 'code');"
        " print(sorted({'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"
