"""A drafting model follows the text by itself: whatever was accepted, it drafts what it would draft from scratch."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_models import VOCAB_SIZE, TinyModel, copy_with_weights, placed, resident, stock_greedy

from planner.contracts.model_folder import open_model_folder
from runtime.api import load
from runtime.cached import CachedModel
from runtime.checkpoint import Checkpoint
from runtime.draft import ChainDrafter
from runtime.model import StreamedModel, all_resident
from runtime.sampling import SamplingSettings, Uniforms, probability_rows
from runtime.skeleton import build_skeleton

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXT_TOKENS = 64


@contextmanager
def drafting(
    folder: Path, settings: SamplingSettings | None = None, *, vocab_size: int = VOCAB_SIZE, chunk_tokens: int = 6
) -> Iterator[ChainDrafter]:
    """A drafter with the model of a folder, all resident as drafts are."""
    opened = open_model_folder(folder)
    skeleton = build_skeleton(opened, "fp64")
    plan = all_resident(placed(folder), skeleton)
    settings = settings or SamplingSettings()
    with StreamedModel(skeleton, Checkpoint(opened, skeleton.model), plan) as streamed:
        yield ChainDrafter(
            CachedModel(streamed, CONTEXT_TOKENS),
            settings,
            Uniforms(settings.seed),
            vocab_size=vocab_size,
            chunk_tokens=chunk_tokens,
        )


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])  # full attention, sliding windows, both
def test_draft_after_any_accepted_prefix_is_the_models_own_greedy_text(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family, "fp64")
    stock = resident(folder, "fp64")
    context = [5, 6, 7]
    with drafting(folder) as drafter:
        for draft_len, num_accepted in ((4, 0), (4, 4), (1, 1), (8, 3), (8, 0), (2, 1), (8, 8), (4, 2)):
            drafted = drafter.propose(context, draft_len).tokens
            assert list(drafted) == stock_greedy(stock, context, draft_len)
            correction = (drafted[-1] + 11) % VOCAB_SIZE  # the target's own token, which the draft would not write
            context += [*drafted[:num_accepted], correction]


def test_draft_catches_up_with_a_context_of_any_length_in_chunks(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama", "fp64")
    stock = resident(folder, "fp64")
    for length in (1, 2, 5, 6, 7, 12, 13, 50):
        with drafting(folder, chunk_tokens=6) as drafter:
            context = list(range(length))
            assert list(drafter.propose(context, 3).tokens) == stock_greedy(stock, context, 3)


def test_draft_follows_a_context_that_was_replaced(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama", "fp64")
    stock = resident(folder, "fp64")
    with drafting(folder) as drafter:
        drafter.propose([1, 2, 3], 5)
        extended = [1, 2, 3, *range(200, 220)]
        assert list(drafter.propose(extended, 3).tokens) == stock_greedy(stock, extended, 3)


def test_draft_of_the_same_context_again_is_the_same(tiny_model: TinyModel) -> None:
    with drafting(tiny_model("llama", "fp64")) as drafter:
        drafted = drafter.propose([1, 2, 3], 5).tokens
        assert drafter.propose([1, 2, 3], 5).tokens == drafted
        assert drafter.propose([1, 2, 3, *drafted[:2]], 3).tokens == drafted[2:]


def test_draft_ends_with_its_own_context(tiny_model: TinyModel) -> None:
    with drafting(tiny_model("llama", "fp64")) as drafter:
        for room in (3, 1, 0):
            context = list(range(CONTEXT_TOKENS - room))
            assert len(drafter.propose(context, 8).tokens) == room
        assert drafter.propose(list(range(CONTEXT_TOKENS + 5)), 8).tokens == ()


def test_draft_proposes_nothing_when_nothing_is_wanted(tiny_model: TinyModel) -> None:
    with drafting(tiny_model("llama", "fp64")) as drafter:
        assert drafter.propose([1, 2], 0).tokens == ()


def expected_rows(
    folder: Path, context: Sequence[int], tokens: Sequence[int], settings: SamplingSettings
) -> torch.Tensor:
    """The rows (K, V) that each of the tokens is drawn from, by the stock model."""
    with torch.inference_mode():
        logits = resident(folder, "fp64")(torch.tensor([[*context, *tokens[:-1]]])).logits[0, len(context) - 1 :]
    return probability_rows(logits, settings)


def test_sampled_draft_comes_with_the_rows_it_was_drawn_from(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama", "fp64")
    settings = SamplingSettings(temperature=0.7, top_k=30, top_p=0.9, seed=4)
    context = [9, 8, 7]
    with drafting(folder, settings) as drafter:
        for _ in range(4):
            proposal = drafter.propose(context, 5)
            assert proposal.rows_RV is not None
            torch.testing.assert_close(proposal.rows_RV, expected_rows(folder, context, proposal.tokens, settings))
            assert all(row[token] > 0 for row, token in zip(proposal.rows_RV, proposal.tokens, strict=True))
            context += [*proposal.tokens[:2], 100]


@pytest.mark.parametrize("settings", [SamplingSettings(), SamplingSettings(temperature=2.0, seed=1)])
def test_draft_with_a_wider_table_proposes_nothing_beyond_the_targets(
    settings: SamplingSettings, tiny_model: TinyModel
) -> None:
    with drafting(tiny_model("llama", "fp64"), settings, vocab_size=100) as drafter:
        proposal = drafter.propose([1, 2, 3], 30)
    assert len(proposal.tokens) == 30
    assert max(proposal.tokens) < 100
    assert proposal.rows_RV is None or proposal.rows_RV.shape == (30, 100)


def narrower(folder: Path, to: Path, vocab_size: int) -> Path:
    """A copy of a model whose tables end earlier, as smaller models of a family often are padded less."""

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:vocab_size].clone()

    copy = copy_with_weights(folder, to, cut)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"vocab_size": vocab_size}), encoding="utf-8")
    return copy


def test_draft_with_a_narrower_table_pauses_where_it_cannot_follow(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tiny_model("llama", "fp64")
    draft = narrower(folder, tmp_path / "draft", 400)
    stock = resident(folder, "fp64")
    with load(plan=placed(folder, draft=draft)) as engine:
        for prompt, is_drafting in (([3, 399], True), ([3, 400], False), ([447, 5, 6], False)):
            generation = engine.generate(prompt, max_tokens=6)
            assert [piece.token_id for piece in generation] == stock_greedy(stock, prompt, 6)
            assert (generation.report().num_draft_tokens > 0) == is_drafting
