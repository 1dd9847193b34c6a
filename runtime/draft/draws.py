"""Children drawn without replacement, for many nodes at once: as one after the other by `draw_token`.

Shapes: P parents, A of them that are not done yet, R children of one at the most, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.sampling import draw_token
from runtime.verify import without


def draw_children(
    rows_PV: Tensor, taken: Sequence[Sequence[int]], uniforms: Sequence[Sequence[float]]
) -> list[list[int]]:
    """For each row as many tokens as it has uniforms, none of them twice and none of `taken`.

    A row has more tokens of positive probability than are taken and wanted together. One transfer from the device.
    """
    order = sorted(range(len(uniforms)), key=lambda parent: -len(uniforms[parent]))
    num_ranks, device = len(uniforms[order[0]]), rows_PV.device
    padded = [[*uniforms[parent], *[0.0] * (num_ranks - len(uniforms[parent]))] for parent in order]
    uniforms_PR = torch.tensor(padded, dtype=torch.float64, device=device)
    weights_PV = rows_PV[order].double()
    width = rows_PV.shape[1]
    gone = [(place, token) for place, parent in enumerate(order) for token in taken[parent] if token < width]
    if gone:
        places, tokens = torch.tensor(gone, device=device).unbind(dim=1)
        weights_PV[places, tokens] = 0.0
    drawn: list[Tensor] = []
    num_wanted = [sum(len(own) > rank for own in uniforms) for rank in range(num_ranks)]
    for rank, num_active in enumerate(num_wanted):
        weights_AV = weights_PV[:num_active]
        cumulative_AV = weights_AV.cumsum(dim=-1)
        targets_A1 = uniforms_PR[:num_active, rank : rank + 1] * cumulative_AV[:, -1:]
        tokens_A1 = torch.searchsorted(cumulative_AV, targets_A1, right=True).clamp_(max=width - 1)
        drawn.append(torch.cat([tokens_A1.double(), weights_AV.gather(1, tokens_A1)], dim=1))
        weights_AV.scatter_(1, tokens_A1, 0.0)
    pairs = iter(torch.cat(drawn).tolist())
    children: list[list[int]] = [[] for _ in uniforms]
    unsound: set[int] = set()
    for num_active in num_wanted:
        for parent in order[:num_active]:
            token, weight = next(pairs)
            children[parent].append(int(token))
            if not weight > 0:
                unsound.add(parent)
    for parent in unsound:  # where a parallel sum rounded its way into a token of probability zero
        children[parent] = draw_one_by_one(rows_PV[parent], taken[parent], uniforms[parent])
    return children


def draw_one_by_one(row_V: Tensor, taken: Sequence[int], uniforms: Sequence[float]) -> list[int]:
    """The plain twin of `draw_children` for one row."""
    tokens: list[int] = []
    for uniform in uniforms:
        tokens.append(draw_token(without(row_V, [*taken, *tokens]), uniform))
    return tokens
