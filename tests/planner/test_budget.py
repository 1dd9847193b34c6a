"""Plans for a budget: they never exceed it, what lies where follows the rules, and a refusal tells a way out."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.budget import Budget, Wishes, check_memory, plan_for_budget
from planner.contracts.errors import NoFeasiblePlanError, PlanMismatchError, UsageError
from planner.contracts.model_shape import LayerShape, ModelShape, TensorGroup
from planner.contracts.plan import CudaLink, DiskLink, Dtype, EmulatedLink, LinkChoice, NoDraft, Plan
from planner.contracts.profile import MemoryMeasurement
from planner.contracts.quantities import parse_bytes
from planner.drafting import NO_DRAFTING, Drafting, chain, tree
from planner.memory import DEFAULT_OVERHEADS, WIDTH_BYTES, WIDTH_SCATTER_FRAC, Overheads

MIB = 2**20
AMPLE = 2**50
QUICK = settings(deadline=None)  # the machine may be busy
DISK, EMULATED = DiskLink(), EmulatedLink(bytes_per_s=1e9)


def layer(num_params: int, kind: Literal["full", "sliding"] = "full") -> LayerShape:
    groups = (TensorGroup(num_params=num_params, count=4), TensorGroup(num_params=64, count=2))
    return LayerShape(tensors=groups, kind=kind, window_tokens=32 if kind == "sliding" else None)


def shape(
    layers: Sequence[LayerShape], *, hidden: int = 256, vocab: int = 4096, is_tied: bool = False, name: str = "big"
) -> ModelShape:
    return ModelShape(
        name=name,
        fingerprint="0" * 32,
        model_type="llama",
        stored_dtype="bf16",
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        vocab_size=vocab,
        num_heads=4,
        key_values_per_token=hidden,
        query_values_per_token=hidden,
        max_context_tokens=4096,
        is_tied=is_tied,
        layers=tuple(layers),
        embedding_params=hidden * vocab,
        head_params=hidden * vocab,
        rest=(TensorGroup(num_params=hidden, count=1),),
    )


# 12 layers of 2 MiB in bf16, and a head of 2 MiB
TARGET = shape([layer(256 * 1024)] * 12)
DRAFT = shape([layer(32 * 1024)] * 2, hidden=64, name="small")


def wishes(**changes: object) -> Wishes:
    base = Wishes(dtype="bf16", context_tokens=256, drafting=chain(4), link=DISK, device="cpu")
    return replace(base, **changes)  # type: ignore[arg-type]


def budget(device_bytes: int, **caps: int) -> Budget:
    return replace(Budget(device_bytes=device_bytes, host_bytes=AMPLE), **caps)


def least_bytes(target: ModelShape, draft: ModelShape | None, wanted: Wishes) -> int:
    """The smallest device budget that is not refused, by bisection."""
    low, high = 1, AMPLE
    while low < high:
        middle = (low + high) // 2
        if is_feasible(target, draft, budget(middle), wanted):
            high = middle
        else:
            low = middle + 1
    return low


def refusal_of(
    target: ModelShape, draft: ModelShape | None, given: Budget, wanted: Wishes
) -> NoFeasiblePlanError | None:
    try:
        plan_for_budget(target, draft, given, wanted)
    except NoFeasiblePlanError as error:
        return error
    return None


def is_feasible(target: ModelShape, draft: ModelShape | None, given: Budget, wanted: Wishes) -> bool:
    return refusal_of(target, draft, given, wanted) is None


def flags_of(error: NoFeasiblePlanError) -> dict[str, int]:
    """The memory flags of the first remedy."""
    first = error.remedy.split(", ")[0]
    return {flag: parse_bytes(size) for flag, size in re.findall(r"--(\w+)-memory (\w+)", first)}


def applied(given: Budget, flags: dict[str, int]) -> Budget:
    return replace(given, **{f"{name}_bytes": size for name, size in flags.items()})


def residents_of(plan: Plan) -> list[int]:
    return [unit.index for unit in plan.units if unit.kind == "layer" and unit.placement == "resident"]


# --- synthetic models and budgets ---

LAYER_PARAMS = st.integers(min_value=256, max_value=2**20)
UNIFORM = st.builds(lambda num_params, count: [layer(num_params)] * count, LAYER_PARAMS, st.integers(1, 48))
UNEVEN = st.lists(st.builds(layer, LAYER_PARAMS, st.sampled_from(["full", "sliding"])), min_size=1, max_size=24)


@st.composite
def shapes(draw: st.DrawFn, layers: st.SearchStrategy[list[LayerShape]], name: str = "big") -> ModelShape:
    hidden = draw(st.sampled_from([32, 64, 96, 256]))
    vocab = draw(st.integers(min_value=1, max_value=2000))
    return shape(draw(layers), hidden=hidden, vocab=vocab, is_tied=draw(st.booleans()), name=name)


TARGETS = shapes(st.one_of(UNIFORM, UNEVEN))
DRAFTS = st.one_of(st.none(), shapes(st.just([layer(1024)] * 2), "small"))
DTYPES: st.SearchStrategy[Dtype] = st.sampled_from(["bf16", "fp32"])
LINKS: st.SearchStrategy[LinkChoice] = st.sampled_from([DISK, EMULATED, CudaLink()])
WISHES = st.builds(
    Wishes,
    dtype=DTYPES,
    context_tokens=st.integers(2, 4096),
    drafting=st.integers(1, 16).map(chain),
    link=LINKS,
    device=st.just("cpu"),
    num_slots=st.integers(1, 6),
)
BYTES = st.integers(min_value=1, max_value=2**34) | st.integers(min_value=2**16, max_value=2**28)
CAPS = st.none() | BYTES
BUDGETS = st.builds(Budget, device_bytes=BYTES, host_bytes=BYTES, target_bytes=CAPS, draft_bytes=CAPS)


# --- what every plan keeps to ---


@QUICK
@given(TARGETS, DRAFTS, BUDGETS, WISHES)
def test_plan_never_takes_more_than_its_budgets(
    target: ModelShape, draft: ModelShape | None, given: Budget, wanted: Wishes
) -> None:
    try:
        plan = plan_for_budget(target, draft, given, wanted)
    except NoFeasiblePlanError:
        return
    memory = plan.memory
    assert memory.device_bytes <= given.device_bytes
    assert memory.host_bytes <= given.host_bytes
    drafts_bytes = memory.draft_bytes + memory.draft_kv_bytes
    if given.draft_bytes is not None:
        assert drafts_bytes <= given.draft_bytes
    if given.target_bytes is not None:
        assert memory.device_bytes - drafts_bytes - memory.margin_bytes <= given.target_bytes
    assert plan.predicted.device_bytes == memory.device_bytes
    assert plan.predicted.host_bytes == memory.host_bytes
    assert plan.devices[0].budget_bytes == given.device_bytes


@QUICK
@given(TARGETS, DRAFTS, BUDGETS, WISHES)
def test_every_layer_and_row_lies_in_exactly_one_place(
    target: ModelShape, draft: ModelShape | None, given: Budget, wanted: Wishes
) -> None:
    try:
        plan = plan_for_budget(target, draft, given, wanted)
    except NoFeasiblePlanError:
        return
    layers = [unit for unit in plan.units if unit.kind == "layer"]
    head = [unit for unit in plan.units if unit.kind == "head_chunk"]
    assert [unit.index for unit in layers] == list(range(target.num_layers))
    assert {unit.placement for unit in layers + head} <= {"resident", "streamed"}
    assert [unit.wire_bytes for unit in layers] == [each.wire_bytes(wanted.dtype) for each in target.layers]
    assert sum(unit.wire_bytes for unit in head) == target.head_params * (2 if wanted.dtype == "bf16" else 4)
    assert head[-1].rows is not None
    assert head[-1].rows[1] == target.vocab_size
    assert [unit.placement for unit in plan.units if unit.kind == "embedding"] in (["resident"], ["host"])
    assert plan == Plan.model_validate_json(plan.to_json())


@QUICK
@given(TARGETS, BUDGETS, WISHES)
def test_what_streams_fits_its_slots_and_what_does_not_stream_needs_none(
    target: ModelShape, given: Budget, wanted: Wishes
) -> None:
    try:
        plan = plan_for_budget(target, None, given, wanted)
    except NoFeasiblePlanError:
        return
    largest = max((unit.dense_bytes for unit in plan.streamed), default=0)
    assert plan.slots == min(wanted.num_slots, len(plan.streamed))
    assert plan.memory.slots_bytes == plan.slots * largest
    assert plan.predicted.streamed_bytes_per_pass == plan.streamed_bytes == sum(u.wire_bytes for u in plan.streamed)
    largest_layer = max(each.region_bytes(wanted.dtype) for each in target.layers)
    chunks = [unit for unit in plan.units if unit.kind == "head_chunk"]
    if plan.streamed:
        assert all(unit.dense_bytes <= largest_layer for unit in chunks), "a head chunk must fit a slot"


@QUICK
@given(shapes(UNIFORM), DTYPES, st.integers(1, 4), st.lists(st.integers(0, 2**16), min_size=2, max_size=5))
def test_more_budget_never_streams_more_bytes(
    target: ModelShape, dtype: Dtype, num_slots: int, steps: list[int]
) -> None:
    # At one prefill chunk: a larger budget may otherwise be spent on fewer passes over a prompt.
    wanted = wishes(dtype=dtype, num_slots=num_slots, prefill_chunk_tokens=16)
    least = least_bytes(target, None, wanted)
    whole = least + 2 * target.weights_bytes(dtype)
    budgets = sorted(least + step * (whole - least) // 2**16 for step in steps)
    plans = [plan_for_budget(target, None, budget(size), wanted) for size in budgets]
    # With their padding: of layers as small as these, one may carry less than a head chunk of the same size.
    streamed = [sum(unit.dense_bytes for unit in plan.streamed) for plan in plans]
    assert all(more <= less for less, more in pairwise(streamed))


@QUICK
@given(TARGETS, DTYPES)
def test_feasible_budget_stays_feasible_when_it_grows(target: ModelShape, dtype: Dtype) -> None:
    wanted = wishes(dtype=dtype)
    least = least_bytes(target, None, wanted)
    for extra in (1, 17, least // 3, least, 10 * least):
        assert is_feasible(target, None, budget(least + extra), wanted)


@QUICK
@given(shapes(UNIFORM), st.integers(0, 1000))
def test_residents_are_spread_evenly_through_the_interior(target: ModelShape, share: int) -> None:
    wanted = wishes()
    least = least_bytes(target, None, wanted)
    plan = plan_for_budget(target, None, budget(least + share * target.weights_bytes("bf16") // 1000), wanted)
    residents = residents_of(plan)
    num_layers = target.num_layers
    assume(0 < len(residents) < num_layers)
    gaps = [second - first for first, second in pairwise(residents)]
    if gaps:
        assert max(gaps) - min(gaps) <= 1
    # from the last to the first of the next pass is as far, give or take the two halves' rounding
    around = residents[0] + num_layers - residents[-1]
    assert num_layers // len(residents) - 1 <= around <= -(-num_layers // len(residents)) + 1
    if 2 * len(residents) <= num_layers:
        assert residents[0] > 0, "not the first n: they would run together with the draft"


def test_residents_are_where_the_arithmetic_puts_them() -> None:
    # 12 layers, 3 residents: (2i + 1) * 12 // 6 = 2, 6, 10
    wanted = wishes(prefill_chunk_tokens=16)
    region = TARGET.layers[0].region_bytes("bf16")
    least = least_bytes(TARGET, None, wanted)
    plan = plan_for_budget(TARGET, None, budget(least + int(3.2 * region)), wanted)
    assert residents_of(plan) == [2, 6, 10]


def test_everything_fits_so_nothing_streams_and_no_slot_is_taken() -> None:
    plan = plan_for_budget(TARGET, DRAFT, budget(2**30), wishes())
    assert (plan.streamed, plan.slots, plan.staging) == ((), 0, None)
    assert {unit.placement for unit in plan.units} == {"resident"}
    assert plan.memory.slots_bytes == plan.memory.host_weights_bytes == 0
    assert plan.memory.residents_bytes == TARGET.weights_bytes("bf16")


def test_tied_table_is_counted_once() -> None:
    tied, untied = (
        plan_for_budget(shape(TARGET.layers, is_tied=is_tied), None, budget(2**30), wishes()).memory.residents_bytes
        for is_tied in (True, False)
    )
    assert untied - tied == 4096 * 256 * 2


@QUICK
@given(TARGETS, WISHES)
def test_least_budget_is_less_than_the_whole_model_where_layers_are_many(target: ModelShape, wanted: Wishes) -> None:
    assume(target.num_layers > wanted.num_slots + 2)
    wanted = replace(wanted, link=DISK)
    whole = plan_for_budget(target, None, budget(AMPLE), replace(wanted, prefill_chunk_tokens=16)).memory.device_bytes
    assert least_bytes(target, None, wanted) <= whole


# --- refusals ---


@QUICK
@given(TARGETS, DRAFTS, BUDGETS, WISHES)
def test_remedy_of_a_refusal_fits_when_it_is_taken_literally(
    target: ModelShape, draft: ModelShape | None, given: Budget, wanted: Wishes
) -> None:
    # Each refusal is about one kind of memory, so at most draft, then device, then host have to be raised.
    for _ in range(3):
        refusal = refusal_of(target, draft, given, wanted)
        if refusal is None:
            return
        flags = flags_of(refusal)
        assert flags, refusal.remedy
        for name, size in flags.items():
            assert size > (getattr(given, f"{name}_bytes") or 0), "a remedy must ask for more than there was"
        given = applied(given, flags)
    plan_for_budget(target, draft, given, wanted)


@QUICK
@given(TARGETS, DRAFTS, WISHES)
def test_remedy_for_the_device_alone_fits_at_once(target: ModelShape, draft: ModelShape | None, wanted: Wishes) -> None:
    with pytest.raises(NoFeasiblePlanError) as caught:
        plan_for_budget(target, draft, budget(1), wanted)
    flags = flags_of(caught.value)
    assert list(flags) == ["device"]
    plan = plan_for_budget(target, draft, budget(flags["device"]), wanted)
    assert plan.memory.device_bytes > flags["device"] - 2 * MIB - flags["device"] // 8, "asks for far more than needed"


def test_refusal_names_the_bytes_of_each_part() -> None:
    with pytest.raises(NoFeasiblePlanError) as caught:
        plan_for_budget(TARGET, DRAFT, budget(MIB), wishes(num_slots=3))
    error = caught.value
    assert "big does not fit" in error.what
    assert "short of the budget 1.00 MiB" in error.what
    for part in ("3 slots 6.", "norms", "KV cache at 256 tokens 1.50 MiB", "activations", "draft ", "the draft's KV"):
        assert part in error.why, part
    for remedy in ("--device-memory", "--ctx-size", "--slots 1", "--no-spec"):
        assert remedy in error.remedy


def test_refusal_offers_only_what_would_help() -> None:
    with pytest.raises(NoFeasiblePlanError) as caught:
        plan_for_budget(TARGET, None, budget(MIB), wishes(num_slots=1))
    assert "--slots" not in caught.value.remedy
    assert "--no-spec" not in caught.value.remedy


def test_small_prefill_chunk_is_tried_before_a_refusal() -> None:
    wanted = wishes(context_tokens=4096)
    least = least_bytes(TARGET, None, wanted)
    plan = plan_for_budget(TARGET, None, budget(least), wanted)
    assert plan.prefill_chunk_tokens == 16
    assert plan_for_budget(TARGET, None, budget(2**30), wanted).prefill_chunk_tokens == 512


def test_context_beyond_the_models_own_is_refused() -> None:
    with pytest.raises(UsageError, match="4097 tokens is too long"):
        plan_for_budget(TARGET, None, budget(2**30), wishes(context_tokens=4097))


# --- caps and their precedence ---


def test_target_cap_binds_within_the_device_budget() -> None:
    wanted = wishes()
    free = plan_for_budget(TARGET, None, budget(20 * MIB), wanted)
    capped = plan_for_budget(TARGET, None, budget(20 * MIB, target_bytes=12 * MIB), wanted)
    assert free.memory.device_bytes > 12 * MIB >= capped.memory.device_bytes
    assert capped.units == plan_for_budget(TARGET, None, budget(12 * MIB), wanted).units


def test_device_budget_binds_where_the_target_cap_is_wider() -> None:
    wanted = wishes()
    wide = plan_for_budget(TARGET, DRAFT, budget(16 * MIB, target_bytes=AMPLE, draft_bytes=AMPLE), wanted)
    assert wide == plan_for_budget(TARGET, DRAFT, budget(16 * MIB), wanted)
    assert wide.memory.device_bytes <= 16 * MIB


def test_draft_takes_from_the_device_budget_first_and_the_target_gets_the_rest() -> None:
    wanted = wishes()
    alone = plan_for_budget(TARGET, None, budget(16 * MIB), wanted)
    beside = plan_for_budget(TARGET, DRAFT, budget(16 * MIB), wanted)
    assert beside.memory.draft_bytes == DRAFT.weights_bytes("bf16")
    assert beside.memory.draft_kv_bytes == DRAFT.kv_bytes(256, "bf16")
    assert len(residents_of(beside)) < len(residents_of(alone))


def test_draft_cap_refuses_a_draft_that_is_larger() -> None:
    with pytest.raises(NoFeasiblePlanError, match=r"the draft needs .* and may take 64\.00 KiB") as caught:
        plan_for_budget(TARGET, DRAFT, budget(2**30, draft_bytes=64 * 1024), wishes())
    assert "weights" in caught.value.why
    plan_for_budget(TARGET, DRAFT, budget(2**30, draft_bytes=flags_of(caught.value)["draft"]), wishes())


def test_draft_cap_does_not_matter_without_a_draft() -> None:
    plan = plan_for_budget(TARGET, None, budget(2**30, draft_bytes=1), wishes(drafting=NO_DRAFTING))
    assert isinstance(plan.draft, NoDraft)


def test_refusal_names_the_cap_that_binds() -> None:
    with pytest.raises(NoFeasiblePlanError) as caught:
        plan_for_budget(TARGET, DRAFT, budget(2**30, target_bytes=MIB), wishes())
    assert list(flags_of(caught.value)) == ["target"]
    with pytest.raises(NoFeasiblePlanError) as caught:
        plan_for_budget(TARGET, DRAFT, budget(MIB, target_bytes=2**30), wishes())
    assert list(flags_of(caught.value)) == ["device"]
    with pytest.raises(NoFeasiblePlanError) as caught:
        plan_for_budget(TARGET, DRAFT, budget(MIB, target_bytes=MIB), wishes())
    assert list(flags_of(caught.value)) == ["target", "device"]


# --- sources ---


def test_over_the_disk_link_everything_comes_from_disk() -> None:
    plan = plan_for_budget(TARGET, None, budget(12 * MIB), wishes(link=DISK))
    assert plan.streamed
    assert {unit.source for unit in plan.units} == {"disk"}
    assert plan.staging is None
    assert plan.memory.host_bytes == plan.memory.host_overhead_bytes


def overhead_bytes(**changes: object) -> int:
    chosen = replace(wishes(link=DISK), **changes)  # type: ignore[arg-type]
    return plan_for_budget(TARGET, DRAFT, budget(1024 * MIB), chosen).memory.host_overhead_bytes


def test_each_width_that_a_16_bit_pass_on_the_cpu_may_have_counts_its_kernels() -> None:
    tree = Drafting(kind="tree", num_nodes=16, max_depth=4, pass_nodes=4)
    few, many = overhead_bytes(drafting=chain(4)), overhead_bytes(drafting=tree)
    assert many - few == (16 + 4 - 3) * WIDTH_BYTES
    assert overhead_bytes(drafting=Drafting(kind="chain", num_nodes=4, tiers=(1, 2, 4))) - few == 2 * 2 * WIDTH_BYTES
    assert overhead_bytes(drafting=tree, dtype="fp32") == overhead_bytes(drafting=chain(4), dtype="fp32")
    assert overhead_bytes(drafting=tree, link=CudaLink(), device="cuda:0") < few


def scattered(num_bytes: int) -> int:
    """With what many widths take more for each than a few."""
    return math.ceil(num_bytes * (1 + WIDTH_SCATTER_FRAC))


def test_kernels_count_as_measured_and_those_of_a_drafts_measured_run_not_twice() -> None:
    parts = {"host_overhead": 10 * MIB, "draft_host_overhead": 8 * MIB, "width": 3 * MIB, "draft_width": MIB}
    measured = Overheads.of([MemoryMeasurement(part=part, num_bytes=size) for part, size in parts.items()])  # type: ignore[arg-type]
    tree = Drafting(kind="tree", num_nodes=16, max_depth=4, pass_nodes=4)
    of_chain = overhead_bytes(drafting=chain(4), overheads=measured)
    assert of_chain == (10 + 4 + 8 + 1) * MIB + scattered(3 * MIB) + wishes().context_tokens * 2**11
    for dtype in ("bf16", "fp32"):
        of_tree = overhead_bytes(drafting=tree, overheads=measured, dtype=dtype)
        assert of_tree - of_chain == 13 * scattered(3 * MIB) + 4 * scattered(MIB)


def test_measured_overhead_counts_with_what_runs_scatter_by_and_with_the_record_of_their_rounds() -> None:
    measured = Overheads.of(
        [
            MemoryMeasurement(part="host_overhead", num_bytes=10 * MIB),
            MemoryMeasurement(part="draft_host_overhead", num_bytes=MIB),
        ]
    )
    records = wishes().context_tokens * 2**11
    assert overhead_bytes(drafting=chain(4), dtype="fp32", overheads=measured) == (10 + 4 + 1 + 1) * MIB + records
    assert Overheads.of([]) == DEFAULT_OVERHEADS
    on_device = MemoryMeasurement(part="device_overhead", num_bytes=900 * MIB)
    assert Overheads.of([on_device]) == replace(DEFAULT_OVERHEADS, device_bytes=900 * MIB)


def test_over_another_link_what_streams_lies_in_host_memory() -> None:
    plan = plan_for_budget(TARGET, None, budget(12 * MIB), wishes(link=EMULATED))
    assert {unit.source for unit in plan.streamed} == {"ram"}
    assert plan.staging is None
    assert plan.memory.host_weights_bytes == sum(unit.dense_bytes for unit in plan.streamed)
    assert plan.memory.host_embedding_bytes == 4096 * 256 * 2


def test_host_budget_smaller_than_the_model_leaves_units_on_disk_behind_staging_buffers() -> None:
    wanted = wishes(link=EMULATED)
    full = plan_for_budget(TARGET, None, budget(12 * MIB), wanted).memory
    for missing in (1, 5 * MIB, 12 * MIB):
        plan = plan_for_budget(TARGET, None, budget(12 * MIB, host_bytes=full.host_bytes - missing), wanted)
        assert plan.staging is not None
        assert plan.staging.buffer_bytes == max(unit.dense_bytes for unit in plan.streamed)
        assert "disk" in {unit.source for unit in plan.streamed}
        assert plan.memory.host_bytes <= full.host_bytes - missing
        assert plan.memory.host_staging_bytes == plan.staging.num_buffers * plan.staging.buffer_bytes


def test_host_budget_below_the_staging_buffers_is_refused_with_what_would_do() -> None:
    wanted = wishes(link=EMULATED)
    given = budget(12 * MIB, host_bytes=MIB)
    with pytest.raises(NoFeasiblePlanError, match=r"of host memory and may take 1\.00 MiB") as caught:
        plan_for_budget(TARGET, None, given, wanted)
    plan = plan_for_budget(TARGET, None, applied(given, flags_of(caught.value)), wanted)
    assert {unit.source for unit in plan.streamed} == {"disk"}


def test_tied_embedding_is_gathered_from_disk_rather_than_held_twice() -> None:
    tied = shape(TARGET.layers, is_tied=True)
    plan = plan_for_budget(tied, None, budget(12 * MIB), wishes(link=EMULATED))
    assert [unit.source for unit in plan.units if unit.kind == "embedding"] == ["disk"]
    assert plan.memory.host_embedding_bytes == 0


@QUICK
@given(TARGETS, DRAFTS, BUDGETS, WISHES)
def test_plan_is_the_same_every_time(
    target: ModelShape, draft: ModelShape | None, given: Budget, wanted: Wishes
) -> None:
    if is_feasible(target, draft, given, wanted):
        assert plan_for_budget(target, draft, given, wanted) == plan_for_budget(target, draft, given, wanted)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"context_tokens": 1024}, "target_kv_bytes"),
        ({"slots": 3}, "slots_bytes"),
        ({"prefill_chunk_tokens": 4096}, "activations_bytes"),
        ({"draft": tree(512, 4).of(DRAFT, "bf16", 0), "context_tokens": 513}, "target_kv_bytes"),
    ],
)
def test_a_plan_that_counts_less_than_it_takes_is_refused_by_the_part(changes: dict[str, object], part: str) -> None:
    plan = plan_for_budget(TARGET, DRAFT, budget(20 * MIB), wishes(drafting=tree(16, 4)))
    check_memory(plan, TARGET, DRAFT)
    with pytest.raises(PlanMismatchError, match=f"counts too little memory: {part}") as refused:
        check_memory(plan.model_copy(update=changes), TARGET, DRAFT)
    assert "changed by hand" in refused.value.why
    assert refused.value.exit_code == 5
