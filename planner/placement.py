"""Where each unit lies: on the device, in slots, in host memory or on disk. A byte saved is worth the same anywhere.

Placed are whole layers, or the attention and the MLP of each by themselves: smaller slots, and residents that fill the
room more closely, for twice as many units to hand over. Residents are spread evenly, so that between any two of them
the link has time to catch up; bunched at the start they would coincide with the draft.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from planner.contracts.layer_parts import PART_KINDS, TENSORS_OF, DecoderKind, Granularity
from planner.contracts.model_shape import ModelShape, align
from planner.contracts.plan import DTYPE_BYTES, Dtype, LinkChoice, Staging, Unit

_NUM_STAGING_BUFFERS = 2
_MOST_ENUMERATED_CLASSES = 3
_KINDS: dict[Granularity, tuple[DecoderKind, ...]] = {"layers": ("layer",), "parts": PART_KINDS}
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
    residents: frozenset[int]  # layers, with all their parts
    chunk_rows: int  # of the head
    num_resident_chunks: int  # the first ones
    has_embedding: bool  # on the device; else its rows are gathered on the host
    resident_parts: frozenset[tuple[DecoderKind, int]] | None = None  # None: whole layers are placed

    @property
    def granularity(self) -> Granularity:
        """What has a place of its own."""
        return "layers" if self.resident_parts is None else "parts"

    def has(self, kind: DecoderKind, index: int) -> bool:
        """Whether a layer or a part of one is resident."""
        return index in self.residents if self.resident_parts is None else (kind, index) in self.resident_parts


def choose_residents(
    target: ModelShape,
    room_bytes: int,
    dtype: Dtype,
    num_slots: int,
    most_residents: int | None = None,
    granularity: Granularity = "layers",
) -> Placement:
    """Everything where it fits, else slots first and residents from what is left, at most so many layers of them.

    Layers of unequal sizes, parts of layers and the head's chunks are chosen so that most bytes stay.
    """
    if _resident_bytes(target, dtype) <= room_bytes and most_residents is None:
        return Placement(
            num_slots=0,
            residents=frozenset(range(target.num_layers)),
            chunk_rows=target.vocab_size,
            num_resident_chunks=1,
            has_embedding=True,
        )
    slot_bytes = _slot_bytes(target, dtype, granularity)
    chunk_rows = _chunk_rows(target, dtype, slot_bytes)
    chunk_bytes = align(chunk_rows * _row_bytes(target, dtype))
    num_chunks = math.ceil(target.vocab_size / chunk_rows)
    sizes = tuple(target.layer_bytes(dtype, *TENSORS_OF[kind]) for kind in _KINDS[granularity])
    classes = _classes(_KINDS[granularity], sizes)
    counts = _most_bytes_within(
        room_bytes - num_slots * slot_bytes - _norms_bytes(target, dtype, granularity),
        [*(members.num_bytes for members in classes), chunk_bytes],
        [*(len(members.layers) for members in classes), num_chunks],
        most_residents,
    )
    *num_residents, num_resident_chunks = counts
    chosen = _spread_classes(classes, tuple(num_residents))
    is_all_resident = len(chosen.layers) == target.num_layers and num_resident_chunks == num_chunks
    return Placement(
        num_slots=0 if is_all_resident else num_slots,
        residents=chosen.layers,
        chunk_rows=chunk_rows,
        num_resident_chunks=num_resident_chunks,
        has_embedding=False,
        resident_parts=chosen.units if granularity == "parts" else None,
    )


def units_of(target: ModelShape, dtype: Dtype, placement: Placement) -> list[Unit]:
    """The units of a decoder in pass order, placed."""
    return [
        _embedding_unit(target, dtype, "resident" if placement.has_embedding else "host"),
        *_decoder_units(target, dtype, placement),
        *_head_units(target, dtype, placement.chunk_rows, placement.num_resident_chunks),
    ]


def spread_evenly(num_residents: int, layers: Sequence[int]) -> frozenset[int]:
    """So many of the layers, evenly spread over the interior."""
    return frozenset(layers[(2 * i + 1) * len(layers) // (2 * num_residents)] for i in range(num_residents))


def smallest_bytes(target: ModelShape, dtype: Dtype, num_slots: int, granularity: Granularity = "layers") -> int:
    """Bytes without which nothing runs: slots, and norms beside parts; or the whole model where that is less."""
    streamed_bytes = num_slots * _slot_bytes(target, dtype, granularity) + _norms_bytes(target, dtype, granularity)
    return min(streamed_bytes, _resident_bytes(target, dtype))


def decoder_rest_bytes(target: ModelShape, dtype: Dtype, units: Sequence[Unit]) -> int:
    """Bytes of the layers' norms where these are resident beside parts, and belong to no unit."""
    is_split = any(unit.kind in PART_KINDS for unit in units)
    return _norms_bytes(target, dtype, "parts" if is_split else "layers")


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
    placed = [_in_host_memory(unit) if (unit.kind, unit.index) in chosen else unit for unit in units]
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


def _slot_bytes(target: ModelShape, dtype: Dtype, granularity: Granularity) -> int:
    """Bytes of the largest unit, and no less than a row of the head."""
    units_bytes = (max(target.layer_bytes(dtype, *TENSORS_OF[kind])) for kind in _KINDS[granularity])
    return max(*units_bytes, align(_row_bytes(target, dtype)))


def _norms_bytes(target: ModelShape, dtype: Dtype, granularity: Granularity) -> int:
    """Bytes of what is left of the layers beside their parts."""
    return sum(target.layer_bytes(dtype, "rest")) if granularity == "parts" else 0


def _resident_bytes(target: ModelShape, dtype: Dtype) -> int:
    """Bytes of all units, a tied table counted once."""
    tables = (target.head_params, 0 if target.is_tied else target.embedding_params)
    return sum(target.layer_bytes(dtype)) + sum(align(num_params * DTYPE_BYTES[dtype]) for num_params in tables)


@dataclass(frozen=True, slots=True)
class _Members:
    """The units of one kind and size: the layers that they are, or are parts of."""

    kind: DecoderKind
    num_bytes: int
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The resident units of a decoder, and the layers that are resident with all their units."""

    units: frozenset[tuple[DecoderKind, int]]
    layers: frozenset[int]


@lru_cache
def _classes(kinds: tuple[DecoderKind, ...], sizes: tuple[tuple[int, ...], ...]) -> tuple[_Members, ...]:
    """The classes of a decoder's units, by the sizes of each kind; the largest first."""
    layers: dict[tuple[int, DecoderKind], list[int]] = defaultdict(list)
    for kind, sizes_of_kind in zip(kinds, sizes, strict=True):
        for index, num_bytes in enumerate(sizes_of_kind):
            layers[num_bytes, kind].append(index)
    return tuple(
        _Members(kind, num_bytes, tuple(layers[num_bytes, kind])) for num_bytes, kind in sorted(layers, reverse=True)
    )


@lru_cache(maxsize=4096)
def _spread_classes(classes: tuple[_Members, ...], counts: tuple[int, ...]) -> _Chosen:
    """So many units of each class, each class evenly spread."""
    units = frozenset(
        (members.kind, index)
        for members, count in zip(classes, counts, strict=True)
        for index in spread_evenly(count, members.layers)
    )
    kinds = {members.kind for members in classes}
    layers = {index for members in classes for index in members.layers}
    return _Chosen(units, frozenset(index for index in layers if all((kind, index) in units for kind in kinds)))


def _most_bytes_within(
    room_bytes: int, sizes: Sequence[int], counts: Sequence[int], most_layers: int | None
) -> list[int]:
    """How many units of each class to keep so that most bytes stay; the last class is the head's chunks.

    Few classes are enumerated: for each choice of the others the number of the first follows. That is exact, and quick;
    loading scipy's integer programming takes 0.4 s, longer than all else that a search does.
    """
    if room_bytes <= 0:
        return [0] * len(sizes)
    most = sum(counts) if most_layers is None else most_layers
    if len(sizes) > _MOST_ENUMERATED_CLASSES:
        return _most_bytes_by_milp(room_bytes, sizes, counts, most)
    others_CP = _choices(tuple(counts[1:]))
    left_P = room_bytes - np.array(sizes[1:]) @ others_CP
    most_P = most - others_CP[:-1].sum(axis=0)
    first_P = np.minimum(np.minimum(left_P // sizes[0], most_P), counts[0])
    best = int(np.argmin(np.where(first_P < 0, room_bytes + 1, left_P - first_P * sizes[0])))
    return [int(first_P[best]), *map(int, others_CP[:, best])]


@lru_cache
def _choices(counts: tuple[int, ...]) -> NDArray[np.int64]:
    """Every choice of so many or fewer of each class; shape (C, P), the fewest first."""
    return np.indices([count + 1 for count in counts]).reshape(len(counts), -1)


def _most_bytes_by_milp(room_bytes: int, sizes: Sequence[int], counts: Sequence[int], most_layers: int) -> list[int]:
    """The same by integer programming, for as many classes as there are."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    shares = [size / sizes[0] for size in sizes]
    solution = milp(
        [-share for share in shares],
        integrality=[1] * len(sizes),
        bounds=Bounds(0, counts),
        constraints=[
            LinearConstraint(shares, ub=room_bytes / sizes[0]),
            LinearConstraint([1.0] * (len(sizes) - 1) + [0.0], ub=most_layers),
        ],
    )
    assert solution.x is not None, solution.message
    chosen = [round(count) for count in solution.x]
    while sum(count * size for count, size in zip(chosen, sizes, strict=True)) > room_bytes:
        chosen[next(index for index, count in enumerate(chosen) if count)] -= 1  # by the solver's rounding
    return chosen


def _decoder_units(target: ModelShape, dtype: Dtype, placement: Placement) -> list[Unit]:
    kinds = _KINDS[placement.granularity]
    wire_bytes = [target.layer_wire_bytes(dtype, *TENSORS_OF[kind]) for kind in kinds]
    dense_bytes = [target.layer_bytes(dtype, *TENSORS_OF[kind]) for kind in kinds]
    return [
        _decoder_unit(kind, index, placement.has(kind, index), wire_bytes[part][index], dense_bytes[part][index])
        for index in range(target.num_layers)
        for part, kind in enumerate(kinds)
    ]


@lru_cache(maxsize=4096)  # the placements of a search are made of the same few units
def _decoder_unit(kind: DecoderKind, index: int, is_resident: bool, wire_bytes: int, dense_bytes: int) -> Unit:
    return Unit(
        kind=kind,
        index=index,
        placement="resident" if is_resident else "streamed",
        source="disk",
        wire_bytes=wire_bytes,
        dense_bytes=dense_bytes,
    )


@lru_cache(maxsize=4096)
def _in_host_memory(unit: Unit) -> Unit:
    return unit.model_copy(update={"source": "ram"})


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
