"""Other engines, priced from the same measurements: one that copies without prefetch, one that lets the CPU compute.

Each gets its own best chain, with each draft and without; one that cannot be priced is named with the reason. What its
own kernels do better than the measured ones (fused low-bit products, for one) is not in here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from planner.contracts.errors import BadInputError, DraftstreamError, NoFeasiblePlanError
from planner.contracts.model_shape import ModelShape
from planner.contracts.quantities import format_bytes
from planner.contracts.recommendation import Rival, UnpricedRival
from planner.drafting import EVERY_CHAIN, NO_DRAFTING, Drafting
from planner.scoring import Candidate, Scorer
from planner.search import Request, place, within_tables


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    how: str
    is_on_cpu: bool  # computes what is not resident on the CPU; else copies it when it is due
    num_slots: int


_NO_PREFETCH = _Kind("no prefetch", "copies each layer when it is due, then computes it (accelerate)", False, 1)
_CPU_LAYERS = _Kind("CPU layers", "computes on the CPU what does not fit on the device (llama.cpp)", True, 0)
_MAPPED = _Kind("mapped", "computes where the page cache holds the weights, all of them in host memory", True, 0)


def rivals(
    scorer: Scorer, drafts: Sequence[ModelShape], request: Request
) -> tuple[tuple[Rival, ...], tuple[UnpricedRival, ...]]:
    """Each engine, without a draft and with each at its best length, the fastest first; and those without a price."""
    request = within_tables(scorer, replace(request, draftings=EVERY_CHAIN))
    kinds = (_NO_PREFETCH, _CPU_LAYERS if request.wishes.link.kind == "cuda" else _MAPPED)
    priced, unpriced = [], []
    for kind, draft in product(kinds, (None, *drafts)):
        try:
            priced.append(_priced(kind, scorer, draft, request))
        except DraftstreamError as error:
            why = f"{error.what}: {error.why}"
            unpriced.append(UnpricedRival(name=kind.name, draft=None if draft is None else draft.name, why=why))
    return tuple(sorted(priced, key=lambda rival: -rival.tokens_per_s)), tuple(unpriced)


def _priced(kind: _Kind, scorer: Scorer, draft: ModelShape | None, request: Request) -> Rival:
    """The engine at its best draft length; a length that the tables do not reach is none of its lengths.

    Raises: NoFeasiblePlanError, where it does not fit; BadInputError, where a measurement is missing.
    """
    if kind is _MAPPED:
        _check_mapped(scorer, request)
    found: list[tuple[float, int]] = []
    failed: list[DraftstreamError] = []
    for drafting in (NO_DRAFTING,) if draft is None else request.draftings:
        try:
            found.append((_tokens_per_s(kind, scorer, draft, drafting, request), drafting.num_nodes))
        except DraftstreamError as error:
            failed.append(error)
    if not found:
        raise failed[0] if failed else _no_length()
    tokens_per_s, draft_len = max(found)
    return Rival(
        name=kind.name,
        draft=None if draft is None else draft.name,
        draft_len=draft_len,
        tokens_per_s=tokens_per_s,
        how=kind.how,
    )


def _tokens_per_s(kind: _Kind, scorer: Scorer, draft: ModelShape | None, drafting: Drafting, request: Request) -> float:
    """The engine's speed with one length of draft. Raises: as `_priced` does."""
    wishes = replace(request.wishes, drafting=drafting, num_slots=kind.num_slots, prefill_chunk_tokens=1)
    placement, host_bytes = place(scorer.profile.target, draft, request, wishes)
    if placement is None:
        raise NoFeasiblePlanError(
            "it does not fit", why="its memory is not enough beside the draft and the caches", remedy="more memory"
        )
    candidate = Candidate(
        draft=draft, drafting=drafting, prefill_chunk_tokens=1, placement=placement, host_bytes=host_bytes
    )
    round_s = scorer.cpu_round_s(candidate) if kind.is_on_cpu else scorer.serial_round_s(candidate)
    return max(request.workload.new_tokens - 1, 1) / scorer.decode_s(candidate, round_s)


def _check_mapped(scorer: Scorer, request: Request) -> None:
    """Raises: NoFeasiblePlanError, where memory does not hold all the weights."""
    weights_bytes = scorer.profile.target.weights_bytes(request.wishes.dtype)
    free_bytes = request.budget.device_bytes + request.budget.host_bytes
    if weights_bytes > free_bytes:
        raise NoFeasiblePlanError(
            "it does not fit",
            why=f"the weights take {format_bytes(weights_bytes)}, and memory holds {format_bytes(free_bytes)}",
            remedy="more memory",
        )


def _no_length() -> BadInputError:
    return BadInputError(
        "the profile reaches no length of a draft",
        why="the rounds and layers in it were measured for too few verified tokens",
        remedy="planner profile again",
    )
