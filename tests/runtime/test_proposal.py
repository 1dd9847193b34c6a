"""What a proposal says of its own shape."""

import torch

from runtime.proposal import NOTHING, ROOT, Proposal, Verdict


def test_a_chain_hangs_each_token_below_the_one_before_with_a_row_of_its_own() -> None:
    rows_KV = torch.rand(3, 5)
    chain = Proposal.chain([4, 0, 4], rows_KV)
    assert (chain.tokens, chain.parents, chain.sources) == ((4, 0, 4), (ROOT, 0, 1), ("model",) * 3)
    assert chain.row_of == (0, 1, 2)
    assert chain.rows_RV is rows_KV


def test_a_chain_without_rows_was_drawn_by_nobody() -> None:
    chain = Proposal.chain([4, 0], source="ngram")
    assert (chain.sources, chain.rows_RV, chain.row_of) == (("ngram", "ngram"), None, (None, None))


def test_only_a_proposal_in_which_each_node_follows_the_one_before_is_a_chain() -> None:
    assert Proposal((1, 2, 3), (ROOT, 0, 1), ("model",) * 3).is_chain
    assert not Proposal((1, 2, 3), (ROOT, 0, 0), ("model",) * 3).is_chain
    assert not Proposal((1, 2), (ROOT, ROOT), ("model",) * 2).is_chain


def test_depths_and_children_follow_from_the_parents() -> None:
    tree = Proposal((1, 2, 1, 5, 3, 7), (ROOT, 0, ROOT, 0, 2, 1), ("model",) * 6)
    assert tree.depths == (1, 2, 1, 2, 2, 3)
    assert tree.children == {ROOT: (0, 2), 0: (1, 3), 2: (4,), 1: (5,)}


def test_nothing_is_a_chain_of_no_token() -> None:
    assert (NOTHING, NOTHING.is_chain, NOTHING.depths, NOTHING.children) == (Proposal.chain([]), True, (), {})


def test_a_verdict_counts_the_nodes_on_its_path() -> None:
    assert [Verdict(path, 0).num_accepted for path in ((), (3,), (0, 4, 5))] == [0, 1, 3]
