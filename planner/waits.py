"""What a unit takes longer after the compute lane has waited for its weights: clocks and caches have cooled by then.

Measured beside links so slow that most of the time was waiting. Such times say nothing of what copies cost by their
rate: read as if they did, they would grow without bound towards faster links, over which nothing waits.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from planner.contracts.layer_parts import DECODER_KINDS
from planner.contracts.plan import DTYPE_BYTES
from planner.contracts.profile import ComputeMeasurement, Profile

_LEAST_WAIT = 1.0  # of the time that the unit computes: what else a pass does counts as waiting here


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """A unit's time after a wait."""

    row: ComputeMeasurement
    wait_s: float


def waited_rows(profile: Profile) -> list[Waited]:
    """Times of layers and head chunks for which the compute lane waited so long that this made them slower."""
    alone = {_kind(row) for row in profile.compute if row.load_bytes_per_s == 0}
    found = []
    for row in profile.compute:
        num_bytes = _unit_bytes(profile, row) if row.load_bytes_per_s and _kind(row) in alone else 0
        wait_s = num_bytes / row.load_bytes_per_s - row.duration_s.median if num_bytes else 0.0
        if wait_s > _LEAST_WAIT * row.duration_s.median:
            found.append(Waited(row=row, wait_s=wait_s))
    return found


def beside_copies(rows: Iterable[ComputeMeasurement], waited: Iterable[Waited]) -> list[ComputeMeasurement]:
    """The rows that say what copies cost by their rate: all but those after a wait, parts of such layers included."""
    points = {_point(found.row) for found in waited}
    return [row for row in rows if row.load_bytes_per_s == 0 or _point(row) not in points]


def _kind(row: ComputeMeasurement) -> tuple[str, int, int | None, str]:
    return row.unit, row.index, row.num_rows, row.processor


def _point(row: ComputeMeasurement) -> tuple[str, int, str | None, float, int, int]:
    """Which measurement of which layers, or of the head, a row is of."""
    of_layer = "layer" if row.unit in DECODER_KINDS else row.unit
    return of_layer, row.index, row.load_link, row.load_bytes_per_s, row.num_tokens, row.context_tokens


def _unit_bytes(profile: Profile, row: ComputeMeasurement) -> int:
    """Bytes that travel for each such unit; 0 where none travel by themselves."""
    target, dtype = profile.target, profile.dtype
    if row.unit == "layer" and row.index < target.num_layers:
        return target.layers[row.index].wire_bytes(dtype)
    if row.unit == "head_chunk" and row.num_rows is not None:
        return row.num_rows * (target.head_params // target.vocab_size) * DTYPE_BYTES[dtype]
    return 0


@dataclass(frozen=True, slots=True)
class Waits:
    """Extra seconds over the wait before a unit: from nothing, linear between measured waits, and flat beyond."""

    extra_s: Mapping[float, float]

    @classmethod
    def of(cls, waited: Iterable[Waited], alone_s: Callable[[ComputeMeasurement], float]) -> "Waits":
        """One point for each link that units waited for: what they take longer hardly depends on how much they do."""
        by_link: dict[str | None, list[tuple[float, float]]] = defaultdict(list)
        for entry in waited:
            extra_s = entry.row.duration_s.median - alone_s(entry.row)
            by_link[entry.row.load_link].append((entry.wait_s, extra_s))
        medians = [tuple(map(statistics.median, zip(*points, strict=True))) for points in by_link.values()]
        return cls({wait_s: max(0.0, extra_s) for wait_s, extra_s in sorted(medians)})

    def at(self, wait_s: float) -> float:
        """Extra seconds after a wait."""
        if not self.extra_s:
            return 0.0
        return float(np.interp(wait_s, [0.0, *self.extra_s], [0.0, *self.extra_s.values()]))
