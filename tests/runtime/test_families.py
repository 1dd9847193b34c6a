"""Every family of decoders, streamed: bit for bit the resident model, token for token transformers' own `generate`.

Shapes: T tokens fed, V vocabulary.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_models import (
    FAMILIES,
    FAST_LINK,
    RECURRENT_FAMILIES,
    VOCAB_SIZE,
    WINDOW_TOKENS,
    TinyModel,
    copy_with_weights,
    placed,
    recounted,
    resident,
    stock_greedy,
    twin_rows,
)
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from planner.contracts.errors import BadInputError
from planner.contracts.model_folder import open_model_folder
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import ChainDraft, DiskLink, Dtype, Plan
from runtime.api import Limits, load, make_plan
from runtime.cached import CachedModel
from runtime.checkpoint import Checkpoint
from runtime.engine import Engine
from runtime.kv_cache import cache_argument
from runtime.model import StreamedModel, all_resident
from runtime.skeleton import build_skeleton

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
SOME_FAMILIES = pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2", "gpt-neox", "qwen3-moe"])
EVERY_RECURRENT_FAMILY = pytest.mark.parametrize("family", RECURRENT_FAMILIES)
STEPS_TOKENS = (20, 1, 1, 5, 1, 9, 1)  # prefill past the window, single tokens, several
PROMPTS: tuple[tuple[int, ...], ...] = ((7,), (3, 1, 4, 1, 5), tuple(range(100, 140)))  # the last in three chunks
NUM_TOKENS = 10
NEAR_TIE = 1e-4
EMULATED = "emulated:100GB/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A way to place a model; head chunks are cut where matrix kernels tile rows evenly."""

    link: str = "disk"
    num_slots: int = 2
    streamed_layers: tuple[int, ...] = (0, 1, 2)
    layers_on_disk: tuple[int, ...] = ()
    head_rows: tuple[int, ...] = (VOCAB_SIZE,)
    streamed_chunks: tuple[int, ...] = (0,)
    is_embedding_resident: bool = False

    def plan(self, folder: Path, *, draft: Path | None = None, draft_len: int = 4, chunk_tokens: int = 16) -> Plan:
        """The plan for a model."""
        return placed(
            folder,
            link=DiskLink() if self.link == "disk" else FAST_LINK,
            num_slots=self.num_slots,
            streamed_layers=self.streamed_layers,
            layers_on_disk=self.layers_on_disk,
            head_rows=self.head_rows,
            streamed_chunks=self.streamed_chunks,
            is_embedding_resident=self.is_embedding_resident,
            draft=draft,
            draft_len=draft_len,
            prefill_chunk_tokens=chunk_tokens,
        )


SETTINGS = (
    Setting(num_slots=1),
    Setting(streamed_layers=(0, 2), head_rows=(128, VOCAB_SIZE), streamed_chunks=(1,)),
    Setting(link="emulated", num_slots=3, is_embedding_resident=True, streamed_chunks=()),
    Setting(link="emulated", layers_on_disk=(0, 2), head_rows=(128, 256, VOCAB_SIZE), streamed_chunks=(0, 1, 2)),
)
ALL_SETTINGS = tuple(
    Setting(
        link=link,
        num_slots=num_slots,
        streamed_layers=layers,
        layers_on_disk=on_disk,
        head_rows=rows,
        streamed_chunks=chunks,
        is_embedding_resident=num_slots == 1,
    )
    for ((link, on_disk), num_slots, (rows, chunks)), layers in zip(
        itertools.product(
            (("disk", ()), ("emulated", ()), ("emulated", (1, 2)), ("emulated", (0, 1, 2))),
            (1, 2, 3),
            (((VOCAB_SIZE,), (0,)), ((128, 256, VOCAB_SIZE), (0, 2)), ((256, VOCAB_SIZE), ())),
        ),
        itertools.cycle(((0, 1, 2), (0, 2), (), (1,), (0, 1, 2))),
        strict=False,
    )
)


@contextmanager
def streaming(folder: Path, plan: Plan) -> Iterator[StreamedModel]:
    """The model, streamed as the plan says."""
    opened = open_model_folder(folder)
    skeleton = build_skeleton(opened, plan.dtype)
    with StreamedModel(skeleton, Checkpoint(opened, skeleton.model), plan) as streamed:
        yield streamed


def step_tokens() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(VOCAB_SIZE, (num_tokens,), generator=generator).tolist() for num_tokens in STEPS_TOKENS]


@torch.inference_mode()
def stock_logits(model: PreTrainedModel, steps: Sequence[list[int]] | None = None) -> list[Tensor]:
    """Rows (T, V) of every step, with transformers' own cache, and positions as its `generate` gives them."""
    cached: dict[str, object] = {cache_argument(model): DynamicCache(config=model.config)}
    rows, num_seen = [], 0
    for tokens in step_tokens() if steps is None else steps:
        positions = torch.arange(num_seen, num_seen + len(tokens))[None]
        output = model(input_ids=torch.tensor([tokens]), position_ids=positions, use_cache=True, **cached)
        rows.append(output.logits[0])
        num_seen += len(tokens)
    return rows


def cached_logits(streamed: StreamedModel, steps: Sequence[list[int]] | None = None) -> list[Tensor]:
    """Rows (T, V) of every step, with our cache."""
    cached = CachedModel(streamed, sum(STEPS_TOKENS))
    return [cached.forward(tokens, num_rows=len(tokens)) for tokens in (step_tokens() if steps is None else steps)]


def are_equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(rows_TV, other_TV) for rows_TV, other_TV in zip(one, other, strict=True))


def generated(engine: Engine, prompt: Sequence[int], max_tokens: int = NUM_TOKENS) -> list[int]:
    """The token ids of one greedy generation."""
    pieces = engine.generate(prompt, max_tokens=max_tokens)
    return [piece.token_id for piece in pieces if piece.token_id is not None]


# --- L4: bit for bit ---


@EVERY_FAMILY
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_streamed_logits_are_bit_equal_to_the_stock_models(family: str, dtype: Dtype, tiny_model: TinyModel) -> None:
    folder = tiny_model(family, dtype)
    expected = stock_logits(resident(folder, dtype))
    for setting in SETTINGS if dtype == "fp32" else SETTINGS[1::2]:
        with streaming(folder, setting.plan(folder)) as streamed:
            assert are_equal(cached_logits(streamed), expected), setting
    with streaming(folder, SETTINGS[1].plan(folder)) as streamed:
        assert are_equal(stock_logits(streamed.model), expected), "with transformers' own cache"


@pytest.mark.slow
@EVERY_FAMILY
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_streamed_logits_are_bit_equal_in_every_setting(family: str, dtype: Dtype, tiny_model: TinyModel) -> None:
    folder = tiny_model(family, dtype)
    expected = stock_logits(resident(folder, dtype))
    for setting in ALL_SETTINGS:
        with streaming(folder, setting.plan(folder)) as streamed:
            assert are_equal(cached_logits(streamed), expected), setting


@SOME_FAMILIES
def test_plans_made_for_a_budget_are_bit_equal_too(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family)
    expected = stock_logits(resident(folder))
    whole_bytes = make_plan(folder, context_tokens=64).memory.device_bytes
    limits = Limits(device=int(0.6 * whole_bytes))
    disk, ram = (make_plan(folder, limits=limits, context_tokens=64, link=link) for link in ("disk", EMULATED))
    staged_bytes = ram.memory.host_overhead_bytes + 2 * max(unit.dense_bytes for unit in ram.streamed)
    limits = Limits(device=limits.device, host=staged_bytes)
    staged = make_plan(folder, limits=limits, context_tokens=64, link=EMULATED)
    assert disk.streamed
    assert staged.staging is not None
    for plan in (disk, ram, staged):
        with streaming(folder, plan) as streamed:
            assert are_equal(cached_logits(streamed), expected), plan


@SOME_FAMILIES
def test_head_in_chunks_of_any_rows_is_bit_equal_to_the_same_chunks_resident(
    family: str, tiny_model: TinyModel
) -> None:
    # Chunks of odd sizes may round otherwise than the whole head, so their resident twin is cut alike.
    folder = tiny_model(family)
    rows = (100, 137, VOCAB_SIZE)
    with streaming(folder, Setting(head_rows=rows, streamed_layers=(), streamed_chunks=()).plan(folder)) as twin:
        expected = cached_logits(twin)
    with streaming(folder, Setting(head_rows=rows, streamed_chunks=(0, 2)).plan(folder)) as streamed:
        assert are_equal(cached_logits(streamed), expected)
    for rows_TV, stock_TV in zip(expected, stock_logits(resident(folder)), strict=True):
        torch.testing.assert_close(rows_TV, stock_TV, rtol=1e-5, atol=1e-5)


@SOME_FAMILIES
def test_all_resident_twin_is_bit_equal_to_the_stock_model(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family)
    opened = open_model_folder(folder)
    skeleton = build_skeleton(opened, "fp32")
    plan = all_resident(placed(folder), skeleton)
    assert not plan.streamed
    with StreamedModel(skeleton, Checkpoint(opened, skeleton.model), plan) as streamed:
        assert are_equal(cached_logits(streamed), stock_logits(resident(folder)))


@SOME_FAMILIES
def test_model_runs_in_another_dtype_than_it_is_stored_in(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family, "bf16")
    plan = make_plan(folder, context_tokens=64, dtype="fp32")
    with streaming(folder, placed(folder, dtype="fp32", link=DiskLink())) as streamed:
        assert streamed.model.dtype == torch.float32 == resident(folder, plan.dtype).dtype
        assert are_equal(cached_logits(streamed), stock_logits(resident(folder, "fp32")))


def test_tied_configuration_of_two_stored_tables_runs_untied_as_in_transformers(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    def store_another_head(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0)

    folder = copy_with_weights(tiny_model("llama-tied"), tmp_path / "model", store_another_head)
    stock = resident(folder)
    assert torch.equal(stock.lm_head.weight, stock.model.embed_tokens.weight.flip(0))
    for setting in (*SETTINGS, Setting(streamed_chunks=(), is_embedding_resident=True)):
        with streaming(folder, setting.plan(folder)) as streamed:
            assert are_equal(cached_logits(streamed), stock_logits(stock)), setting


@pytest.mark.parametrize("family", [*FAMILIES, *RECURRENT_FAMILIES])
def test_tokens_fed_in_pieces_give_the_logits_of_one_whole_pass(family: str, tiny_model: TinyModel) -> None:
    # Some models of transformers lose their position or their state in a pass of several tokens unless helped.
    folder = tiny_model(family, "fp64")
    (expected_TV,) = stock_logits(resident(folder, "fp64"), [list(itertools.chain(*step_tokens()))])
    with streaming(folder, SETTINGS[1].plan(folder)) as streamed:
        torch.testing.assert_close(torch.cat(cached_logits(streamed)), expected_TV, rtol=1e-4, atol=1e-4)


# --- L3: token for token ---

GREEDY_SETTINGS = (
    (1, "perturbed", SETTINGS[0]),
    (2, "random", SETTINGS[1]),
    (4, "perturbed", SETTINGS[3]),
    (8, "same", SETTINGS[2]),
)


def draft_folder(tiny_model: TinyModel, family: str, kind: str, dtype: Dtype) -> Path:
    """A draft with the target's weights, with perturbed ones, or another random model of the family."""
    return tiny_model(family, dtype, seed=int(kind == "random"), noise=0.1 if kind == "perturbed" else 0.0)


@EVERY_FAMILY
def test_speculative_greedy_is_plain_greedy_is_transformers_generate(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family, "fp64")
    stock = resident(folder, "fp64")
    expected = [stock_greedy(stock, prompt, NUM_TOKENS) for prompt in PROMPTS]
    with load(plan=SETTINGS[1].plan(folder)) as engine:
        assert [generated(engine, prompt) for prompt in PROMPTS] == expected
    drafted, accepted = Counter[str](), Counter[str]()
    for index, (draft_len, kind, setting) in enumerate(GREEDY_SETTINGS):
        draft = draft_folder(tiny_model, family, kind, "fp64")
        with load(plan=setting.plan(folder, draft=draft, draft_len=draft_len)) as engine:
            for prompt, tokens in list(zip(PROMPTS, expected, strict=True))[index % 2 :][:2]:
                generation = engine.generate(prompt, max_tokens=NUM_TOKENS)
                assert [piece.token_id for piece in generation] == tokens, (draft_len, kind, setting, prompt)
                report = generation.report()
                drafted[kind] += report.num_draft_tokens
                accepted[kind] += report.num_accepted_tokens
    assert accepted["same"] == drafted["same"] > 0
    assert 0 < accepted["perturbed"] < drafted["perturbed"]
    assert accepted["random"] < drafted["random"]


@pytest.mark.slow
@EVERY_FAMILY
def test_speculative_greedy_is_transformers_generate_over_every_draft_and_length(
    family: str, tiny_model: TinyModel
) -> None:
    folder = tiny_model(family, "fp64")
    stock = resident(folder, "fp64")
    generator = torch.Generator().manual_seed(6)
    lengths = (1, WINDOW_TOKENS - 1, WINDOW_TOKENS, 33)
    prompts = [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]
    expected = [stock_greedy(stock, prompt, 20) for prompt in prompts]
    settings = itertools.cycle(SETTINGS)
    for draft_len, kind in itertools.product((1, 2, 4, 8), ("same", "perturbed", "random")):
        setting = next(settings)
        draft = draft_folder(tiny_model, family, kind, "fp64")
        plan = setting.plan(folder, draft=draft, draft_len=draft_len, chunk_tokens=1 + draft_len)
        with load(plan=plan) as engine:
            assert [generated(engine, prompt, 20) for prompt in prompts] == expected, (draft_len, kind, setting)


def check_differs_only_at_near_ties(stock: PreTrainedModel, prompt: Sequence[int], tokens: list[int]) -> None:
    """Each token must be the stock model's best after those before it, or as good up to rounding."""
    with torch.inference_mode():
        logits_TV = stock(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, len(prompt) - 1 :]
    for row_V, token in zip(logits_TV, tokens, strict=True):
        assert float(row_V.max() - row_V[token]) <= NEAR_TIE


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "qwen3-moe"])
def test_float32_differs_only_where_the_best_logits_nearly_tie(
    family: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    folder = copy_with_weights(tiny_model(family), tmp_path / "model", lambda tensors: twin_rows(tensors, 1e-6))
    stock = resident(folder)
    draft = draft_folder(tiny_model, family, "perturbed", "fp32")
    with load(plan=SETTINGS[1].plan(folder, draft=draft, draft_len=4)) as engine:
        for prompt in PROMPTS:
            check_differs_only_at_near_ties(stock, prompt, generated(engine, prompt))


@pytest.mark.slow
@EVERY_FAMILY
def test_float32_tokens_are_those_of_generate_up_to_near_ties(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family)
    stock = resident(folder)
    for draft_len, kind, setting in GREEDY_SETTINGS:
        draft = draft_folder(tiny_model, family, kind, "fp32")
        with load(plan=setting.plan(folder, draft=draft, draft_len=draft_len)) as engine:
            for prompt in PROMPTS:
                check_differs_only_at_near_ties(stock, prompt, generated(engine, prompt, 30))


# --- state that cannot roll back ---


@EVERY_RECURRENT_FAMILY
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_recurrent_family_streams_bit_equal(family: str, dtype: Dtype, tiny_model: TinyModel) -> None:
    folder = tiny_model(family, dtype)
    steps = [[*range(20)], [7], [5], [3]]
    expected = stock_logits(resident(folder, dtype), steps)
    for setting in SETTINGS[1::2]:
        with streaming(folder, setting.plan(folder)) as streamed:
            assert are_equal(cached_logits(streamed, steps), expected), setting


@EVERY_RECURRENT_FAMILY
def test_recurrent_family_generates_without_a_draft_as_transformers_does(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family, "fp64")
    stock = resident(folder, "fp64")
    with load(plan=SETTINGS[1].plan(folder)) as engine:
        for prompt in (*PROMPTS, PROMPTS[0]):
            generation = engine.generate(prompt, max_tokens=NUM_TOKENS, verify=True)
            assert [piece.token_id for piece in generation] == stock_greedy(stock, prompt, NUM_TOKENS)
            verified = generation.report().verify
            assert verified is not None
            assert verified.passed


@EVERY_RECURRENT_FAMILY
def test_recurrent_target_with_a_draft_is_refused_by_name_before_loading(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family)
    with pytest.raises(BadInputError, match=rf"target, a {model_type(folder)}, cannot speculate\n  why: .*recurrent"):
        make_plan(folder, draft=tiny_model("llama"))


@EVERY_RECURRENT_FAMILY
def test_recurrent_draft_is_refused_by_name_before_loading(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family)
    with pytest.raises(BadInputError, match=rf"draft, a {model_type(folder)}, cannot speculate\n  why: .*recurrent"):
        make_plan(tiny_model("llama"), draft=folder)


@EVERY_RECURRENT_FAMILY
@pytest.mark.parametrize("role", ["target", "draft"])
def test_recurrent_model_in_a_plan_with_a_draft_is_refused_by_name(
    family: str, role: str, tiny_model: TinyModel
) -> None:
    recurrent, other = tiny_model(family), tiny_model("llama")
    target, draft = (recurrent, other) if role == "target" else (other, recurrent)
    shape = ModelShape.from_config(draft)
    chain = ChainDraft(model=str(draft), fingerprint=shape.fingerprint, draft_len=2, dtype="fp32")
    plan = recounted(placed(target), draft=chain)
    with pytest.raises(BadInputError, match=rf"{role}, a {model_type(recurrent)}, cannot speculate"):
        load(plan=plan)


def model_type(folder: Path) -> str:
    return ModelShape.from_config(folder).model_type
