"""How a round drafts: the kinds of draft that a plan chooses among, and the sizes that are tried of each."""

import itertools
import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from planner.contracts.errors import UsageError
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import (
    MAX_DRAFT_LEN,
    ChainDraft,
    Draft,
    Dtype,
    HybridDraft,
    NgramDraft,
    NoDraft,
    RankPath,
    SelfDraft,
    TreeDraft,
)

DraftKind = Literal["none", "chain", "tree", "ngram", "hybrid"]
DRAFT_KINDS: tuple[DraftKind, ...] = ("none", "chain", "ngram", "tree", "hybrid")  # the simplest first
MODEL_KINDS: tuple[DraftKind, ...] = ("chain", "tree", "hybrid")  # with a draft model

_CHAIN_LENS = (*range(1, 17), 20, 24, 28, 32, 40, 48, MAX_DRAFT_LEN)
_TREE_NODES, _TREE_DEPTHS = (4, 8, 16, 32, 64, 128, 256, 512), (4, 8, 16, 24)
_NGRAM_NODES = (4, 8, 16, 32, 64)
_MOST_PASS_NODES = 64
_MOST_STATIC_NODES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """A kind of draft and its size; beside the context's last token one pass verifies `num_nodes` drafted ones."""

    kind: DraftKind = "none"
    num_nodes: int = 0
    max_depth: int = 0
    pass_nodes: int = 1  # that one pass of the draft expands
    tiers: tuple[int, ...] = ()  # of a chain
    is_static: bool = False  # a tree of one shape for every round
    paths: tuple[RankPath, ...] = ()  # that shape, once replay has settled it

    @property
    def num_verified(self) -> int:
        """Tokens of a verify pass."""
        return self.num_nodes + 1

    @property
    def has_model(self) -> bool:
        """Whether a draft model takes part."""
        return self.kind in MODEL_KINDS

    @property
    def has_copies(self) -> bool:
        """Whether tokens are copied from earlier text."""
        return self.kind in ("ngram", "hybrid")

    @property
    def most_accepted_tokens(self) -> int:
        """Of a round; copies in a hybrid go deeper than its draft does."""
        return min(self.num_nodes, MAX_DRAFT_LEN) if self.kind == "hybrid" else self.max_depth

    @property
    def tree_nodes(self) -> int:
        """Nodes that hang on the sequence while a pass verifies them, its last token too; a chain is part of it."""
        return self.num_verified if self.kind not in ("none", "chain") else 0

    @property
    def num_widths(self) -> int:
        """How many widths passes may have: all up to a tree's; a chain's lengths and what a draft reads after each.

        One more is that of the round which ends a text.
        """
        return 2 * max(1, len(self.tiers)) + 1 if self.kind == "chain" else self.num_nodes

    @property
    def draft_nodes(self) -> int:
        """Nodes that hang on the draft model's own sequence at most, while a tree is drafted."""
        return self.pass_nodes * (self.max_depth - 1) if self.kind in ("tree", "hybrid") else 0

    @property
    def label(self) -> str:
        """As a table shows it."""
        match self.kind:
            case "none":
                return "no draft"
            case "chain":
                return f"chain of {'/'.join(map(str, self.tiers)) if self.tiers else self.num_nodes}"
            case "ngram":
                return f"n-grams of {self.num_nodes}"
        return f"{'static ' * self.is_static}{self.kind} of {self.num_nodes}, depth {self.max_depth}"

    def of(self, draft: ModelShape | None, dtype: Dtype, device: int) -> Draft:
        """The plan's draft; none where a model is needed and there is none."""
        if self.kind == "ngram":
            return NgramDraft(num_nodes=self.num_nodes, max_depth=self.max_depth)
        if self.kind == "none" or draft is None:
            return NoDraft()
        if self.kind == "chain":
            return ChainDraft(
                model=draft.name,
                fingerprint=draft.fingerprint,
                draft_len=self.num_nodes,
                tiers=self.tiers,
                dtype=dtype,
                device=device,
            )
        if self.kind == "tree":
            return TreeDraft(
                model=draft.name,
                fingerprint=draft.fingerprint,
                num_nodes=self.num_nodes,
                max_depth=self.max_depth,
                pass_nodes=self.pass_nodes,
                paths=self.paths,
                dtype=dtype,
                device=device,
            )
        return HybridDraft(
            model=draft.name,
            fingerprint=draft.fingerprint,
            num_nodes=self.num_nodes,
            max_depth=self.max_depth,
            pass_nodes=self.pass_nodes,
            dtype=dtype,
            device=device,
        )


NO_DRAFTING = Drafting()


def chain(draft_len: int, tiers: tuple[int, ...] = ()) -> Drafting:
    """A chain of so many tokens; of none, no draft."""
    if draft_len == 0:
        return NO_DRAFTING
    return Drafting(kind="chain", num_nodes=draft_len, max_depth=draft_len, tiers=tiers)


def tree(num_nodes: int, max_depth: int, kind: DraftKind = "tree") -> Drafting:
    """A tree, or a hybrid one; each pass of the draft expands twice the nodes that a level has on average."""
    depth = min(max_depth, num_nodes)
    pass_nodes = min(_MOST_PASS_NODES, num_nodes, 2 * math.ceil(num_nodes / depth))
    return Drafting(kind=kind, num_nodes=num_nodes, max_depth=depth, pass_nodes=pass_nodes)


def static(size: Drafting) -> Drafting:
    """Trees of that size, of one shape for every round."""
    return replace(size, is_static=True)


def ngram(num_nodes: int) -> Drafting:
    """Continuations of earlier text, as deep as there are nodes."""
    return Drafting(kind="ngram", num_nodes=num_nodes, max_depth=min(num_nodes, MAX_DRAFT_LEN))


def drafting_of(draft: Draft) -> Drafting:
    """A plan's draft without its model. Raises: UsageError for one that nothing here prices."""
    match draft:
        case NoDraft():
            return NO_DRAFTING
        case ChainDraft():
            return chain(draft.draft_len, draft.tiers)
        case NgramDraft():
            return Drafting(kind="ngram", num_nodes=draft.num_nodes, max_depth=draft.max_depth)
        case TreeDraft() | HybridDraft():
            paths = draft.paths if isinstance(draft, TreeDraft) else ()
            return Drafting(
                kind=draft.kind,
                num_nodes=draft.num_nodes,
                max_depth=draft.max_depth,
                pass_nodes=draft.pass_nodes,
                is_static=bool(paths),
                paths=paths,
            )
        case SelfDraft():
            raise UsageError(
                "a draft by the target's own layers is not planned", why="nothing times it", remedy="another kind"
            )


def draftings_for(
    kind: str | None,
    *,
    no_spec: bool = False,
    draft_len: int | None = None,
    num_nodes: int | None = None,
    tiers: str | None = None,
    is_static: bool = False,
) -> tuple[Drafting, ...]:
    """What the planner may choose among, by what the user stated; all of it where nothing was.

    Raises: UsageError, where the sizes belong to another kind than the one named or to none at all, or tiers do not
    ascend.
    """
    if is_static and (no_spec or draft_len is not None or tiers is not None or kind not in (None, "auto", "tree")):
        raise UsageError(
            "--draft-static with another kind of draft",
            why="it gives trees of a draft model one shape",
            remedy="--draft-kind tree, with --draft-tree NODES for its size",
        )
    if is_static:
        return tuple(map(static, EVERY_STATIC_TREE if num_nodes is None else _trees_of_size(num_nodes, "tree")))
    of_chain, of_tree = draft_len is not None or tiers is not None, num_nodes is not None
    if no_spec and (of_chain or of_tree or kind not in (None, "none")):
        raise UsageError(
            "--no-spec with a kind of draft or its size", why="it says never to draft", remedy="leave out one of them"
        )
    if draft_len is not None and tiers is not None:
        raise UsageError("a draft length and tiers", why="the longest tier is the length", remedy="--draft-tiers alone")
    if of_chain and (of_tree or kind not in (None, "auto", "chain")):
        raise UsageError(
            f"a draft length with {'--draft-tree' if of_tree else f'--draft-kind {kind}'}",
            why="--draft-len and --draft-tiers size a chain",
            remedy="--draft-tree NODES for trees, hybrids and n-grams, or --draft-kind chain",
        )
    if of_tree and kind in ("chain", "none"):
        raise UsageError(
            f"--draft-tree with --draft-kind {kind}", why="it sizes trees, hybrids and n-grams", remedy="--draft-len"
        )
    if of_chain:
        return (chain(draft_len),) if draft_len is not None else (_with_tiers(tiers or ""),)
    kinds = DRAFT_KINDS if kind in (None, "auto") else (kind,)
    sized = EVERY_DRAFTING if num_nodes is None else _of_size(num_nodes)
    return tuple(entry for entry in sized if entry.kind in kinds)


def _with_tiers(text: str) -> Drafting:
    try:
        tiers = tuple(int(part) for part in text.split(","))
    except ValueError:
        tiers = ()
    is_rising = bool(tiers) and all(a < b for a, b in itertools.pairwise((0, *tiers))) and tiers[-1] <= MAX_DRAFT_LEN
    if not is_rising:
        raise UsageError(
            f"--draft-tiers {text!r} is no list of lengths",
            why=f"tiers are whole numbers from 1 to {MAX_DRAFT_LEN} that ascend, with commas between them",
            remedy="--draft-tiers 1,3,7,15",
        )
    return chain(tiers[-1], tiers)


def _of_size(num_nodes: int) -> tuple[Drafting, ...]:
    """Trees, hybrids and n-grams of one size."""
    return (*_trees_of_size(num_nodes, "tree"), *_trees_of_size(num_nodes, "hybrid"), ngram(num_nodes))


def _trees_of_size(num_nodes: int, kind: DraftKind) -> list[Drafting]:
    depths = [depth for depth in _TREE_DEPTHS if depth < num_nodes] or [num_nodes]
    return [tree(num_nodes, depth, kind) for depth in depths]


EVERY_CHAIN = tuple(chain(length) for length in _CHAIN_LENS)
EVERY_TREE = tuple(tree(nodes, depth) for nodes, depth in product(_TREE_NODES, _TREE_DEPTHS) if depth <= nodes)
EVERY_HYBRID = tuple(  # the deepest ones are copies, which need no pass for each level
    tree(entry.num_nodes, entry.max_depth, "hybrid") for entry in EVERY_TREE if entry.max_depth < max(_TREE_DEPTHS)
)
EVERY_STATIC_TREE = tuple(entry for entry in EVERY_TREE if entry.num_nodes <= _MOST_STATIC_NODES)
EVERY_NGRAM = tuple(ngram(nodes) for nodes in _NGRAM_NODES)
EVERY_DRAFTING = (NO_DRAFTING, *EVERY_CHAIN, *EVERY_TREE, *EVERY_NGRAM, *EVERY_HYBRID)
