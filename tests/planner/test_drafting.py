"""What the command line's words for drafts stand for, and what contradicts itself."""

import pytest
from made_up import DRAFT

from planner.contracts.errors import UsageError
from planner.contracts.plan import ChainDraft, HybridDraft, NgramDraft, NoDraft, SelfDraft, TreeDraft
from planner.drafting import (
    EVERY_DRAFTING,
    EVERY_TREE,
    NO_DRAFTING,
    Drafting,
    chain,
    drafting_of,
    draftings_for,
    ngram,
    static,
    tree,
)


@pytest.mark.parametrize("drafting", [NO_DRAFTING, chain(5), chain(7, (1, 3, 7)), tree(32, 8), ngram(16)])
def test_a_plans_draft_is_read_back_as_what_it_was_made_of(drafting: Drafting) -> None:
    assert drafting_of(drafting.of(DRAFT, "bf16", 0)) == drafting


def test_each_kind_becomes_its_variant_of_the_plan() -> None:
    variants = (NoDraft, ChainDraft, NgramDraft, TreeDraft, HybridDraft)
    for drafting, variant in zip(
        (NO_DRAFTING, chain(3), ngram(8), tree(16, 4), tree(16, 4, "hybrid")), variants, strict=True
    ):
        assert isinstance(drafting.of(DRAFT, "fp32", 0), variant)
    assert isinstance(tree(16, 4).of(None, "fp32", 0), NoDraft), "there is no draft model"


def test_trees_are_never_deeper_than_they_have_nodes() -> None:
    assert all(entry.max_depth <= entry.num_nodes and entry.pass_nodes <= entry.num_nodes for entry in EVERY_TREE)
    assert tree(4, 8).max_depth == 4


def test_nothing_stated_leaves_everything_to_the_planner() -> None:
    assert draftings_for(None) == EVERY_DRAFTING
    assert draftings_for("auto") == EVERY_DRAFTING


def test_what_is_stated_is_all_there_is() -> None:
    assert draftings_for(None, draft_len=6) == (chain(6),)
    assert draftings_for("chain", tiers="1,3,7,15") == (chain(15, (1, 3, 7, 15)),)
    assert {entry.kind for entry in draftings_for("tree")} == {"tree"}
    assert {(entry.kind, entry.num_nodes) for entry in draftings_for("hybrid", num_nodes=20)} == {("hybrid", 20)}
    assert {entry.kind for entry in draftings_for(None, num_nodes=20)} == {"tree", "hybrid", "ngram"}
    assert draftings_for("none") == (NO_DRAFTING,)
    assert draftings_for(None, num_nodes=6, is_static=True) == (static(tree(6, 4)),)
    assert {(entry.kind, entry.is_static) for entry in draftings_for("tree", is_static=True)} == {("tree", True)}


@pytest.mark.parametrize(
    "stated", [{"draft_len": 4}, {"num_nodes": 16}, {"tiers": "1,3"}, {"kind": "tree"}, {"kind": "auto"}]
)
def test_never_drafting_and_a_draft_do_not_go_together(stated: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="--no-spec with a kind of draft"):
        draftings_for(**{"kind": None, "no_spec": True, **stated})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "sizes", "what"),
    [
        ("tree", {"draft_len": 4}, "--draft-kind tree"),
        (None, {"draft_len": 4, "num_nodes": 8}, "--draft-tree"),
        ("chain", {"num_nodes": 8}, "--draft-kind chain"),
        (None, {"draft_len": 4, "tiers": "1,2"}, "tiers"),
        ("hybrid", {"is_static": True}, "--draft-static"),
        (None, {"is_static": True, "draft_len": 4}, "--draft-static"),
    ],
)
def test_sizes_of_another_kind_are_refused(kind: str | None, sizes: dict[str, int | str], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        draftings_for(kind, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("tiers", ["", "3,1", "1,1", "0,2", "1,x", "1,65", "-1,2", "1;2"])
def test_tiers_that_do_not_ascend_within_bounds_are_refused(tiers: str) -> None:
    with pytest.raises(UsageError, match="is no list of lengths"):
        draftings_for("chain", tiers=tiers)


def test_a_draft_by_the_targets_own_layers_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="own layers"):
        drafting_of(SelfDraft(num_layers=2, draft_len=4))
