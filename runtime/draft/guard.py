"""A drafter that fails, or proposes what cannot be verified, ends the run with a reason, or only its own drafting."""

from collections.abc import Callable, Sequence

import torch

from planner.contracts.errors import DraftstreamError, ResourceFailureError
from runtime.draft.base import Drafter
from runtime.proposal import NOTHING, ROOT, Proposal, Verdict

_REMEDY = "run with --draft-may-fail to go on without drafts when they fail, or with --no-spec"


class GuardedDrafter:
    """Checks every proposal of a drafter, and stands between its failures and the run.

    Without `may_fail` a failure ends the run as a ResourceFailureError, its text so far intact. With it the failure is
    told once, and the rest of the request is decoded without drafts, its text no less exact. A user's interrupt always
    passes.
    """

    def __init__(
        self,
        drafter: Drafter,
        *,
        vocab_size: int,
        is_sampled: bool,
        may_fail: bool = False,
        warn: Callable[[str], object] | None = None,
    ) -> None:
        self._drafter = drafter
        self._vocab_size = vocab_size  # the target's
        self._is_sampled = is_sampled
        self._may_fail = may_fail
        self._warn = warn
        self._has_failed = False

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        """The drafter's proposal, found sound; nothing once it has failed.

        Raises: ResourceFailureError, where the drafter raises an error, one of ours among them, or proposes what cannot
        be verified.
        """
        if self._has_failed:
            return NOTHING
        try:
            proposal = self._drafter.propose(context, max_depth)
            fault = fault_of(proposal, max_depth=max_depth, vocab_size=self._vocab_size, is_sampled=self._is_sampled)
        except Exception as error:  # noqa: BLE001 - a drafter may be anyone's, and fails as it likes
            self._fail_with(error)
            return NOTHING
        if fault is not None:
            self._fail(ResourceFailureError("the draft made a proposal that cannot be used", why=fault, remedy=_REMEDY))
            return NOTHING
        return proposal

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        """Tell the drafter what became of its proposal. Raises: as `propose`."""
        if self._has_failed:
            return
        try:
            self._drafter.observe(proposal, verdict)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail_with(error)

    def _fail_with(self, error: Exception) -> None:
        if isinstance(error, DraftstreamError):
            why = f"{error.what}: {error.why}"
        else:
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        failure = ResourceFailureError("the draft failed", why=why, remedy=_REMEDY)
        failure.__cause__ = error
        self._fail(failure)

    def _fail(self, error: DraftstreamError) -> None:
        if not self._may_fail:
            raise error
        self._has_failed = True
        if self._warn is not None:
            self._warn(f"{error.what} ({error.why}); the rest was decoded without drafts")


def fault_of(proposal: Proposal, *, max_depth: int, vocab_size: int, is_sampled: bool) -> str | None:
    """What makes a proposal unusable; None for nothing. At most one transfer from the device."""
    tokens, parents, num_nodes = proposal.tokens, proposal.parents, len(proposal.tokens)
    if not len(parents) == len(proposal.sources) == num_nodes:
        return f"{num_nodes} tokens came with {len(parents)} parents and {len(proposal.sources)} sources"
    if num_nodes == 0:
        return None
    if not set(map(type, tokens)) == {int} == set(map(type, parents)):
        return "tokens and parents must be whole numbers"
    if min(tokens) < 0 or max(tokens) >= vocab_size:
        stranger = min(tokens) if min(tokens) < 0 else max(tokens)
        return f"token {stranger} is none of the model's, which are 0 to {vocab_size - 1}"
    if min(parents) < ROOT or any(map(int.__ge__, parents, range(num_nodes))):
        return "a node is listed before its parent, or has none"
    if len(set(zip(parents, tokens, strict=True))) < num_nodes:
        return "two children of one node have the same token"
    if max(proposal.depths) > max_depth:
        return f"a path has {max(proposal.depths)} tokens, of which at most {max_depth} may follow"
    return _fault_of_rows(proposal) if is_sampled else None


def _fault_of_rows(proposal: Proposal) -> str | None:
    rows_RV, row_of = proposal.rows_RV, proposal.row_of
    if len(row_of) != len(proposal.tokens):
        return f"{len(proposal.tokens)} tokens were drawn from {len(row_of)} rows"
    if None in row_of and (None, "model") in set(zip(row_of, proposal.sources, strict=True)):
        return "a model's token came without the row that it was drawn from"
    rows = [row for row in row_of if row is not None]
    tokens = [token for row, token in zip(row_of, proposal.tokens, strict=True) if row is not None]
    if not rows:
        return None
    if rows_RV is None or rows_RV.ndim != 2 or not rows_RV.is_floating_point():
        return "there is no table of the probabilities that tokens were drawn from"
    if min(rows) < 0 or max(rows) >= rows_RV.shape[0] or max(tokens) >= rows_RV.shape[1]:
        return f"a token was drawn from beyond the {rows_RV.shape[0]} rows of {rows_RV.shape[1]} probabilities"
    low, high = torch.stack(rows_RV[rows, tokens].aminmax()).tolist()
    if not 0 < low <= high <= 1 + 1e-3:  # also for NaN
        return f"a token was drawn with a probability of {low if not low > 0 else high}"
    return None
