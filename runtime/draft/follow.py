"""A draft model whose cache follows the context: what was accepted stays, what was rejected is forgotten."""

from collections.abc import Sequence

from torch import Tensor

from runtime.cached import CachedModel
from runtime.proposal import ROOT


class FollowingModel:
    """Feeds a model of its own what the context has more than its cache. Shapes: T tokens, V vocabulary.

    A context goes on where the one before it ended; only what was drafted after it is in doubt.
    """

    def __init__(self, model: CachedModel, *, vocab_size: int, chunk_tokens: int) -> None:
        self.model = model
        self.vocab_size = min(vocab_size, model.streamed.vocab_size)  # a padded draft proposes nothing beyond
        self.fed: list[int] = []  # the sequence in the cache
        self._chunk_tokens = chunk_tokens
        self._num_agreed = 0  # of it, what was part of the last context
        self._nodes: dict[tuple[int, int], int] = {}  # by parent and token, those of the tree in the cache
        self._num_nodes = 0

    def room(self, context: Sequence[int]) -> int:
        """How many tokens may be drafted after a context; none after a token that only the target's table has."""
        if max(context) >= self.model.streamed.vocab_size:
            return 0
        return max(0, self.model.context_tokens - len(context))

    @property
    def num_nodes(self) -> int:
        """Nodes of the tree that hangs on the context."""
        return self._num_nodes

    def row_after(self, context: Sequence[int]) -> Tensor:
        """The logits (1, V) after the context's last token."""
        self._keep_accepted_path(context)
        self._rewind_to(context)
        while len(context) - len(self.fed) > self._chunk_tokens:
            start = len(self.fed)
            self.feed(context[start : start + self._chunk_tokens])
        return self.feed(context[len(self.fed) :])

    def feed(self, tokens: Sequence[int]) -> Tensor:
        """The logits (1, V) after the last of these tokens, which become part of the sequence."""
        self.fed.extend(tokens)
        return self.model.forward(tokens, num_rows=1)[:, : self.vocab_size]

    def feed_nodes(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """The logits (T, V) after each of more nodes of the tree; parents by the order of feeding, or ROOT."""
        for node, key in enumerate(zip(parents, tokens, strict=True), start=self._num_nodes):
            self._nodes[key] = node
        self._num_nodes += len(tokens)
        return self.model.forward_tree(tokens, parents)[:, : self.vocab_size]

    def _keep_accepted_path(self, context: Sequence[int]) -> None:
        """End the tree; the nodes that the context went on with stay, but for its last token, whose row is wanted."""
        if self._num_nodes == 0:
            return
        path: list[int] = []
        for token in context[len(self.fed) : len(context) - 1]:
            node = self._nodes.get((path[-1] if path else ROOT, token))
            if node is None:
                break
            path.append(node)
        self.model.keep_path(path)
        self.fed.extend(context[len(self.fed) : len(self.fed) + len(path)])
        self._nodes.clear()
        self._num_nodes = 0

    def _rewind_to(self, context: Sequence[int]) -> None:
        """Forget what was drafted and rejected since the last context."""
        num_common = min(self._num_agreed, len(context))
        limit = min(len(self.fed), len(context) - 1)  # the last token is fed again, for its row of logits
        while num_common < limit and self.fed[num_common] == context[num_common]:
            num_common += 1
        num_common = min(num_common, limit)
        self.model.drop(len(self.fed) - num_common)
        del self.fed[num_common:]
        self._num_agreed = num_common
