"""The simple planner: fills a device budget with two slots and residents spread through the interior.

It predicts memory but no speed; it decides what lies where so that everything fits, or says what would.
"""

import math
from dataclasses import dataclass, replace

from planner.contracts.errors import NoFeasiblePlanError, UsageError
from planner.contracts.model_shape import ModelShape
from planner.contracts.performance import Performance
from planner.contracts.plan import ChainDraft, Device, Dtype, LinkChoice, MemorySplit, ModelRef, NoDraft, Plan
from planner.contracts.quantities import format_bytes
from planner.memory import CUDA_OVERHEAD_BYTES, HOST_OVERHEAD_BYTES, MARGIN_FRAC, activation_bytes
from planner.placement import choose_sources, host_memory, place_units, smallest_bytes

_PREFILL_CHUNKS_TOKENS = (512, 256, 128, 64, 32, 16)
_PREFILL_BUDGET_FRAC = 1 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes that may be taken. `device_bytes` holds for target and draft together, after any headroom was left free.

    A cap of one model binds in addition: what counts is the smaller of its cap and of what the device leaves it.
    """

    device_bytes: int
    host_bytes: int
    target_bytes: int | None = None
    draft_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user has decided; everything else is the planner's to choose."""

    dtype: Dtype
    context_tokens: int
    draft_len: int
    link: LinkChoice
    device: str
    num_slots: int = 2
    prefill_chunk_tokens: int | None = None


def plan_for_budget(target: ModelShape, draft: ModelShape | None, budget: Budget, wishes: Wishes) -> Plan:
    """A plan that fits the budget.

    Raises: NoFeasiblePlanError, with the bytes of each part and what would make it fit; UsageError, where the context
    is longer than the model's own.
    """
    _check_context(target, wishes)
    wishes = replace(wishes, prefill_chunk_tokens=_prefill_chunk(target, budget, wishes))
    fixed = _fixed_memory(target, draft, wishes)
    room_bytes = _room_bytes(target, draft, fixed, budget, wishes)
    placed = place_units(target, room_bytes, wishes.dtype, wishes.num_slots)
    units, staging = choose_sources(target, placed, wishes.link, budget.host_bytes - HOST_OVERHEAD_BYTES)
    residents = [unit for unit in units if unit.placement == "resident"]
    streamed = [unit for unit in units if unit.placement == "streamed"]
    num_slots = min(wishes.num_slots, len(streamed))
    memory = _with_margin(
        fixed.model_copy(
            update={
                "residents_bytes": target.rest_bytes(wishes.dtype) + sum(unit.dense_bytes for unit in residents),
                "slots_bytes": num_slots * max((unit.dense_bytes for unit in streamed), default=0),
                **host_memory(units, staging),
            }
        )
    )
    return Plan(
        target=ModelRef(name=target.name, fingerprint=target.fingerprint),
        dtype=wishes.dtype,
        context_tokens=wishes.context_tokens,
        prefill_chunk_tokens=wishes.prefill_chunk_tokens or 1,
        devices=(Device(name=wishes.device, budget_bytes=budget.device_bytes),),
        link=wishes.link,
        slots=num_slots,
        staging=staging,
        draft=_chain(draft, wishes),
        units=tuple(units),
        memory=memory,
        predicted=Performance(
            device_bytes=memory.device_bytes,
            host_bytes=memory.host_bytes,
            total_bytes=memory.device_bytes + memory.host_bytes,
            streamed_bytes_per_pass=sum(unit.wire_bytes for unit in streamed),
        ),
    )


def _check_context(target: ModelShape, wishes: Wishes) -> None:
    if wishes.context_tokens > target.max_context_tokens:
        raise UsageError(
            f"a context of {wishes.context_tokens} tokens is too long",
            why=f"{target.name} was made for at most {target.max_context_tokens}",
            remedy="shorten the prompt, or ask for fewer tokens or a smaller --ctx-size",
        )


def _chain(draft: ModelShape | None, wishes: Wishes) -> NoDraft | ChainDraft:
    if draft is None:
        return NoDraft()
    return ChainDraft(model=draft.name, fingerprint=draft.fingerprint, draft_len=wishes.draft_len, dtype=wishes.dtype)


def _prefill_chunk(target: ModelShape, budget: Budget, wishes: Wishes) -> int:
    """Tokens of a prefill pass: as many as the activations leave room for, since every chunk costs a whole stream."""
    if wishes.prefill_chunk_tokens is not None:
        return min(wishes.prefill_chunk_tokens, wishes.context_tokens)
    for num_tokens in _PREFILL_CHUNKS_TOKENS:
        taken = _activations(target, wishes, num_tokens)
        if taken <= _PREFILL_BUDGET_FRAC * (budget.target_bytes or budget.device_bytes):
            break
    return min(num_tokens, wishes.context_tokens)


def _activations(target: ModelShape, wishes: Wishes, prefill_chunk_tokens: int) -> int:
    """The widest of a prefill pass, which needs one row of logits, and of a verify pass, which needs them all."""
    num_verified = wishes.draft_len + 1
    passes = ((prefill_chunk_tokens, 1), (num_verified, num_verified))
    return max(
        activation_bytes(
            target, wishes.dtype, num_tokens=tokens, num_logit_rows=rows, context_tokens=wishes.context_tokens
        )
        for tokens, rows in passes
    )


def _fixed_memory(target: ModelShape, draft: ModelShape | None, wishes: Wishes) -> MemorySplit:
    """Every part that does not depend on which layers are resident; those are left at zero."""
    return MemorySplit(
        residents_bytes=0,
        slots_bytes=0,
        draft_bytes=0 if draft is None else draft.weights_bytes(wishes.dtype),
        target_kv_bytes=target.kv_bytes(wishes.context_tokens, wishes.dtype),
        draft_kv_bytes=0 if draft is None else draft.kv_bytes(wishes.context_tokens, wishes.dtype),
        activations_bytes=_activations(target, wishes, wishes.prefill_chunk_tokens or 1),
        overhead_bytes=CUDA_OVERHEAD_BYTES if wishes.link.kind == "cuda" else 0,
        margin_bytes=0,
        host_weights_bytes=0,
        host_embedding_bytes=0,
        host_staging_bytes=0,
        host_overhead_bytes=HOST_OVERHEAD_BYTES,
    )


def _with_margin(memory: MemorySplit) -> MemorySplit:
    return memory.model_copy(update={"margin_bytes": math.ceil(memory.device_bytes * MARGIN_FRAC)})


def _room_bytes(
    target: ModelShape, draft: ModelShape | None, fixed: MemorySplit, budget: Budget, wishes: Wishes
) -> int:
    """Bytes left for slots and residents. Raises: NoFeasiblePlanError, where not even the slots fit."""
    margin = 1 + MARGIN_FRAC
    draft_bytes = math.ceil((fixed.draft_bytes + fixed.draft_kv_bytes) * margin)
    if draft is not None and budget.draft_bytes is not None and draft_bytes > budget.draft_bytes:
        raise NoFeasiblePlanError(
            f"the draft needs {format_bytes(draft_bytes)} and may take {format_bytes(budget.draft_bytes)}",
            why=f"weights {format_bytes(fixed.draft_bytes)}, KV cache at {wishes.context_tokens} tokens "
            f"{format_bytes(fixed.draft_kv_bytes)}",
            remedy=f"--draft-memory {_as_flag(draft_bytes)}, a smaller --ctx-size, a smaller draft, or --no-spec",
        )
    target_bytes = budget.device_bytes - draft_bytes
    if budget.target_bytes is not None:
        target_bytes = min(target_bytes, budget.target_bytes)
    target_fixed = fixed.device_bytes - fixed.draft_bytes - fixed.draft_kv_bytes + target.rest_bytes(wishes.dtype)
    room_bytes = math.floor(target_bytes / margin) - target_fixed
    needed_bytes = smallest_bytes(target, wishes.dtype, wishes.num_slots)
    if room_bytes < needed_bytes:
        short_bytes = math.ceil((needed_bytes - room_bytes) * margin)
        raise _does_not_fit(target, fixed, needed_bytes, short_bytes, budget, wishes)
    return room_bytes


def _does_not_fit(
    target: ModelShape, fixed: MemorySplit, slots_bytes: int, short_bytes: int, budget: Budget, wishes: Wishes
) -> NoFeasiblePlanError:
    parts = {
        f"{wishes.num_slots} slots": slots_bytes,
        "norms and the like": target.rest_bytes(wishes.dtype),
        f"KV cache at {wishes.context_tokens} tokens": fixed.target_kv_bytes,
        "activations": fixed.activations_bytes,
        "overhead": fixed.overhead_bytes,
        "draft": fixed.draft_bytes,
        "the draft's KV cache": fixed.draft_kv_bytes,
    }
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
    remedies = [f"--device-memory {_as_flag(budget.device_bytes + short_bytes)}"]
    if budget.target_bytes is not None:
        remedies = [f"--target-memory {_as_flag(budget.target_bytes + short_bytes)} within a --device-memory to match"]
    remedies.append("a smaller --ctx-size")
    if wishes.num_slots > 1:
        remedies.append("--slots 1")
    if fixed.draft_bytes:
        remedies.append("--no-spec")
    return NoFeasiblePlanError(
        f"{target.name} does not fit: {format_bytes(short_bytes)} short of the budget "
        f"{format_bytes(budget.target_bytes or budget.device_bytes)}",
        why=f"at the least it takes {listed}",
        remedy=", or ".join(remedies),
    )


def _as_flag(num_bytes: int) -> str:
    """A size that a memory flag takes, rounded up to whole MiB."""
    return f"{math.ceil(num_bytes / 2**20)}MiB"
