"""The tables of what-if: the numbers that its figures draw, for a terminal and for a page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.contracts.plan import Plan
from planner.contracts.quantities import format_bytes, format_bytes_per_s, format_s
from planner.contracts.recommendation import Price
from planner.drafting import DraftKind
from planner.page import UNKNOWN
from planner.render import COMPARED, compared_row
from planner.show_plan import DEVICE_PARTS, HOST_PARTS
from planner.what_if import Advice, LengthCurve, RoundParts, StrategyMap

_MARKS: dict[DraftKind, str] = {"none": "-", "chain": "c", "ngram": "n", "tree": "t", "hybrid": "h"}
_MARKS_SAID = "best draft: c chain, n n-grams, t tree, h hybrid, - none; * nothing streams; brackets: as it is"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableData:
    """Cells in rows, the first of each its name; notes belong below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def length_table(curve: LengthCurve) -> TableData:
    """tok/s against the length of a draft's chains."""
    plain = curve.plain
    rows: list[tuple[str, ...]] = [
        ("no draft", f"{plain.p10:.2f}", f"{plain.p50:.2f}", f"{plain.p90:.2f}", UNKNOWN, UNKNOWN, "1.00")
    ]
    for point, scored in zip(curve.points, curve.crossover.points, strict=True):
        speed = point.tokens_per_s
        rows.append(
            (
                str(point.draft_len),
                *(f"{end:.2f}" for end in (speed.p10, speed.p50, speed.p90)),
                f"{point.tokens_per_round:.2f}",
                format_s(point.round_s),
                f"{scored.speedup_frac:.2f}",
            )
        )
    return TableData(
        title=f"tok/s by draft length, chains of {curve.draft}",
        columns=("draft length", "P10", "P50", "P90", "tokens per round", "round", "times no draft"),
        rows=tuple(rows),
        notes=(f"best length: {curve.best.draft_len}",),
    )


def round_table(parts: Sequence[RoundParts]) -> TableData:
    """Where the time of a round goes, for the best of each kind of draft."""
    has_disk = any(part.disk_s > 0 for part in parts)
    return TableData(
        title="a round, by kind of draft",
        columns=(
            *("", "round", "compute", "draft", "host", "waiting for weights", "link busy", "link idle"),
            *("disk",) * has_disk,
        ),
        rows=tuple(
            (
                part.label,
                *map(format_s, (part.round_s, part.compute_s, part.draft_s, part.host_s)),
                *map(format_s, (part.waiting_s, part.link_s, part.link_idle_s)),
                *(format_s(part.disk_s),) * has_disk,
            )
            for part in parts
        ),
    )


def memory_table(plan: Plan) -> TableData:
    """What takes memory, on the device and on the host."""
    memory, device = plan.memory, plan.devices[0]
    return TableData(
        title=f"memory on {device.name}: {format_bytes(memory.device_bytes)} of {format_bytes(device.budget_bytes)}",
        columns=("", "size", "share"),
        rows=(
            *_shares(plan, DEVICE_PARTS, device.budget_bytes, ""),
            *_shares(plan, HOST_PARTS, memory.host_bytes, "host: "),
        ),
    )


def map_table(strategies: StrategyMap, now_bytes: int, now_bytes_per_s: float) -> TableData:
    """tok/s and the best draft over memory and link; what is now stands in brackets."""
    sizes = [_marked(format_bytes(size), size == now_bytes) for size in strategies.device_bytes]
    rows = []
    for rate, cells in zip(strategies.link_bytes_per_s, strategies.cells, strict=True):
        said = [
            "none fits"
            if cell is None
            else f"{cell.tokens_per_s:.2f} {_MARKS[cell.kind]}{' ' if cell.is_streaming else '*'}"
            for cell in cells
        ]
        rows.append((_marked(format_bytes_per_s(rate), rate == now_bytes_per_s), *said))
    return TableData(
        title="tok/s by link and device memory",
        columns=("link", *sizes),
        rows=tuple(rows),
        notes=(_MARKS_SAID, "of fewer plans than those above: whole layers, two slots, some sizes of draft"),
    )


def price_table(prices: Sequence[Price], tokens_per_s: float) -> TableData:
    """What a little more of each thing would give."""
    return TableData(
        title="what a little more would give",
        columns=("", "tok/s", "share"),
        rows=tuple(
            (price.what, f"{price.gain_tokens_per_s:+.2f}", f"{price.gain_tokens_per_s / tokens_per_s:+.1%}")
            for price in prices
        ),
    )


def machine_table(advice: Sequence[Advice]) -> TableData:
    """The machines that run it, the fastest first; below why the others cannot."""
    return TableData(
        title="machines side by side",
        columns=COMPARED,
        rows=tuple(
            compared_row(entry.name, entry.recommendation) for entry in advice if entry.recommendation is not None
        ),
        notes=tuple(f"{entry.name}: {entry.why_not or 'unknown'}" for entry in advice if entry.recommendation is None),
    )


def _shares(
    plan: Plan, parts: dict[str, tuple[str, str, str]], whole_bytes: int, prefix: str
) -> Iterator[tuple[str, str, str]]:
    for name, (_, label, _) in parts.items():
        num_bytes = getattr(plan.memory, f"{name}_bytes")
        if num_bytes:
            yield f"{prefix}{label}", format_bytes(num_bytes), f"{num_bytes / whole_bytes:.1%}"


def _marked(text: str, is_now: bool) -> str:
    return f"[{text}]" if is_now else text
