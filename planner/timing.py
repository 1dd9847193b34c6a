"""Seconds of every part of a round, read off a profile's tables: copies, units, draft passes, host work.

Measured points are returned as they are; between them lines, along which time never falls with more tokens. Beyond the
last point the boundary's utilisation is held, up to four times it; past that, and where a measurement is missing, a
BadInputError names it. What copies cost the compute beside them is in proportion to the rate at which they move bytes;
what waiting for them costs is told apart (planner/waits).
"""

import itertools
import math
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from planner.contracts.errors import BadInputError
from planner.contracts.layer_parts import DECODER_KINDS, PART_KINDS, DecoderKind
from planner.contracts.link_text import link_text
from planner.contracts.model_shape import LayerShape
from planner.contracts.plan import DiskLink, LinkChoice, UnitKind
from planner.contracts.profile import (
    ComputeMeasurement,
    DraftMeasurement,
    LinkMeasurement,
    LinkName,
    Processor,
    Profile,
    Spread,
)
from planner.drafting import Drafting
from planner.waits import Waits, beside_copies, waited_rows

_MOST_EXTRAPOLATION = 4
_SHORT_CONTEXT_TOKENS = 512  # up to which attention is a small part of any layer, so that its growth may be unmeasured
_DROP_FRAC = 0.10  # a fall beyond this is another kernel taking over, not noise
_QUARTILES_PER_SD = 1.349
_BESIDE = {
    "pass": "what a pass takes beside its units",
    "round": "what a round takes beside its pass and its draft",
    "tree_round": "what a round takes beside its pass and its tree",
}


class Curve:
    """A time over a size: exact at measured points, linear between, at held utilisation beyond the last."""

    def __init__(self, name: str, points: Mapping[int, float]) -> None:
        self._name = name
        self._sizes = sorted(points)
        self._times_s = _rising([points[size] for size in self._sizes])

    def at(self, size: float) -> float:
        """Seconds. Raises: BadInputError, past four times the largest measured size."""
        sizes, times_s = self._sizes, self._times_s
        if size <= sizes[0]:
            return times_s[0]
        if size > sizes[-1]:
            if size > _MOST_EXTRAPOLATION * sizes[-1]:
                raise BadInputError(
                    f"the profile does not reach {size:.0f} for {self._name}",
                    why=f"it was measured up to {sizes[-1]}, and is used up to {_MOST_EXTRAPOLATION} times that",
                    remedy="profile again over a wider range (planner profile --ctx-size), or ask for less",
                )
            return times_s[-1] * size / sizes[-1]
        right = bisect_left(sizes, size)
        if sizes[right] == size:
            return times_s[right]
        share = (size - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
        return times_s[right - 1] + share * (times_s[right] - times_s[right - 1])


class ComputeTable:
    """Seconds of one unit over tokens, and what a longer context adds to them."""

    def __init__(self, name: str, points: Mapping[tuple[int, int], float]) -> None:
        by_context: dict[int, dict[int, float]] = defaultdict(dict)
        for (num_tokens, context_tokens), duration_s in points.items():
            by_context[context_tokens][num_tokens] = duration_s
        self._name = name
        self._base_context = max(by_context, key=lambda context: (len(by_context[context]), -context))
        self._base = Curve(name, by_context[self._base_context])
        growths: dict[int, dict[int, float]] = defaultdict(dict)
        for (num_tokens, context_tokens), duration_s in points.items():
            if context_tokens > self._base_context:
                growths[num_tokens][context_tokens] = max(0.0, duration_s - self._base.at(num_tokens))
        self._growths = dict(sorted(growths.items()))

    def at(self, num_tokens: float, context_tokens: float) -> float:
        """Seconds for so many tokens after so much context."""
        return self._base.at(num_tokens) + self._growth_s(num_tokens, context_tokens)

    def _growth_s(self, num_tokens: float, context_tokens: float) -> float:
        beyond = context_tokens - self._base_context
        if beyond <= 0:
            return 0.0
        if not self._growths:
            self._check_reach(context_tokens, self._base_context)
            return 0.0
        measured = list(self._growths)
        right = min(bisect_left(measured, num_tokens), len(measured) - 1)
        upper_s = self._growth_at(measured[right], context_tokens)
        if num_tokens >= measured[right]:
            return upper_s * num_tokens / measured[right]  # attention's work grows with both
        if right == 0:
            return upper_s
        lower_s = self._growth_at(measured[right - 1], context_tokens)
        share = (num_tokens - measured[right - 1]) / (measured[right] - measured[right - 1])
        return lower_s + share * (upper_s - lower_s)

    def _growth_at(self, num_tokens: int, context_tokens: float) -> float:
        points = {self._base_context: 0.0, **self._growths[num_tokens]}
        longest = max(points)
        if context_tokens > longest:
            self._check_reach(context_tokens, longest)
            span = longest - self._base_context
            return points[longest] * (context_tokens - self._base_context) / span
        return Curve(self._name, points).at(context_tokens)

    def _check_reach(self, context_tokens: float, longest: int) -> None:
        if context_tokens > max(_MOST_EXTRAPOLATION * longest, _SHORT_CONTEXT_TOKENS):
            raise BadInputError(
                f"the profile has no time of {self._name} at a context of {context_tokens:.0f} tokens",
                why=f"it was measured up to {longest}",
                remedy=f"planner profile --ctx-size {context_tokens:.0f}",
            )


class LoadedTable:
    """A compute table without copies beside it, and by how much each byte per second of copies slows it down.

    Beside faster copies than were measured it is no slower than beside the fastest of those. Where a unit was faster
    beside copies than alone, it found its weights in the processor's cache, where copying had left them: that is told
    apart. What only happens beside copies has no table alone: then its times are as they were measured, at any load.
    """

    def __init__(self, name: str, by_load: "_ByLoad") -> None:
        alone = by_load.get(0.0) or {size: time_s for points in by_load.values() for size, time_s in points.items()}
        self._alone = ComputeTable(name, alone)
        seen: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for load, points in by_load.items() if 0.0 in by_load else ():
            for (num_tokens, context_tokens), duration_s in points.items():
                if load > 0:
                    seen[num_tokens].append((load, duration_s / self._alone.at(num_tokens, context_tokens) - 1))
        self._sizes = sorted(seen)
        self._slopes = [_slope_through_origin(seen[size]) for size in self._sizes]
        self._warm_fracs = [min(1.0, 1 + statistics.median(extra for _, extra in seen[size])) for size in self._sizes]
        self._most_loads = [max(load for load, _ in seen[size]) for size in self._sizes]

    def at(self, num_tokens: float, context_tokens: float, load_bytes_per_s: float = 0.0) -> float:
        """Seconds while copies move so many bytes per second."""
        return self._alone.at(num_tokens, context_tokens) * self.factor(num_tokens, load_bytes_per_s)

    def factor(self, num_tokens: float, load_bytes_per_s: float) -> float:
        """By how much copies at a rate slow the unit down: in proportion to it, between the measured token counts."""
        most = self._between(self._most_loads, num_tokens, 0.0)
        return 1 + self._between(self._slopes, num_tokens, 0.0) * min(load_bytes_per_s, most)

    def warm_frac(self, num_tokens: float) -> float:
        """The share of its time that the unit takes when its weights were just copied; at most 1."""
        return self._between(self._warm_fracs, num_tokens, 1.0)

    def _between(self, values: Sequence[float], num_tokens: float, default: float) -> float:
        if not self._sizes:
            return default
        right = min(bisect_left(self._sizes, num_tokens), len(self._sizes) - 1)
        left = max(0, right - 1) if self._sizes[right] > num_tokens else right
        span = self._sizes[right] - self._sizes[left]
        share = max(0.0, (num_tokens - self._sizes[left]) / span) if span else 0.0
        return values[left] + share * (values[right] - values[left])


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFit:
    """Latency and bandwidth of a link, fitted robustly over sizes; for display. Copies are read off the table."""

    latency_s: float
    bytes_per_s: float


class Timing:
    """All times of one profile over one link."""

    def __init__(self, profile: Profile, link: LinkChoice) -> None:
        self.profile = profile
        self.link = link
        self._links: dict[tuple[LinkName, bool], dict[int, float]] = defaultdict(dict)
        for entry in profile.links:
            self._links[entry.link, entry.loaded][entry.num_bytes] = entry.duration_s.median
        self._waited = waited_rows(profile)
        self._units = _by_load(_beside(beside_copies(profile.compute, self._waited), link), _unit_of)
        _take_longer_rounds_from_trees(self._units)
        self._waits: dict[tuple[_Unit, bool], Waits] = {}
        self._drafts = _by_load(
            _beside(profile.draft_passes, link),
            lambda entry: (entry.fingerprint, entry.processor, entry.position, entry.is_tree_level),
        )
        self._tables: dict[object, LoadedTable] = {}
        first: dict[LayerShape, int] = {}
        self.first_alike = [first.setdefault(layer, index) for index, layer in enumerate(profile.target.layers)]

    def copy_s(self, num_bytes: int, compute_duty: float = 0.0) -> float:
        """Seconds of one copy over the link, while the compute lane is busy for a share of the time."""
        if num_bytes == 0:
            return 0.0
        if self.link.kind == "emulated":
            return self.link.latency_s + num_bytes / self.link.bytes_per_s
        return self._transfer_s(link_name(self.link), num_bytes, compute_duty)

    def read_s(self, num_bytes: int, compute_duty: float = 0.0) -> float:
        """Seconds of reading from disk into a staging buffer; what does not fit the host does not stay cached."""
        return self._transfer_s(link_name(staging_link(self.profile)), num_bytes, compute_duty)

    def layer_s(
        self,
        index: int,
        num_tokens: float,
        context_tokens: float,
        load_bytes_per_s: float = 0.0,
        processor: Processor = "device",
    ) -> float:
        """Seconds of one decoder layer; layers of one shape share their measurements."""
        table = self.decoder_table("layer", index, processor)
        return table.at(num_tokens, context_tokens, load_bytes_per_s)

    def decoder_table(self, kind: DecoderKind, index: int, processor: Processor = "device") -> LoadedTable:
        """The table of a layer or of a part of one; the attention's counts the layer's norms and sums too."""
        return self._unit(_Unit(kind, self.first_alike[index], None, processor))

    def wake_s(self, kind: UnitKind, index: int, num_rows: int, wait_s: float, *, is_warm: bool = False) -> float:
        """Seconds that a unit takes longer after a wait for its weights; 0 where that was not told apart.

        A part of a layer takes as much as the layer, and head chunks as those of the nearest size that was measured.
        Longer than without copies, or where `is_warm` than with its weights still in the processor's cache.
        """
        of_layer = "layer" if kind in DECODER_KINDS else kind
        alike = [found for found in self._waited if (found.row.unit, found.row.index) == (of_layer, index)]
        if not alike:
            return 0.0
        nearest = min((found.row.num_rows or 0 for found in alike), key=lambda rows: abs(rows - num_rows))
        alike = [found for found in alike if (found.row.num_rows or 0) == nearest]
        unit = _unit_of(alike[0].row)
        if (unit, is_warm) not in self._waits:
            table = self._unit(unit)

            def without_wait_s(row: ComputeMeasurement) -> float:
                warm_frac = table.warm_frac(row.num_tokens) if is_warm else 1.0
                return table.at(row.num_tokens, row.context_tokens) * warm_frac

            self._waits[unit, is_warm] = Waits.of(alike, without_wait_s)
        return self._waits[unit, is_warm].at(wait_s)

    @property
    def has_parts(self) -> bool:
        """Whether attention and MLP of every layer were measured by themselves."""
        return all(
            _Unit(kind, index, None, "device") in self._units for kind in PART_KINDS for index in set(self.first_alike)
        )

    def head_s(
        self, num_rows: int, num_tokens: float, load_bytes_per_s: float = 0.0, processor: Processor = "device"
    ) -> float:
        """Seconds of so many rows of the head: between the measured chunk sizes, in proportion beyond them."""
        sizes = self._head_sizes(processor)
        times_s = {
            rows: self._unit(_Unit("head_chunk", 0, rows, processor)).at(num_tokens, 0, load_bytes_per_s)
            for rows in sizes
        }
        if num_rows <= sizes[0]:
            return times_s[sizes[0]] * num_rows / sizes[0]
        return Curve("rows of the head", times_s).at(num_rows)

    def head_warm_frac(self, num_rows: int, num_tokens: float) -> float:
        """The share of its time that a chunk of the head takes when it was just copied: that of the nearest size."""
        nearest = min(self._head_sizes("device"), key=lambda rows: abs(rows - num_rows))
        return self._unit(_Unit("head_chunk", 0, nearest, "device")).warm_frac(num_tokens)

    def pass_s(self, num_tokens: float, context_tokens: float, processor: Processor = "device") -> float:
        """Seconds of a pass that belong to no unit: embedding, masks, norms."""
        return self._unit(_Unit("pass", 0, None, processor)).at(num_tokens, context_tokens)

    def gather_s(self, num_tokens: float) -> float:
        """Seconds of gathering rows of an embedding that lies on the host; 0 where that was not told apart."""
        unit = _Unit("embedding", 0, None, "host")
        return self._unit(unit).at(num_tokens, 0) if unit in self._units else 0.0

    def edge_s(self, load_bytes_per_s: float) -> float:
        """Seconds that handing over one streamed unit costs the compute lane; 0 where that was not told apart."""
        by_load = self._units.get(_Unit("edge", 0, None, "device"), {})
        nearest = min(by_load, key=lambda load: abs(load - load_bytes_per_s), default=None)
        return 0.0 if nearest is None else statistics.median(by_load[nearest].values())

    def round_s(self, num_tokens: float, *, is_tree: bool = False) -> float:
        """Seconds of a round beside its pass and its draft: judging and accepting so many verified tokens."""
        unit = _TREE_ROUND if is_tree and _TREE_ROUND in self._units else _ROUND
        return self._unit(unit).at(num_tokens, 0)

    def draft_pass_s(
        self,
        fingerprint: str,
        num_tokens: float,
        context_tokens: float,
        load_bytes_per_s: float = 0.0,
        processor: Processor = "device",
        *,
        position: int = 0,
        is_tree_level: bool = False,
    ) -> float:
        """Seconds of one pass of a draft, its picks included: of those after the first, or at a position from 1 on."""
        key = (fingerprint, processor, position, is_tree_level)
        if key not in self._drafts:
            if position:  # not told apart
                return self.draft_pass_s(fingerprint, num_tokens, context_tokens, load_bytes_per_s, processor)
            of_trees = " over the levels of a tree" * is_tree_level
            raise missing(f"the passes of the draft {fingerprint[:12]}{of_trees} on the {processor}", "rounds")
        return self._table(key, "a draft pass", self._drafts[key]).at(num_tokens, context_tokens, load_bytes_per_s)

    def most_verified_tokens(self) -> int:
        """The widest verify pass that the tables of rounds and layers reach."""
        widest = [
            max(num_tokens for points in by_load.values() for num_tokens, _ in points)
            for unit, by_load in self._units.items()
            if unit.kind in ("round", "layer", "attention", "mlp") and unit.processor == "device"
        ]
        return _MOST_EXTRAPOLATION * min(widest, default=0)

    def most_draft_tokens(self, fingerprint: str, processor: Processor) -> int:
        """The widest pass of a draft that the table reaches."""
        by_load = self._drafts.get((fingerprint, processor, 0, False), {})
        return _MOST_EXTRAPOLATION * max(num_tokens for points in by_load.values() for num_tokens, _ in points)

    def draft_s(
        self,
        fingerprint: str,
        drafting: Drafting,
        context_tokens: float,
        load: float,
        processor: Processor,
        mean_fed: float,
        num_passes: float,
    ) -> float:
        """Seconds that a draft model takes for a mean round: its first pass feeds what was accepted since the last.

        The others feed one token of a chain, or as many nodes of a tree as are left for them.
        """
        if not drafting.has_model:
            return 0.0
        first_s = self.draft_pass_s(fingerprint, mean_fed, context_tokens, load, processor, position=1)
        draft_s, num_left = min(num_passes, 1.0) * first_s, max(num_passes - 1, 0.0)
        if drafting.kind != "chain":
            level_s = self.draft_pass_s(
                fingerprint, drafting.pass_nodes, context_tokens, load, processor, is_tree_level=True
            )
            return draft_s + num_left * level_s
        position, last = 2, self._last_position(fingerprint, processor)
        while num_left > 0:
            share = num_left if position >= last else min(num_left, 1.0)
            draft_s += share * self.draft_pass_s(fingerprint, 1, context_tokens, load, processor, position=position)
            position, num_left = position + 1, num_left - share
        return draft_s

    def _last_position(self, fingerprint: str, processor: Processor) -> int:
        """The position of a pass in its proposal from which on all are alike."""
        of_draft = (key for key in self._drafts if key[:2] == (fingerprint, processor))
        return max((position for _, _, position, _ in of_draft), default=0)

    def ngram_s(self, num_nodes: float) -> float:
        """Seconds of looking up so many tokens in earlier text, and of learning what became of them."""
        unit = _Unit("ngram", 0, None, "host")
        if unit not in self._units:
            raise missing("the look-up of n-grams", "rounds")
        return self._unit(unit).at(num_nodes, 0)

    def link_fit(self, name: LinkName, *, loaded: bool) -> LinkFit | None:
        """Latency and bandwidth by Theil and Sen: the median slope over all pairs of sizes."""
        points = sorted(self._link_points(name, loaded=loaded).items())
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(points) for b in points[i + 1 :]]
        slopes = [slope for slope in slopes if slope > 0]
        if not slopes:
            return None
        slope = statistics.median(slopes)
        latency_s = max(0.0, statistics.median(duration_s - slope * size for size, duration_s in points))
        return LinkFit(latency_s=latency_s, bytes_per_s=1 / slope)

    def _transfer_s(self, name: LinkName, num_bytes: int, compute_duty: float) -> float:
        alone, loaded = self._link_points(name, loaded=False), self._link_points(name, loaded=True)
        if not (alone or loaded):
            raise missing(f"the link {name}", "links")
        alone_s = _transfer(alone or loaded, num_bytes)
        return alone_s + compute_duty * max(0.0, _transfer(loaded or alone, num_bytes) - alone_s)

    def _link_points(self, name: LinkName, *, loaded: bool) -> dict[int, float]:
        return self._links.get((name, loaded), {})

    def _unit(self, unit: "_Unit") -> LoadedTable:
        if unit not in self._units:
            raise missing(unit.label, "rounds" if unit.kind == "round" else "compute")
        return self._table(unit, unit.label, self._units[unit])

    def _table(self, key: object, label: str, by_load: "_ByLoad") -> LoadedTable:
        if key not in self._tables:
            self._tables[key] = LoadedTable(label, by_load)
        return self._tables[key]

    def _head_sizes(self, processor: Processor) -> list[int]:
        sizes = {unit.num_rows for unit in self._units if unit.kind == "head_chunk" and unit.processor == processor}
        if not sizes:
            raise missing(f"the compute time of the head on the {processor}", "compute")
        return sorted(rows for rows in sizes if rows is not None)


@dataclass(frozen=True, slots=True)
class _Unit:
    """What compute measurements of one table have in common."""

    kind: str
    index: int
    num_rows: int | None
    processor: Processor

    @property
    def label(self) -> str:
        if self.kind in _BESIDE:
            return _BESIDE[self.kind]
        rows = "" if self.num_rows is None else f" of {self.num_rows} rows"
        return f"the compute time of {self.kind} {self.index}{rows} on the {self.processor}"


_ROUND, _TREE_ROUND = _Unit("round", 0, None, "device"), _Unit("tree_round", 0, None, "device")
_Measured = TypeVar("_Measured", ComputeMeasurement, DraftMeasurement)
_Key = TypeVar("_Key")
_ByLoad = dict[float, dict[tuple[int, int], float]]


def _unit_of(row: ComputeMeasurement) -> _Unit:
    return _Unit(row.unit, row.index, row.num_rows, row.processor)


def _take_longer_rounds_from_trees(units: dict[_Unit, _ByLoad]) -> None:
    """Let rounds of chains that are longer than those measured take as long as those of trees, which take longer."""
    for load, of_trees in units.get(_TREE_ROUND, {}).items():
        of_chains = units.setdefault(_ROUND, {}).setdefault(load, {})
        longest = max((num_tokens for num_tokens, _ in of_chains), default=0)
        of_chains.update({point: time_s for point, time_s in of_trees.items() if point[0] > longest})


def link_name(link: LinkChoice) -> LinkName:
    """The name under which a profile keeps a link."""
    match link:
        case DiskLink(mode="cached"):
            return "disk:cached"
        case DiskLink():
            return "disk:direct"
    return link.kind


def staging_link(profile: Profile) -> DiskLink:
    """The link over which staging buffers are filled."""
    is_direct = any(entry.link == "disk:direct" for entry in profile.links)
    return DiskLink(mode="direct" if is_direct else "cached")


def missing(what: str, group: str) -> BadInputError:
    """The error for a measurement that a plan needs and the profile lacks."""
    return BadInputError(
        f"the profile lacks {what}",
        why="it was not measured, and nothing is guessed in its place",
        remedy=f"planner profile again, which takes up what is missing: its {group} not left out by --only, nor cut "
        "off by too small a --max-seconds",
    )


def spread_frac(entries: Sequence[LinkMeasurement | ComputeMeasurement | DraftMeasurement]) -> float:
    """The relative standard deviation of repeated measurements, from their quartiles; the median over entries."""
    fracs = [_spread_frac(entry.duration_s) for entry in entries if entry.duration_s.median > 0]
    return statistics.median(fracs) if fracs else 0.0


def _spread_frac(spread: Spread) -> float:
    return (spread.p75 - spread.p25) / _QUARTILES_PER_SD / spread.median


def _slope_through_origin(points: Sequence[tuple[float, float]]) -> float:
    """Least squares of y = slope x, no lower than 0."""
    return max(0.0, sum(x * y for x, y in points) / sum(x * x for x, _ in points))


def _transfer(points: Mapping[int, float], num_bytes: int) -> float:
    """Seconds of a transfer: between measured sizes linear, beyond them at the rate of the last."""
    sizes = sorted(points)
    if num_bytes > sizes[-1]:
        return points[sizes[-1]] * num_bytes / sizes[-1]
    return Curve("a copy", points).at(num_bytes)


def _beside(entries: Sequence[_Measured], link: LinkChoice) -> list[_Measured]:
    """The measurements beside idle links, and of the others those beside this link, else its kind, else any.

    What copies cost the compute beside them depends on who makes them, not on their rate alone.
    """
    own = link_text(link)
    named = {entry.load_link for entry in entries if entry.load_link is not None}
    alike = {name for name in named if name == own} or {name for name in named if name.split(":")[0] == link.kind}
    return [entry for entry in entries if entry.load_bytes_per_s == 0 or not alike or entry.load_link in alike]


def _by_load(entries: Iterable[_Measured], key: Callable[[_Measured], _Key]) -> dict[_Key, _ByLoad]:
    """Medians by key, load, and (tokens, context)."""
    tables: dict[_Key, _ByLoad] = {}
    for entry in entries:
        points = tables.setdefault(key(entry), {}).setdefault(entry.load_bytes_per_s, {})
        points[entry.num_tokens, entry.context_tokens] = entry.duration_s.median
    return tables


def _rising(times_s: list[float]) -> list[float]:
    """The nearest times that never fall, unless they fall by so much that it is no noise."""
    if all(later >= earlier for earlier, later in itertools.pairwise(times_s)):
        return times_s
    from scipy.optimize import isotonic_regression

    risen = [float(time_s) for time_s in isotonic_regression(times_s).x]
    is_noise = all(math.isclose(a, b, rel_tol=_DROP_FRAC) for a, b in zip(times_s, risen, strict=True))
    return risen if is_noise else times_s
