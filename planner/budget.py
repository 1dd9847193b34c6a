"""The simple planner: fills a device budget with two slots and residents spread through the interior.

It predicts memory but no speed; it decides what lies where so that everything fits, or says what would.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.contracts.copied_text import CORPUS_TOKEN_BYTES, MOST_TEXT_TOKENS, TEXT_BYTES
from planner.contracts.errors import NoFeasiblePlanError, PlanMismatchError, UsageError
from planner.contracts.layer_parts import Granularity
from planner.contracts.model_shape import ModelShape
from planner.contracts.performance import Performance
from planner.contracts.plan import Device, Draft, Dtype, LinkChoice, MemorySplit, ModelDraft, ModelRef, Plan
from planner.contracts.quantities import format_bytes
from planner.drafting import NO_DRAFTING, Drafting, drafting_of
from planner.memory import (
    DEFAULT_OVERHEADS,
    MARGIN_FRAC,
    Overheads,
    activation_bytes,
    step_bytes,
    tree_mask_bytes,
)
from planner.placement import (
    choose_residents,
    choose_sources,
    decoder_rest_bytes,
    host_memory,
    smallest_bytes,
    units_of,
)

PREFILL_CHUNKS_TOKENS = (512, 256, 128, 64, 32, 16)
_PREFILL_BUDGET_FRAC = 1 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes that may be taken. `device_bytes` holds for target and draft together, after any headroom was left free.

    A cap of one model binds in addition: what counts is the smaller of its cap and of what the device leaves it.
    `free_bytes` is what the device has to give at all, of which the user wants `headroom_bytes` left.
    """

    device_bytes: int
    host_bytes: int
    target_bytes: int | None = None
    draft_bytes: int | None = None
    free_bytes: int | None = None
    headroom_bytes: int = 0

    def relaxed(self, needed: Mapping[str, int]) -> str:
        """The flags that give a plan the bytes that it needs, by flag; or what machine would, where this one cannot."""
        on_device = needed.get("--device-memory", 0)
        most = on_device if self.free_bytes is None else self.free_bytes
        if on_device > most:
            return f"a device with {format_bytes(on_device)} to give: this one has {format_bytes(most)}"
        flags = [f"{flag} {_as_flag(num_bytes)}" for flag, num_bytes in needed.items()]
        if on_device > most - self.headroom_bytes:
            flags.append(f"--headroom {(most - on_device) // 2**20}MiB")
        return " and ".join(flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user has decided; everything else is the planner's to choose."""

    dtype: Dtype
    context_tokens: int
    link: LinkChoice
    device: str
    drafting: Drafting = NO_DRAFTING
    num_slots: int = 2
    prefill_chunk_tokens: int | None = None
    most_residents: int | None = None  # layers, which are then placed whole
    granularity: Granularity = "layers"
    draft_on_host: bool = False  # where the device is another one than the CPU
    corpus_tokens: int = 0  # of files that n-grams copy from
    overheads: Overheads = DEFAULT_OVERHEADS


def plan_for_budget(target: ModelShape, draft: ModelShape | None, budget: Budget, wishes: Wishes) -> Plan:
    """A plan that fits the budget.

    Raises: NoFeasiblePlanError, with the bytes of each part and what would make it fit; UsageError, where the context
    is longer than the model's own.
    """
    _check_context(target, wishes)
    wishes = replace(wishes, prefill_chunk_tokens=_prefill_chunk(target, draft, budget, wishes))
    fixed = fixed_memory(target, draft, wishes)
    _check_draft(draft, fixed, budget, wishes)
    _check_room(target, fixed, budget, wishes)
    room = room_bytes(target, fixed, budget, wishes)
    placement = choose_residents(
        target, room, wishes.dtype, wishes.num_slots, wishes.most_residents, wishes.granularity
    )
    placed = units_of(target, wishes.dtype, placement)
    units, staging = choose_sources(target, placed, wishes.link, budget.host_bytes - fixed.host_bytes)
    residents = [unit for unit in units if unit.placement == "resident"]
    streamed = [unit for unit in units if unit.placement == "streamed"]
    num_slots = min(wishes.num_slots, len(streamed))
    memory = fixed.model_copy(
        update={
            "residents_bytes": sum(unit.dense_bytes for unit in residents)
            + target.rest_bytes(wishes.dtype)
            + decoder_rest_bytes(target, wishes.dtype, units),
            "slots_bytes": num_slots * max((unit.dense_bytes for unit in streamed), default=0),
            **host_memory(units, staging, wishes.link),
        }
    )
    memory = memory.model_copy(update={"margin_bytes": _margin_bytes(memory.device_bytes)})
    _check_host(memory, budget)
    return Plan(
        target=ModelRef(name=target.name, fingerprint=target.fingerprint),
        dtype=wishes.dtype,
        context_tokens=wishes.context_tokens,
        prefill_chunk_tokens=wishes.prefill_chunk_tokens or 1,
        devices=_devices(draft, budget, wishes),
        link=wishes.link,
        slots=num_slots,
        staging=staging,
        draft=_draft(draft, wishes),
        corpus_tokens=wishes.corpus_tokens if wishes.drafting.has_copies else 0,
        units=tuple(units),
        memory=memory,
        predicted=Performance(
            device_bytes=memory.device_bytes,
            host_bytes=memory.host_bytes,
            total_bytes=memory.device_bytes + memory.host_bytes,
            streamed_bytes_per_pass=sum(unit.wire_bytes for unit in streamed),
        ),
    )


def counted_memory(plan: Plan, target: ModelShape, draft: ModelShape | None) -> dict[str, int]:
    """Bytes of those parts of a plan's memory that follow from these models and from all else that the plan says."""
    wishes = _wishes_of(plan)
    of_target = fixed_memory(target, draft, wishes)
    of_draft = fixed_memory(target, draft, replace(wishes, dtype=getattr(plan.draft, "dtype", plan.dtype)))
    on_host = host_memory(plan.units, plan.staging, plan.link)
    resident_bytes = sum(unit.dense_bytes for unit in plan.units if unit.placement == "resident")
    rest_bytes = target.rest_bytes(plan.dtype) + decoder_rest_bytes(target, plan.dtype, plan.units)
    return {
        "residents_bytes": resident_bytes + rest_bytes,
        "slots_bytes": plan.slots * max((unit.dense_bytes for unit in plan.streamed), default=0),
        "target_kv_bytes": of_target.target_kv_bytes,
        "activations_bytes": of_target.activations_bytes,
        "draft_bytes": of_draft.draft_bytes,
        "draft_kv_bytes": of_draft.draft_kv_bytes,
        "host_draft_bytes": of_draft.host_draft_bytes,
        "host_weights_bytes": on_host["host_weights_bytes"],
        "host_embedding_bytes": on_host["host_embedding_bytes"],
        "host_staging_bytes": on_host["host_staging_bytes"],
    }


def check_memory(plan: Plan, target: ModelShape, draft: ModelShape | None) -> None:
    """Raises: PlanMismatchError, where the plan counts less memory than these models take when they run as it says."""
    for part, num_bytes in counted_memory(plan, target, draft).items():
        planned_bytes = getattr(plan.memory, part)
        if planned_bytes < num_bytes:
            raise PlanMismatchError(
                f"the plan counts too little memory: {part} {format_bytes(planned_bytes)}",
                why=f"what it says takes {format_bytes(num_bytes)}: it was changed by hand, or made by another version",
                remedy="plan again, with the options that were changed",
            )


def _wishes_of(plan: Plan) -> Wishes:
    draft = plan.draft
    return Wishes(
        dtype=plan.dtype,
        context_tokens=plan.context_tokens,
        link=plan.link,
        device=plan.devices[0].name,
        drafting=drafting_of(draft),
        prefill_chunk_tokens=plan.prefill_chunk_tokens,
        draft_on_host=isinstance(draft, ModelDraft) and draft.device != 0,
    )


def _check_context(target: ModelShape, wishes: Wishes) -> None:
    if wishes.context_tokens > target.max_context_tokens:
        raise UsageError(
            f"a context of {wishes.context_tokens} tokens is too long",
            why=f"{target.name} was made for at most {target.max_context_tokens}",
            remedy="shorten the prompt, or ask for fewer tokens or a smaller --ctx-size",
        )
    if wishes.drafting.tree_nodes > wishes.context_tokens:
        raise UsageError(
            f"a draft by {wishes.drafting.label} is larger than the context",
            why=f"the context is {wishes.context_tokens} tokens, and every drafted one would have to fit",
            remedy="a smaller --draft-tree, or a larger --ctx-size",
        )


def _draft(draft: ModelShape | None, wishes: Wishes) -> Draft:
    return wishes.drafting.of(draft, wishes.dtype, 1 if wishes.draft_on_host else 0)


def _devices(draft: ModelShape | None, budget: Budget, wishes: Wishes) -> tuple[Device, ...]:
    """The device that verifies, and the host where it drafts beside another device."""
    verifying = Device(name=wishes.device, budget_bytes=budget.device_bytes)
    if draft is None or not wishes.draft_on_host:
        return (verifying,)
    return verifying, Device(name="cpu", budget_bytes=budget.host_bytes)


def _prefill_chunk(target: ModelShape, draft: ModelShape | None, budget: Budget, wishes: Wishes) -> int:
    """Tokens of a prefill pass: as many as the activations leave room for, since every chunk costs a whole stream."""
    if wishes.prefill_chunk_tokens is not None:
        return min(wishes.prefill_chunk_tokens, wishes.context_tokens)
    target_bytes = min(budget.device_bytes, budget.target_bytes or budget.device_bytes)
    for num_tokens in PREFILL_CHUNKS_TOKENS:
        asked = replace(wishes, prefill_chunk_tokens=min(num_tokens, wishes.context_tokens))
        fixed = fixed_memory(target, draft, asked)
        is_small = fixed.activations_bytes <= _PREFILL_BUDGET_FRAC * target_bytes
        if is_small and room_bytes(target, fixed, budget, asked) >= least_bytes(target, wishes):
            break
    return min(num_tokens, wishes.context_tokens)


def _activations(target: ModelShape, wishes: Wishes, prefill_chunk_tokens: int) -> int:
    """The widest of a prefill pass, which needs one row of logits, and of a verify pass, which needs them all."""
    num_verified = wishes.drafting.num_verified
    passes = ((prefill_chunk_tokens, 1), (num_verified, num_verified))
    return max(
        activation_bytes(
            target, wishes.dtype, num_tokens=tokens, num_logit_rows=rows, context_tokens=wishes.context_tokens
        )
        for tokens, rows in passes
    )


def fixed_memory(target: ModelShape, draft: ModelShape | None, wishes: Wishes) -> MemorySplit:
    """Every part that does not depend on which layers are resident; those are left at zero."""
    draft_bytes = 0 if draft is None else draft.weights_bytes(wishes.dtype)
    draft_kv_bytes = 0 if draft is None else _tree_kv_bytes(draft, wishes, wishes.drafting.draft_nodes)
    overheads, on_host = wishes.overheads, wishes.draft_on_host
    if draft is not None and wishes.link.kind == "cuda" and not on_host:
        num_places = wishes.context_tokens + wishes.drafting.draft_nodes
        draft_kv_bytes += step_bytes(draft, wishes.dtype, pass_nodes=wishes.drafting.pass_nodes, num_places=num_places)
    own_text_bytes = min(wishes.context_tokens, MOST_TEXT_TOKENS) * TEXT_BYTES
    searched_bytes = own_text_bytes + wishes.corpus_tokens * CORPUS_TOKEN_BYTES
    copies_bytes = searched_bytes if wishes.drafting.has_copies else 0
    return MemorySplit(
        residents_bytes=0,
        slots_bytes=0,
        draft_bytes=0 if on_host else draft_bytes,
        target_kv_bytes=_tree_kv_bytes(target, wishes, wishes.drafting.tree_nodes),
        draft_kv_bytes=0 if on_host else draft_kv_bytes,
        activations_bytes=_activations(target, wishes, wishes.prefill_chunk_tokens or 1),
        overhead_bytes=overheads.device_bytes if wishes.link.kind == "cuda" else 0,
        margin_bytes=0,
        host_weights_bytes=0,
        host_embedding_bytes=0,
        host_staging_bytes=0,
        host_overhead_bytes=overheads.host_bytes
        + wishes.context_tokens * overheads.round_bytes
        + (0 if draft is None else overheads.draft_host_bytes)
        + _kernels_bytes(draft, wishes)
        + copies_bytes,
        host_draft_bytes=draft_bytes + draft_kv_bytes if on_host else 0,
    )


def _kernels_bytes(draft: ModelShape | None, wishes: Wishes) -> int:
    """Bytes of kernels for every width that passes on the CPU may have: those that verify, and over a tree's level."""
    drafting, is_cpu = wishes.drafting, wishes.device == "cpu"
    has_levels = draft is not None and drafting.draft_nodes and (is_cpu or wishes.draft_on_host)
    return wishes.overheads.kernels_bytes(
        wishes.dtype,
        num_widths=drafting.num_widths if is_cpu else 0,
        num_draft_widths=drafting.pass_nodes if has_levels else 0,
        has_draft=draft is not None,
    )


def _tree_kv_bytes(shape: ModelShape, wishes: Wishes, num_nodes: int) -> int:
    """Bytes of keys and values at the context, and of what a tree adds: its nodes, and the masks over them."""
    context_tokens, dtype = wishes.context_tokens, wishes.dtype
    masks_bytes = tree_mask_bytes(shape, dtype, num_nodes=num_nodes, context_tokens=context_tokens)
    return shape.kv_bytes(context_tokens, dtype, num_nodes) + masks_bytes


def _margin_bytes(num_bytes: int) -> int:
    return math.ceil(num_bytes * MARGIN_FRAC)


def draft_needs_bytes(fixed: MemorySplit) -> int:
    """Device bytes of the draft with its share of the margin."""
    num_bytes = fixed.draft_bytes + fixed.draft_kv_bytes
    return num_bytes + _margin_bytes(num_bytes)


def _target_fixed_bytes(target: ModelShape, fixed: MemorySplit, wishes: Wishes) -> int:
    return fixed.device_bytes - fixed.draft_bytes - fixed.draft_kv_bytes + target.rest_bytes(wishes.dtype)


def room_bytes(target: ModelShape, fixed: MemorySplit, budget: Budget, wishes: Wishes) -> int:
    """Bytes left for slots and residents; negative where not even the rest fits."""
    target_bytes = budget.device_bytes - draft_needs_bytes(fixed)
    if budget.target_bytes is not None:
        target_bytes = min(target_bytes, budget.target_bytes)
    usable_bytes = math.floor(target_bytes / (1 + MARGIN_FRAC))
    if usable_bytes + _margin_bytes(usable_bytes) > target_bytes:  # by the division's rounding
        usable_bytes -= 1
    return usable_bytes - _target_fixed_bytes(target, fixed, wishes)


def least_bytes(target: ModelShape, wishes: Wishes) -> int:
    """Bytes of room without which the target does not run as wished."""
    return smallest_bytes(target, wishes.dtype, wishes.num_slots, wishes.granularity)


def _check_draft(draft: ModelShape | None, fixed: MemorySplit, budget: Budget, wishes: Wishes) -> None:
    draft_bytes = draft_needs_bytes(fixed)
    if draft is not None and budget.draft_bytes is not None and draft_bytes > budget.draft_bytes:
        raise NoFeasiblePlanError(
            f"the draft needs {format_bytes(draft_bytes)} and may take {format_bytes(budget.draft_bytes)}",
            why=f"weights {format_bytes(fixed.draft_bytes)}, KV cache at {wishes.context_tokens} tokens "
            f"{format_bytes(fixed.draft_kv_bytes)}",
            remedy=f"--draft-memory {_as_flag(draft_bytes)}, a smaller --ctx-size, a smaller draft, or --no-spec",
        )


def _check_room(target: ModelShape, fixed: MemorySplit, budget: Budget, wishes: Wishes) -> None:
    """Raises: NoFeasiblePlanError, where not even the slots fit, with the bytes of each part and what would fit."""
    slots_bytes = least_bytes(target, wishes)
    if room_bytes(target, fixed, budget, wishes) >= slots_bytes:
        return
    needed_bytes = _target_fixed_bytes(target, fixed, wishes) + slots_bytes
    needed_bytes += _margin_bytes(needed_bytes)
    shortages = {
        "--target-memory": (budget.target_bytes, needed_bytes),
        "--device-memory": (budget.device_bytes, needed_bytes + draft_needs_bytes(fixed)),
    }
    short = {flag: (limit, needed) for flag, (limit, needed) in shortages.items() if limit and limit < needed}
    flags = budget.relaxed({flag: needed for flag, (_, needed) in short.items()})
    limit, needed = max(short.values(), key=lambda entry: entry[1] - entry[0])
    raise NoFeasiblePlanError(
        f"{target.name} does not fit: {format_bytes(needed - limit)} short of the budget {format_bytes(limit)}",
        why=f"at the least it takes {_listed_parts(target, fixed, slots_bytes, wishes)}",
        remedy=", or ".join(
            [flags, "a smaller --ctx-size"]
            + ["--slots 1"] * (wishes.num_slots > 1)
            + ["--no-spec"] * (fixed.draft_bytes > 0)
        ),
    )


def _listed_parts(target: ModelShape, fixed: MemorySplit, slots_bytes: int, wishes: Wishes) -> str:
    parts = {
        f"{wishes.num_slots} slot{'s' * (wishes.num_slots != 1)}": slots_bytes,
        "norms and the like": target.rest_bytes(wishes.dtype),
        f"KV cache at {wishes.context_tokens} tokens": fixed.target_kv_bytes,
        "activations": fixed.activations_bytes,
        "overhead": fixed.overhead_bytes,
        "draft": fixed.draft_bytes,
        "the draft's KV cache": fixed.draft_kv_bytes,
    }
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)


def _check_host(memory: MemorySplit, budget: Budget) -> None:
    """Raises: NoFeasiblePlanError, where the host may not take what no plan can do without."""
    if memory.host_bytes > budget.host_bytes:
        raise NoFeasiblePlanError(
            f"the plan needs {format_bytes(memory.host_bytes)} of host memory and may take "
            f"{format_bytes(budget.host_bytes)}",
            why=f"overhead {format_bytes(memory.host_overhead_bytes)}, buffers between disk and link "
            f"{format_bytes(memory.host_staging_bytes)}",
            remedy=f"--host-memory {_as_flag(memory.host_bytes)}, a smaller --device-memory where both are of one "
            "machine, or --link disk",
        )


def _as_flag(num_bytes: int) -> str:
    """A size that a memory flag takes, rounded up to whole MiB."""
    return f"{math.ceil(num_bytes / 2**20)}MiB"
