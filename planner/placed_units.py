"""A placement as arrays over its units: what they are, how long each is copied, read and computed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from planner.contracts.errors import BadInputError
from planner.contracts.layer_parts import DECODER_KINDS
from planner.contracts.plan import INLINE_BYTES, Staging, Unit, UnitKind
from planner.contracts.profile import Processor, Profile
from planner.placement import Placement, choose_sources, units_of
from planner.schedule_batch import BoolArray, FloatArray
from planner.terms import PassTerms
from planner.timing import Timing

_LOW_BYTES_PER_S = 1e3  # a load below all measured ones, up to which slow-downs are in proportion to it


class UnitClass(NamedTuple):
    """What units have in common that compute equally long."""

    kind: UnitKind
    first: int  # layer of that shape
    num_rows: int  # of a head chunk
    is_on_host: bool

    @classmethod
    def of(cls, timing: Timing, unit: Unit) -> Self:
        """The class of a unit."""
        is_of_layer = unit.kind in DECODER_KINDS
        return cls(
            kind=unit.kind,
            first=timing.first_alike[unit.index] if is_of_layer else 0,
            num_rows=0 if unit.rows is None else unit.rows[1] - unit.rows[0],
            is_on_host=unit.placement == "host",
        )

    def seconds(
        self,
        timing: Timing,
        num_tokens: float,
        context_tokens: float,
        load_bytes_per_s: float = 0.0,
        processor: Processor = "device",
    ) -> float:
        """Seconds that such a unit computes, beside copies of so many bytes per second.

        Raises: BadInputError, where nothing times such units.
        """
        match self.kind:
            case "layer" | "attention" | "mlp":
                table = timing.decoder_table(self.kind, self.first, processor)
                return table.at(num_tokens, context_tokens, load_bytes_per_s)
            case "head_chunk":
                return timing.head_s(self.num_rows, num_tokens, load_bytes_per_s, processor)
            case "embedding":
                gather_s = timing.gather_s(num_tokens) if self.is_on_host else 0.0
                return timing.pass_s(num_tokens, context_tokens) + gather_s
        raise BadInputError(
            f"the planner does not time units of kind {self.kind}",
            why="it places layers or their attention and MLP, head chunks and the embedding",
            remedy="plan again with whole layers",
        )

    def times(self, timing: Timing, num_tokens: float, context_tokens: float) -> "ClassTimes":
        """Seconds of such a unit, alone and beside copies."""
        alone_s, low_s, most_s = (
            self.seconds(timing, num_tokens, context_tokens, load) for load in (0.0, _LOW_BYTES_PER_S, math.inf)
        )
        slope_s = (low_s - alone_s) / _LOW_BYTES_PER_S
        return ClassTimes(alone_s, slope_s, most_s, self._warm_frac(timing, num_tokens))

    def _warm_frac(self, timing: Timing, num_tokens: float) -> float:
        match self.kind:
            case "layer" | "attention" | "mlp":
                return timing.decoder_table(self.kind, self.first).warm_frac(num_tokens)
            case "head_chunk":
                return timing.head_warm_frac(self.num_rows, num_tokens)
        return 1.0

    def wake_s(self, timing: Timing, wait_s: float, *, is_warm: bool) -> float:
        """Seconds that such a unit takes longer after a wait for its weights."""
        return timing.wake_s(self.kind, self.first, self.num_rows, wait_s, is_warm=is_warm)


class ClassTimes(NamedTuple):
    """Seconds of a unit alone, what each byte per second of copies adds to them, and the most that it takes so.

    Of these it takes a share when its weights were just copied into the processor's cache.
    """

    alone_s: float
    slope_s: float
    most_s: float
    warm_frac: float


@dataclass(frozen=True, slots=True)
class UnitTimes:
    """The times of all units of a placement."""

    alone_s_U: FloatArray
    slope_s_U: FloatArray
    most_s_U: FloatArray
    warm_frac_U: FloatArray

    @classmethod
    def of(cls, classes: Sequence[ClassTimes], class_U: NDArray[np.int64]) -> Self:
        """Of the units of some classes."""
        return cls(*(np.array(times_s)[class_U] for times_s in zip(*classes, strict=True)))

    def beside(self, load_bytes_per_s: float) -> FloatArray:
        """Seconds beside copies of so many bytes per second."""
        times_s: FloatArray = np.minimum(self.alone_s_U + self.slope_s_U * load_bytes_per_s, self.most_s_U)
        return times_s


@dataclass(frozen=True, slots=True)
class PlacedUnits:
    """A placement as arrays over its units in pass order."""

    units: tuple[Unit, ...]
    classes: tuple[UnitClass, ...]
    class_U: NDArray[np.int64]  # index into them
    staging: Staging | None
    is_streamed_U: BoolArray
    is_head_U: BoolArray
    is_inline: bool  # the compute lane reads streamed units itself
    num_slots: int
    streamed_bytes: int
    copies_s: tuple[FloatArray, FloatArray]  # beside an idle compute lane, and beside a busy one
    reads_s: tuple[FloatArray, FloatArray]  # from disk into staging buffers before that

    @classmethod
    def of(cls, profile: Profile, timing: Timing, placement: Placement, host_bytes: int) -> Self:
        """The target's units as placed, with so many bytes of host memory for those that stream."""
        target, link = profile.target, timing.link
        units, staging = choose_sources(target, units_of(target, profile.dtype, placement), link, host_bytes)
        streamed = [unit for unit in units if unit.placement == "streamed"]
        class_of_units = [UnitClass.of(timing, unit) for unit in units]
        classes = {of_unit: index for index, of_unit in enumerate(dict.fromkeys(class_of_units))}
        return cls(
            units=tuple(units),
            classes=tuple(classes),
            class_U=np.array([classes[of_unit] for of_unit in class_of_units]),
            staging=staging,
            is_streamed_U=np.array([unit.placement == "streamed" for unit in units]),
            is_head_U=np.array([unit.kind == "head_chunk" for unit in units]),
            is_inline=link.kind == "disk" and max((unit.dense_bytes for unit in streamed), default=0) <= INLINE_BYTES,
            num_slots=placement.num_slots,
            streamed_bytes=sum(unit.wire_bytes for unit in streamed),
            copies_s=_transfers([_wire_bytes(unit) for unit in units], timing.copy_s),
            reads_s=_transfers(
                [_wire_bytes(unit) if unit.source == "disk" and link.kind != "disk" else 0 for unit in units],
                timing.read_s,
            ),
        )

    def wakes_s(self, timing: Timing, waiting_s: float, *, is_warm: bool) -> FloatArray:
        """Seconds that each unit takes longer, where the streamed ones are waited for so long in all."""
        num_streamed = int(self.is_streamed_U.sum())
        if waiting_s <= 0 or not num_streamed:
            return np.zeros(len(self.units))
        of_class = np.array(
            [of_units.wake_s(timing, waiting_s / num_streamed, is_warm=is_warm) for of_units in self.classes]
        )
        wakes_s: FloatArray = np.where(self.is_streamed_U, of_class[self.class_U], 0.0)
        return wakes_s

    def pass_terms(self, compute_s_U: FloatArray, duty: float) -> PassTerms:
        """A pass whose units compute so long, beside copies that find the compute lane busy for that share of it."""
        copy_s_U, read_s_U = _under_load(self.copies_s, duty), _under_load(self.reads_s, duty)
        is_streamed_U = self.is_streamed_U
        if self.is_inline:
            compute_s_U, copy_s_U = compute_s_U + copy_s_U, np.zeros_like(copy_s_U)
            is_streamed_U = np.zeros_like(is_streamed_U)
        return PassTerms(
            is_streamed_U=is_streamed_U,
            compute_s_U=compute_s_U,
            copy_s_U=copy_s_U,
            read_s_U=read_s_U,
            num_slots=self.num_slots,
            num_staging_buffers=0 if self.staging is None else self.staging.num_buffers,
        )


def _wire_bytes(unit: Unit) -> int:
    """Bytes that travel in every pass."""
    return unit.wire_bytes if unit.placement == "streamed" else 0


def _transfers(sizes_U: Sequence[int], seconds_of: Callable[[int, float], float]) -> tuple[FloatArray, FloatArray]:
    """Seconds of moving so many bytes of each unit, beside an idle and a busy compute lane."""
    idle_s = {size: seconds_of(size, 0.0) if size else 0.0 for size in set(sizes_U)}
    busy_s = {size: seconds_of(size, 1.0) if size else 0.0 for size in set(sizes_U)}
    return np.array([idle_s[size] for size in sizes_U]), np.array([busy_s[size] for size in sizes_U])


def _under_load(times_s: tuple[FloatArray, FloatArray], duty: float) -> FloatArray:
    idle_s, busy_s = times_s
    return idle_s + duty * (busy_s - idle_s)
