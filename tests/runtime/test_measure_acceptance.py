"""Recordings say what a live run would do: ranks, overlaps and matches, each against a computation of its own."""

import itertools
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_models import VOCAB_SIZE, TinyModel, copy_with_weights, placed, resident

from planner.contracts.profile import NUM_TOP_PROBS, AcceptanceRecording
from runtime.api import load
from runtime.engine import Engine
from runtime.measure.acceptance import RecordingLimits, record
from runtime.measure.matches import Match, longest_matches
from runtime.measure.prompts import Prompt

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = Prompt(domain="code", text="def of(x): return x")
LIMITS = RecordingLimits(prompt_tokens=64, new_tokens=24, stop_at_s=float("inf"), keeps_text=False)


def opened(target: Path, draft: Path, draft_len: int = 4) -> Engine:
    return load(plan=placed(target, dtype="fp64", draft=draft, draft_len=draft_len), draft=draft)


def recorded(engine: Engine, limits: RecordingLimits = LIMITS) -> list[AcceptanceRecording]:
    assert engine.draft is not None
    return record(engine, [("the draft", engine.draft)], PROMPT, limits)


def written(engine: Engine) -> tuple[list[int], list[int]]:
    """The prompt's tokens, and what the engine's target writes after them."""
    prompt = engine.tokenizer.encode(PROMPT.text)
    tokens = [token.token_id for token in engine.generate(prompt, max_tokens=LIMITS.new_tokens)]
    return prompt, [token for token in tokens if token is not None]


def test_ranks_probabilities_and_overlaps_are_those_of_the_stock_models(tiny_model: TinyModel) -> None:
    target, draft = tiny_model("llama", "fp64"), tiny_model("llama", "fp64", noise=0.3)
    with opened(target, draft) as engine:
        of_text, judged = recorded(engine)
        prompt, text = written(engine)
    with torch.inference_mode():
        rows = torch.tensor([[*prompt, *text]])
        target_TV, draft_TV = (
            resident(folder, "fp64")(rows).logits[0, len(prompt) - 1 : -1] for folder in (target, draft)
        )
    for index, token in enumerate(text):
        order = draft_TV[index].argsort(descending=True, stable=True).tolist()
        assert judged.ranks[index] == order.index(token)
        p, q = target_TV[index].softmax(-1), draft_TV[index].softmax(-1)
        assert judged.draft_probs[index] == pytest.approx(float(q[token]), rel=1e-3)
        assert judged.overlaps[index] == pytest.approx(float(torch.minimum(p, q).sum()), rel=1e-3)
        top = judged.top_probs[NUM_TOP_PROBS * index : NUM_TOP_PROBS * (index + 1)]
        assert top == pytest.approx(sorted(q.tolist(), reverse=True)[:NUM_TOP_PROBS], abs=1e-4)
        copied = brute_force([*prompt, *text], len(prompt) + index).token
        expected = 0.0 if copied is None else float(p[copied])
        assert of_text.match_probs[index] == pytest.approx(expected, abs=1e-4)
    assert any(of_text.match_probs)


def accepted_by_replay(ranks: Sequence[int], draft_len: int) -> list[int]:
    """Accepted tokens of each round after the first token, which comes out of the prefill."""
    hits, accepted, start = [rank == 0 for rank in ranks[1:]], [], 0
    while start < len(hits):
        drafted = hits[start : start + min(draft_len, len(hits) - start - 1)]
        accepted.append(len(list(itertools.takewhile(bool, drafted))))
        start += accepted[-1] + 1
    return accepted


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_replay_of_a_recording_is_the_acceptance_of_live_runs(family: str, tiny_model: TinyModel) -> None:
    target, draft = tiny_model(family, "fp64"), tiny_model(family, "fp64", noise=0.3)
    with opened(target, draft) as engine:
        _, judged = recorded(engine)
    for draft_len in range(1, 9):
        with opened(target, draft, draft_len) as engine:
            generation = engine.generate(engine.tokenizer.encode(PROMPT.text), max_tokens=LIMITS.new_tokens)
            list(generation)
            live = [entry.num_accepted_tokens for entry in generation.report().rounds]
        assert live == accepted_by_replay(judged.ranks, draft_len)
        assert any(live), "a draft that is never right shows nothing"


def test_draft_with_a_smaller_vocabulary_proposes_nothing_after_a_token_it_does_not_know(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    target = tiny_model("llama", "fp64")
    small = VOCAB_SIZE - 160

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            tensors[name] = tensors[name][:small].clone()

    draft = copy_with_weights(target, tmp_path / "draft", cut)
    config = json.loads((draft / "config.json").read_text(encoding="utf-8"))
    (draft / "config.json").write_text(json.dumps(config | {"vocab_size": small}), encoding="utf-8")
    with opened(target, draft) as engine:
        _, judged = recorded(engine)
        _, text = written(engine)
    first = next(index for index, token in enumerate(text) if token >= small)
    assert judged.ranks[:first] == (0,) * first  # the target's own weights
    assert set(judged.ranks[first:]) == {small}
    assert set(judged.draft_probs[first:]) == {0.0}
    assert judged.overlaps[first] < 1
    assert set(judged.overlaps[first + 1 :]) == {0.0}
    assert len(judged.ranks) == len(judged.overlaps) == len(text)
    assert set(judged.top_probs[NUM_TOP_PROBS * (first + 1) :]) == {0.0}
    assert len(judged.top_probs) == NUM_TOP_PROBS * len(text)


def test_text_is_kept_only_where_asked_for(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama", "fp64")
    with opened(folder, folder) as engine:
        assert all(recording.text is None for recording in recorded(engine))
        kept = RecordingLimits(prompt_tokens=64, new_tokens=24, stop_at_s=float("inf"), keeps_text=True)
        alone, judged = recorded(engine, kept)
    assert alone.text
    assert alone.fingerprint is None
    assert judged.fingerprint == "the draft"
    assert set(judged.ranks) == {0}
    assert len(alone.match_lengths) == len(judged.ranks)


def test_deadline_that_has_passed_records_nothing(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama", "fp64")
    late = RecordingLimits(prompt_tokens=64, new_tokens=24, stop_at_s=time.monotonic(), keeps_text=False)
    with opened(folder, folder) as engine:
        assert recorded(engine, late) == []


def brute_force(tokens: Sequence[int], position: int) -> Match:
    best, followers = 0, [-1]
    for other in range(1, position):
        length = 0
        while length < other and tokens[other - 1 - length] == tokens[position - 1 - length]:
            length += 1
        if length > best:
            best, followers = length, []
        if length and length == best:
            followers.append(tokens[other])
    share = followers.count(followers[-1]) / len(followers) if best else 0.0
    return Match(best, followers[-1] == tokens[position], share, followers[-1] if best else None)


@pytest.mark.parametrize("num_kinds", [1, 2, 3, 9])
def test_longest_matches_are_those_of_a_search_through_everything(num_kinds: int) -> None:
    generator = random.Random(num_kinds)
    for length in (2, 3, 7, 40):
        tokens = [generator.randrange(num_kinds) for _ in range(length)]
        for first in (1, length // 2 + 1):
            expected = [brute_force(tokens, position) for position in range(first, length)]
            assert longest_matches(tokens, first) == expected
