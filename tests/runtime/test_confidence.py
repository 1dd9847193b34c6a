"""Chances by match length and votes: the prior, what is learned, and that longer matches are never trusted less."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.contracts.copied_text import RIGHT_BY_LENGTH
from runtime.draft.confidence import MOST_LENGTH, Confidence, cell_of

SOLE_LENGTHS = range(1, MOST_LENGTH + 4)


def sole(match_tokens: int, num_votes: int = 1) -> int:
    """The cell of the only continuation of the longest match."""
    return cell_of(match_tokens, num_votes, num_votes, is_latest=True, is_backoff=False)


def split(match_tokens: int, num_votes: int, total_votes: int, *, is_latest: bool = False) -> int:
    return cell_of(match_tokens, num_votes, total_votes, is_latest=is_latest, is_backoff=False)


def backoff(match_tokens: int, num_votes: int, total_votes: int, *, is_latest: bool = False) -> int:
    return cell_of(match_tokens, num_votes, total_votes, is_latest=is_latest, is_backoff=True)


def test_prior_rises_with_the_match_and_with_the_votes() -> None:
    confidence = Confidence()
    by_length = [confidence.prob(sole(length)) for length in SOLE_LENGTHS]
    assert by_length == sorted(by_length)
    assert by_length[15:] == [by_length[15]] * len(by_length[15:])
    by_votes = [confidence.prob(sole(3, votes)) for votes in (1, 2, 3, 5, 50)]
    assert by_votes == sorted(by_votes)
    by_share = [confidence.prob(split(3, votes, 20)) for votes in range(1, 20)]
    assert by_share == sorted(by_share)
    assert all(0 < prob < 1 for prob in (*by_length, *by_votes, *by_share))


def test_prior_over_all_votes_is_about_the_measured_table() -> None:
    confidence = Confidence()
    for length, measured in enumerate(RIGHT_BY_LENGTH, start=1):
        least, most = confidence.prob(sole(length)), confidence.prob(sole(length, 3))
        assert least <= measured <= most
        assert least > measured - 0.18


def test_the_latest_continuation_is_trusted_more_than_an_older_one() -> None:
    confidence = Confidence()
    for cell_kind in (split, backoff):
        for votes in range(1, 10):
            older, latest = cell_kind(2, votes, 10), cell_kind(2, votes, 10, is_latest=True)
            assert confidence.prob(latest) > confidence.prob(older)


def test_cells_of_unlike_candidates_differ() -> None:
    cells = [
        *(sole(length, votes) for length in range(1, 17) for votes in (1, 2, 3, 5)),
        *(split(1, votes, 20, is_latest=latest) for votes in (1, 3, 5, 8, 11, 14, 17) for latest in (False, True)),
        *(backoff(1, votes, 20, is_latest=latest) for votes in (1, 3, 7, 12, 20) for latest in (False, True)),
    ]
    assert len(set(cells)) == len(cells)
    Confidence().prob(max(cells))


def test_what_is_recorded_moves_its_own_cell_towards_it() -> None:
    confidence = Confidence()
    cell, other = split(2, 1, 2), split(2, 1, 2, is_latest=True)
    before, other_before = confidence.prob(cell), confidence.prob(other)
    confidence.record(cell, is_right=True)
    assert before < confidence.prob(cell) < 1
    for _ in range(50):
        confidence.record(cell, is_right=False)
    assert 0 < confidence.prob(cell) < before
    assert confidence.prob(other) == other_before


def test_chance_becomes_the_share_of_right_ones_and_forgets_the_distant_past() -> None:
    confidence = Confidence()
    draw = random.Random(0)
    cell = sole(MOST_LENGTH)
    for share in (0.2, 0.9):
        for _ in range(30_000):
            confidence.record(cell, is_right=draw.random() < share)
        assert confidence.prob(cell) == pytest.approx(share, abs=0.03)


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=200))
def test_a_longer_match_is_never_trusted_less(observed: list[tuple[int, bool]]) -> None:
    confidence = Confidence()
    for length, is_right in observed:
        confidence.record(sole(length), is_right=is_right)
    probs = [confidence.prob(sole(length)) for length in SOLE_LENGTHS]
    assert probs == sorted(probs)
    assert all(0 < prob < 1 for prob in probs)


def test_no_backoff_candidate_has_a_larger_chance_than_the_bound_says() -> None:
    confidence = Confidence()
    for _ in range(30):
        confidence.record(backoff(2, 3, 4), is_right=True)
    cells = [backoff(length, 4, 8, is_latest=latest) for length in range(1, 17) for latest in (False, True)]
    chances = [confidence.prob(cell) for cell in (*cells, *(backoff(length, 3, 4) for length in range(1, 17)))]
    assert max(chances) <= confidence.most_backoff < 1


def test_violators_are_pooled_by_their_weight() -> None:
    confidence = Confidence()
    prior = [confidence.prob(sole(length)) for length in (1, 2, 3)]
    for _ in range(100):
        confidence.record(sole(2), is_right=False)
    first, second, third = (confidence.prob(sole(length)) for length in (1, 2, 3))
    assert first == second < prior[0]  # one pool of both
    assert third == prior[2]
