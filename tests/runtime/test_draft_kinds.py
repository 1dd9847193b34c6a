"""Every kind of draft through the engine: the target's own text, what the report counts, corpora, and failures."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_models import FAMILIES, TinyModel, placed, recounted, resident, stock_greedy

from planner.contracts.copied_text import CORPUS_TOKEN_BYTES
from planner.contracts.errors import BadInputError, ResourceFailureError
from planner.contracts.plan import Plan, RoundCosts
from planner.drafting import Drafting, chain, ngram, tree
from runtime.api import corpus_texts, load, make_plan
from runtime.draft.corpus import Corpus, num_corpus_tokens
from runtime.engine import Engine
from runtime.proposal import Proposal
from runtime.sampling import SamplingSettings

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = (chain(7, (1, 3, 7)), ngram(12), tree(12, 4), tree(40, 6), tree(16, 5, "hybrid"))
EVERY_KIND = pytest.mark.parametrize("drafting", KINDS, ids=lambda drafting: drafting.label)
REPEATED = (7, 8, 9, 10, 11, 12, 13, 14) * 3
PROMPTS: tuple[tuple[int, ...], ...] = ((3, 1, 4, 1, 5), REPEATED)
NUM_TOKENS = 24
COSTS = RoundCosts(
    num_verified=(1, 8, 64),
    round_s=(1.0, 1.05, 2.0),
    hidden_s=(0.05, 0.05, 0.05),
    pass_nodes=(1, 8),
    draft_pass_s=(0.02, 0.04),
)


def plan_of(target: Path, draft: Path | None, drafting: Drafting, *, has_costs: bool = False) -> Plan:
    """A plan that streams all layers and drafts so."""
    plan = placed(target, draft=draft, context_tokens=96)
    drawn = make_plan(target, draft=draft, drafting=drafting, context_tokens=96).draft
    return recounted(plan, draft=drawn, round_costs=COSTS if has_costs else None)


def generated(engine: Engine, prompt: Sequence[int], sampling: SamplingSettings | None = None) -> list[int]:
    engine.end_tokens = frozenset()
    tokens = [piece.token_id for piece in engine.generate(prompt, max_tokens=NUM_TOKENS, sampling=sampling)]
    return [token for token in tokens if token is not None]


@EVERY_KIND
@pytest.mark.parametrize("has_costs", [False, True], ids=["filled", "as pays"])
def test_greedy_text_is_the_targets(drafting: Drafting, has_costs: bool, tiny_model: TinyModel) -> None:
    target, draft = tiny_model("llama", "fp64"), tiny_model("llama", "fp64", noise=0.1)
    stock = resident(target, "fp64")
    with load(plan=plan_of(target, draft, drafting, has_costs=has_costs)) as engine:
        for prompt in PROMPTS:
            assert generated(engine, prompt) == stock_greedy(stock, prompt, NUM_TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_the_targets_in_every_family(family: str, tiny_model: TinyModel) -> None:
    target = tiny_model(family, "fp64")
    stock = resident(target, "fp64")
    expected = [stock_greedy(stock, prompt, NUM_TOKENS) for prompt in PROMPTS]
    for noise in (0.0, 0.1):
        draft = tiny_model(family, "fp64", noise=noise)
        for drafting in KINDS:
            with load(plan=plan_of(target, draft, drafting)) as engine:
                assert [generated(engine, prompt) for prompt in PROMPTS] == expected, (noise, drafting.label)


@EVERY_KIND
def test_a_seed_repeats_a_sampled_run(drafting: Drafting, tiny_model: TinyModel) -> None:
    target, draft = tiny_model("llama"), tiny_model("llama", noise=0.1)
    sampling = SamplingSettings(temperature=0.9, top_k=30, seed=5)
    with load(plan=plan_of(target, draft, drafting, has_costs=True)) as engine:
        first, second = (generated(engine, REPEATED, sampling) for _ in range(2))
        assert first == second
        assert first != generated(engine, REPEATED, SamplingSettings(temperature=0.9, top_k=30, seed=6))


def test_report_counts_nodes_depths_and_copies(tiny_model: TinyModel) -> None:
    target, draft = tiny_model("llama", "fp64"), tiny_model("llama", "fp64", noise=0.05)
    with load(plan=plan_of(target, draft, tree(16, 5, "hybrid"))) as engine:
        engine.end_tokens = frozenset()
        generation = engine.generate(REPEATED, max_tokens=NUM_TOKENS)
        list(generation)
        report = generation.report()
    assert report.num_draft_tokens == sum(entry.num_draft_tokens for entry in report.rounds)
    assert max(entry.draft_depth or 0 for entry in report.rounds) == len(report.measured.survival or ()) <= 5
    assert any(entry.num_ngram_tokens for entry in report.rounds)
    for entry in report.rounds:
        assert entry.num_accepted_ngram_tokens <= min(entry.num_ngram_tokens, entry.num_accepted_tokens)
        assert entry.num_accepted_tokens <= (entry.draft_depth or 0) <= entry.num_draft_tokens <= 16


def test_what_a_corpus_holds_is_proposed(tiny_model: TinyModel) -> None:
    target, prompt = tiny_model("llama", "fp64"), PROMPTS[0]
    with load(plan=plan_of(target, None, ngram(12))) as engine:
        rounds = []
        expected = generated(engine, prompt)
        for corpus in (None, Corpus([(*prompt, *expected)])):
            engine.drafters.corpus = corpus
            generation = engine.generate(prompt, max_tokens=NUM_TOKENS)
            assert [piece.token_id for piece in generation] == expected
            rounds.append(generation.report().num_rounds)
    assert rounds[1] < rounds[0] / 2


@pytest.mark.parametrize(("content", "what"), [(b"", "empty"), (b"a\0b", "text"), (b"\xff\xfe\xfa", "text")])
def test_a_corpus_that_is_no_text_is_refused(content: bytes, what: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.bin"
    corpus.write_bytes(content)
    with pytest.raises(BadInputError, match=what):
        load(plan=plan_of(tiny_model("llama"), None, ngram(8)), ngram_corpus=[corpus])


def test_a_plan_covers_the_corpus_whether_it_knew_of_it_or_not(tiny_model: TinyModel, tmp_path: Path) -> None:
    target, file = tiny_model("llama"), tmp_path / "corpus.txt"
    file.write_text("ab" * 100)
    num_tokens = num_corpus_tokens(corpus_texts(target, [file]))
    without = make_plan(target, drafting=ngram(8), context_tokens=96)
    knowing = make_plan(target, drafting=ngram(8), context_tokens=96, corpus_tokens=num_tokens)
    more_bytes = num_tokens * CORPUS_TOKEN_BYTES
    assert knowing.memory.host_bytes == without.memory.host_bytes + more_bytes
    for plan in (without, knowing):
        with load(plan=plan, ngram_corpus=[file]) as engine:
            assert engine.plan == knowing
    with load(plan=without) as engine:
        assert engine.plan == without
    assert make_plan(target, context_tokens=96, corpus_tokens=num_tokens).corpus_tokens == 0  # nothing is copied


class Rubbish:
    """A drafter whose third proposal cannot be verified."""

    def __init__(self) -> None:
        self._num_proposed = 0

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        self._num_proposed += 1
        return Proposal.chain((10**9,) if self._num_proposed == 3 else ())

    def observe(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("may_fail", [False, True])
def test_a_draft_that_proposes_rubbish_ends_the_run_or_only_its_own_part(
    may_fail: bool, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny_model("llama", "fp64")
    expected = stock_greedy(resident(target, "fp64"), PROMPTS[0], NUM_TOKENS)
    monkeypatch.setattr("runtime.draft.of_plan.NgramDrafter", lambda **_: Rubbish())
    with load(plan=plan_of(target, None, ngram(8)), draft_may_fail=may_fail) as engine:
        engine.end_tokens = frozenset()
        generation = engine.generate(PROMPTS[0], max_tokens=NUM_TOKENS)
        if may_fail:
            assert [piece.token_id for piece in generation] == expected
            assert len(generation.report().warnings) == 1
            return
        emitted: list[int | None] = []
        with pytest.raises(ResourceFailureError, match="cannot be used") as caught:
            emitted.extend(piece.token_id for piece in generation)
    assert caught.value.exit_code == 6
    report = generation.report()
    assert report.finish_reason == "error"
    assert report.generated_tokens == 3
    assert json.loads(report.to_json())["text"] == report.text != ""
