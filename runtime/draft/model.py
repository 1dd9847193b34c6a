"""A chain drafted by a smaller model with the target's tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from planner.contracts.plan import MAX_DRAFT_LEN
from runtime.cached import CachedModel
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
    ) -> None:
        self._model = model
        self._settings = settings
        self._uniforms = uniforms
        self._vocab_size = vocab_size  # the target's: a padded draft proposes nothing beyond it
        self._chunk_tokens = chunk_tokens
        self._draft_len = draft_len
        self._fed: list[int] = []  # what the draft's cache holds
        self._num_agreed = 0  # of it, what was part of the context at the last proposal

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        """A chain of the draft length, at most `max_depth` tokens, greedy or drawn from the rows that come with them.

        Fewer where the draft's own context ends, down to none; none after a token that only the target's table has.
        """
        max_depth = min(max_depth, self._draft_len, self._model.context_tokens - len(context))
        if max_depth <= 0 or max(context) >= self._model.streamed.vocab_size:
            return NOTHING
        self._rewind_to(context)
        self._feed_all_but_last_chunk(context)
        pending = context[len(self._fed) :]
        tokens: list[int] = []
        rows_V: list[Tensor] = []
        while len(tokens) < max_depth:
            logits_RV = self._feed(pending)
            if self._settings.is_greedy:
                token = self.greedy_pick(logits_RV[0], pending[-1])
            else:
                probs_V = probability_rows(logits_RV, self._settings)[0]
                token = draw_token(probs_V, self._uniforms.next())
                rows_V.append(probs_V)
            tokens.append(token)
            pending = [token]
        return Proposal.chain(tokens, torch.stack(rows_V) if rows_V else None)

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        """Nothing: the next context says what was accepted."""

    def greedy_pick(self, logits_V: Tensor, last_token: int) -> int:
        """The token to draft after `last_token`; a measurement may override it to script what is accepted."""
        return int(logits_V.argmax())

    def _rewind_to(self, context: Sequence[int]) -> None:
        """Forget what was drafted and rejected since the last proposal."""
        num_common = min(self._num_agreed, len(context))
        limit = min(len(self._fed), len(context) - 1)  # the last token is fed again, for its row of logits
        while num_common < limit and self._fed[num_common] == context[num_common]:
            num_common += 1
        num_common = min(num_common, limit)
        self._model.drop(len(self._fed) - num_common)
        del self._fed[num_common:]
        self._num_agreed = num_common

    def _feed_all_but_last_chunk(self, context: Sequence[int]) -> None:
        while len(context) - len(self._fed) > self._chunk_tokens:
            start = len(self._fed)
            self._feed(context[start : start + self._chunk_tokens])

    def _feed(self, tokens: Sequence[int]) -> Tensor:
        self._fed.extend(tokens)
        return self._model.forward(tokens, num_rows=1)[:, : self._vocab_size]
