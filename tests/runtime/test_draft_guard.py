"""What a drafter may do wrong, and that none of it reaches the target."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from planner.contracts.errors import DraftstreamError, ResourceFailureError, SelfCheckError
from runtime.draft.guard import GuardedDrafter, fault_of
from runtime.proposal import NOTHING, ROOT, Proposal, Source, Verdict

VOCAB_SIZE = 10
MAX_DEPTH = 3
ROWS = torch.full((2, VOCAB_SIZE), 0.1)
SOUND = Proposal((1, 2, 1), (ROOT, ROOT, 0), ("model", "ngram", "model"), ROWS, (0, None, 1))
TOKEN = (1,)
MODELS: tuple[Source, ...] = ("model",)


def chain(*tokens: object) -> Proposal:
    return Proposal.chain(tokens)  # type: ignore[arg-type]


class Scripted:
    """Proposes, or raises, what it is told."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.num_observed = 0

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        entry = self.script.pop(0)
        if isinstance(entry, BaseException):
            raise entry
        return entry  # type: ignore[return-value]

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        self.num_observed += 1
        if self.script and isinstance(self.script[0], BaseException):
            raise self.script.pop(0)  # type: ignore[misc]


def guarded(
    drafter: Scripted, *, may_fail: bool = False, warn: Callable[[str], object] | None = None
) -> GuardedDrafter:
    return GuardedDrafter(drafter, vocab_size=VOCAB_SIZE, is_sampled=True, may_fail=may_fail, warn=warn)


def test_sound_proposals_pass_as_they_are_and_are_observed() -> None:
    drafter = Scripted(SOUND, NOTHING)
    guard = guarded(drafter)
    assert guard.propose([1], MAX_DEPTH) is SOUND
    guard.observe(SOUND, Verdict((0,), 3))
    assert guard.propose([1], 0) is NOTHING
    assert drafter.num_observed == 1


RUBBISH = {
    "token 10 is none of the model's, which are 0 to 9": chain(3, 10),
    "token -1 is none": chain(-1),
    "whole numbers": chain(1.0),
    "tokens and parents must be": Proposal((1,), (True,), MODELS),
    "2 tokens came with 1 parents": Proposal((1, 2), (ROOT,), ("model", "model")),
    "1 tokens came with 1 parents and 2 sources": Proposal(TOKEN, (ROOT,), ("model", "model")),
    "before its parent": Proposal((1, 2), (1, ROOT), ("model", "model")),
    "or has none": Proposal(TOKEN, (-2,), MODELS),
    "is listed": Proposal(TOKEN, (0,), MODELS),
    "same token": Proposal((1, 1), (ROOT, ROOT), ("model", "model")),
    "a path has 4 tokens, of which at most 3 may follow": chain(1, 2, 3, 4),
    "drawn from 0 rows": Proposal(TOKEN, (ROOT,), MODELS),
    "without the row": Proposal(TOKEN, (ROOT,), MODELS, ROWS, (None,)),
    "no table": Proposal(TOKEN, (ROOT,), MODELS, None, (0,)),
    "table of the probabilities": Proposal(TOKEN, (ROOT,), MODELS, ROWS.long(), (0,)),
    "beyond the 2 rows of 10 probabilities": Proposal(TOKEN, (ROOT,), MODELS, ROWS, (2,)),
    "beyond the 2 rows of 1 probabilities": Proposal(TOKEN, (ROOT,), MODELS, ROWS[:, :1], (0,)),
    "a probability of 0.0": Proposal(TOKEN, (ROOT,), MODELS, torch.zeros(1, VOCAB_SIZE), (0,)),
    "a probability of nan": Proposal(TOKEN, (ROOT,), MODELS, torch.full((1, VOCAB_SIZE), math.nan), (0,)),
    "a probability of 2.0": Proposal(TOKEN, (ROOT,), MODELS, torch.full((1, VOCAB_SIZE), 2.0), (0,)),
}


@pytest.mark.parametrize("why", RUBBISH)
def test_rubbish_ends_the_run_with_its_reason_and_a_remedy(why: str) -> None:
    with pytest.raises(ResourceFailureError, match="a proposal that cannot be used") as caught:
        guarded(Scripted(RUBBISH[why])).propose([1], MAX_DEPTH)
    assert why in caught.value.why
    assert "--draft-may-fail" in caught.value.remedy
    assert "--no-spec" in caught.value.remedy
    assert caught.value.exit_code == 6


def test_what_is_no_proposal_is_rubbish_too() -> None:
    with pytest.raises(ResourceFailureError, match="AttributeError"):
        guarded(Scripted([1, 2])).propose([1], MAX_DEPTH)


def test_greedy_proposals_need_no_rows() -> None:
    assert fault_of(chain(1, 2), max_depth=2, vocab_size=VOCAB_SIZE, is_sampled=False) is None


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError(), AssertionError("a bug")])
def test_a_drafters_error_ends_the_run_as_a_resource_failure_that_names_it(error: Exception) -> None:
    with pytest.raises(ResourceFailureError, match=type(error).__name__) as caught:
        guarded(Scripted(error)).propose([1], MAX_DEPTH)
    assert caught.value.__cause__ is error


def test_errors_of_our_own_are_said_to_be_the_drafts() -> None:
    error = SelfCheckError("row 0 cannot be sampled", why="it has NaN among its logits", remedy="float32")
    with pytest.raises(ResourceFailureError, match="the draft failed") as caught:
        guarded(Scripted(error)).propose([1], MAX_DEPTH)
    assert caught.value.why == "row 0 cannot be sampled: it has NaN among its logits"
    assert "--draft-may-fail" in caught.value.remedy
    assert caught.value.__cause__ is error


FAILURES: tuple[object, ...] = (
    RuntimeError("out of memory"),
    SelfCheckError("logits", why="NaN", remedy="float32"),
    RUBBISH["same token"],
    ["no proposal"],
)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_draft_that_may_fail_is_warned_of_once_and_asked_no_more(failure: object) -> None:
    warnings: list[str] = []
    drafter = Scripted(SOUND, failure, SOUND)
    guard = guarded(drafter, may_fail=True, warn=warnings.append)
    proposals = [guard.propose([1], MAX_DEPTH) for _ in range(4)]
    guard.observe(NOTHING, Verdict((), 1))
    assert proposals == [SOUND, NOTHING, NOTHING, NOTHING]
    assert drafter.num_observed == 0
    assert len(warnings) == 1
    assert "without drafts" in warnings[0]


def test_errors_while_observing_count_as_failures() -> None:
    with pytest.raises(DraftstreamError, match="KeyError"):
        guarded(Scripted(KeyError(3))).observe(NOTHING, Verdict((), 1))
    warnings: list[str] = []
    guard = guarded(Scripted(KeyError(3)), may_fail=True, warn=warnings.append)
    guard.observe(NOTHING, Verdict((), 1))
    assert guard.propose([1], MAX_DEPTH) is NOTHING
    assert len(warnings) == 1


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(143)])
def test_interrupts_pass(interrupt: BaseException) -> None:
    with pytest.raises(type(interrupt)):
        guarded(Scripted(interrupt), may_fail=True).propose([1], MAX_DEPTH)
