"""What decides how far a tree is drafted: whether another pass pays, and how right the draft's probabilities are."""

from collections.abc import Sequence

import numpy as np

from runtime.draft.costs import Costs, Rate, best_size
from runtime.draft.growth import Floats, Node, TreeGrowth
from runtime.proposal import ROOT, Proposal, Verdict

_PROBE_ROUNDS = 32  # drafting that did not pay is tried again so often
_MEAN_ROWS = 256
# What a row is expected to hold where a plan does not say, and the rows that either counts for: without it the first
# row alone would decide. Chosen on half of the recordings of bench.replay.
_PRIOR_ROW = (0.55, 0.12, 0.06, 0.035, 0.025, 0.02, 0.015, 0.01)
_PRIOR_ROWS = 16
_FORESIGHT_DECAY = 0.98  # of a round's share in the correction, from one round to the next
_FORESIGHT_PRIOR = 4.0  # tokens foreseen and accepted that the correction starts from


class Foresight:
    """Corrects a draft's calibrated probabilities by how many of its tokens were accepted lately, of those foreseen.

    A token counts where the target was asked: below the context or an accepted node. All of it is known before the next
    tokens are drawn.
    """

    def __init__(self) -> None:
        self._accepted = self._foreseen = 0.0  # by the calibrated probabilities; both fade
        self._shares: list[float] = []  # of each node of the last tree: its chance once its parent is accepted

    @property
    def factor(self) -> float:
        """Accepted over foreseen; near 1 while little is known."""
        return (_FORESIGHT_PRIOR + self._accepted) / (_FORESIGHT_PRIOR + self._foreseen)

    def corrected(self, probs_WK: Floats) -> Floats:
        """The rows, scaled; none of them holds more than 1."""
        scaled_WK: Floats = probs_WK * self.factor
        scaled_WK /= np.maximum(1.0, scaled_WK.sum(axis=1, keepdims=True))
        return scaled_WK

    def foresee(self, nodes: Sequence[Node]) -> None:
        """The tree that is proposed."""
        factor = self.factor
        self._shares = [
            0.0 if node.parent is None or node.parent.prob <= 0 else node.prob / node.parent.prob / factor
            for node in nodes
        ]

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        """What became of the tree."""
        reached, taken = {ROOT, *verdict.path}, set(verdict.path)
        judged = [
            node
            for node, source in enumerate(proposal.sources)
            if source == "model" and proposal.parents[node] in reached
        ]
        self._accepted = _FORESIGHT_DECAY * self._accepted + len(taken.intersection(judged))
        self._foreseen = _FORESIGHT_DECAY * self._foreseen + sum(self._shares[node] for node in judged)


class StopRule:
    """Ends drafting where it does not pay: tokens that are expected, less what their seconds bring elsewhere.

    Everything that it knows, it knows before the tokens are drawn that it decides about.
    """

    def __init__(self, costs: Costs, num_top: int, start_row: Sequence[float] = ()) -> None:
        """`start_row` is what a row is expected to hold before any was seen, as far as that is known."""
        self._costs = costs
        self._rate = Rate(costs)
        start_row = start_row or _PRIOR_ROW
        self._mean_row_K = np.zeros(num_top)  # of the rows so far, an exponential mean
        self._mean_row_K[: len(start_row)] = start_row[:num_top]
        self._num_rows = _PRIOR_ROWS
        self._num_idle_rounds = 0  # in a row, in which the draft made no pass
        self._draft_s = 0.0  # of the round under way, by the table

    def start_round(self) -> None:
        """Nothing has been drafted yet."""
        self._draft_s = 0.0

    def pays(self, growth: TreeGrowth, wave: Sequence[Node]) -> bool:
        """Whether a pass over these nodes is worth its time by the rows that passes brought on average."""
        pass_s = self._costs.draft_pass_s(len(wave))
        is_first = wave[0].parent is None
        if not (is_first and self._num_idle_rounds >= _PROBE_ROUNDS - 1):
            now = self._net(growth.falling_probs(), self._draft_s)
            then = self._net(growth.expected_probs(wave, self._mean_row_K), self._draft_s + pass_s)
            if then <= now:
                self._num_idle_rounds += is_first
                return False
        self._num_idle_rounds = 0
        self._draft_s += pass_s
        return True

    def add_rows(self, probs_WK: Floats) -> None:
        """Rows of falling probabilities that a pass has brought."""
        self._num_rows = min(self._num_rows + len(probs_WK), _MEAN_ROWS)
        weight = min(1.0, len(probs_WK) / self._num_rows)
        self._mean_row_K += weight * (probs_WK.mean(axis=0) - self._mean_row_K)

    def size(self, growth: TreeGrowth) -> int:
        """Nodes that are worth verifying."""
        return best_size(growth.falling_probs().tolist(), self._costs, self._rate)

    def end_round(self, num_nodes: int, num_tokens: int) -> None:
        """A round verified so many nodes and emitted so many tokens."""
        self._rate.observe(num_tokens, self._costs.round_s(1 + num_nodes, self._draft_s))

    def _net(self, probs: Floats, draft_s: float) -> float:
        num_nodes = best_size(probs.tolist(), self._costs, self._rate)
        return float(probs[:num_nodes].sum()) - self._rate.tokens_per_s * self._costs.round_s(1 + num_nodes, draft_s)
