"""Which keys each node of a growing tree may see, as the additive masks that transformers' own forwards take.

A node sees the sequence, its ancestors and itself, as far back as its layer looks. Masks lie in memory allocated once:
a pass writes the rows of its new nodes, and of those only what is hidden.

Shapes: N nodes fed so far, R of them in this pass, C columns: the tokens of the sequence that a layer holds, then the N
nodes.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from runtime.kv_cache import KvCache, num_visible_tokens
from runtime.proposal import ROOT

_ALIGN_COLUMNS = 16  # fused attention reads aligned rows, and would copy others


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back the layers of one kind look: `window_tokens`, or to where the chunk of so many begins."""

    window_tokens: int | None
    is_chunked: bool = False

    def first_visible(self, position: int) -> int:
        """The position of the first token that the one at `position` sees."""
        if self.window_tokens is None:
            return 0
        if self.is_chunked:
            return position - position % self.window_tokens
        return max(0, position - self.window_tokens + 1)


class GrowingTree:
    """Parents, depths and ancestors of the nodes fed so far."""

    def __init__(self) -> None:
        self.parents: list[int] = []
        self.depths: list[int] = []  # a child of the root has depth 0
        self._lineages: list[int] = []  # bit n is set where node n is an ancestor, or the node itself

    def __len__(self) -> int:
        return len(self.parents)

    def grow(self, parents: Sequence[int]) -> None:
        """Append nodes, each listed after its parent."""
        for node, parent in enumerate(parents, start=len(self)):
            assert ROOT <= parent < node, "a node's parent is listed before it"
            self.parents.append(parent)
            self.depths.append(0 if parent == ROOT else self.depths[parent] + 1)
            self._lineages.append(1 << node | (0 if parent == ROOT else self._lineages[parent]))

    def is_path(self, nodes: Sequence[int]) -> bool:
        """Whether each node is the child of the one before, and the first the root's."""
        return all(self.parents[node] == parent for parent, node in zip((ROOT, *nodes), nodes, strict=False))

    def hidden_from(self, first: int) -> Tensor:
        """Booleans (R, N): for each node from `first` on, the nodes that are neither its ancestors nor itself."""
        num_bytes = -(-len(self) // 8)
        packed = b"".join(lineage.to_bytes(num_bytes, "little") for lineage in self._lineages[first:])
        bytes_RB1 = torch.frombuffer(bytearray(packed), dtype=torch.uint8).view(-1, num_bytes, 1)
        seen_RB8 = bytes_RB1.bitwise_right_shift(torch.arange(8, dtype=torch.uint8)).bitwise_and_(1)
        return seen_RB8.flatten(1)[:, : len(self)] == 0


class TreeMasks:
    """The masks of one decoder for trees of at most `most_nodes`; one per reach."""

    def __init__(
        self,
        reaches: dict[str, Reach],
        context_tokens: int,
        most_nodes: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`reaches` are those of all kinds of layers, by the names under which the model looks up their masks."""
        self._names = reaches
        self._masks = {
            reach: _ReachMask(reach, context_tokens, most_nodes, dtype=dtype, device=device)
            for reach in set(reaches.values())
        }

    def rows(self, tree: GrowingTree, num_new: int, num_seen: int) -> Tensor | dict[str, Tensor]:
        """Masks (1, 1, R, C) of a tree's last `num_new` nodes behind `num_seen` tokens, as the model's forward takes
        them: one where all layers look equally far, else by the name of the kind.
        """
        hidden_RN = tree.hidden_from(len(tree) - num_new)
        rows = {reach: mask.rows(tree, hidden_RN, num_seen) for reach, mask in self._masks.items()}
        if len(rows) == 1:
            return next(iter(rows.values()))
        return {name: rows[reach] for name, reach in self._names.items()}

    def clear(self) -> None:
        """Get ready for another tree."""
        for mask in self._masks.values():
            mask.clear()


class _ReachMask:
    """The mask of the layers that look equally far back; zero wherever no row of the present tree has been written."""

    def __init__(
        self, reach: Reach, context_tokens: int, most_nodes: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        num_columns = num_visible_tokens(context_tokens, reach.window_tokens) + most_nodes
        num_columns += -num_columns % _ALIGN_COLUMNS
        self._reach = reach
        self._mask = torch.zeros(1, 1, most_nodes, num_columns, dtype=dtype, device=device)
        self._written: list[Tensor] = []

    def rows(self, tree: GrowingTree, hidden_RN: Tensor, num_seen: int) -> Tensor:
        num_new, num_nodes = hidden_RN.shape
        num_held = num_visible_tokens(num_seen, self._reach.window_tokens)
        rows = self._mask[:, :, num_nodes - num_new : num_nodes, : num_held + num_nodes]
        firsts = [self._reach.first_visible(num_seen + depth) for depth in tree.depths[num_nodes - num_new :]]
        if max(firsts) > num_seen:  # a path longer than the window
            positions_N = torch.tensor(tree.depths) + num_seen
            hidden_RN = hidden_RN | (positions_N < torch.tensor(firsts)[:, None])
        self._hide(rows[..., num_held:], hidden_RN)
        num_hidden = min(num_held, max(firsts) - (num_seen - num_held))
        if num_hidden > 0:
            positions_C = torch.arange(num_seen - num_held, num_seen - num_held + num_hidden)
            self._hide(rows[..., :num_hidden], positions_C < torch.tensor(firsts)[:, None])
        return rows

    def clear(self) -> None:
        for written in self._written:
            written.zero_()
        self._written.clear()

    def _hide(self, block: Tensor, hidden: Tensor) -> None:
        block.masked_fill_(hidden.to(block.device), torch.finfo(block.dtype).min)
        self._written.append(block)


def reaches(config: PretrainedConfig, cache: KvCache) -> dict[str, Reach] | None:
    """How far back each kind of layer looks, by its name in the configuration; None where that is not told."""
    windows = cache.windows
    names: Sequence[str] | None = getattr(config, "layer_types", None)
    if names is None:
        is_chunked = getattr(config, "sliding_window", None) is None
        found = {Reach(window, is_chunked=is_chunked and window is not None) for window in windows}
        return {"": found.pop()} if len(found) == 1 else None
    by_name: dict[str, Reach] = {}
    for name, window in zip(names, windows, strict=False):
        reach = Reach(window, is_chunked=name == "chunked_attention")
        if by_name.setdefault(name, reach) != reach:
            return None
    return by_name if set(names) == set(by_name) else None


def why_no_trees(model: PreTrainedModel, cache: KvCache) -> str | None:
    """Why one pass of the model cannot run over the nodes of a tree; None where it can."""
    config = model.config
    implementation = str(getattr(config, "_attn_implementation", None) or "eager")
    if not cache.can_roll_back:
        return "its layers keep a state of their own, such as a recurrence, which cannot branch"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "it takes no positions, so that siblings could not share one"
    if getattr(config, "alibi", False):
        return "its attention is biased by the distance of tokens in the pass (ALiBi), which is not that in the tree"
    if implementation not in ("eager", "sdpa"):
        return f"its attention ({implementation}) takes no mask of its own for every token"
    if any(_is_band(buffer) for buffer in model.buffers()):
        return "some of its layers cut their window by the order in the pass, which is not that in the tree"
    if reaches(config, cache) is None:
        return "its configuration does not tell which of its layers look how far back"
    return None


def _is_band(buffer: Tensor) -> bool:
    """Whether a buffer is a causal mask that hides the first token from the last."""
    return buffer.dtype == torch.bool and buffer.ndim == 4 and not bool(buffer[0, 0, -1, 0])
