"""Drafts for a target, on plain data: which models may draft for it, how fast each would make it, and in what order.

Finding models and comparing tokenizers is the runtime's; nothing here opens a file.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from planner.budget import Budget, Wishes, plan_for_budget
from planner.contracts.base import Contract, ContractFile
from planner.contracts.errors import NoFeasiblePlanError
from planner.contracts.model_shape import ModelShape
from planner.contracts.profile import AcceptanceCurve, Profile
from planner.contracts.quantities import format_bytes
from planner.drafting import chain
from planner.search import Request, rank

LARGEST_SIZE_FRAC = 1 / 3  # of the target's bytes: beyond, a draft costs more memory and time than pairs in use spend
TYPICAL_SIZE_FRAC = 1 / 10  # the median of the pairs in profiles/acceptance.json is 1 / 9.6

BY_SPEED = "by predicted tok/s"
BY_SIZE = (
    f"those of unknown speed by size, nearest to 1/{1 / TYPICAL_SIZE_FRAC:.0f} of the target first, the median of "
    "published pairs; no speed is predicted by that"
)

Basis = Literal["measured", "estimated", "assumed"]  # assumed: times estimated, acceptance taken from another pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model that was looked at: its shape, or why it cannot draft, or both."""

    name: str
    shape: ModelShape | None = None
    why_refused: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """What a draft's speed is predicted from: a profile that knows the draft, and what may be taken."""

    profile: Profile
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPair:
    """A published acceptance curve, and how many times the draft's bytes its target has."""

    curve: AcceptanceCurve
    size_ratio: float


class DraftFound(Contract):
    """One model as a draft for the target. What is None is unknown; without a reason to refuse it, it can draft."""

    name: str  # what to type
    fingerprint: str | None = None
    num_params: int | None = Field(default=None, gt=0)
    weights_bytes: int | None = Field(default=None, gt=0)  # in the target's precision, in which it would run
    tokens_per_s: float | None = None  # predicted, with the kind and size of draft that are best for it
    drafting: str | None = None  # kind and size of draft at which it is fastest
    plain_tokens_per_s: float | None = None  # predicted without a draft, the draft's memory given back
    basis: Basis | None = None
    why_refused: str | None = None


class DraftList(ContractFile):
    """The drafts of a target: those that can draft, best first, then the refused."""

    target: str
    drafts: tuple[DraftFound, ...]
    ranked: str  # the rule
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> DraftFound | None:
        """The first that can draft."""
        return next((draft for draft in self.drafts if draft.why_refused is None), None)


def why_unfit(target: ModelShape, draft: ModelShape) -> str | None:
    """Why a model's sizes rule it out as a draft; None where they do not."""
    draft_bytes, target_bytes = (shape.weights_bytes(target.stored_dtype) for shape in (draft, target))
    size = f"{format_bytes(draft_bytes)} against {format_bytes(target_bytes)}"
    if draft.fingerprint == target.fingerprint:
        return "it is the target itself, in another place"
    if any(layer.kind == "recurrent" for layer in draft.layers):
        return "its layers keep a recurrent state, which cannot be rolled back to before a rejected token"
    if draft_bytes >= target_bytes:
        return f"it is not smaller than the target: {size}"
    if draft_bytes > LARGEST_SIZE_FRAC * target_bytes:
        return f"it is larger than a third of the target: {size}"
    return None


def why_too_big(target: ModelShape, draft: ModelShape, budget: Budget, wishes: Wishes) -> str | None:
    """Why the shortest chain of a draft does not fit beside the target within the budget; None where it does.

    Raises: NoFeasiblePlanError, where not even the target alone fits.
    """
    least = replace(wishes, num_slots=1)
    plan_for_budget(target, None, budget, least)
    try:
        plan_for_budget(target, draft, budget, replace(least, drafting=chain(1)))
    except NoFeasiblePlanError as error:
        return f"{error.what}; {error.why}"
    return None


def without_twins(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates, of those with the same content all but the first refused."""
    first: dict[str, str] = {}
    found = []
    for candidate in candidates:
        if candidate.shape is not None and candidate.why_refused is None:
            name = first.setdefault(candidate.shape.fingerprint, candidate.name)
            if name != candidate.name:
                candidate = replace(candidate, why_refused=f"it is the same model as {name}")
        found.append(candidate)
    return found


def list_drafts(
    target: ModelShape,
    candidates: Sequence[Candidate],
    pricings: Mapping[str, Pricing] | None = None,
    notes: Sequence[str] = (),
) -> DraftList:
    """All candidates in order; `pricings` go by a draft's fingerprint, and a draft without one has no known speed.

    Raises: NoFeasiblePlanError, where not even the target alone fits what a pricing allows.
    """
    usable = {entry.shape.fingerprint for entry in candidates if entry.shape is not None and entry.why_refused is None}
    predicted = _predictions({draft: pricing for draft, pricing in (pricings or {}).items() if draft in usable})
    found = [_found(target, candidate, predicted) for candidate in candidates]
    accepted = [draft for draft in found if draft.why_refused is None]
    known = sorted((draft for draft in accepted if draft.tokens_per_s is not None), key=_slowness)
    unknown = sorted(
        (draft for draft in accepted if draft.tokens_per_s is None), key=lambda draft: _oddity(target, draft)
    )
    rules = [BY_SPEED] * bool(known) + [BY_SIZE] * bool(unknown)
    return DraftList(
        target=target.name,
        drafts=(*known, *unknown, *(draft for draft in found if draft.why_refused is not None)),
        ranked="; ".join(rules) or "none can draft",
        notes=tuple(notes),
    )


def assumed_curve(
    target: ModelShape, draft: ModelShape, published: Sequence[PublishedPair], domain: str
) -> AcceptanceCurve:
    """The acceptance of the published pair that is most alike: code or not first, then the ratio of sizes.

    Another domain counts as much as a ratio twice as large. An assumption, and its `source` says so.
    """
    size_ratio = target.weights_bytes("bf16") / draft.weights_bytes("bf16")

    def strangeness(pair: PublishedPair) -> tuple[bool, float]:
        octaves = abs(math.log2(pair.size_ratio / size_ratio))
        return (pair.curve.domain == "code") != (domain == "code"), octaves + (pair.curve.domain != domain)

    nearest = min(published, key=strangeness)
    curve = nearest.curve
    return curve.model_copy(
        update={
            "target": target.name,
            "draft": draft.name,
            "domain": domain,
            "is_same_pair": False,
            "source": f"assumed, as nothing is published of this pair: {curve.target} is {nearest.size_ratio:.0f} "
            f"times the size of {curve.draft}, this target {size_ratio:.0f} times its draft's; on {curve.domain}: "
            f"{curve.source}",
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prediction:
    """A draft's best speed and length, or why it cannot take part."""

    tokens_per_s: float | None = None
    drafting: str | None = None
    plain_tokens_per_s: float | None = None
    basis: Basis | None = None
    why_refused: str | None = None


def _predictions(pricings: Mapping[str, Pricing]) -> dict[str, _Prediction]:
    """By fingerprint; drafts of one pricing are ranked together."""
    together: dict[int, list[str]] = {}
    for fingerprint, pricing in pricings.items():
        together.setdefault(id(pricing), []).append(fingerprint)
    found: dict[str, _Prediction] = {}
    for fingerprints in together.values():
        found |= _priced(pricings[fingerprints[0]], fingerprints)
    return found


def _priced(pricing: Pricing, fingerprints: Sequence[str]) -> dict[str, _Prediction]:
    drafts = tuple(draft for draft in pricing.profile.drafts if draft.fingerprint in fingerprints)
    profile = pricing.profile.model_copy(update={"drafts": drafts})
    ranking = rank(profile, pricing.request)
    plain = ranking.baseline
    refused = dict(ranking.refused)
    found = {}
    for draft in drafts:
        best = ranking.best_of(draft.fingerprint)
        if best is None:
            found[draft.fingerprint] = _Prediction(why_refused=refused[draft.name])
        else:
            found[draft.fingerprint] = _Prediction(
                tokens_per_s=best.tokens_per_s,
                drafting=best.candidate.drafting.label,
                plain_tokens_per_s=plain.tokens_per_s,
                basis=_basis(profile, draft),
            )
    return found


def _basis(profile: Profile, draft: ModelShape) -> Basis:
    if profile.kind == "measured":
        return "measured"
    curve = next(curve for curve in profile.curves if curve.draft == draft.name)
    return "estimated" if curve.is_same_pair else "assumed"


def _found(target: ModelShape, candidate: Candidate, predicted: Mapping[str, _Prediction]) -> DraftFound:
    shape = candidate.shape
    if shape is None:
        return DraftFound(name=candidate.name, why_refused=candidate.why_refused)
    sized = DraftFound(
        name=candidate.name,
        fingerprint=shape.fingerprint,
        num_params=num_params(shape),
        weights_bytes=shape.weights_bytes(target.stored_dtype),
        why_refused=candidate.why_refused,
    )
    prediction = predicted.get(shape.fingerprint)
    if prediction is None or candidate.why_refused is not None:
        return sized
    return sized.model_copy(
        update={
            "tokens_per_s": prediction.tokens_per_s,
            "drafting": prediction.drafting,
            "plain_tokens_per_s": prediction.plain_tokens_per_s,
            "basis": prediction.basis,
            "why_refused": prediction.why_refused,
        }
    )


def num_params(shape: ModelShape) -> int:
    """Parameters of a model, a tied head counted once."""
    layers = sum(layer.num_params() for layer in shape.layers)
    rest = sum(group.num_params * group.count for group in shape.rest)
    return layers + rest + shape.embedding_params + (0 if shape.is_tied else shape.head_params)


def _slowness(draft: DraftFound) -> float:
    return -(draft.tokens_per_s or 0.0)


def _oddity(target: ModelShape, draft: DraftFound) -> float:
    """Octaves between a draft's size and the typical one."""
    assert draft.weights_bytes is not None
    return abs(math.log2(draft.weights_bytes / (TYPICAL_SIZE_FRAC * target.weights_bytes(target.stored_dtype))))
