"""How far a chain is drafted: whether the tokens up to one of the next lengths are worth their time.

Whatever is decided about a token is decided before it is drawn, so that sampled chains stay exact.
"""

from collections.abc import Sequence

import numpy as np

from planner.contracts.plan import ProbabilityCurve
from runtime.draft.costs import Costs, Rate
from runtime.draft.growth import calibrated

_PROBE_ROUNDS = 32  # drafting that did not pay is tried again so often
_ROUND_DECAY = 0.98
_START_TESTED, _START_ACCEPTED = 5.0, 4.0


class TierRule:
    """Stops a chain at one of the lengths `tiers`, or before its first token."""

    def __init__(self, tiers: Sequence[int], costs: Costs, calibration: ProbabilityCurve | None) -> None:
        self._tiers = tuple(tiers)
        self._costs = costs
        self._rate = Rate(costs)
        self._calibration = calibration
        self._pass_s = costs.draft_pass_s(1)
        self._num_tested, self._num_accepted = _START_TESTED, _START_ACCEPTED
        self._num_foreseen = _START_ACCEPTED  # accepted ones, had the draft's probabilities been right
        self._num_idle_rounds = 0
        self._lengths: tuple[int, ...] = ()
        self._probs: list[float] = []  # of the round's tokens so far: their rows' largest
        self._path_prob = 1.0

    def start_round(self, limit: int) -> None:
        """A round that may draft at most `limit` tokens."""
        self._lengths = (*(tier for tier in self._tiers if tier < limit), limit)
        self._probs = []
        self._path_prob = 1.0

    def goes_on(self) -> bool:
        """Whether another token is to be drafted; only at the lengths there is a choice."""
        num_drafted = len(self._probs)
        if num_drafted == 0:
            return self._starts()
        return num_drafted not in self._lengths or self._some_length_pays(num_drafted)

    def add(self, largest_prob: float) -> None:
        """A token follows, from a row whose largest probability is this."""
        prob = float(calibrated(np.array(largest_prob), self._calibration))
        self._probs.append(prob)
        self._path_prob *= min(1.0, prob * self._num_accepted / self._num_foreseen)

    def end_round(self, num_drafted: int, num_accepted: int) -> None:
        """The target accepted so many; the first one that it did not was tested too, later ones were not."""
        num_tested = min(num_accepted + 1, num_drafted)
        if num_tested:
            self._num_tested = _ROUND_DECAY * self._num_tested + num_tested
            self._num_accepted = _ROUND_DECAY * self._num_accepted + num_accepted
            self._num_foreseen = _ROUND_DECAY * self._num_foreseen + sum(self._probs[:num_tested])
        self._rate.observe(num_accepted + 1, self._round_s(num_drafted))

    def _starts(self) -> bool:
        if self._some_length_pays(0) or self._num_idle_rounds >= _PROBE_ROUNDS - 1:
            self._num_idle_rounds = 0
            return True
        self._num_idle_rounds += 1
        return False

    def _some_length_pays(self, num_drafted: int) -> bool:
        hazard = self._num_accepted / self._num_tested  # of each token, that the target goes along
        start_s = self._round_s(num_drafted)
        for length in self._lengths:
            more = length - num_drafted
            expected_tokens = self._path_prob * sum(hazard**power for power in range(1, more + 1))
            if more > 0 and expected_tokens >= self._rate.tokens_per_s * (self._round_s(length) - start_s):
                return True
        return False

    def _round_s(self, num_drafted: int) -> float:
        return self._costs.round_s(1 + num_drafted, num_drafted * self._pass_s)
