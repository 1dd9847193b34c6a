"""The suffix automaton against a search by hand: longest matches, counts, continuations, other texts, and its caps."""

import random
import tracemalloc
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.contracts.copied_text import TEXT_BYTES
from runtime.draft.automaton import (
    NO_MATCH,
    ROOT_STATE,
    SEPARATOR,
    Match,
    RecentText,
    SuffixAutomaton,
)

repetitive_texts = st.integers(1, 3).flatmap(lambda letters: st.lists(st.integers(0, letters), max_size=60))


def automaton_of(tokens: Sequence[int]) -> SuffixAutomaton:
    text = SuffixAutomaton()
    for token in tokens:
        text.append(token)
    return text


def ends_of(tokens: Sequence[int], part: Sequence[int]) -> list[int]:
    """Where a part of the text ends, the index of its last token, wherever another token follows."""
    size = len(part)
    return [start + size - 1 for start in range(len(tokens) - size) if list(tokens[start : start + size]) == list(part)]


def longest_suffix_in(tokens: Sequence[int], context: Sequence[int]) -> int:
    """How many of the context's last tokens occur in the text, its end included."""
    for size in range(len(context), 0, -1):
        part = list(context[-size:])
        if any(list(tokens[start : start + size]) == part for start in range(len(tokens) - size + 1)):
            return size
    return 0


@given(repetitive_texts)
def test_longest_earlier_match_is_the_longest_suffix_that_something_follows(tokens: list[int]) -> None:
    text = SuffixAutomaton()
    for num_tokens, token in enumerate(tokens, start=1):
        text.append(token)
        seen = tokens[:num_tokens]
        sizes = [size for size in range(1, num_tokens) if ends_of(seen, seen[-size:])]
        assert text.longest_earlier().length == max(sizes, default=0)


@given(repetitive_texts)
def test_continuations_are_those_of_all_occurrences_the_latest_first(tokens: list[int]) -> None:
    text = automaton_of(tokens)
    match = text.longest_earlier()
    while match.length > 0:
        ends = ends_of(tokens, tokens[-match.length :])
        found = text.continuations(match)
        assert {token for token, _ in found} == {tokens[end + 1] for end in ends}
        assert found[0][0] == tokens[ends[-1] + 1]
        match = text.shorter(match)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=25))
def test_counts_are_those_of_continued_occurrences(tokens: list[int]) -> None:
    text = automaton_of(tokens)  # so short that no count is bounded
    match = text.longest_earlier()
    while match.length > 0:
        part = tokens[-match.length :]
        expected = {
            token: max(1, len(ends_of(tokens, [*part, token])))
            for token in Counter(tokens[end + 1] for end in ends_of(tokens, part))
        }
        assert dict(text.continuations(match)) == expected
        others = [count for _, count in text.continuations(match)[1:]]
        assert others == sorted(others, reverse=True)
        match = text.shorter(match)


@given(repetitive_texts, repetitive_texts)
def test_cursor_follows_another_text_by_its_longest_match(tokens: list[int], context: list[int]) -> None:
    text = automaton_of(tokens)
    match = NO_MATCH
    for num_read, token in enumerate(context, start=1):
        match = text.step(match, token)
        assert match.length == longest_suffix_in(tokens, context[:num_read])


@given(repetitive_texts)
def test_shorter_matches_end_in_more_places_down_to_none(tokens: list[int]) -> None:
    text = automaton_of(tokens)
    match, num_places = text.longest_earlier(), 0
    while match.length > 0:
        ends = ends_of([*tokens, 0], tokens[-match.length :])
        assert len(ends) > num_places
        match, num_places = text.shorter(match), len(ends)
    assert match == text.shorter(match) == Match(ROOT_STATE, 0)


def test_counts_of_short_matches_lag_where_a_text_repeats_itself_more_often_than_is_counted() -> None:
    text = automaton_of([7] * 101)
    lengths = {}
    match = text.longest_earlier()
    while match.length > 0:
        lengths[match.length] = dict(text.continuations(match))[7]
        match = text.shorter(match)
    assert lengths[98] == 2  # 99 tokens end at two of the 100 places that another token follows
    assert lengths[1] == 32  # 2 tokens end at 99 of them, and are among the 32 longest at the first 32


def test_separator_ends_every_match_and_is_no_continuation() -> None:
    text = automaton_of([1, 2, 3, SEPARATOR, 1, 2, 4, SEPARATOR, 3, 1, SEPARATOR])
    match = NO_MATCH
    for token in (1, 2):
        match = text.step(match, token)
    assert match.length == 2
    assert dict(text.continuations(match)) == {3: 1, 4: 1}
    assert text.step(match, 3).length == 3
    assert text.continuations(text.step(match, 3)) == []
    assert text.step(text.step(match, 3), 1).length == 2  # 3 1 of the third text, not 1 2 3 | 1


def test_continuations_asked_for_before_change_with_the_text() -> None:
    text = automaton_of([1, 2, 1, 3, 1])
    assert text.continuations(text.longest_earlier()) == [(3, 1), (2, 1)]
    for token in (2, 1):
        text.append(token)
    assert text.continuations(text.shorter(text.longest_earlier())) == [(2, 2), (3, 1)]


def test_of_many_continuations_the_first_and_the_last_are_looked_at() -> None:
    tokens = [token for follower in range(1, 101) for token in (0, follower)]
    text = automaton_of([*tokens, 0])
    found = [token for token, _ in text.continuations(text.longest_earlier())]
    assert found[0] == 100
    assert sorted(found) == [*range(1, 25), *range(93, 101)]


@given(repetitive_texts, st.integers(2, 20))
def test_recent_text_matches_within_the_half_that_it_always_remembers(tokens: list[int], most_tokens: int) -> None:
    recent = RecentText(most_tokens)
    for num_tokens, token in enumerate(tokens, start=1):
        recent.append(token)
        seen = tokens[:num_tokens]
        assert list(recent.text.tokens) == seen[-len(recent.text) :]
        assert min(num_tokens, most_tokens // 2) <= len(recent.text) <= most_tokens
        remembered = seen[-len(recent.text) :]
        assert recent.longest_earlier() == automaton_of(remembered).longest_earlier()


@pytest.mark.parametrize("num_letters", [2, 3, 16, 50_000])
def test_memory_stays_below_the_stated_bytes_per_token(num_letters: int) -> None:
    draw = random.Random(num_letters)
    most_tokens = 2000
    tokens = [draw.randrange(num_letters) for _ in range(3 * most_tokens)]
    tracemalloc.start()
    try:
        start_bytes = tracemalloc.get_traced_memory()[0]
        recent = RecentText(most_tokens)
        for token in tokens:
            recent.append(token)
        peak_bytes = tracemalloc.get_traced_memory()[1] - start_bytes
    finally:
        tracemalloc.stop()
    assert most_tokens * 28 < peak_bytes <= most_tokens * TEXT_BYTES
