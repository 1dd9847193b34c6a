"""A decoder with its cache: feed tokens, get rows of logits, forget tokens again. Target and draft alike."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from planner.contracts.errors import BadInputError
from runtime.kv_cache import KvCache, cache_argument
from runtime.model import StreamedModel
from runtime.tree_mask import GrowingTree, TreeMasks, reaches, why_no_trees
from runtime.verify import check_finite


class CachedModel:
    """One sequence in one model, and at times a tree that hangs on its last token.

    Shapes: T tokens fed, R rows of logits wanted, V vocabulary.
    """

    def __init__(self, streamed: StreamedModel, context_tokens: int, most_nodes: int = 0) -> None:
        """At most `most_nodes` may hang on the sequence at once; caches and masks have room for so many.

        Raises: BadInputError, where trees are wanted of a model that cannot run over them.
        """
        self.streamed = streamed
        self.context_tokens = context_tokens
        self.most_nodes = most_nodes
        self._cache = KvCache(streamed.model.config, context_tokens, most_nodes)
        self._why_no_trees = why_no_trees(streamed.model, self._cache)
        self._tree: GrowingTree | None = None
        self._masks = self._tree_masks() if most_nodes else None
        self._takes_positions = "position_ids" in inspect.signature(streamed.model.forward).parameters
        self._cache_argument = cache_argument(streamed.model)
        self._continues_by_one = _continues_by_one(streamed.model)

    @property
    def num_seen(self) -> int:
        """Tokens of the sequence in the cache, without the nodes of a tree."""
        return self._cache.num_seen

    @property
    def can_roll_back(self) -> bool:
        """Whether rejected tokens can be forgotten."""
        return self._cache.can_roll_back

    @property
    def why_no_trees(self) -> str | None:
        """Why `forward_tree` cannot run this model; None where it can."""
        return self._why_no_trees

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], num_rows: int) -> Tensor:
        """Append the tokens and return the logits (R, V) after the last R of them.

        Raises: SelfCheckError, where a logit is not a number.
        """
        assert self._tree is None, "a tree hangs on the sequence"
        if self._continues_by_one and self.num_seen > 0 and len(tokens) > 1:
            return torch.cat([self.forward([token], 1) for token in tokens][-num_rows:])
        logits_RV = self._pass(tokens, num_rows)
        self._check(logits_RV)
        return logits_RV

    @torch.inference_mode()
    def forward_tree(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Append nodes of a tree that hangs on the sequence, and return the logits (T, V) after each of them.

        May be called again to let the same tree grow: `parents` are indices of nodes in the order in which they were
        fed since the tree began, or ROOT for the last token of the sequence. `keep_path` ends the tree.

        Raises: SelfCheckError, where a logit is not a number.
        """
        assert self._masks is not None, "no room for trees was asked for"
        if self._tree is None:
            self._tree = GrowingTree()
            self._cache.begin_tree()
        tree, first = self._tree, len(self._tree)
        tree.grow(parents)
        assert len(tree) == first + len(tokens) <= self.most_nodes, "more nodes than room was asked for"
        logits_TV = self._tree_pass(tokens, tree)
        self._check(logits_TV)
        return logits_TV

    @torch.inference_mode()
    def keep_path(self, path: Sequence[int]) -> None:
        """Make these nodes, each the child of the one before, part of the sequence, and forget the others."""
        assert self._tree is not None, "no tree hangs on the sequence"
        assert self._tree.is_path(path), "nodes that do not follow one another"
        self._cache.keep_path(path)
        self._end_tree()

    def drop(self, num_tokens: int) -> None:
        """Forget the last tokens."""
        assert self._tree is None, "a tree hangs on the sequence"
        self._cache.drop(num_tokens)

    def reset(self) -> None:
        """Forget the whole sequence; the memory is kept where it can be."""
        if self.can_roll_back:
            self._cache.drop_all()
        else:
            self._cache = KvCache(self.streamed.model.config, self.context_tokens)
        self._end_tree()

    def _pass(self, tokens: Sequence[int], num_rows: int) -> Tensor:
        device = self.streamed.link.device
        positions = {}
        if self._takes_positions:  # some models count from 0 in every pass unless told
            first = self.num_seen
            positions["position_ids"] = torch.arange(first, first + len(tokens), device=device)[None]
        output = self.streamed.model(
            input_ids=torch.tensor([tokens], device=device),
            use_cache=True,
            logits_to_keep=num_rows,
            **{self._cache_argument: self._cache},
            **positions,
        )
        logits_RV: Tensor = output.logits[0]
        return logits_RV

    def _tree_pass(self, tokens: Sequence[int], tree: GrowingTree) -> Tensor:
        """A pass over the last nodes of the tree, to which these tokens belong."""
        assert self._masks is not None
        device = self.streamed.link.device
        positions = [self.num_seen + depth for depth in tree.depths[-len(tokens) :]]
        output = self.streamed.model(
            input_ids=torch.tensor([tokens], device=device),
            attention_mask=self._masks.rows(tree, len(tokens), self.num_seen),
            position_ids=torch.tensor([positions], device=device),
            use_cache=True,
            logits_to_keep=len(tokens),
            **{self._cache_argument: self._cache},
        )
        logits_TV: Tensor = output.logits[0]
        return logits_TV

    def _check(self, logits_TV: Tensor) -> None:
        check_finite(logits_TV)

    @torch.inference_mode()
    def _end_tree(self) -> None:
        if self._tree is not None and self._masks is not None:
            self._masks.clear()
        self._tree = None

    def _tree_masks(self) -> TreeMasks:
        model = self.streamed.model
        if self._why_no_trees is not None:
            raise BadInputError(
                f"a {model.config.model_type} cannot run over a tree of drafted tokens",
                why=self._why_no_trees,
                remedy="draft chains of tokens, or use another model",
            )
        by_kind = reaches(model.config, self._cache)
        assert by_kind is not None, "a model that can run over trees tells how far its layers look back"
        return TreeMasks(
            by_kind, self.context_tokens, self.most_nodes, dtype=model.dtype, device=self.streamed.link.device
        )


def _continues_by_one(model: PreTrainedModel) -> bool:
    """Whether a pass of several tokens would forget those before it: transformers' Mamba-1 scans from zero.

    Its decay has a row per channel; in later recurrences it has one number per head.
    """
    return any(name.endswith(".A_log") and parameter.ndim >= 2 for name, parameter in model.named_parameters())
