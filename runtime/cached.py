"""A decoder with its cache: feed tokens, get rows of logits, forget tokens again. Target and draft alike."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from runtime.kv_cache import KvCache
from runtime.model import StreamedModel
from runtime.verify import check_finite


class CachedModel:
    """One sequence in one model. Shapes: T tokens fed, R rows of logits wanted, V vocabulary."""

    def __init__(self, streamed: StreamedModel, context_tokens: int) -> None:
        self.streamed = streamed
        self.context_tokens = context_tokens
        self._cache = KvCache(streamed.model.config, context_tokens)
        self._takes_positions = "position_ids" in inspect.signature(streamed.model.forward).parameters
        self._continues_by_one = _continues_by_one(streamed.model)

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
        if self._continues_by_one and self.num_seen > 0 and len(tokens) > 1:
            return torch.cat([self.forward([token], 1) for token in tokens][-num_rows:])
        device = self.streamed.link.device
        positions = {}
        if self._takes_positions:  # some models count from 0 in every pass unless told
            first = self.num_seen
            positions["position_ids"] = torch.arange(first, first + len(tokens), device=device)[None]
        output = self.streamed.model(
            input_ids=torch.tensor([tokens], device=device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=num_rows,
            **positions,
        )
        logits_RV: Tensor = output.logits[0]
        check_finite(logits_RV)
        return logits_RV

    def forward_tree(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Append nodes of a tree that hangs on the sequence, and return the logits (T, V) after each of them.

        May be called again to let the same tree grow: `parents` are indices of nodes in the order in which they were
        fed since the tree began, or ROOT for the last token of the sequence. `keep_path` ends the tree.

        Raises: SelfCheckError, where a logit is not a number.
        """
        raise NotImplementedError

    def keep_path(self, path: Sequence[int]) -> None:
        """Make these nodes, each the child of the one before, part of the sequence, and forget the others."""
        raise NotImplementedError

    def drop(self, num_tokens: int) -> None:
        """Forget the last tokens."""
        self._cache.drop(num_tokens)

    def reset(self) -> None:
        """Forget the whole sequence; the memory is kept where it can be."""
        if self.can_roll_back:
            self._cache.drop_all()
        else:
            self._cache = KvCache(self.streamed.model.config, self.context_tokens)


def _continues_by_one(model: PreTrainedModel) -> bool:
    """Whether a pass of several tokens would forget those before it: transformers' Mamba-1 scans from zero.

    Its decay has a row per channel; in later recurrences it has one number per head.
    """
    return any(name.endswith(".A_log") and parameter.ndim >= 2 for name, parameter in model.named_parameters())
