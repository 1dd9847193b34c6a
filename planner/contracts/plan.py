"""Plan: where every unit lies, over which link the others travel, what drafts, and what memory that takes.

A plan is the only thing that crosses from deciding to doing. It names variants that are still to come (trees, experts,
codecs); the runtime refuses by name what it does not implement.
"""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from planner.contracts.base import Contract, ContractFile
from planner.contracts.layer_parts import PART_KINDS, Granularity
from planner.contracts.performance import Performance

Dtype = Literal["bf16", "fp16", "fp32", "fp64"]
UnitKind = Literal["layer", "attention", "mlp", "expert", "head_chunk", "embedding"]
Placement = Literal["resident", "streamed", "host", "routed"]
Codec = Literal["raw", "bf12", "q8", "nf4"]

RankPath = tuple[int, ...]  # of a tree's node: its own rank and those of its ancestors, from the root on

DTYPE_BYTES: dict[Dtype, int] = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
MAX_DRAFT_LEN = 64  # and the depth of a tree
MAX_TREE_NODES = 1024
MAX_RANKS = 32  # of the draft's choices after a node, that a tree may take
INLINE_BYTES = 128 * 1024  # handing over to a thread and back takes longer than reading so much (docs/LOG.md)


class Unit(Contract):
    """The smallest thing with a placement of its own.

    `host` means computed (or, for the embedding, gathered) where it lies in host memory; `source` is where its bytes
    are read from in each pass: host memory, or the checkpoint on disk. `read_s`, `copy_s` and `compute_s` are what
    the plan predicts for one verify pass; the embedding's holds all of a pass that belongs to no other unit.
    """

    kind: UnitKind
    index: int = Field(ge=0)
    placement: Placement
    source: Literal["ram", "disk"]
    codec: Codec = "raw"
    wire_bytes: int = Field(ge=0)
    dense_bytes: int = Field(ge=0)
    rows: tuple[int, int] | None = None  # of the head's weight, for a head chunk: first row, row after the last
    read_s: float | None = Field(default=None, ge=0)  # from disk into a staging buffer, before the copy
    copy_s: float | None = Field(default=None, ge=0)
    compute_s: float | None = Field(default=None, ge=0)


class NoDraft(Contract):
    """The target decodes alone, one token a pass."""

    kind: Literal["none"] = "none"


class ChainDraft(Contract):
    """A draft model proposes at most `draft_len` tokens one after the other.

    With `tiers`, each round stops at one of these lengths, or drafts nothing, by what the plan's round costs say pays.
    """

    kind: Literal["chain"] = "chain"
    model: str
    fingerprint: str
    draft_len: int = Field(ge=1, le=MAX_DRAFT_LEN)
    tiers: tuple[int, ...] = ()  # ascending, the last is draft_len; none: always draft_len
    dtype: Dtype
    device: int = Field(default=0, ge=0)  # index into Plan.devices

    @model_validator(mode="after")
    def _has_ascending_tiers(self) -> Self:
        if self.tiers and (sorted(set(self.tiers)) != list(self.tiers) or self.tiers[-1] != self.draft_len):
            raise ValueError("draft: tiers must ascend, and end with draft_len")
        if self.tiers and self.tiers[0] < 1:
            raise ValueError("draft: the shortest tier is 1; drafting nothing is always among them")
        return self


class TreeDraft(Contract):
    """A draft model proposes the most probable paths, which one pass verifies as a tree.

    With `paths` every round has the same tree: of each node its rank among the draft's choices, and those of its
    ancestors, from the root on.
    """

    kind: Literal["tree"] = "tree"
    model: str
    fingerprint: str
    num_nodes: int = Field(ge=1, le=MAX_TREE_NODES)
    max_depth: int = Field(ge=1, le=MAX_DRAFT_LEN)
    pass_nodes: int = Field(ge=1, le=MAX_TREE_NODES)  # that one pass of the draft expands at the most
    paths: tuple[RankPath, ...] = ()
    dtype: Dtype
    device: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _has_a_tree_of_paths(self) -> Self:
        known = {(), *self.paths}
        if len(self.paths) > self.num_nodes or len(known) != len(self.paths) + 1:
            raise ValueError("draft: paths must be as many as there are nodes at the most, each once")
        if any(path[:-1] not in known or len(path) > self.max_depth for path in self.paths):
            raise ValueError("draft: every path's beginning must be a path too, and none deeper than max_depth")
        parents = Counter(len(parent) for parent in {path[:-1] for path in self.paths})
        if max(parents.values(), default=0) > self.pass_nodes:
            raise ValueError("draft: a level of paths has more nodes with children than pass_nodes")
        if any(not 0 <= rank < MAX_RANKS for path in self.paths for rank in path):
            raise ValueError(f"draft: the ranks of paths are 0 to {MAX_RANKS - 1}")
        return self


class NgramDraft(Contract):
    """Continuations of earlier occurrences in the text, or in files given for it, are proposed; no model."""

    kind: Literal["ngram"] = "ngram"
    num_nodes: int = Field(ge=1, le=MAX_TREE_NODES)
    max_depth: int = Field(ge=1, le=MAX_DRAFT_LEN)
    min_match_tokens: int = Field(default=1, ge=1)


class HybridDraft(Contract):
    """Candidates of a draft model and of n-grams share one tree."""

    kind: Literal["hybrid"] = "hybrid"
    model: str
    fingerprint: str
    num_nodes: int = Field(ge=1, le=MAX_TREE_NODES)
    max_depth: int = Field(ge=1, le=MAX_DRAFT_LEN)
    pass_nodes: int = Field(ge=1, le=MAX_TREE_NODES)  # that one pass of the draft expands at the most
    min_match_tokens: int = Field(default=1, ge=1)
    dtype: Dtype
    device: int = Field(default=0, ge=0)


class SelfDraft(Contract):
    """The target's own resident layers propose."""

    kind: Literal["self"] = "self"
    num_layers: int = Field(ge=1)
    draft_len: int = Field(ge=1, le=MAX_DRAFT_LEN)


ModelDraft = ChainDraft | TreeDraft | HybridDraft  # those with a draft model
Draft = Annotated[NoDraft | ChainDraft | TreeDraft | NgramDraft | HybridDraft | SelfDraft, Field(discriminator="kind")]


class RoundCosts(Contract):
    """What a round takes, for the runtime to decide in each round how much to draft.

    `round_s[i]` is the round that verifies `num_verified[i]` tokens (the context's last one and the drafted ones) and
    drafts nothing; drafting lengthens it by what exceeds `hidden_s[i]`, which passes while weights stream anyway.
    `draft_pass_s[i]` is one pass of the draft over `pass_nodes[i]` nodes. All between two entries is linear.
    """

    num_verified: tuple[int, ...] = Field(min_length=1)
    round_s: tuple[float, ...]
    hidden_s: tuple[float, ...]
    pass_nodes: tuple[int, ...] = ()
    draft_pass_s: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _has_equal_lengths(self) -> Self:
        if not len(self.num_verified) == len(self.round_s) == len(self.hidden_s):
            raise ValueError("round_costs: num_verified, round_s and hidden_s must be of equal length")
        for name, counts in (("num_verified", self.num_verified), ("pass_nodes", self.pass_nodes)):
            if list(counts) != sorted(set(counts)):
                raise ValueError(f"round_costs: {name} must ascend")
        if len(self.pass_nodes) != len(self.draft_pass_s):
            raise ValueError("round_costs: pass_nodes and draft_pass_s must be of equal length")
        return self


class ProbabilityCurve(Contract):
    """How often the target takes a token, by the probability that the draft gives it; rising, linear in between.

    `by_rank_frac` is how often it takes the draft's first choice, its second and so on, on average over texts; empty
    where that is not known.
    """

    draft_probs: tuple[float, ...] = Field(min_length=2)
    accepted_shares: tuple[float, ...] = Field(min_length=2)
    by_rank_frac: tuple[float, ...] = ()


class DiskLink(Contract):
    """Weights are read from the checkpoint into the slot; `direct` drops what was read from the page cache."""

    kind: Literal["disk"] = "disk"
    mode: Literal["cached", "direct"] = "cached"


class EmulatedLink(Contract):
    """A copy within host memory, paced to a stated bandwidth and latency."""

    kind: Literal["emulated"] = "emulated"
    bytes_per_s: float = Field(gt=0)
    latency_s: float = Field(default=0.0, ge=0, le=3600)


class CudaLink(Contract):
    """Pinned host memory to a CUDA device on a copy stream of its own."""

    kind: Literal["cuda"] = "cuda"


LinkChoice = Annotated[DiskLink | EmulatedLink | CudaLink, Field(discriminator="kind")]


class Staging(Contract):
    """Host buffers between disk and link, for the units above the host budget; pinned where the link needs it."""

    num_buffers: int = Field(ge=1)
    buffer_bytes: int = Field(gt=0)


class Device(Contract):
    """A device that computes, and the bytes that the plan may take on it."""

    name: str  # torch's name: cpu, cuda:0
    budget_bytes: int = Field(gt=0)


class MemorySplit(Contract):
    """Bytes of each part of a plan; what is on the device and what is in host memory."""

    residents_bytes: int = Field(ge=0)
    slots_bytes: int = Field(ge=0)
    draft_bytes: int = Field(ge=0)
    target_kv_bytes: int = Field(ge=0)
    draft_kv_bytes: int = Field(ge=0)
    activations_bytes: int = Field(ge=0)
    overhead_bytes: int = Field(ge=0)
    margin_bytes: int = Field(ge=0)
    host_weights_bytes: int = Field(ge=0)
    host_embedding_bytes: int = Field(ge=0)
    host_staging_bytes: int = Field(ge=0)
    host_overhead_bytes: int = Field(ge=0)
    host_draft_bytes: int = Field(default=0, ge=0)  # weights and KV cache of a draft that computes on the host

    @property
    def device_bytes(self) -> int:
        """Bytes on the device: the sum of all parts that are not named host."""
        return sum(size for name, size in self if not name.startswith("host_"))

    @property
    def host_bytes(self) -> int:
        """Bytes in host memory: the sum of the parts named host."""
        return sum(size for name, size in self if name.startswith("host_"))


class ModelRef(Contract):
    """A model as the user named it, and the fingerprint of its configuration and tensor table."""

    name: str
    fingerprint: str


class Workload(Contract):
    """The requests that a prediction holds for; of several, the mean."""

    num_requests: int = Field(default=1, ge=1)
    prompt_tokens: int = Field(ge=1)
    new_tokens: int = Field(ge=1)
    domain: str | None = None  # of the recorded texts; None: all of them


class Plan(ContractFile):
    """How one target runs on one machine. `predicted` is the median; each field of p10 and p90 is its own quantile."""

    target: ModelRef
    dtype: Dtype
    context_tokens: int = Field(ge=1, le=2**30)
    prefill_chunk_tokens: int = Field(ge=1)
    devices: tuple[Device, ...] = Field(min_length=1)
    batch: int = Field(default=1, ge=1)
    link: LinkChoice
    slots: int = Field(ge=0, le=16)
    staging: Staging | None = None
    draft: Draft
    round_costs: RoundCosts | None = None  # None: every round drafts as much as the plan allows
    draft_calibration: ProbabilityCurve | None = None  # None: the draft's probabilities are taken at their word
    corpus_tokens: int = Field(default=0, ge=0)  # of files that n-grams copy from; part of memory.host_overhead_bytes
    units: tuple[Unit, ...] = Field(min_length=1)
    memory: MemorySplit
    predicted: Performance
    predicted_p10: Performance | None = None
    predicted_p90: Performance | None = None
    workload: Workload | None = None
    calibration: dict[str, float] = Field(default_factory=dict)  # factors by component that logged runs put in

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for kind in ("layer", "head_chunk"):
            indices = [unit.index for unit in self.units if unit.kind == kind]
            if indices != list(range(len(indices))):
                raise ValueError(f"units: the {kind} units must be listed in order, each index once, from 0")
        self._check_parts()
        next_row = 0
        for unit in self.units:
            if (unit.rows is not None) != (unit.kind == "head_chunk"):
                raise ValueError(f"units: rows belong to head chunks, not to a {unit.kind}")
            if unit.rows is not None:
                if unit.rows[0] != next_row or unit.rows[1] <= next_row:
                    raise ValueError("units: the head chunks' rows must follow each other without gap or overlap")
                next_row = unit.rows[1]
        if self.tree_nodes > self.context_tokens:
            raise ValueError(f"draft: {self.tree_nodes - 1} drafted tokens do not fit the context with its last one")
        if self.streamed and self.slots == 0:
            raise ValueError("slots: at least 1 is needed where units are streamed")
        if self.staging is None and any(u.source == "disk" for u in self.streamed) and self.link.kind != "disk":
            raise ValueError("staging: units that come from disk over another link need staging buffers")
        return self

    def _check_parts(self) -> None:
        """A plan places whole layers, or the attention and the MLP of each."""
        parts = [(unit.kind, unit.index) for unit in self.units if unit.kind in PART_KINDS]
        if parts and any(unit.kind == "layer" for unit in self.units):
            raise ValueError("units: a plan has whole layers, or an attention and an mlp unit of each, never both")
        if parts != [(kind, index) for index in range((len(parts) + 1) // 2) for kind in PART_KINDS]:
            raise ValueError("units: attention 0, mlp 0, attention 1, mlp 1, ... must be listed so, each once")

    @property
    def tree_nodes(self) -> int:
        """Nodes that hang on the sequence while a pass verifies them, its last token too; a chain is part of it."""
        return self.draft.num_nodes + 1 if isinstance(self.draft, TreeDraft | NgramDraft | HybridDraft) else 0

    @property
    def draft_pass_nodes(self) -> int:
        """Tokens that a pass of the draft model feeds at most once it has read the context."""
        return self.draft.pass_nodes if isinstance(self.draft, TreeDraft | HybridDraft) else 1

    @property
    def draft_nodes(self) -> int:
        """Nodes that hang on the draft model's own sequence at most, while a tree is drafted."""
        draft = self.draft
        return draft.pass_nodes * (draft.max_depth - 1) if isinstance(draft, TreeDraft | HybridDraft) else 0

    @property
    def streamed(self) -> tuple[Unit, ...]:
        """The units that travel in every pass, in pass order."""
        return tuple(unit for unit in self.units if unit.placement == "streamed")

    @property
    def granularity(self) -> Granularity:
        """Whether attention and MLP have places of their own, or layers are placed whole."""
        return "parts" if any(unit.kind in PART_KINDS for unit in self.units) else "layers"

    @property
    def is_inline(self) -> bool:
        """Whether streamed units are so small that the compute lane reads them itself."""
        return self.link.kind == "disk" and max((unit.dense_bytes for unit in self.streamed), default=0) <= INLINE_BYTES

    @property
    def streamed_bytes(self) -> int:
        """Bytes that travel over the link in every pass."""
        return sum(unit.wire_bytes for unit in self.streamed)
