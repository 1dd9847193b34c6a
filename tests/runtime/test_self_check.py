"""A run scored again by teacher forcing (L5): right runs pass, and a single wrong token does not."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, VOCAB_SIZE, TinyModel, copy_with_weights, placed, resident, twin_rows
from torch import Tensor

import runtime
from planner.contracts.errors import ResourceFailureError, SelfCheckError
from planner.contracts.report import VerifyResult
from runtime.engine import Engine
from runtime.sampling import SamplingSettings
from runtime.self_check import verify_run

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = tuple(range(50, 62))
NUM_TOKENS = 12
GREEDY = SamplingSettings()
SAMPLED = SamplingSettings(temperature=0.8, top_k=20, seed=3)


@pytest.fixture
def engine(tiny_model: TinyModel) -> Iterator[Engine]:
    plan = placed(tiny_model("llama"), streamed_layers=(0, 2), draft=tiny_model("llama", noise=0.1))
    with runtime.load(plan=plan) as loaded:
        yield loaded


def emitted_by(engine: Engine, settings: SamplingSettings) -> list[int]:
    pieces = engine.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=settings)
    return [piece.token_id for piece in pieces if piece.token_id is not None]


def verified(engine: Engine, emitted: Sequence[int], settings: SamplingSettings, num_rows: int = 5) -> VerifyResult:
    return verify_run(engine.target, PROMPT, emitted, settings, num_rows)


def logits_after(engine: Engine, emitted: Sequence[int]) -> Tensor:
    """The row of logits (V) after the prompt and the tokens, from a whole resident model."""
    with torch.inference_mode():
        row: Tensor = resident(Path(engine.plan.target.name))(torch.tensor([[*PROMPT, *emitted]])).logits[0, -1]
    return row


# --- right runs pass ---


@pytest.mark.parametrize(
    ("family", "settings"),
    [*((family, GREEDY) for family in list(FAMILIES)[::2]), ("llama", SAMPLED), ("gemma2", SAMPLED)],
)
def test_right_run_passes(family: str, settings: SamplingSettings, tiny_model: TinyModel) -> None:
    plan = placed(tiny_model(family, "bf16"), streamed_layers=(0, 2), draft=tiny_model(family, "bf16", noise=0.1))
    with runtime.load(plan=plan) as engine:
        generation = engine.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=settings, verify=True)
        list(generation)
        result = generation.report().verify
    assert result is not None
    assert result.passed
    assert result.num_checked_tokens == NUM_TOKENS
    assert result.num_agreeing_tokens == NUM_TOKENS - len(result.near_ties)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 11, 12, 64])
def test_result_does_not_depend_on_the_rows_scored_at_a_time(num_rows: int, engine: Engine) -> None:
    emitted = emitted_by(engine, GREEDY)
    right = verified(engine, emitted, GREEDY, num_rows)
    assert (right.passed, right.num_agreeing_tokens, right.near_ties) == (True, NUM_TOKENS, ())
    wrong = verified(engine, [*emitted[:7], (emitted[7] + 1) % VOCAB_SIZE, *emitted[8:]], GREEDY, num_rows)
    assert not wrong.passed
    assert wrong.near_ties[0].position == 7


def test_one_emitted_token_after_a_prompt_of_one_is_scored(engine: Engine) -> None:
    (piece,) = engine.generate([7], max_tokens=1)
    assert piece.token_id is not None
    assert verify_run(engine.target, [7], [piece.token_id], GREEDY, 8).passed
    assert not verify_run(engine.target, [7], [piece.token_id ^ 1], GREEDY, 8).passed


def test_run_goes_on_rightly_after_it_was_verified(engine: Engine) -> None:
    expected = emitted_by(engine, GREEDY)
    list(engine.generate(PROMPT, max_tokens=NUM_TOKENS, verify=True))
    assert emitted_by(engine, GREEDY) == expected


# --- wrong runs do not ---


@pytest.mark.parametrize("position", range(NUM_TOKENS))
def test_runner_up_in_place_of_any_greedy_token_is_caught(position: int, engine: Engine) -> None:
    emitted = emitted_by(engine, GREEDY)
    runner_up = int(logits_after(engine, emitted[:position]).topk(2).indices[1])
    wrong = [*emitted[:position], runner_up, *emitted[position + 1 :]]
    result = verified(engine, wrong, GREEDY)
    assert not result.passed
    first = result.near_ties[0]
    assert (first.position, first.emitted_token, first.preferred_token) == (position, runner_up, emitted[position])
    assert first.logit_gap > result.allowed_logit_gap


@pytest.mark.parametrize("position", [0, 5, NUM_TOKENS - 1])
def test_sampled_token_that_could_not_be_drawn_is_caught(position: int, engine: Engine) -> None:
    emitted = emitted_by(engine, SAMPLED)
    assert verified(engine, emitted, SAMPLED).passed
    impossible = int(logits_after(engine, emitted[:position]).topk(21).indices[-1])  # top_k is 20
    wrong = [*emitted[:position], impossible, *emitted[position + 1 :]]
    result = verified(engine, wrong, SAMPLED)
    assert not result.passed
    assert result.near_ties[0].position == position


def test_run_of_other_weights_is_caught(engine: Engine, tiny_model: TinyModel) -> None:
    with runtime.load(plan=placed(tiny_model("llama", noise=0.02))) as other:
        emitted = emitted_by(other, GREEDY)
    assert not verified(engine, emitted, GREEDY).passed


# --- near-ties ---


def test_token_as_good_as_the_best_is_listed_as_a_near_tie_and_passes(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = copy_with_weights(tiny_model("llama"), tmp_path / "model", lambda tensors: twin_rows(tensors, 0.0))
    with runtime.load(plan=placed(folder)) as engine:
        emitted = emitted_by(engine, GREEDY)
        assert max(emitted) < VOCAB_SIZE // 2  # of equal logits the first is taken
        emitted[-1] += VOCAB_SIZE // 2
        result = verified(engine, emitted, GREEDY)
    assert result.passed
    assert result.num_agreeing_tokens == NUM_TOKENS - 1
    (tie,) = result.near_ties
    assert (tie.position, tie.emitted_token) == (NUM_TOKENS - 1, emitted[-1])
    assert (tie.preferred_token, tie.logit_gap) == (emitted[-1] - VOCAB_SIZE // 2, 0.0)


def test_token_short_of_the_best_by_more_than_rounding_fails(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = copy_with_weights(tiny_model("llama"), tmp_path / "model", lambda tensors: twin_rows(tensors, -1e-3))
    with runtime.load(plan=placed(folder)) as engine:
        emitted = emitted_by(engine, GREEDY)
        emitted[-1] = (emitted[-1] + VOCAB_SIZE // 2) % VOCAB_SIZE
        result = verified(engine, emitted, GREEDY)
    assert not result.passed
    assert 0 < result.allowed_logit_gap < result.near_ties[0].logit_gap < 0.1


# --- logits that are no numbers ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.layers.1.mlp.down_proj.weight", float("nan")),
        ("model.layers.2.self_attn.q_proj.weight", float("inf")),
        ("model.norm.weight", float("-inf")),
        ("lm_head.weight", float("nan")),
    ],
)
@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_damaged_weight_raises_before_any_token(
    name: str, value: float, settings: SamplingSettings, tiny_model: TinyModel, tmp_path: Path
) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[3] = value

    folder = copy_with_weights(tiny_model("llama"), tmp_path / "model", damage)
    with runtime.load(plan=placed(folder, draft=tiny_model("llama"))) as engine:
        generation = engine.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=settings)
        tokens = iter(generation)
        with pytest.raises(SelfCheckError, match=r"cannot be sampled\n  why: .*(NaN|inf)"):
            next(tokens)
        report = generation.report()
    assert (report.finish_reason, report.generated_tokens, report.text) == ("error", 0, "")


def test_damaged_draft_raises_instead_of_drafting_garbage(tiny_model: TinyModel, tmp_path: Path) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")

    draft = copy_with_weights(tiny_model("llama"), tmp_path / "draft", damage)
    with (
        runtime.load(plan=placed(tiny_model("llama"), draft=draft)) as engine,
        pytest.raises(ResourceFailureError, match=r"the draft failed\n  why: .*NaN"),
    ):
        list(engine.generate(PROMPT, max_tokens=NUM_TOKENS))


def damaged_for_a_later_token(model: Path, folder: Path) -> tuple[list[int], int]:
    """Writes the model with a damaged row of its embedding: what it writes undamaged, and where that token comes."""
    with runtime.load(plan=placed(model)) as engine:
        emitted = emitted_by(engine, GREEDY)
    position = next(n for n in range(3, NUM_TOKENS) if emitted[n] not in emitted[:n])

    def damage(tensors: dict[str, Tensor]) -> None:
        tensors["model.embed_tokens.weight"][emitted[position]] = float("nan")

    copy_with_weights(model, folder, damage)
    return emitted, position


@pytest.mark.parametrize("may_fail", [False, True])
def test_draft_that_is_damaged_for_a_later_token_keeps_the_text_so_far(
    may_fail: bool, tiny_model: TinyModel, tmp_path: Path
) -> None:
    emitted, _ = damaged_for_a_later_token(tiny_model("llama"), tmp_path / "draft")
    plan, written = placed(tiny_model("llama"), draft=tmp_path / "draft"), list[int | None]()
    ending = nullcontext() if may_fail else pytest.raises(ResourceFailureError, match="the draft failed")
    with runtime.load(plan=plan, draft_may_fail=may_fail) as engine, ending:
        for token in engine.generate(PROMPT, max_tokens=NUM_TOKENS):
            written.append(token.token_id)
    assert written == (emitted if may_fail else emitted[: len(written)])
    assert 0 < len(written) <= NUM_TOKENS - (not may_fail)


def test_damaged_row_of_the_embedding_raises_when_its_token_comes(tiny_model: TinyModel, tmp_path: Path) -> None:
    emitted, position = damaged_for_a_later_token(tiny_model("llama"), tmp_path / "model")
    with runtime.load(plan=placed(tmp_path / "model")) as engine:
        tokens = iter(engine.generate(PROMPT, max_tokens=NUM_TOKENS))
        assert [next(tokens).token_id for _ in range(position + 1)] == emitted[: position + 1]
        with pytest.raises(SelfCheckError, match="NaN"):
            next(tokens)
