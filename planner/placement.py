"""Where each unit lies: on the device, in slots, in host memory or on disk. A byte saved is worth the same anywhere.

Residents are spread evenly, so that between any two of them the link has time to catch up; bunched at the start they
would coincide with the draft.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from planner.contracts.model_shape import ModelShape, align
from planner.contracts.plan import DTYPE_BYTES, Dtype, LinkChoice, Staging, Unit

_NUM_STAGING_BUFFERS = 2
_HEAD_ROW_MULTIPLE = 64  # chunks that matrix kernels tile evenly


class HostMemory(TypedDict):
    """The host parts of a plan's memory split that depend on placements."""

    host_weights_bytes: int
    host_embedding_bytes: int
    host_staging_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which units are resident; all others travel through the slots. Few of them differ between many plans."""

    num_slots: int
    residents: frozenset[int]  # layers
    chunk_rows: int  # of the head
    num_resident_chunks: int  # the first ones
    has_embedding: bool  # on the device; else its rows are gathered on the host


def choose_residents(
    target: ModelShape, room_bytes: int, dtype: Dtype, num_slots: int, most_residents: int | None = None
) -> Placement:
    """Everything where it fits, else slots first and residents from what is left, at most so many layers of them.

    Layers of unequal sizes and the head's chunks are chosen by integer programming over their classes.
    """
    if _resident_bytes(target, dtype) <= room_bytes and most_residents is None:
        everything = frozenset(range(target.num_layers))
        return Placement(
            num_slots=0,
            residents=everything,
            chunk_rows=target.vocab_size,
            num_resident_chunks=1,
            has_embedding=True,
        )
    slot_bytes = _slot_bytes(target, dtype)
    room_bytes -= num_slots * slot_bytes
    chunk_rows = _chunk_rows(target, dtype, slot_bytes)
    chunk_bytes = align(chunk_rows * _row_bytes(target, dtype))
    num_chunks = math.ceil(target.vocab_size / chunk_rows)
    most = target.num_layers if most_residents is None else most_residents
    sizes = target.layer_bytes(dtype)
    if len(set(sizes)) == 1:
        num_residents = max(0, min(most, room_bytes // sizes[0]))
        residents = spread_evenly(num_residents, range(target.num_layers))
        num_resident_chunks = max(0, min(num_chunks, (room_bytes - num_residents * sizes[0]) // chunk_bytes))
    else:
        residents, num_resident_chunks = _pack_residents(sizes, most, chunk_bytes, num_chunks, room_bytes)
    is_all_resident = len(residents) == target.num_layers and num_resident_chunks == num_chunks
    return Placement(
        num_slots=0 if is_all_resident else num_slots,
        residents=residents,
        chunk_rows=chunk_rows,
        num_resident_chunks=num_resident_chunks,
        has_embedding=False,
    )


def units_of(target: ModelShape, dtype: Dtype, placement: Placement) -> list[Unit]:
    """The units of a decoder in pass order, placed."""
    return [
        _embedding_unit(target, dtype, "resident" if placement.has_embedding else "host"),
        *_layer_units(target, dtype, placement.residents),
        *_head_units(target, dtype, placement.chunk_rows, placement.num_resident_chunks),
    ]


def spread_evenly(num_residents: int, layers: Sequence[int]) -> frozenset[int]:
    """So many of the layers, evenly spread over the interior."""
    return frozenset(layers[(2 * i + 1) * len(layers) // (2 * num_residents)] for i in range(num_residents))


def smallest_bytes(target: ModelShape, dtype: Dtype, num_slots: int) -> int:
    """Bytes without which nothing runs: the slots, or the whole model where that is less."""
    return min(num_slots * _slot_bytes(target, dtype), _resident_bytes(target, dtype))


def choose_sources(
    target: ModelShape, units: Sequence[Unit], link: LinkChoice, host_bytes: int
) -> tuple[list[Unit], Staging | None]:
    """Where streamed units and the embedding are read from in each pass: host memory while it lasts, then disk.

    Over the disk link everything stays on disk, and so does a tied embedding, which host memory would hold twice. Units
    on disk under another link pass through staging buffers, which are paid for first.
    """
    wanted = [
        unit
        for unit in units
        if unit.placement in ("streamed", "host") and not (unit.kind == "embedding" and target.is_tied)
    ]
    if link.kind == "disk" or not wanted:
        return list(units), None
    largest_bytes = max((unit.dense_bytes for unit in wanted if unit.kind != "embedding"), default=0)
    staging = Staging(num_buffers=_NUM_STAGING_BUFFERS, buffer_bytes=largest_bytes) if largest_bytes else None
    if sum(unit.dense_bytes for unit in wanted) + _passing_bytes(units, link, None) <= host_bytes:
        staging = None
    host_bytes -= _passing_bytes(units, link, staging)
    chosen = _spread_over_host([unit for unit in wanted if unit.kind != "embedding"], host_bytes)
    host_bytes -= sum(unit.dense_bytes for unit in wanted if (unit.kind, unit.index) in chosen)
    chosen |= {
        ("embedding", unit.index) for unit in wanted if unit.kind == "embedding" and unit.dense_bytes <= host_bytes
    }
    placed = [
        unit.model_copy(update={"source": "ram"}) if (unit.kind, unit.index) in chosen else unit for unit in units
    ]
    return placed, staging


def _spread_over_host(units: Sequence[Unit], host_bytes: int) -> set[tuple[str, int]]:
    """As many units as host memory holds, spread evenly, so that the disk reads all the time for those in between."""
    total_bytes = sum(unit.dense_bytes for unit in units)
    chosen: set[tuple[str, int]] = set()
    taken_bytes = seen_bytes = 0
    for unit in units:
        seen_bytes += unit.dense_bytes
        if taken_bytes + unit.dense_bytes <= min(host_bytes * seen_bytes // max(total_bytes, 1), host_bytes):
            taken_bytes += unit.dense_bytes
            chosen.add((unit.kind, unit.index))
    for unit in units:  # what the even share left over
        if (unit.kind, unit.index) not in chosen and taken_bytes + unit.dense_bytes <= host_bytes:
            taken_bytes += unit.dense_bytes
            chosen.add((unit.kind, unit.index))
    return chosen


def host_memory(units: Sequence[Unit], staging: Staging | None, link: LinkChoice) -> HostMemory:
    """Host bytes of what lies in host memory, and of what only passes through it."""
    in_ram = [unit for unit in units if unit.source == "ram"]
    return HostMemory(
        host_weights_bytes=sum(unit.dense_bytes for unit in in_ram if unit.kind != "embedding"),
        host_embedding_bytes=sum(unit.dense_bytes for unit in in_ram if unit.kind == "embedding"),
        host_staging_bytes=_passing_bytes(units, link, staging),
    )


def _passing_bytes(units: Sequence[Unit], link: LinkChoice, staging: Staging | None) -> int:
    """Host bytes of the staging buffers, or of the largest resident on its way to a device, which comes before them."""
    staging_bytes = 0 if staging is None else staging.num_buffers * staging.buffer_bytes
    if link.kind != "cuda":
        return staging_bytes
    return max([staging_bytes, *(unit.dense_bytes for unit in units if unit.placement == "resident")])


def _slot_bytes(target: ModelShape, dtype: Dtype) -> int:
    return max(target.layer_bytes(dtype))


def _resident_bytes(target: ModelShape, dtype: Dtype) -> int:
    """Bytes of all units, a tied table counted once."""
    tables = (target.head_params, 0 if target.is_tied else target.embedding_params)
    return sum(target.layer_bytes(dtype)) + sum(align(num_params * DTYPE_BYTES[dtype]) for num_params in tables)


def _pack_residents(
    sizes: Sequence[int], most_residents: int, chunk_bytes: int, num_chunks: int, room_bytes: int
) -> tuple[frozenset[int], int]:
    """The layers and the number of head chunks that save most bytes of transfer within the room."""
    if room_bytes <= 0:
        return frozenset(), 0
    from scipy.optimize import Bounds, LinearConstraint, milp

    classes = sorted(set(sizes))
    members = [[index for index, size in enumerate(sizes) if size == of_class] for of_class in classes]
    saved_bytes = [*classes, chunk_bytes]
    counts = [*(min(len(layers), most_residents) for layers in members), num_chunks]
    solution = milp(
        [-size / saved_bytes[0] for size in saved_bytes],
        integrality=[1] * len(saved_bytes),
        bounds=Bounds(0, counts),
        constraints=[
            LinearConstraint([size / saved_bytes[0] for size in saved_bytes], ub=room_bytes / saved_bytes[0]),
            LinearConstraint([1.0] * len(classes) + [0.0], ub=most_residents),
        ],
    )
    assert solution.x is not None, solution.message
    chosen = [round(count) for count in solution.x]
    while sum(count * size for count, size in zip(chosen, saved_bytes, strict=True)) > room_bytes:
        chosen[next(index for index, count in enumerate(chosen) if count)] -= 1  # by the solver's rounding
    spread = [spread_evenly(count, layers) for count, layers in zip(chosen, members, strict=False)]
    return frozenset().union(*spread), chosen[-1]


def _layer_units(target: ModelShape, dtype: Dtype, residents: frozenset[int]) -> list[Unit]:
    return [
        Unit(
            kind="layer",
            index=index,
            placement="resident" if index in residents else "streamed",
            source="disk",
            wire_bytes=layer.wire_bytes(dtype),
            dense_bytes=target.layer_bytes(dtype)[index],
        )
        for index, layer in enumerate(target.layers)
    ]


def _chunk_rows(target: ModelShape, dtype: Dtype, slot_bytes: int) -> int:
    """Rows of a head chunk: no more than a slot holds, equally many in each chunk but the last."""
    row_bytes = _row_bytes(target, dtype)
    multiple = _HEAD_ROW_MULTIPLE if slot_bytes >= _HEAD_ROW_MULTIPLE * row_bytes else 1
    most_rows = slot_bytes // row_bytes // multiple * multiple
    num_chunks = math.ceil(target.vocab_size / most_rows)
    return math.ceil(target.vocab_size / num_chunks / multiple) * multiple


def _row_bytes(target: ModelShape, dtype: Dtype) -> int:
    return target.head_params // target.vocab_size * DTYPE_BYTES[dtype]


def _head_units(target: ModelShape, dtype: Dtype, chunk_rows: int, num_resident: int) -> list[Unit]:
    """The head's row chunks, the first of them resident."""
    units = []
    for index, first in enumerate(range(0, target.vocab_size, chunk_rows)):
        stop = min(first + chunk_rows, target.vocab_size)
        num_bytes = (stop - first) * _row_bytes(target, dtype)
        units.append(
            Unit(
                kind="head_chunk",
                index=index,
                placement="resident" if index < num_resident else "streamed",
                source="disk",
                wire_bytes=num_bytes,
                dense_bytes=align(num_bytes),
                rows=(first, stop),
            )
        )
    return units


def _embedding_unit(target: ModelShape, dtype: Dtype, placement: Literal["resident", "host"]) -> Unit:
    """The embedding: beside everything else on the device (shared with a tied head), or gathered on the host."""
    is_shared = placement == "resident" and target.is_tied
    return Unit(
        kind="embedding",
        index=0,
        placement=placement,
        source="disk",
        wire_bytes=0,
        dense_bytes=0 if is_shared else align(target.embedding_params * DTYPE_BYTES[dtype]),
    )
