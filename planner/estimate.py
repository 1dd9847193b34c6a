"""A profile that nobody measured: links by latency and bandwidth, compute by the roofline, from a machine's numbers.

For planning before buying or downloading. Each efficiency below is stated with its reason, each time has quartiles as
wide as its source deserves, and a number that is needed but unknown is an error. Kernels that change with the number of
tokens, throttling, and copies that slow down compute are not covered; a measured profile has them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from planner.contracts.errors import BadInputError
from planner.contracts.layer_parts import LayerPart
from planner.contracts.machine import Machine, MachineLink, Quantity
from planner.contracts.model_shape import LayerShape, ModelShape
from planner.contracts.plan import DTYPE_BYTES, Dtype, UnitKind
from planner.contracts.profile import (
    AcceptanceCurve,
    ComputeMeasurement,
    DraftMeasurement,
    LinkMeasurement,
    LinkName,
    MemoryMeasurement,
    Processor,
    Profile,
    Spread,
)
from planner.memory import CUDA_OVERHEAD_BYTES, DRAFT_HOST_OVERHEAD_BYTES, HOST_OVERHEAD_BYTES

EstimatedLink = Literal["cuda", "disk:cached", "disk:direct"]

STATED = "2026-11-20T00:00:00Z"  # when the constants below were last weighed; an estimate has no other date

# Priors of the project's survey of simulators: device memory .80-.92 of the datasheet, matrix products .5-.75.
DEVICE_MEMORY_FRAC = 0.85
DEVICE_MATMUL_FRAC = 0.6
HOST_MEMORY_FRAC = 0.8  # STREAM reaches .74-.79 of the wire rate on small cores (TI SPRAD45A, table 3-3)
HOST_MATMUL_FRAC = 0.5  # the low end of matrix products: a few tokens fill no tiles
CACHED_READ_BYTES_PER_S = 10e9  # one thread that copies out of the page cache, whatever the DRAM; estimated

# transformers' forward launches its kernels one by one from Python: 25.5 tok/s of Llama-7B on an A100, 32 layers in
# 39 ms, bound by the CPU (PyTorch blog "Accelerating Generative AI II: GPT, Fast"); half of that on a desktop's cores.
LAUNCH_S: dict[str, float] = {"layer": 600e-6, "attention": 400e-6, "mlp": 200e-6, "head_chunk": 50e-6}
DISPATCH_S: dict[str, float] = {"layer": 100e-6, "attention": 65e-6, "mlp": 35e-6, "head_chunk": 5e-6}  # on the CPU
PASS_S = 1e-3  # embedding, masks, positions, final norm: a few launches; estimated
ROUND_S = 1e-3  # comparing tokens, rolling back caches; estimated
ROUND_NODE_S = 5e-6  # for each token verified; estimated
PICK_S = 100e-6  # argmax of the draft's logits, and reading it; estimated
PICK_NODE_S = 10e-6  # of a tree, for each node of a level: where its children stand among all others; estimated

COMPUTE_SPREAD_FRAC = 0.20  # half the distance of the quartiles: rooflines are off by 1.2-2 where they were checked
LINK_SPREAD_FRAC: dict[str, float] = {"measured": 0.05, "datasheet": 0.10, "estimated": 0.10}

TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
CONTEXTS = (0, 1024, 4096, 16384)
LINK_SIZES_BYTES = tuple(64 * 2**10 * 4**step for step in range(8))  # 64 KiB to 1 GiB
HEAD_CHUNKS = 8  # of the vocabulary, the smallest chunk in the table

_PARTS: dict[str, tuple[LayerPart, ...]] = {
    "layer": (),
    "attention": ("attention", "rest"),
    "mlp": ("mlp", "expert"),
}


def estimated_profile(
    machine: Machine,
    target: ModelShape,
    drafts: Sequence[ModelShape],
    curves: Sequence[AcceptanceCurve],
    *,
    dtype: Dtype,
    link: EstimatedLink | None,
) -> Profile:
    """The profile that a machine of these numbers would have; `link` is one that it must have.

    Raises: BadInputError, where a number is missing or the machine lacks the link.
    """
    if DTYPE_BYTES[dtype] != 2:
        raise _missing(machine, f"its speed in {dtype}", "only that of 16 bits is stated")
    processors = _processors(machine)
    links = tuple(_links(machine, target, dtype))
    if link is not None and all(entry.link != link for entry in links):
        raise _missing(machine, f"the link {link}", _why_no_link(machine, link))
    return Profile(
        kind="estimated",
        created=STATED,
        machine=machine,
        machine_fingerprint=f"catalogue:{machine.name}",
        versions={},
        num_threads=1,
        target=target,
        drafts=tuple(drafts),
        dtype=dtype,
        links=links,
        compute=tuple(entry for processor in processors for entry in _compute(_Costs(target, dtype, processor))),
        draft_passes=tuple(
            entry
            for draft in drafts
            for processor in processors
            for entry in _draft_passes(_Costs(draft, dtype, processor))
        ),
        memory=tuple(_memory(machine)),
        curves=tuple(curves),
        notes=_notes(machine, curves),
    )


# --- processors ---


@dataclass(frozen=True, slots=True, kw_only=True)
class _Roofline:
    """What one processor reaches of its peaks, and what each unit costs it beside them."""

    name: Processor
    bytes_per_s: float
    flops_per_s: float
    unit_s: dict[str, float]
    hides_launches: bool  # a device computes while the next kernels are launched; a CPU does one after the other

    def seconds(self, unit: str, num_bytes: float, num_flops: float) -> float:
        """Seconds of a unit that reads so many bytes and multiplies so much."""
        busy_s = max(num_bytes / self.bytes_per_s, num_flops / self.flops_per_s)
        own_s = self.unit_s[unit]
        return max(own_s, busy_s) if self.hides_launches else own_s + busy_s


def _processors(machine: Machine) -> tuple[_Roofline, ...]:
    """The device, and the CPU beside it where that is another."""
    device = machine.devices[0]
    bytes_per_s = _known(machine, device.memory_bytes_per_s, "devices.0.memory_bytes_per_s")
    flops_per_s = _known(machine, device.matmul_flops_per_s, "devices.0.matmul_flops_per_s")
    if not _has_accelerator(machine):
        return (_cpu("device", bytes_per_s, flops_per_s),)
    accelerator = _Roofline(
        name="device",
        bytes_per_s=bytes_per_s * DEVICE_MEMORY_FRAC,
        flops_per_s=flops_per_s * DEVICE_MATMUL_FRAC,
        unit_s=LAUNCH_S,
        hides_launches=True,
    )
    host_bytes_per_s = _known(machine, machine.host_memory_bytes_per_s, "host_memory_bytes_per_s")
    host_flops_per_s = _known(machine, machine.host_matmul_flops_per_s, "host_matmul_flops_per_s")
    return accelerator, _cpu("host", host_bytes_per_s, host_flops_per_s)


def _cpu(name: Processor, bytes_per_s: float, flops_per_s: float) -> _Roofline:
    return _Roofline(
        name=name,
        bytes_per_s=bytes_per_s * HOST_MEMORY_FRAC,
        flops_per_s=flops_per_s * HOST_MATMUL_FRAC,
        unit_s=DISPATCH_S,
        hides_launches=False,
    )


def _has_accelerator(machine: Machine) -> bool:
    return machine.devices[0].name != "cpu"


# --- compute ---


@dataclass(frozen=True, slots=True)
class _Costs:
    """What the parts of one model cost in one dtype on one processor."""

    shape: ModelShape
    dtype: Dtype
    processor: _Roofline

    @property
    def head_rows(self) -> int:
        """Rows of the head's weight: the vocabulary, as padded in the checkpoint."""
        return self.shape.head_params // self.shape.hidden_size

    @property
    def contexts(self) -> tuple[int, ...]:
        """Contexts of the table, up to the model's longest."""
        longest = self.shape.max_context_tokens
        return (*(context for context in CONTEXTS if context < longest), longest)

    def layer_s(self, layer: LayerShape, unit: str, num_tokens: int, context_tokens: int) -> float:
        """Seconds of a layer or a part of it: weights and cache are read once, each token meets its own experts.

        t tokens touch E (1 - (1 - k/E)^t) of E experts that are chosen evenly (MoESD, arXiv 2505.19645).
        """
        shape, item = self.shape, DTYPE_BYTES[self.dtype]
        expert_params = 0 if unit == "attention" else layer.num_params("expert")
        dense_params = layer.num_params(*_PARTS[unit]) - expert_params
        chosen_frac = shape.experts_per_token / shape.num_experts if expert_params else 0.0
        touched_frac = 1 - (1 - chosen_frac) ** num_tokens
        num_bytes = (dense_params + touched_frac * expert_params) * item
        num_flops = 2 * num_tokens * (dense_params + chosen_frac * expert_params)
        if unit != "mlp" and layer.kind != "recurrent":
            seen_tokens = min(context_tokens, layer.window_tokens or context_tokens) + num_tokens
            num_bytes += seen_tokens * shape.key_values_per_token * item
            num_flops += 4 * num_tokens * seen_tokens * shape.query_values_per_token  # scores, and sums of values
        return self.processor.seconds(unit, num_bytes, num_flops)

    def head_s(self, num_rows: int, num_tokens: int) -> float:
        """Seconds of the logits of so many rows of the head."""
        num_params = num_rows * self.shape.hidden_size
        return self.processor.seconds("head_chunk", num_params * DTYPE_BYTES[self.dtype], 2 * num_tokens * num_params)


def _compute(costs: _Costs) -> Iterator[ComputeMeasurement]:
    """The table of a target: every kind of layer and its parts, head chunks, and what belongs to no unit."""
    first: dict[LayerShape, int] = {}
    for index, layer in enumerate(costs.shape.layers):
        first.setdefault(layer, index)
    units: tuple[UnitKind, ...] = ("layer", "attention", "mlp")
    name = costs.processor.name
    for num_tokens in TOKENS:
        for context_tokens in costs.contexts:
            point = (num_tokens, context_tokens)
            for layer, index in first.items():
                for unit in units:
                    if layer.num_params(*_PARTS[unit]):
                        yield _entry(unit, name, point, costs.layer_s(layer, unit, *point), index=index)
            yield _entry("pass", name, point, PASS_S)
        for num_rows in (max(1, costs.head_rows // HEAD_CHUNKS), costs.head_rows):
            yield _entry("head_chunk", name, (num_tokens, 0), costs.head_s(num_rows, num_tokens), num_rows=num_rows)
        yield _entry("round", name, (num_tokens, 0), ROUND_S + num_tokens * ROUND_NODE_S)


def _draft_passes(costs: _Costs) -> Iterator[DraftMeasurement]:
    """Whole passes of a draft: it picks from the logits of its last token, or of all nodes of a tree's level."""
    counts = Counter(costs.shape.layers)
    for num_tokens, is_tree_level in product(TOKENS, (False, True)):
        num_rows = num_tokens if is_tree_level else 1
        rest_s = costs.head_s(costs.head_rows, num_rows) + PASS_S + PICK_S + is_tree_level * num_rows * PICK_NODE_S
        for context_tokens in costs.contexts:
            layers_s = sum(
                count * costs.layer_s(layer, "layer", num_tokens, context_tokens) for layer, count in counts.items()
            )
            yield DraftMeasurement(
                fingerprint=costs.shape.fingerprint,
                is_tree_level=is_tree_level,
                processor=costs.processor.name,
                num_tokens=num_tokens,
                context_tokens=context_tokens,
                duration_s=_spread(layers_s + rest_s, COMPUTE_SPREAD_FRAC),
            )


def _entry(
    unit: UnitKind | Literal["pass", "round"],
    processor: Processor,
    point: tuple[int, int],
    duration_s: float,
    *,
    index: int = 0,
    num_rows: int | None = None,
) -> ComputeMeasurement:
    num_tokens, context_tokens = point
    return ComputeMeasurement(
        unit=unit,
        index=index,
        num_rows=num_rows,
        processor=processor,
        num_tokens=num_tokens,
        context_tokens=context_tokens,
        duration_s=_spread(duration_s, COMPUTE_SPREAD_FRAC),
    )


# --- links ---


def _links(machine: Machine, target: ModelShape, dtype: Dtype) -> Iterator[LinkMeasurement]:
    host_bytes_per_s = _known(machine, machine.host_memory_bytes_per_s, "host_memory_bytes_per_s")
    host_kind = _known_kind(machine.host_memory_bytes_per_s)
    yield from _transfers("host_memory", host_bytes_per_s * HOST_MEMORY_FRAC, 0.0, host_kind)
    over = _link(machine, "host_to_device")
    if over is not None:
        yield from _transfers("cuda", over.bytes_per_s.value, _latency_s(machine, over), over.bytes_per_s.kind)
    disk = _link(machine, "disk_to_host")
    if disk is not None:
        latency_s, kind = _latency_s(machine, disk), disk.bytes_per_s.kind
        yield from _transfers("disk:direct", disk.bytes_per_s.value, latency_s, kind)
        if target.weights_bytes(dtype) <= machine.host_memory_bytes.value:
            cached_bytes_per_s = min(CACHED_READ_BYTES_PER_S, host_bytes_per_s * HOST_MEMORY_FRAC / 2)
            yield from _transfers("disk:cached", cached_bytes_per_s, 0.0, "estimated")


def _transfers(name: LinkName, bytes_per_s: float, latency_s: float, kind: str) -> Iterator[LinkMeasurement]:
    for num_bytes in LINK_SIZES_BYTES:
        duration_s = _spread(latency_s + num_bytes / bytes_per_s, LINK_SPREAD_FRAC[kind])
        yield LinkMeasurement(link=name, num_bytes=num_bytes, loaded=False, duration_s=duration_s)


def _link(machine: Machine, kind: str) -> MachineLink | None:
    return next((link for link in machine.links if link.kind == kind), None)


def _latency_s(machine: Machine, link: MachineLink) -> float:
    return _known(machine, link.latency_s, f"links.{machine.links.index(link)}.latency_s")


def _why_no_link(machine: Machine, link: EstimatedLink) -> str:
    if link == "disk:cached" and _link(machine, "disk_to_host") is not None:
        return "its memory does not hold the target, so that what is read from disk does not stay cached"
    return f"it states no link from {'host to device' if link == 'cuda' else 'disk to host'}"


# --- the rest ---


def _memory(machine: Machine) -> Iterator[MemoryMeasurement]:
    yield MemoryMeasurement(part="host_overhead", num_bytes=HOST_OVERHEAD_BYTES)
    yield MemoryMeasurement(part="draft_host_overhead", num_bytes=DRAFT_HOST_OVERHEAD_BYTES)
    if _has_accelerator(machine):
        yield MemoryMeasurement(part="device_overhead", num_bytes=CUDA_OVERHEAD_BYTES)


def _notes(machine: Machine, curves: Sequence[AcceptanceCurve]) -> tuple[str, ...]:
    compute = (
        f"compute: estimated by the roofline, {DEVICE_MEMORY_FRAC:.0%} of device memory's bandwidth and"
        f" {DEVICE_MATMUL_FRAC:.0%} of its matrix speed"
        if _has_accelerator(machine)
        else f"compute: estimated by the roofline, {HOST_MEMORY_FRAC:.0%} of memory's bandwidth and"
        f" {HOST_MATMUL_FRAC:.0%} of the CPU's matrix speed"
    )
    links = [f"{link.kind}: {link.bytes_per_s.kind}, {link.bytes_per_s.source}" for link in machine.links]
    others = [
        f"acceptance of {curve.draft} for {curve.target} on {curve.domain}: {curve.source}"
        for curve in curves
        if not curve.is_same_pair
    ]
    return (
        f"{compute}, quartiles at +-{COMPUTE_SPREAD_FRAC:.0%}; all threads of the CPU, however many",
        *links,
        "memory beside weights and caches: estimated",
        *others,
    )


def _spread(median_s: float, half_frac: float) -> Spread:
    return Spread(p25=median_s * (1 - half_frac), median=median_s, p75=median_s * (1 + half_frac), num_samples=1)


def _known(machine: Machine, quantity: Quantity | None, field: str) -> float:
    if quantity is None:
        raise _missing(machine, field, "it is not stated, and nothing is guessed in its place")
    return quantity.value


def _known_kind(quantity: Quantity | None) -> str:
    assert quantity is not None
    return quantity.kind


def _missing(machine: Machine, what: str, why: str) -> BadInputError:
    return BadInputError(
        f"the machine {machine.name} lacks {what}",
        why=why,
        remedy="add it to the machine's file with its source, or measure the machine: planner profile",
    )
