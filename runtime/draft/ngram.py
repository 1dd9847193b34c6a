"""Drafting without a model: what followed where the text's end occurred before, in the text itself or in a corpus.

Candidates are taken best first from the longest match and, for what that one does not offer, from shorter ones; then
as many are proposed as pay for their verification. The text's own end is found again in O(1) amortised per token.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from planner.contracts.copied_text import MOST_TEXT_TOKENS
from runtime.draft.automaton import NO_MATCH, Match, RecentText, SuffixAutomaton
from runtime.draft.confidence import Confidence, cell_of
from runtime.draft.corpus import Corpus
from runtime.draft.costs import Costs, Rate, best_size
from runtime.proposal import NOTHING, ROOT, Proposal, Source, Verdict

_SOURCE: Source = "ngram"
_MOST_LEVELS = 2  # the longest match, and the next shorter one that offers more
_MOST_OFFERS = 8  # tokens that one match offers


@dataclass(frozen=True, slots=True)
class NodeCandidates:
    """Tokens that may follow, as the nodes of a tree: the most probable path first, each after its parent.

    `probs` are P(the target takes all of the path to the node).
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]  # indices of nodes, or ROOT
    probs: tuple[float, ...]


class _Offer(NamedTuple):
    """A token that a source offers after a node; `level` counts how many longer matches had their turn before."""

    token: int
    level: int
    cell: int
    prob: float  # P(the target takes it | the text reached the node)


class _Source:
    """One text to copy from, and how far its copies are to be trusted."""

    def __init__(self, text: SuffixAutomaton, min_match_tokens: int, vocab_size: int) -> None:
        self.text = text
        self.confidence = Confidence()
        self._min_match_tokens = min_match_tokens
        self._vocab_size = vocab_size

    def offers(self, match: Match, least_prob: float) -> list[_Offer]:
        """What followed a match, and what else followed a shorter one; nothing that is not above `least_prob`."""
        offers: list[_Offer] = []
        chance_left, level, seen = 1.0, 0, set[int]()
        most = 1.0  # of a level, the chance of its best offer
        while level < _MOST_LEVELS and match.length >= self._min_match_tokens and chance_left * most > least_prob:
            found = self.text.continuations(match)
            if seen:
                found = [pair for pair in found if pair[0] not in seen]
            if found:
                level_offers = self._level(match.length, found, level, chance_left, least_prob)
                for offer in level_offers:
                    chance_left -= offer.prob
                offers += level_offers
                level, most = level + 1, self.confidence.most_backoff
                if level < _MOST_LEVELS:
                    seen.update([token for token, _ in found])
            match = self.text.shorter(match)
        return offers

    def _level(
        self, length: int, found: Sequence[tuple[int, int]], level: int, chance_left: float, least_prob: float
    ) -> list[_Offer]:
        """The offers of one match, whose first continuation is the latest; of the others the rarest are cut first."""
        total = found[0][1] if len(found) == 1 else sum([count for _, count in found])
        offers = []
        is_latest = True
        for token, count in found[:_MOST_OFFERS]:
            cell = cell_of(length, count, total, is_latest, level > 0)
            prob = chance_left * self.confidence.prob(cell)
            if prob > least_prob:
                if token < self._vocab_size:
                    offers.append(_Offer(token, level, cell, prob))
            elif not is_latest:
                break
            is_latest = False
        return offers

    def learn(self, offers: Sequence[_Offer], token: int) -> None:
        """The target wrote `token` after a node with these offers; what had no turn before it is not judged."""
        last_level = next((offer.level for offer in offers if offer.token == token), _MOST_LEVELS)
        for offer in offers:
            if offer.level <= last_level:
                self.confidence.record(offer.cell, is_right=offer.token == token)


class _Tree:
    """Candidates grown best first, with all that was offered after each node that was looked beyond."""

    def __init__(self, sources: Sequence[_Source], matches: Sequence[Match]) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.probs: list[float] = []
        self.offers: dict[int, list[list[_Offer]]] = {}  # by node and source
        self.nodes: dict[tuple[int, int], int] = {}  # by parent and token
        self._depths: list[int] = []
        self._matches = {ROOT: list(matches)}
        self._sources = sources
        self._frontier: list[tuple[float, int, int, int]] = []  # chance, minus the order, parent, token; best last
        self._num_found = 0

    def grow(self, num_nodes: int, max_depth: int, least_prob: float) -> None:
        """Add nodes in the order of their chance, above `least_prob`; of equal ones the first found."""
        self._look_beyond(ROOT, 1.0, num_nodes, 0.0)
        while self._frontier and self._frontier[-1][0] > least_prob and len(self.tokens) < num_nodes:
            prob, _, parent, token = self._frontier.pop()
            node = len(self.tokens)
            depth = 1 if parent == ROOT else self._depths[parent] + 1
            self.tokens.append(token)
            self.parents.append(parent)
            self.probs.append(prob)
            self._depths.append(depth)
            self.nodes[parent, token] = node
            if depth < max_depth and node + 1 < num_nodes:
                matches = self._matches[parent]
                self._matches[node] = [s.text.step(m, token) for s, m in zip(self._sources, matches, strict=True)]
                self._look_beyond(node, prob, num_nodes - node - 1, least_prob)

    def _look_beyond(self, node: int, prob: float, num_left: int, least_prob: float) -> None:
        """Add what follows a node to the frontier, where it may still be one of the `num_left` best."""
        frontier = self._frontier
        if len(frontier) >= num_left:
            least_prob = max(least_prob, frontier[-num_left][0])
        if least_prob >= prob:
            return
        by_source = []
        chances: dict[int, float] = {}
        for source, match in zip(self._sources, self._matches[node], strict=True):
            offers = source.offers(match, least_prob / prob)
            by_source.append(offers)
            for token, _, _, chance in offers:
                chances[token] = max(chance, chances.get(token, 0.0))
        self.offers[node] = by_source
        for token, chance in chances.items():
            self._num_found += 1
            insort(frontier, (prob * chance, -self._num_found, node, token))


class NgramDrafter:
    """Proposes what followed earlier, for one request whose context only grows; the corpus is shared by requests."""

    def __init__(
        self,
        *,
        num_nodes: int,
        max_depth: int,
        min_match_tokens: int,
        costs: Costs,
        corpus: Corpus | None,
        vocab_size: int,
        most_tokens: int = MOST_TEXT_TOKENS,
    ) -> None:
        self._num_nodes = num_nodes
        self._max_depth = max_depth
        self._costs = costs
        self._least_node_s = costs.least_marginal_s(num_nodes)
        self._rate = Rate(costs)
        self._own = RecentText(most_tokens)
        self._num_followed = 0  # tokens of the context
        self._sources = [_Source(self._own.text, min_match_tokens, vocab_size)]
        self._corpus_match = NO_MATCH
        if corpus is not None:
            self._sources.append(_Source(corpus.text, min_match_tokens, vocab_size))
        self._tree = _Tree((), ())

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        """As many of the candidates as pay by the plan's costs, in a tree."""
        tree = self._grow(context, self._num_nodes, max_depth, self._rate.tokens_per_s * self._least_node_s)
        size = best_size(tree.probs, self._costs, self._rate)
        if size == 0:
            return NOTHING
        return Proposal(
            tokens=tuple(tree.tokens[:size]),
            parents=tuple(tree.parents[:size]),
            sources=(_SOURCE,) * size,
            row_of=(None,) * size,
        )

    def candidates(self, context: Sequence[int], num_nodes: int, max_depth: int) -> NodeCandidates:
        """The most probable nodes, whether they pay or not, down to none; to be proposed among others."""
        tree = self._grow(context, num_nodes, max_depth, 0.0)
        return NodeCandidates(tuple(tree.tokens), tuple(tree.parents), tuple(tree.probs))

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        """Learn from what the target wrote after the last context, whoever proposed it.

        A candidate is judged where the text reached its parent, proposed or not: there the target's token is known.
        All beyond the first token that no candidate foresaw is censored, and a round without candidates is no news.
        """
        emitted = (*(proposal.tokens[node] for node in verdict.path), verdict.next_token)
        tree, node = self._tree, ROOT
        for token in emitted:
            if node not in tree.offers:
                break
            for source, offers in zip(self._sources, tree.offers[node], strict=True):
                source.learn(offers, token)
            following = tree.nodes.get((node, token))
            if following is None:
                break
            node = following
        self._rate.observe(len(emitted), self._costs.round_s(1 + len(proposal.tokens)))

    def _grow(self, context: Sequence[int], num_nodes: int, max_depth: int, least_prob: float) -> _Tree:
        self._follow(context)
        matches = [self._own.longest_earlier()]
        if len(self._sources) > 1:
            matches.append(self._corpus_match)
        self._tree = _Tree(self._sources, matches)
        max_depth = min(max_depth, self._max_depth)
        if max_depth > 0:
            self._tree.grow(num_nodes, max_depth, least_prob)
        return self._tree

    def _follow(self, context: Sequence[int]) -> None:
        for token in context[self._num_followed :]:
            self._own.append(token)
            if len(self._sources) > 1:
                self._corpus_match = self._sources[1].text.step(self._corpus_match, token)
        self._num_followed = len(context)
        self._sources[0].text = self._own.text
