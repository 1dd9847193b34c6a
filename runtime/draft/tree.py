"""A tree drafted by a smaller model with the target's tokens, best first; copies of earlier text may be part of it.

Each pass of the draft takes the most probable nodes that it has not seen yet. Sampled trees are drawn without
replacement, and exact for the reasons that `runtime.draft.growth` gives.

Shapes: W nodes fed in one pass, K most probable tokens of a row, R rows of the proposal, P parents, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from planner.contracts.plan import ProbabilityCurve, RankPath
from runtime.cached import CachedModel
from runtime.draft.costs import Costs
from runtime.draft.draws import draw_children
from runtime.draft.follow import FollowingModel
from runtime.draft.growth import Floats, Ints, Node, TreeGrowth, calibrated
from runtime.draft.ngram import NodeCandidates
from runtime.draft.static_tree import StaticGrowth
from runtime.draft.stop import Foresight, StopRule
from runtime.proposal import NOTHING, ROOT, Proposal, Verdict
from runtime.sampling import SamplingSettings, Uniforms, probability_rows

_TOP_TOKENS = range(8, 33)  # as many of each row come to the host as a tree has nodes, within these bounds


class Seeder(Protocol):
    """Copies of earlier text as the start of a tree, as an `NgramDrafter` finds them."""

    def candidates(self, context: Sequence[int], num_nodes: int, max_depth: int) -> NodeCandidates:
        """The most probable ones."""

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        """What became of the last proposal."""


class TreeDrafter:
    """Drafts a tree with a model of its own, whose cache follows the context by itself.

    One child per node, one node per pass and as many nodes as levels make it a `ChainDrafter`, token for token.
    """

    def __init__(
        self,
        model: CachedModel,
        settings: SamplingSettings,
        uniforms: Uniforms,
        *,
        vocab_size: int,
        chunk_tokens: int,
        num_nodes: int,
        max_depth: int,
        pass_nodes: int,
        most_children: int | None = None,
        calibration: ProbabilityCurve | None = None,
        costs: Costs | None = None,
        ngram: Seeder | None = None,
        paths: Sequence[RankPath] = (),
    ) -> None:
        """`costs` None: every tree is filled; else it ends where more does not pay. `paths`: it is always that one."""
        assert not (paths and ngram), "a tree of one shape has no room for copies"
        self._following = FollowingModel(model, vocab_size=vocab_size, chunk_tokens=chunk_tokens)
        self._settings = settings
        self._uniforms = uniforms
        self._num_nodes = num_nodes
        self._max_depth = max_depth
        self._pass_nodes = pass_nodes
        self._most_children = most_children
        self._calibration = calibration
        self._ngram = ngram
        self._paths = tuple(paths)
        most_ranks = 1 + max((rank for path in paths for rank in path), default=0)
        num_top = min(max(num_nodes, _TOP_TOKENS.start, most_ranks), _TOP_TOKENS.stop - 1)
        self._num_top = min(num_top, self._following.vocab_size)
        start_row = () if calibration is None else calibration.by_rank_frac
        self._stop = None if costs is None or paths else StopRule(costs, self._num_top, start_row)
        self._foresight = Foresight()
        self._rows: list[Tensor] = []  # (V) of every row of this tree, when sampling

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        """The tree's paths, no deeper than `max_depth`; sampled ones with the rows that they were drawn from."""
        most_depth = max(0, max_depth)  # of copies
        model_depth = min(most_depth, self._max_depth, self._following.room(context)) if most_depth else 0
        growth = self._growth(model_depth)
        self._rows = []
        if self._ngram is not None:
            seeds = self._ngram.candidates(context, self._num_nodes, most_depth)
            growth.seed(seeds.tokens, seeds.parents, seeds.probs)
        if self._stop is not None:
            self._stop.start_round()
        if model_depth > 0 and self._pays(growth, [growth.root]):
            self._add_rows(growth, [growth.root], self._following.row_after(context))
            self._grow(growth, model_depth - 1)
        return self._proposal(growth)

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        """How fast the run is, and how often copies are right; what was accepted the next context says."""
        if self._stop is not None:
            self._stop.end_round(len(proposal.tokens), verdict.num_accepted + 1)
        self._foresight.observe(proposal, verdict)
        if self._ngram is not None:
            self._ngram.observe(proposal, verdict)

    def _growth(self, model_depth: int) -> TreeGrowth:
        is_sampled = not self._settings.is_greedy
        if self._paths:
            return StaticGrowth(self._paths, model_depth, is_sampled=is_sampled)
        return TreeGrowth(self._num_nodes, model_depth, is_sampled=is_sampled, most_children=self._most_children)

    def _grow(self, growth: TreeGrowth, most_passes: int) -> None:
        """Expand nodes wave by wave, until none is left, no further wave pays, or the passes are used up."""
        following = self._following
        for passes_left in range(most_passes, 0, -1):
            room = following.model.most_nodes - following.num_nodes
            fair_share = -(-room // passes_left)  # of what the cache holds, so that the tree can reach its depth
            wave = growth.next_wave(min(self._pass_nodes, fair_share), following.model.streamed.vocab_size)
            if not wave or not self._pays(growth, wave):
                return
            self._draw(growth.settle(wave))
            places = {node: place for place, node in enumerate(wave, start=following.num_nodes)}
            tokens = [node.token for node in wave if node.token is not None]
            parents = [_fed_place(node.parent, places) for node in wave]
            self._add_rows(growth, wave, following.feed_nodes(tokens, parents))

    def _pays(self, growth: TreeGrowth, wave: Sequence[Node]) -> bool:
        return self._stop is None or self._stop.pays(growth, wave)

    def _add_rows(self, growth: TreeGrowth, nodes: Sequence[Node], logits_WV: Tensor) -> None:
        if self._settings.is_greedy:
            probs_WV = logits_WV.to(torch.promote_types(logits_WV.dtype, torch.float32)).softmax(dim=-1)
        else:
            probs_WV = probability_rows(logits_WV, self._settings)
            self._rows.extend(probs_WV.unbind())
        top = top_of_rows(probs_WV, self._num_top)
        probs_WK = self._foresight.corrected(calibrated(top.probs_WK, self._calibration))
        growth.add_rows(nodes, top.tokens_WK, probs_WK)
        if self._stop is not None:
            self._stop.add_rows(probs_WK)

    def _draw(self, nodes: Sequence[Node]) -> None:
        """Give each of these nodes a token: the uniforms are used in the order of the nodes."""
        if not nodes:
            return
        wanted: dict[Node, list[Node]] = {}
        for node in nodes:
            assert node.parent is not None
            wanted.setdefault(node.parent, []).append(node)
        uniforms: dict[Node, float] = {node: self._uniforms.next() for node in nodes}
        rows_PV = torch.stack([self._row(parent) for parent in wanted])
        drawn = draw_children(
            rows_PV,
            [parent.taken or () for parent in wanted],
            [[uniforms[child] for child in children] for children in wanted.values()],
        )
        for (parent, children), tokens in zip(wanted.items(), drawn, strict=True):
            assert parent.taken is not None
            parent.taken.extend(tokens)
            for child, token in zip(children, tokens, strict=True):
                child.token = token

    def _row(self, parent: Node) -> Tensor:
        assert parent.row is not None
        return self._rows[parent.row]

    def _proposal(self, growth: TreeGrowth) -> Proposal:
        nodes = growth.cut(self._num_nodes if self._stop is None else self._stop.size(growth))
        if not nodes:
            return NOTHING
        if not self._settings.is_greedy:
            self._draw(growth.settle(nodes))
        self._foresight.foresee(nodes)
        places = {growth.root: ROOT} | {node: place for place, node in enumerate(nodes)}
        rows: dict[int, int] = {}  # place in the proposal by row
        row_of: list[int | None] = []
        for node in nodes:
            is_drawn = node.source == "model" and node.parent is not None and node.parent.taken is not None
            row = node.parent.row if is_drawn and node.parent is not None else None
            row_of.append(None if row is None else rows.setdefault(row, len(rows)))
        return Proposal(
            tokens=tuple(node.token for node in nodes if node.token is not None),
            parents=tuple(places[node.parent] for node in nodes if node.parent is not None),
            sources=tuple(node.source for node in nodes),
            rows_RV=torch.stack([self._rows[row] for row in rows]) if rows else None,
            row_of=tuple(row_of),
        )


class Top(NamedTuple):
    """The most probable tokens of some rows, in falling probability, of equal ones the lowest id first."""

    tokens_WK: Ints
    probs_WK: Floats


def top_of_rows(probs_WV: Tensor, num_top: int) -> Top:
    """The tokens that probability rows hold most of, on the host by one transfer."""
    values_WK, ids_WK = probs_WV.topk(num_top, dim=-1)
    pairs_2WK = torch.stack([values_WK.double(), ids_WK.double()]).cpu().numpy()
    order_WK = np.lexsort((pairs_2WK[1], -pairs_2WK[0]))
    probs_WK, tokens_WK = (np.take_along_axis(part_WK, order_WK, axis=-1) for part_WK in pairs_2WK)
    return Top(tokens_WK=tokens_WK.astype(np.int64), probs_WK=probs_WK)


def _fed_place(parent: Node | None, places: dict[Node, int]) -> int:
    """The order in which a node was fed, or is about to be; ROOT for the root, whose row is the first."""
    assert parent is not None
    return places[parent] if parent.row is None else parent.row - 1
