"""`runtime generate` with every kind of draft: the same text, what the report says, and what is refused."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from commands import PROMPT, Command, refused

from planner.contracts.report import Report
from profiles import demo_folder
from runtime.api import corpus_texts
from runtime.draft.tree import TreeDrafter
from runtime.proposal import Proposal

FEW = ("--max-tokens", "24", "--dtype", "fp32", "--device-memory", "16MiB", "--threads", "1", "--raw")


@pytest.fixture
def generate(command: Command) -> Callable[..., Report]:
    def run(*options: str) -> Report:
        found = command("generate", PROMPT, "--json", *FEW, *options)
        assert found.code == 0, found.err
        return Report.model_validate_json(found.out)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("chain", ("--draft-tiers", "1,3,7")),
        ("tree", ("--draft-kind", "tree", "--draft-tree", "12")),
        ("ngram", ("--draft-kind", "ngram")),
        ("hybrid", ("--draft-kind", "hybrid")),
        ("none", ("--draft-kind", "none")),
    ],
)
def test_every_kind_writes_the_targets_text(
    kind: str, options: tuple[str, ...], generate: Callable[..., Report]
) -> None:
    report = generate(*options)
    assert report.plan.draft.kind == kind
    assert report.text == generate("--no-spec").text


@pytest.mark.slow
def test_statistics_name_the_kind_and_what_was_copied(command: Command) -> None:
    found = command("generate", PROMPT * 3, *FEW, "--draft-kind", "hybrid", "--draft-tree", "16")
    assert found.code == 0
    assert "hybrid: " in found.err
    assert "copied from earlier text" in found.err


@pytest.mark.parametrize(
    ("options", "code", "parts"),
    [
        (("--draft-tiers", "3,1"), 2, ("--draft-tiers", "ascend")),
        (("--draft-tiers", ""), 2, ("--draft-tiers",)),
        (("--draft-kind", "tree", "--draft-len", "4"), 2, ("--draft-kind tree",)),
        (("--draft-kind", "tree", "--draft-tree", "512", "--ctx-size", "64"), 2, ("larger than the context",)),
        (("--draft-kind", "ngram", "--ngram-corpus", "/nowhere/at/all"), 3, ("/nowhere/at/all",)),
    ],
    ids=["falling", "empty", "length of a tree", "too large", "unreadable"],
)
def test_what_contradicts_itself_is_refused(
    options: tuple[str, ...],
    code: int,
    parts: tuple[str, ...],
    command: Command,
) -> None:
    refused(command("generate", PROMPT, *FEW, *options), code, *parts)


def test_a_binary_corpus_is_refused(command: Command, tmp_path: Path) -> None:
    corpus = tmp_path / "weights.bin"
    corpus.write_bytes(b"\0\1\2")
    refused(command("generate", PROMPT, *FEW, "--draft-kind", "ngram", "--ngram-corpus", str(corpus)), 3, "weights.bin")


def test_a_corpus_may_be_longer_than_the_models_context(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    corpus = tmp_path / "earlier.txt"
    corpus.write_text("the quick brown fox " * 1000)  # the demo target's context has 2,048 tokens
    (tokens,) = corpus_texts(demo_folder("target"), [corpus])
    assert len(tokens) > 2048
    assert "sequence length" not in caplog.text


@pytest.mark.slow
def test_a_corpus_that_no_draft_copies_from_is_said_to_be_unused(command: Command, tmp_path: Path) -> None:
    corpus = tmp_path / "earlier.txt"
    corpus.write_text("the quick brown fox")
    found = command("generate", PROMPT, *FEW, "--json", "--draft-len", "2", "--ngram-corpus", str(corpus))
    assert found.code == 0
    assert "--ngram-corpus is not used" in found.err
    assert json.loads(found.out)["plan"]["draft"]["kind"] == "chain"


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--json",), ("--draft-may-fail",)], ids=["text", "json", "may fail"])
def test_a_draft_that_fails_leaves_the_text_so_far(
    options: tuple[str, ...],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = (*FEW, "--profile", "none", "--draft-kind", "tree")
    whole = command("generate", PROMPT, *planned).out
    propose, num_proposals = TreeDrafter.propose, 0

    def failing(drafter: TreeDrafter, context: Sequence[int], max_depth: int) -> Proposal:
        nonlocal num_proposals
        num_proposals += 1
        if num_proposals == 3:
            raise RuntimeError("the draft broke")
        return propose(drafter, context, max_depth)

    monkeypatch.setattr(TreeDrafter, "propose", failing)
    found = command("generate", PROMPT, *planned, *options)
    assert "the draft broke" in found.err
    if "--draft-may-fail" in options:
        assert found.code == 0
        assert found.out == whole
        return
    assert found.code == 6
    assert "--draft-may-fail" in found.err
    text = found.report.text if "--json" in options else found.out
    assert whole.startswith(text.rstrip("\n"))
    assert 0 < len(text) < len(whole)
