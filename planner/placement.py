"""Where each unit lies: on the device, in slots, in host memory or on disk. A byte saved is worth the same anywhere.

Residents are spread evenly, so that between any two of them the link has time to catch up; bunched at the start they
would coincide with the draft.
"""

import math
from collections.abc import Sequence
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


def place_units(target: ModelShape, room_bytes: int, dtype: Dtype, num_slots: int) -> list[Unit]:
    """All units of a decoder: resident where everything fits, else slots first and residents from what is left."""
    if _resident_bytes(target, dtype) <= room_bytes:
        everything = set(range(target.num_layers))
        head = _head_units(target, dtype, target.vocab_size, align(target.head_params * DTYPE_BYTES[dtype]))
        return [_embedding_unit(target, dtype, "resident"), *_layer_units(target, dtype, everything), *head]
    slot_bytes = _slot_bytes(target, dtype)
    room_bytes -= num_slots * slot_bytes
    residents = _spread_residents(target, dtype, room_bytes)
    room_bytes -= sum(target.layers[index].region_bytes(dtype) for index in residents)
    head = _head_units(target, dtype, _chunk_rows(target, dtype, slot_bytes), room_bytes)
    return [_embedding_unit(target, dtype, "host"), *_layer_units(target, dtype, residents), *head]


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
    chosen = []
    for unit in sorted(wanted, key=lambda unit: unit.kind == "embedding"):
        if unit.dense_bytes <= host_bytes:
            host_bytes -= unit.dense_bytes
            chosen.append((unit.kind, unit.index))
    placed = [
        unit.model_copy(update={"source": "ram"}) if (unit.kind, unit.index) in chosen else unit for unit in units
    ]
    return placed, staging


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
    return max(layer.region_bytes(dtype) for layer in target.layers)


def _resident_bytes(target: ModelShape, dtype: Dtype) -> int:
    """Bytes of all units, a tied table counted once."""
    tables = (target.head_params, 0 if target.is_tied else target.embedding_params)
    layers_bytes = sum(layer.region_bytes(dtype) for layer in target.layers)
    return layers_bytes + sum(align(num_params * DTYPE_BYTES[dtype]) for num_params in tables)


def _spread_residents(target: ModelShape, dtype: Dtype, room_bytes: int) -> set[int]:
    """The most layers that fit when evenly spread over the interior."""
    sizes = [layer.region_bytes(dtype) for layer in target.layers]
    for num_residents in range(target.num_layers, 0, -1):
        spread = {(2 * i + 1) * target.num_layers // (2 * num_residents) for i in range(num_residents)}
        if sum(sizes[index] for index in spread) <= room_bytes:
            return spread
    return set()


def _layer_units(target: ModelShape, dtype: Dtype, residents: set[int]) -> list[Unit]:
    return [
        Unit(
            kind="layer",
            index=index,
            placement="resident" if index in residents else "streamed",
            source="disk",
            wire_bytes=layer.wire_bytes(dtype),
            dense_bytes=layer.region_bytes(dtype),
        )
        for index, layer in enumerate(target.layers)
    ]


def _chunk_rows(target: ModelShape, dtype: Dtype, slot_bytes: int) -> int:
    """Rows of a head chunk: no more than a slot holds, equally many in each chunk but the last."""
    row_bytes = target.head_params // target.vocab_size * DTYPE_BYTES[dtype]
    multiple = _HEAD_ROW_MULTIPLE if slot_bytes >= _HEAD_ROW_MULTIPLE * row_bytes else 1
    most_rows = slot_bytes // row_bytes // multiple * multiple
    num_chunks = math.ceil(target.vocab_size / most_rows)
    return math.ceil(target.vocab_size / num_chunks / multiple) * multiple


def _head_units(target: ModelShape, dtype: Dtype, chunk_rows: int, room_bytes: int) -> list[Unit]:
    """The head's row chunks, the first of them resident as far as the room goes."""
    row_bytes = target.head_params // target.vocab_size * DTYPE_BYTES[dtype]
    units = []
    for index, first in enumerate(range(0, target.vocab_size, chunk_rows)):
        stop = min(first + chunk_rows, target.vocab_size)
        room_bytes -= align((stop - first) * row_bytes)
        units.append(
            Unit(
                kind="head_chunk",
                index=index,
                placement="resident" if room_bytes >= 0 else "streamed",
                source="disk",
                wire_bytes=(stop - first) * row_bytes,
                dense_bytes=align((stop - first) * row_bytes),
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
