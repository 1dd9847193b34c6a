"""The parts of a decoder layer that may have places of their own: the child modules of its attention and its MLP.

Found by name, as in the checkpoint. A layer that has two such children, or reads a child's weights elsewhere than in
the child's own forward, is not split; which models were tried is a list.
"""

from collections.abc import Iterator

from torch import nn

from planner.contracts.errors import PlanMismatchError
from planner.contracts.layer_parts import PART_KINDS, SPLIT_MODEL_TYPES, TENSORS_OF, DecoderKind, part_of
from runtime.skeleton import Skeleton


def can_split(skeleton: Skeleton) -> bool:
    """Whether the layers of such a model are known to come apart."""
    return skeleton.model.config.model_type in SPLIT_MODEL_TYPES


def check_can_split(skeleton: Skeleton) -> None:
    """Raises: PlanMismatchError, where layers of such a model are not known to come apart, naming the model type."""
    if not can_split(skeleton):
        raise PlanMismatchError(
            f"the plan places attention and MLP of a {skeleton.model.config.model_type} by themselves",
            why=f"only the layers of {', '.join(SPLIT_MODEL_TYPES)} were seen to come apart",
            remedy="plan again with whole layers",
        )


def layer_parts(name: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The attention and the MLP of a layer, with their names.

    Raises: PlanMismatchError, where either is not exactly one child module.
    """
    for kind in PART_KINDS:
        found = [child for child, _ in layer.named_children() if part_of(child) in TENSORS_OF[kind]]
        if len(found) != 1:
            raise _other_parts(name, kind, found)
        yield f"{name}.{found[0]}", layer.get_submodule(found[0])


def mlp_of(name: str, layer: nn.Module) -> nn.Module:
    """The MLP of a layer. Raises: PlanMismatchError, as `layer_parts` does."""
    _, (_, mlp) = layer_parts(name, layer)
    return mlp


def _other_parts(name: str, kind: DecoderKind, found: list[str]) -> PlanMismatchError:
    return PlanMismatchError(
        f"{name} has no single module that is its {kind}",
        why=f"it has {' and '.join(found) if found else 'none'}",
        remedy="plan again with whole layers",
    )
