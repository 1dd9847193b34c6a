"""A chain drafted by a smaller model with the target's tokens."""

from collections.abc import Sequence

from torch import Tensor

from planner.contracts.plan import MAX_DRAFT_LEN, ProbabilityCurve
from runtime.cached import CachedModel
from runtime.draft.costs import Costs
from runtime.draft.follow import FollowingModel
from runtime.draft.tiers import TierRule
from runtime.proposal import NOTHING, Proposal, Verdict
from runtime.sampling import SamplingSettings, Uniforms, draw_token, probability_rows


class ChainDrafter:
    """Drafts token by token with a model of its own, whose cache follows the context by itself."""

    def __init__(
        self,
        model: CachedModel,
        settings: SamplingSettings,
        uniforms: Uniforms,
        *,
        vocab_size: int,
        chunk_tokens: int,
        draft_len: int = MAX_DRAFT_LEN,
        tiers: Sequence[int] = (),
        costs: Costs | None = None,
        calibration: ProbabilityCurve | None = None,
    ) -> None:
        """With `tiers` each round stops at one of these lengths, or drafts nothing, by what pays at these costs."""
        self._following = FollowingModel(model, vocab_size=vocab_size, chunk_tokens=chunk_tokens)
        self._fed = self._following.fed
        self._settings = settings
        self._uniforms = uniforms
        self._draft_len = draft_len
        self._tiers = TierRule(tiers, costs or Costs.free(), calibration) if tiers else None
        self._rows_KV: Tensor | None = None  # of the longest draft, taken with the first row

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        """A chain of at most `max_depth` tokens, greedy or drawn from the rows that come with them until the next call.

        Fewer where the draft's own context ends, down to none; none after a token that only the target's table has.
        """
        limit = min(max_depth, self._draft_len)
        limit = min(limit, self._following.room(context)) if limit > 0 else 0
        if self._tiers is not None:
            self._tiers.start_round(limit)
        tokens: list[int] = []
        while len(tokens) < limit and (self._tiers is None or self._tiers.goes_on()):
            logits_RV = self._following.feed(tokens[-1:]) if tokens else self._following.row_after(context)
            tokens.append(self._next_token(logits_RV, len(tokens), tokens[-1] if tokens else context[-1]))
        if not tokens:
            return NOTHING
        return Proposal.chain(tokens, None if self._rows_KV is None else self._rows_KV[: len(tokens)])

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        """How often the target agrees; what was accepted the next context says."""
        if self._tiers is not None:
            self._tiers.end_round(len(proposal.tokens), verdict.num_accepted)

    def greedy_pick(self, logits_V: Tensor, last_token: int) -> int:
        """The token to draft after `last_token`; a measurement may override it to script what is accepted."""
        return int(logits_V.argmax())

    def _next_token(self, logits_RV: Tensor, place: int, last_token: int) -> int:
        if self._settings.is_greedy:
            if self._tiers is not None:
                self._tiers.add(float(logits_RV[0].double().softmax(dim=-1).amax()))
            return self.greedy_pick(logits_RV[0], last_token)
        probs_V = probability_rows(logits_RV, self._settings)[0]
        if self._rows_KV is None:
            self._rows_KV = probs_V.new_empty(self._draft_len, probs_V.shape[0])
        self._rows_KV[place] = probs_V
        if self._tiers is not None:
            self._tiers.add(float(probs_V.amax()))
        return draw_token(probs_V, self._uniforms.next())
