"""A decoder with its cache: feed tokens, get rows of logits, forget tokens again. Target and draft alike."""

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.kv_cache import KvCache
from runtime.model import StreamedModel
from runtime.verify import check_finite


class CachedModel:
    """One sequence in one model. Shapes: T tokens fed, R rows of logits wanted, V vocabulary."""

    def __init__(self, streamed: StreamedModel, context_tokens: int) -> None:
        self.streamed = streamed
        self.context_tokens = context_tokens
        self._cache = KvCache(streamed.model.config, context_tokens)

    @property
    def num_seen(self) -> int:
        """Tokens in the cache."""
        return self._cache.num_seen

    @property
    def can_roll_back(self) -> bool:
        """Whether rejected tokens can be forgotten."""
        return self._cache.can_roll_back

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], num_rows: int) -> Tensor:
        """Append the tokens and return the logits (R, V) after the last R of them.

        Raises: SelfCheckError, where a logit is not a number.
        """
        input_ids = torch.tensor([tokens], device=self.streamed.link.device)
        output = self.streamed.model(
            input_ids=input_ids, past_key_values=self._cache, use_cache=True, logits_to_keep=num_rows
        )
        logits_RV: Tensor = output.logits[0]
        check_finite(logits_RV)
        return logits_RV

    def drop(self, num_tokens: int) -> None:
        """Forget the last tokens."""
        self._cache.drop(num_tokens)

    def reset(self) -> None:
        """Forget the whole sequence; the memory is kept where it can be."""
        if self.can_roll_back:
            self._cache.drop_all()
        else:
            self._cache = KvCache(self.streamed.model.config, self.context_tokens)
