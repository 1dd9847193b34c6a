"""The law of what rounds emit whose draft is sampled: every way in which the draws can go, with its probability.

Shapes: P parents, V vocabulary, L tokens of an emitted text.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from drafted_trees import FOREVER
from made_up_model import Floats, made_up_row

from runtime.draft import tree as tree_module
from runtime.draft.tree import TreeDrafter
from runtime.proposal import ROOT, Proposal
from runtime.verify import without

DRAFT_SEED, TARGET_SEED = 1, 2
NUM_TOKENS = 3  # of the texts whose law is compared


class Script:
    """Every way in which the draws can go: `choices` so far, then new ones, each with its probability."""

    def __init__(self, choices: list[int]) -> None:
        self.choices = choices
        self.weight = 1.0
        self.num_used = 0
        self.open: list[int] | None = None  # the tokens between which the script ends

    def draw(
        self, rows_PV: torch.Tensor, taken: Sequence[Sequence[int]], uniforms: Sequence[Sequence[float]]
    ) -> list[list[int]]:
        """Stands in for `draw_children`."""
        return [self._draw(rows_PV[row], list(taken[row]), len(uniforms[row])) for row in range(rows_PV.shape[0])]

    def _draw(self, row_V: torch.Tensor, taken: list[int], num_tokens: int) -> list[int]:
        tokens: list[int] = []
        for _ in range(num_tokens):
            rest_V = without(row_V, [*taken, *tokens])
            if self.num_used == len(self.choices):
                self.open = [token for token, prob in enumerate(rest_V.tolist()) if prob > 0]
                raise ScriptEndedError
            token = self.choices[self.num_used]
            self.num_used += 1
            self.weight *= float(rest_V[token])
            tokens.append(token)
        return tokens


class ScriptEndedError(Exception):
    pass


def all_proposals(make: Callable[[], TreeDrafter], patch: pytest.MonkeyPatch) -> list[tuple[float, Proposal]]:
    """Every proposal that can come of the draws, with its probability."""
    found, scripts = [], [Script([])]
    while scripts:
        script = scripts.pop()
        patch.setattr(tree_module, "draw_children", script.draw)
        try:
            found.append((0.0, make().propose([0], FOREVER)))
        except ScriptEndedError:
            assert script.open is not None
            scripts += [Script([*script.choices, token]) for token in script.open]
        else:
            found[-1] = (script.weight, found[-1][1])
    assert sum(weight for weight, _ in found) == pytest.approx(1.0)
    return found


def target_row(text: Sequence[int], vocab_size: int) -> Floats:
    return made_up_row(text, vocab_size, TARGET_SEED)


def tail(text: tuple[int, ...], vocab_size: int) -> Floats:
    """The target's law of whole texts (V, ..., V), given how they begin."""
    law_L = np.zeros((vocab_size,) * NUM_TOKENS)
    if len(text) >= NUM_TOKENS:
        law_L[text[:NUM_TOKENS]] = 1.0
        return law_L
    row = target_row((0, *text), vocab_size)
    for token in range(vocab_size):
        law_L += row[token] * tail((*text, token), vocab_size)
    return law_L


def output_law(proposal: Proposal, vocab_size: int, node: int = ROOT, text: tuple[int, ...] = ()) -> Floats:
    """The law of the texts that begin with what a round emits of this proposal: `verify_sampled`, integrated."""
    target_V, chance, earlier = target_row((0, *text), vocab_size), 1.0, list[int]()
    law_L = np.zeros((vocab_size,) * NUM_TOKENS)
    for child in proposal.children.get(node, ()):
        token, row = proposal.tokens[child], proposal.row_of[child]
        draft_V = np.eye(vocab_size)[token]
        if row is not None:
            assert proposal.rows_RV is not None
            draft_V = without(proposal.rows_RV[row], earlier).numpy()
        assert draft_V[token] > 0
        accept = min(1.0, target_V[token] / draft_V[token])
        law_L += chance * accept * output_law(proposal, vocab_size, child, (*text, token))
        chance *= 1 - accept
        excess_V = np.maximum(target_V - draft_V, 0)
        target_V = excess_V / excess_V.sum() if excess_V.sum() > 0 else target_V
        earlier.append(token)
    for token in range(vocab_size):
        law_L += chance * target_V[token] * tail((*text, token), vocab_size)
    return law_L


def law_error(make: Callable[[], TreeDrafter], vocab_size: int, patch: pytest.MonkeyPatch) -> float:
    """The largest difference between the law of what is emitted and the target's."""
    emitted = sum(
        weight * output_law(proposal, vocab_size) for weight, proposal in all_proposals(make, patch) if weight > 0
    )
    return float(np.abs(emitted - tail((), vocab_size)).max())
