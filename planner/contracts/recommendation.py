"""Recommendation: the plan that the planner chose, what it was chosen over, and what would change the choice."""

from typing import Literal

from pydantic import Field

from planner.contracts.base import Contract, ContractFile
from planner.contracts.plan import Plan

Answer = Literal["speculate", "do not speculate", "do not stream, it fits"]
Bound = Literal["link", "disk", "compute", "draft", "memory"]


class Choice(Contract):
    """One way to run the target, in the median of what is predicted."""

    draft: str | None  # the draft model; None for no draft and for n-grams alone
    draft_kind: str
    num_nodes: int = Field(ge=0)  # drafted in a round; of a chain, its length
    drafting: str  # kind and size in words
    slots: int = Field(ge=0)
    num_resident_layers: int = Field(ge=0)
    num_layers: int = Field(gt=0)
    residents: str  # in words, parts of layers included
    prefill_chunk_tokens: int = Field(ge=1)
    tokens_per_s: float
    tokens_per_round: float
    round_s: float
    ttft_s: float


class LengthPoint(Contract):
    """A draft length, and what it gains over the plan without a draft; each with the memory it leaves residents."""

    draft_len: int = Field(ge=0)
    tokens_per_s: float
    tokens_per_round: float
    round_s: float
    speedup_frac: float  # of the tok/s without a draft: 1 is no gain


class Crossover(Contract):
    """The draft lengths between which speculation pays; None where it never does."""

    draft: str
    first_draft_len: int | None
    last_draft_len: int | None
    points: tuple[LengthPoint, ...]


class Price(Contract):
    """What a little more of something would give, in tok/s."""

    what: str
    gain_tokens_per_s: float


class Rival(Contract):
    """Another kind of engine, priced from the same measurements."""

    name: str
    draft: str | None
    draft_len: int = Field(ge=0)
    tokens_per_s: float
    how: str


class UnpricedRival(Contract):
    """Another kind of engine that has no price here, and why: it does not fit, or a measurement is missing."""

    name: str
    draft: str | None
    why: str


class Refusal(Contract):
    """A draft that cannot take part, and why."""

    draft: str
    why: str


class Recommendation(ContractFile):
    """The answer first, then why, then the runner-up and what it would cost."""

    answer: Answer
    plan: Plan
    choice: Choice
    binds: Bound
    reasons: tuple[str, ...]
    baseline: Choice  # without a draft, its memory given back
    runner_up: Choice | None
    runner_up_lost: str | None
    kinds: tuple[Choice, ...]  # the best of each kind of draft, none included
    crossovers: tuple[Crossover, ...]  # of chains
    prices: tuple[Price, ...]
    rivals: tuple[Rival, ...]
    unpriced_rivals: tuple[UnpricedRival, ...] = ()
    refused: tuple[Refusal, ...]
    num_scored: int
    basis: str  # measured or estimated, when and on what
    warnings: tuple[str, ...]
    sources: tuple[str, ...]  # of what was estimated
