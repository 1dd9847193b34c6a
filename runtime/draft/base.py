"""The interface of everything that drafts."""

from collections.abc import Sequence
from typing import Protocol

from runtime.proposal import Proposal, Verdict


class Drafter(Protocol):
    """Proposes continuations; must tell nothing but the truth about the rows it drew from."""

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        """Tokens that may follow the context, no path longer than `max_depth`."""

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        """What became of the last proposal; a drafter may learn from it."""
