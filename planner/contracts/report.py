"""Report: what a run did, with predicted beside measured."""

from typing import Literal

from pydantic import Field

from planner.contracts.base import Contract, ContractFile
from planner.contracts.performance import LinkSplit, Performance, RoundSplit
from planner.contracts.plan import ModelRef, Plan

FinishReason = Literal["stop", "length", "context", "interrupted", "error"]


class RoundRecord(Contract):
    """One round: tokens proposed, accepted and emitted, and where its time went on both lanes."""

    num_draft_tokens: int = Field(ge=0)
    draft_depth: int | None = Field(default=None, ge=0)  # of the longest path; None: as in older reports, a chain's
    num_ngram_tokens: int = Field(default=0, ge=0)
    num_accepted_tokens: int = Field(ge=0)
    num_accepted_ngram_tokens: int = Field(default=0, ge=0)
    num_emitted_tokens: int = Field(ge=0)
    compute: RoundSplit
    link: LinkSplit | None


class NearTie(Contract):
    """A position where the re-scored target prefers another token by a margin within rounding noise, or beyond it."""

    position: int
    emitted_token: int
    preferred_token: int
    logit_gap: float


class VerifyResult(Contract):
    """The run re-scored by teacher forcing on one pass of the target."""

    num_checked_tokens: int
    num_agreeing_tokens: int
    allowed_logit_gap: float
    near_ties: tuple[NearTie, ...]
    passed: bool


class LlamaCppTimings(Contract):
    """The names that tools written for llama.cpp's server read. Here "predicted" means generated."""

    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float | None
    draft_n: int
    draft_n_accepted: int


class Report(ContractFile):
    """One run of `runtime generate`."""

    text: str
    finish_reason: FinishReason
    target: ModelRef
    link_label: str
    seed: int | None
    prompt_tokens: int
    prompt_s: float
    generated_tokens: int
    generated_s: float
    generated_tokens_per_s: float | None
    num_rounds: int
    num_draft_tokens: int
    num_accepted_tokens: int
    predicted: Performance
    measured: Performance
    rounds: tuple[RoundRecord, ...]
    verify: VerifyResult | None = None
    warnings: tuple[str, ...] = ()
    timings: LlamaCppTimings
    plan: Plan
