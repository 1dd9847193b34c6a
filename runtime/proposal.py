"""What is proposed to the target, a tree of tokens of which a chain is the narrowest, and what became of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

from torch import Tensor

ROOT = -1  # as a parent: the last token of the context

Source = Literal["model", "ngram"]


@dataclass(frozen=True)
class Proposal:
    """Tokens that may follow the context, as a tree: N nodes, each listed after its parent.

    `parents` are indices of nodes, or ROOT. The children of a node are tried in the order in which they are listed; no
    two of them have the same token. When sampling, node i was drawn from row `row_of[i]` of `rows_RV` with the tokens
    of its earlier siblings taken out; None stands for a token that nobody drew, as one copied from earlier text.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    sources: tuple[Source, ...]
    rows_RV: Tensor | None = None
    row_of: tuple[int | None, ...] = ()

    @classmethod
    def chain(cls, tokens: Sequence[int], rows_KV: Tensor | None = None, source: Source = "model") -> Self:
        """Tokens one after the other, each drawn from its own row."""
        return cls(
            tokens=tuple(tokens),
            parents=tuple(range(ROOT, len(tokens) - 1)),
            sources=(source,) * len(tokens),
            rows_RV=rows_KV,
            row_of=tuple(None if rows_KV is None else row for row in range(len(tokens))),
        )

    @cached_property
    def is_chain(self) -> bool:
        """Whether every node follows the one before it."""
        return self.parents == tuple(range(ROOT, len(self.parents) - 1))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Of each node; a child of the root has depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def children(self) -> dict[int, tuple[int, ...]]:
        """The children of every node that has any, and of ROOT, in the order in which they are tried."""
        found: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parents):
            found.setdefault(parent, []).append(node)
        return {parent: tuple(nodes) for parent, nodes in found.items()}


NOTHING = Proposal(tokens=(), parents=(), sources=())


@dataclass(frozen=True, slots=True)
class Verdict:
    """A round's result: the accepted nodes from the root on, and the target's own token after them.

    `next_token` is the bonus after a leaf, else the correction of rejected children.
    """

    path: tuple[int, ...]
    next_token: int

    @property
    def num_accepted(self) -> int:
        """Drafted tokens that stay."""
        return len(self.path)
