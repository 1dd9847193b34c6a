"""What a round costs by what it drafts, how fast the run is, and how many candidates pay for themselves.

Seconds are those of the plan's table, never a clock's, so that a seed repeats a run.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Self

from planner.contracts.plan import RoundCosts

_MEAN_ROUNDS = 200
_START_ROUNDS = 8  # that the rate without drafts stands for in the mean


class Costs:
    """A plan's round costs, looked up: linear between two entries; the first value before them, the last line beyond.

    Counts of verified tokens include the context's last one: a round that drafts n nodes verifies 1 + n.
    """

    def __init__(self, table: RoundCosts) -> None:
        self._table = table
        self._verify_s: list[float] = []  # by tokens verified, as far as anyone asked

    @classmethod
    def of(cls, table: RoundCosts | None) -> Self:
        """The costs of a plan's table; where it has none everything is free."""
        return cls.free() if table is None else cls(table)

    @classmethod
    def free(cls) -> Self:
        """Rounds and passes that take no time, so that every budget is filled."""
        return cls(RoundCosts(num_verified=(1,), round_s=(0.0,), hidden_s=(0.0,)))

    def verify_s(self, num_verified: int) -> float:
        """Seconds of a round that verifies so many tokens, at least 1, and drafts for nothing."""
        known = self._verify_s
        while len(known) <= num_verified:
            known.append(_on_line(self._table.num_verified, self._table.round_s, len(known)))
        return known[num_verified]

    def hidden_s(self, num_verified: int) -> float:
        """Seconds of drafting that pass within such a round anyway."""
        return _on_line(self._table.num_verified, self._table.hidden_s, num_verified)

    def exposed_s(self, num_verified: int, draft_s: float) -> float:
        """Seconds by which drafting for `draft_s` makes such a round longer."""
        return max(0.0, draft_s - self.hidden_s(num_verified))

    def round_s(self, num_verified: int, draft_s: float = 0.0) -> float:
        """Seconds of a round that verifies so many tokens after drafting for `draft_s`."""
        return self.verify_s(num_verified) + self.exposed_s(num_verified, draft_s)

    def marginal_verify_s(self, num_verified: int) -> float:
        """Seconds that one token more takes; 0 between the steps of a table, so that it alone decides nothing."""
        return self.verify_s(num_verified + 1) - self.verify_s(num_verified)

    def least_marginal_s(self, most_nodes: int) -> float:
        """The least that any one of so many nodes adds; a node that is not worth this never pays."""
        steps = (self.marginal_verify_s(num_verified) for num_verified in range(1, most_nodes + 1))
        return max(0.0, min(steps, default=0.0))

    def draft_pass_s(self, num_nodes: int) -> float:
        """Seconds of one pass of the draft over so many nodes; 0 where the table knows of no draft."""
        if not self._table.pass_nodes:
            return 0.0
        return _on_line(self._table.pass_nodes, self._table.draft_pass_s, num_nodes)


class Rate:
    """Tokens per second of the run so far by the plan's seconds: an exponential mean over about 200 rounds.

    It starts from the rate without drafts, which counts as much as 8 rounds do.
    """

    def __init__(self, costs: Costs) -> None:
        self._tokens = 1.0
        self._seconds = costs.verify_s(1)
        self._num_rounds = _START_ROUNDS

    @property
    def tokens_per_s(self) -> float:
        """0 while rounds take no time: whatever is free, nothing is weighed against it."""
        return self._tokens / self._seconds if self._seconds > 0 else 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A round emitted so many tokens, the target's own among them, and took so long by the table."""
        self._num_rounds = min(self._num_rounds + 1, _MEAN_ROUNDS)
        self._tokens += (num_tokens - self._tokens) / self._num_rounds
        self._seconds += (seconds - self._seconds) / self._num_rounds


def best_size(probs_sorted: Sequence[float], costs: Costs, rate: Rate) -> int:
    """How many of the candidates to verify: the n that maximises sum(P) - g (T(n) - T(0)), the fewest of equals.

    `probs_sorted` are the chances that each is accepted, falling; g is the rate, and T(n) the seconds of a round that
    drafts n. All sizes are weighed, as T may have steps.

    Source: Dinkelbach 1967: what maximises tokens - g * seconds in every round at the best g maximises their ratio.
    """
    tokens_per_s = rate.tokens_per_s
    start_s = costs.verify_s(1)
    best, best_gain, sum_probs = 0, 0.0, 0.0
    for size, prob in enumerate(probs_sorted, start=1):
        sum_probs += prob
        gain = sum_probs - tokens_per_s * (costs.verify_s(1 + size) - start_s)
        if gain > best_gain:
            best, best_gain = size, gain
    return best


def _on_line(places: Sequence[int], values: Sequence[float], place: int) -> float:
    if place <= places[0] or len(places) == 1:
        return values[0]
    upper = min(bisect_right(places, place), len(places) - 1)
    slope = (values[upper] - values[upper - 1]) / (places[upper] - places[upper - 1])
    if place > places[upper]:
        slope = max(0.0, slope)  # a table that ends falling has noise there
    return values[upper] + slope * (place - places[upper])
