"""Acceptance for drafts that nobody recorded here: published, or assumed from published pairs of like sizes."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from planner.contracts.errors import BadInputError
from planner.contracts.model_shape import ModelShape
from planner.contracts.profile import AcceptanceCurve
from planner.contracts.untrusted_files import shown

if TYPE_CHECKING:
    from planner.drafts import PublishedPair

_USUAL_TEXT = "chat"


def curves_for(target: ModelShape, drafts: Sequence[ModelShape], domain: str | None) -> list[AcceptanceCurve]:
    """Acceptance of each draft: published of the pair or of its family, else assumed from pairs of like sizes.

    Raises: BadInputError, where both are of the catalogue and their tokenizers differ, or nobody knows such texts.
    """
    from planner.drafts import assumed_curve
    from profiles import catalogue

    _check_text(domain)
    text = domain or _USUAL_TEXT
    target_name = _catalogue_name(target)
    found = []
    for draft in drafts:
        draft_name = _catalogue_name(draft)
        if target_name is None or draft_name is None:
            found.append(assumed_curve(target, draft, _published(), text))
        else:
            curve = catalogue.acceptance(target_name, draft_name, text)
            found.append(curve.model_copy(update={"target": target.name, "draft": draft.name}))
    return found


def _check_text(domain: str | None) -> None:
    """Raises: BadInputError, offering the kinds of text that acceptance is published for or prompts ship of."""
    from profiles import PROMPT_DOMAINS, catalogue

    known = sorted({curve.domain for curve in catalogue.read_curves()} | set(PROMPT_DOMAINS))
    if domain is not None and domain not in known:
        raise BadInputError(
            f"the catalogue knows no text {shown(domain)}",
            why="acceptance depends on the kind of text, and nothing is guessed for one that nobody measured",
            remedy=f"--text with one of: {', '.join(known)}; or leave it out",
        )


@cache
def _published() -> "list[PublishedPair]":
    """Every published curve of two models that the catalogue knows."""
    from planner.drafts import PublishedPair
    from profiles import catalogue

    found = []
    for curve in catalogue.read_curves():
        if curve.draft not in catalogue.NO_MODEL:
            sizes = [catalogue.model(name).weights_bytes("bf16") for name in (curve.target, curve.draft)]
            found.append(PublishedPair(curve=curve, size_ratio=sizes[0] / sizes[1]))
    return found


def _catalogue_name(shape: ModelShape) -> str | None:
    """The name under which the catalogue has the model; None where it has none of that name and those sizes."""
    from planner.drafts import num_params
    from profiles import catalogue

    try:
        known = catalogue.model(Path(shape.name.partition("@")[0]).name)
    except BadInputError:
        return None
    is_same = (known.num_layers, num_params(known)) == (shape.num_layers, num_params(shape))
    return known.name if is_same else None
