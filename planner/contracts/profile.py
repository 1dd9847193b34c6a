"""Profile: what is known of one machine, target and drafts before anything is planned, and how it is known.

Measured by `planner profile`, or estimated from a catalogue entry; the planner reads both alike, and an estimate says
so in `kind`. Times are medians with quartiles, so that an interval follows from them.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from planner.contracts.base import Contract, ContractFile
from planner.contracts.machine import Machine
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import Dtype, UnitKind

LinkName = Literal[
    "disk:cached",
    "disk:direct",
    "cuda",
    "cuda:pageable",
    "cuda:device_to_host",
    "cuda:pageable_device_to_host",
    "host_memory",
    "emulated",
]
Processor = Literal["device", "host"]
MemoryPart = Literal["host_overhead", "draft_host_overhead", "device_overhead", "width", "draft_width"]

_Ints = Annotated[
    tuple[int, ...],
    BeforeValidator(lambda value: tuple(map(int, value.split())) if isinstance(value, str) else value),
    PlainSerializer(lambda value: " ".join(map(str, value)), return_type=str),
]
_Shares = Annotated[
    tuple[float, ...],
    BeforeValidator(lambda value: tuple(map(float, value.split())) if isinstance(value, str) else value),
    PlainSerializer(lambda value: " ".join(f"{share:.4g}" for share in value), return_type=str),
]
_TenThousandths = Annotated[
    tuple[float, ...],
    BeforeValidator(lambda value: tuple(int(n) / 10_000 for n in value.split()) if isinstance(value, str) else value),
    PlainSerializer(lambda value: " ".join(f"{share * 10_000:.0f}" for share in value), return_type=str),
]

NUM_TOP_PROBS = 8  # of each position; the ninth choice of a draft is hardly ever right


class Spread(Contract):
    """Median and quartiles of repeated measurements, in the unit that the field's name states."""

    p25: float = Field(ge=0)
    median: float = Field(ge=0)
    p75: float = Field(ge=0)
    num_samples: int = Field(ge=1)


class LinkMeasurement(Contract):
    """Seconds of one copy of `num_bytes`; `loaded` means that the device or the CPU computed at the same time."""

    link: LinkName
    num_bytes: int = Field(gt=0)
    loaded: bool
    duration_s: Spread


class ComputeMeasurement(Contract):
    """Seconds that one unit computes for `num_tokens` after `context_tokens`, weights cold in cache.

    `unit` is a unit of the plan, `pass` for all of a pass that belongs to no unit (embedding, masks, norms), `edge` for
    the hand-over of one streamed unit, `round` for what a round takes beside its pass and its draft (judging and
    accepting), `tree_round` for the same of a tree (which older profiles count as `round`), or `ngram` for finding so
    many tokens to propose in earlier text. `attention` is all of a layer but its MLP, its norms and sums included.
    `embedding` on the host is gathering the rows there. `index` is the first unit of its kind of that shape; `num_rows`
    belongs to head chunks, whose tokens are rows of logits. `load_bytes_per_s` is what the copy lane moved meanwhile.
    """

    unit: UnitKind | Literal["pass", "edge", "round", "tree_round", "ngram"]
    index: int = Field(default=0, ge=0)
    num_rows: int | None = Field(default=None, gt=0)
    processor: Processor = "device"
    load_bytes_per_s: float = Field(default=0.0, ge=0)
    load_link: str | None = None  # as on the command line; None: nothing was copied, or it is not known over what
    num_tokens: int = Field(gt=0)
    context_tokens: int = Field(ge=0)
    duration_s: Spread


class DraftMeasurement(Contract):
    """Seconds of one pass of a draft as it is deployed, over `num_tokens` after `context_tokens`, its pick included.

    `position` is that of the pass in its proposal, from 1; the last one that was measured holds for all that follow,
    and 0 is all after the first, together. The first comes after a pass of the target, which leaves nothing of the
    draft in the caches; by the later ones the copy lane has filled its slots and rests. The tokens of a tree's level
    are siblings and cousins, each with a row of logits and several picks.
    """

    fingerprint: str
    position: int = Field(default=0, ge=0)
    is_tree_level: bool = False
    processor: Processor = "device"
    load_bytes_per_s: float = Field(default=0.0, ge=0)
    load_link: str | None = None  # as on the command line; None: nothing was copied, or it is not known over what
    num_tokens: int = Field(gt=0)
    context_tokens: int = Field(ge=0)
    duration_s: Spread

    @model_validator(mode="before")
    @classmethod
    def _reads_older_profiles(cls, content: object) -> object:
        """They tell the first pass from all others alone."""
        if not isinstance(content, dict) or "is_first" not in content:
            return content
        rest = {name: value for name, value in content.items() if name != "is_first"}
        return {**rest, "position": int(content["is_first"] is True)}


class MemoryMeasurement(Contract):
    """Bytes that the system or the device counts beside weights, caches and activations.

    `width` is what each further width of the target's passes takes on a CPU: its library makes kernels for each, and
    keeps them; `draft_width` the same of the draft's.
    """

    part: MemoryPart
    num_bytes: int = Field(ge=0)


class AcceptanceRecording(Contract):
    """Teacher-forced replay of one prompt: a target's greedy text, and what a draft makes of each of its positions.

    Per position of the text: the `rank` of the target's token in the draft's list (0 is its first choice), the draft's
    probability of it, the overlap `sum(min(p, q))` of both distributions, and the draft's probabilities of its eight
    first choices, position after position; and, of the text alone, the length of the longest earlier match that ends
    here, whether what followed it last time is what follows now, in which share of its occurrences that followed, and
    how probable the target finds it. The text itself is kept only where it was asked for. Files keep `top_probs`,
    `match_shares` and `match_probs` in ten-thousandths.
    """

    domain: str
    prompt_tokens: int = Field(ge=1)
    fingerprint: str | None = None  # of the draft; None: of the text alone
    ranks: _Ints = ()
    draft_probs: _Shares = ()
    overlaps: _Shares = ()
    top_probs: _TenThousandths = ()  # NUM_TOP_PROBS of each position, falling; older profiles have none
    match_lengths: _Ints = ()
    match_hits: _Ints = ()  # 1 where the continuation of the longest match was right
    match_shares: _TenThousandths = ()  # 0 where there was no match; older profiles have none
    match_probs: _TenThousandths = ()  # likewise
    text: str | None = None

    @model_validator(mode="after")
    def _has_top_probs_of_every_position(self) -> Self:
        if self.top_probs and len(self.top_probs) != NUM_TOP_PROBS * len(self.ranks):
            raise ValueError(f"acceptance: top_probs must be {NUM_TOP_PROBS} of each position")
        return self


class AcceptanceCurve(Contract):
    """Published acceptance of a draft for a target on one kind of text, where nothing was recorded."""

    target: str
    draft: str
    domain: str
    survival: tuple[float, ...] = Field(min_length=1)  # S_1, S_2, ...; beyond the last the hazard stays
    is_same_pair: bool  # published of this very pair, not of a similar one
    source: str


class Profile(ContractFile):
    """Tables that the planner interpolates; the fingerprints say for what they hold."""

    kind: Literal["measured", "estimated"]
    created: str  # ISO 8601, UTC
    machine: Machine
    machine_fingerprint: str
    versions: dict[str, str]
    num_threads: int = Field(ge=1)  # of the CPU, that compute
    target: ModelShape
    drafts: tuple[ModelShape, ...] = ()
    dtype: Dtype
    links: tuple[LinkMeasurement, ...] = ()
    compute: tuple[ComputeMeasurement, ...] = ()
    draft_passes: tuple[DraftMeasurement, ...] = ()
    memory: tuple[MemoryMeasurement, ...] = ()
    acceptance: tuple[AcceptanceRecording, ...] = ()
    curves: tuple[AcceptanceCurve, ...] = ()
    drift_frac: float | None = Field(default=None, ge=0)  # of the sentinel above its best, by the worst step
    num_steps_missing: int = Field(default=0, ge=0)  # that a deadline left out; older profiles do not say
    notes: tuple[str, ...] = ()
