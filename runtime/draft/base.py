"""The interface of everything that drafts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Proposal:
    """Proposed tokens and, when sampling, the rows (K, V) that each was drawn from."""

    tokens: tuple[int, ...]
    probs_KV: Tensor | None


class Drafter(Protocol):
    """Proposes continuations; must tell nothing but the truth about the rows it drew from."""

    def propose(self, context: Sequence[int], max_tokens: int) -> Proposal:
        """At most `max_tokens` tokens that may follow the context."""
