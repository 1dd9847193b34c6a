"""A suffix automaton over tokens, grown token by token: where the text's end, or another text's, occurred before.

Covers the longest match, the continuations of every match with their counts, and a cap on what is remembered. What a
match is worth is not judged here. Plain Python and flat arrays; appending is O(1) amortised.

Source: Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text".
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import NamedTuple

SEPARATOR = -1  # as a token: no context holds it, so that no match runs across it
ROOT_STATE = 0

_NONE = -1  # as a state
_NO_TOKEN = -2
_MOST_COUNTED_STATES = 32
_MOST_OLD_CHILDREN = 24
_MOST_NEW_CHILDREN = 8
_MOST_RANKED_STATES = 4096  # whose continuations are kept at hand; 10 MB at the most


class Match(NamedTuple):
    """A state of an automaton, and how many of the context's last tokens occurred there."""

    state: int
    length: int


NO_MATCH = Match(ROOT_STATE, 0)


class SuffixAutomaton:
    """All substrings of the tokens appended so far; those that end at the same places share a state.

    Counts are of occurrences that have a continuation, and are exact for the 32 longest of the states that end at a
    place; in text that repeats itself more often than that, those of shorter matches lag behind.
    """

    def __init__(self) -> None:
        self.tokens = array("i")
        self._length = array("i", [0])
        self._link = array("i", [_NONE])
        self._count = array("i", [0])
        self._end_idx = array("i", [_NONE])  # of the most recent counted occurrence, its last token
        self._edge_token = array("i", [_NO_TOKEN])  # the only edge of a state that has one
        self._edge_state = array("i", [_NONE])
        self._edges: dict[int, dict[int, int]] = {}  # all edges of a state that has several, the oldest first
        self._last = ROOT_STATE
        self._ranked: dict[int, list[tuple[int, int]]] = {}  # what was asked for since the text last grew

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, token: int) -> None:
        """Let the text go on by a token."""
        self._ranked.clear()
        self._count_end()
        new = self._add_state(self._length[self._last] + 1, ROOT_STATE, 0, _NONE)
        self.tokens.append(token)
        state = self._last
        self._last = new
        edges, edge_token, edge_state = self._edges, self._edge_token, self._edge_state
        while state != _NONE:
            branches = edges.get(state)
            if branches is not None:
                known = branches.get(token, _NONE)
                if known != _NONE:
                    break
                branches[token] = new
            elif edge_token[state] == token:
                known = edge_state[state]
                break
            elif edge_token[state] == _NO_TOKEN:
                edge_token[state], edge_state[state] = token, new
            else:
                edges[state] = {edge_token[state]: edge_state[state], token: new}
            state = self._link[state]
        else:
            return
        if self._length[known] != self._length[state] + 1:
            known = self._split(state, token, known)
        self._link[new] = known

    def longest_earlier(self) -> Match:
        """The longest suffix of the text that also occurred before its end; it may overlap itself."""
        state = self._link[self._last]
        return NO_MATCH if state == _NONE else Match(state, self._length[state])

    def step(self, match: Match, token: int) -> Match:
        """The longest suffix of the matched tokens and one more that the text holds."""
        state, length = match
        while (following := self._next(state, token)) == _NONE:
            state = self._link[state]
            if state == _NONE:
                return NO_MATCH
            length = self._length[state]
        return Match(following, length + 1)

    def shorter(self, match: Match) -> Match:
        """The longest suffix of a match that occurred in more places; the empty one of the empty one."""
        state = self._link[match.state]
        return NO_MATCH if state == _NONE else Match(state, self._length[state])

    def continuations(self, match: Match) -> Sequence[tuple[int, int]]:
        """The tokens that followed a match with their counts: the most recent one, then by count and recency.

        Of more than 32 tokens only the 24 that followed first and the 8 that did so last are looked at.
        """
        state, counts, ends = match.state, self._count, self._end_idx
        branches = self._edges.get(state)
        if branches is None:
            token = self._edge_token[state]
            return [(token, counts[self._edge_state[state]] or 1)] if token >= 0 else []
        known = self._ranked.get(state)
        if known is not None:
            return known
        children: Iterable[tuple[int, int]] = branches.items()
        if len(branches) > _MOST_OLD_CHILDREN + _MOST_NEW_CHILDREN:
            newest = islice(reversed(branches.items()), _MOST_NEW_CHILDREN)
            children = chain(islice(branches.items(), _MOST_OLD_CHILDREN), newest)
        latest = self.tokens[ends[state] + 1]
        ranked = [(token == latest, counts[after] or 1, ends[after], token) for token, after in children if token >= 0]
        ranked.sort(reverse=True)
        if len(self._ranked) >= _MOST_RANKED_STATES:
            self._ranked.clear()
        self._ranked[state] = [(token, count) for _, count, _, token in ranked]
        return self._ranked[state]

    def _next(self, state: int, token: int) -> int:
        branches = self._edges.get(state)
        if branches is not None:
            return branches.get(token, _NONE)
        return self._edge_state[state] if self._edge_token[state] == token else _NONE

    def _count_end(self) -> None:
        """The text's end, which is now followed by a token, counts as an occurrence of its suffixes."""
        end_idx = len(self.tokens) - 1
        state = self._last
        for _ in range(_MOST_COUNTED_STATES):
            if state <= ROOT_STATE:
                return
            self._count[state] += 1
            self._end_idx[state] = end_idx
            state = self._link[state]

    def _add_state(self, length: int, link: int, count: int, end_idx: int) -> int:
        self._length.append(length)
        self._link.append(link)
        self._count.append(count)
        self._end_idx.append(end_idx)
        self._edge_token.append(_NO_TOKEN)
        self._edge_state.append(_NONE)
        return len(self._length) - 1

    def _split(self, state: int, token: int, known: int) -> int:
        """A state of the shorter suffixes of `known`, which from now on end in more places than the longer ones."""
        short = self._add_state(self._length[state] + 1, self._link[known], self._count[known], self._end_idx[known])
        branches = self._edges.get(known)
        if branches is not None:
            self._edges[short] = branches.copy()
        else:
            self._edge_token[short], self._edge_state[short] = self._edge_token[known], self._edge_state[known]
        self._link[known] = short
        while state != _NONE and self._next(state, token) == known:
            branches = self._edges.get(state)
            if branches is not None:
                branches[token] = short
            else:
                self._edge_state[state] = short
            state = self._link[state]
        return short


class RecentText:
    """The automaton of a text that grows: of its last tokens, where it has more than `most_tokens`.

    A second automaton begins whenever the first is half full and takes its place when that is full, so that between a
    half of `most_tokens` and all of them are remembered, every append is O(1) amortised, and none rebuilds anything.
    Memory: below `TEXT_BYTES` for each of `most_tokens`; random text of two letters takes 470 bytes, natural
    text 200.
    """

    def __init__(self, most_tokens: int) -> None:
        self.text = SuffixAutomaton()
        self._next = SuffixAutomaton()
        self._most_tokens = most_tokens
        assert most_tokens >= 2, "half of the tokens are always remembered"

    def append(self, token: int) -> None:
        """Let the text go on by a token."""
        if len(self.text) >= self._most_tokens:
            self.text, self._next = self._next, SuffixAutomaton()
        if 2 * len(self.text) >= self._most_tokens:
            self._next.append(token)
        self.text.append(token)

    def longest_earlier(self) -> Match:
        """The longest suffix of the text that also occurred before, as far as is remembered."""
        return self.text.longest_earlier()
