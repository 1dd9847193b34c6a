"""Other engines, priced from the same measurements: one that copies without prefetch, one that lets the CPU compute.

Each gets its own best chain, with each draft and without. What its own kernels do better than the measured ones
(fused low-bit products, for one) is not in here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.contracts.errors import DraftstreamError
from planner.contracts.model_shape import ModelShape
from planner.contracts.recommendation import Rival
from planner.drafting import EVERY_CHAIN, NO_DRAFTING
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


def rivals(scorer: Scorer, drafts: Sequence[ModelShape], request: Request) -> tuple[Rival, ...]:
    """Each engine that can run here, without a draft and with each at its best length, the fastest first."""
    profile, request = scorer.profile, within_tables(scorer, replace(request, draftings=EVERY_CHAIN))
    kinds = [_NO_PREFETCH]
    if request.wishes.link.kind == "cuda":
        if any(entry.processor == "host" and entry.unit == "layer" for entry in profile.compute):
            kinds.append(_CPU_LAYERS)
    elif profile.target.weights_bytes(request.wishes.dtype) <= request.budget.device_bytes + request.budget.host_bytes:
        kinds.append(_MAPPED)
    found = [
        rival
        for kind in kinds
        for draft in (None, *drafts)
        for rival in [_priced(kind, scorer, draft, request)]
        if rival is not None
    ]
    return tuple(sorted(found, key=lambda rival: -rival.tokens_per_s))


def _priced(kind: _Kind, scorer: Scorer, draft: ModelShape | None, request: Request) -> Rival | None:
    """The engine at its best draft length; None where it does not fit or a measurement is missing."""
    best: tuple[float, int] | None = None
    for drafting in (NO_DRAFTING,) if draft is None else request.draftings:
        wishes = replace(request.wishes, drafting=drafting, num_slots=kind.num_slots, prefill_chunk_tokens=1)
        placement, host_bytes = place(scorer.profile.target, draft, request, wishes)
        if placement is None:
            continue
        candidate = Candidate(
            draft=draft, drafting=drafting, prefill_chunk_tokens=1, placement=placement, host_bytes=host_bytes
        )
        try:
            round_s = scorer.cpu_round_s(candidate) if kind.is_on_cpu else scorer.serial_round_s(candidate)
        except DraftstreamError:
            return None
        speed = max(request.workload.new_tokens - 1, 1) / scorer.decode_s(candidate, round_s)
        best = max(best or (0.0, 0), (speed, drafting.num_nodes))
    if best is None:
        return None
    return Rival(
        name=kind.name,
        draft=None if draft is None else draft.name,
        draft_len=best[1],
        tokens_per_s=best[0],
        how=kind.how,
    )
