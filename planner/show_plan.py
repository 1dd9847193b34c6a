"""A plan as a page: what runs where, the memory it takes, the map of its layers, and what it is predicted to do."""

from collections import Counter
from collections.abc import Sequence

from planner.contracts.components import COMPONENTS
from planner.contracts.layer_parts import DECODER_KINDS
from planner.contracts.link_text import link_text
from planner.contracts.performance import RoundSplit
from planner.contracts.plan import MemorySplit, ModelDraft, NoDraft, Plan, SelfDraft, Unit
from planner.contracts.quantities import format_bytes
from planner.drafting import drafting_of
from planner.page import UNKNOWN, Page, Part

NOT_PREDICTED = "not predicted"

DEVICE_PARTS = {  # of MemorySplit, without _bytes: mark, name, colour
    "residents": ("R", "resident weights", "green"),
    "slots": ("S", "slots", "cyan"),
    "draft": ("D", "draft", "magenta"),
    "target_kv": ("K", "KV cache", "blue"),
    "draft_kv": ("k", "draft's KV cache", "blue"),
    "activations": ("A", "activations", "yellow"),
    "overhead": ("O", "overhead", "red"),
    "margin": ("M", "margin", "white"),
}
HOST_PARTS = {
    "host_weights": ("W", "weights to stream", "cyan"),
    "host_embedding": ("E", "embedding", "green"),
    "host_staging": ("B", "disk buffers", "yellow"),
    "host_draft": ("D", "draft", "magenta"),
    "host_overhead": ("O", "overhead", "red"),
}
_ROUND_PARTS = {  # of RoundSplit, without _s
    "waiting_for_weights": ("W", "waiting for weights", "red"),
    "compute": ("C", "compute", "green"),
    "draft": ("D", "draft", "magenta"),
    "host": ("H", "host", "yellow"),
    "unexplained": ("?", "unexplained", "white"),
}
_PLACES = {  # in the order of the legend: style and meaning of each mark
    "#": ("green", "resident"),
    "a": ("green", "attention resident, MLP streamed"),
    "m": ("green", "MLP resident, attention streamed"),
    "=": ("cyan", "streamed from host memory"),
    "~": ("yellow", "streamed, one part from host memory, one from disk"),
    "-": ("yellow", "streamed from disk"),
    "h": ("magenta", "computed by the host"),
    "r": ("magenta", "experts copied when chosen"),
}
_COLUMNS_OF_ENDS = 55  # below which P10, P50 and P90 do not fit beside each other
_MOST_SURVIVAL = 24  # depths


def show_plan(page: Page, plan: Plan) -> None:
    """Print all of the plan."""
    page.title(f"plan for {plan.target.name}")
    page.facts(plan_facts(plan))
    show_memory(page, plan)
    show_layers(page, plan)
    show_predictions(page, plan)


def plan_facts(plan: Plan) -> list[tuple[str, str]]:
    """What runs, where, over what, with which draft."""
    facts = [
        ("device", ", ".join(f"{entry.name} (budget {format_bytes(entry.budget_bytes)})" for entry in plan.devices)),
        ("weights", f"{plan.dtype}; {_streamed(plan)}"),
        ("link", link_text(plan.link) + _through(plan)),
        ("context", f"{plan.context_tokens} tokens; the prompt in chunks of {plan.prefill_chunk_tokens}"),
        ("draft", _draft(plan)),
    ]
    if plan.batch > 1:
        facts.append(("batch", str(plan.batch)))
    if plan.workload is not None:
        work = plan.workload
        requests = f"{work.num_requests} requests of " if work.num_requests > 1 else ""
        domain = "" if work.domain is None else f", {work.domain}"
        facts.append(
            ("planned for", f"{requests}a prompt of {work.prompt_tokens} tokens and {work.new_tokens} of text{domain}")
        )
    if plan.calibration:
        facts.append(
            ("calibrated", ", ".join(f"{name} x {factor:.2f}" for name, factor in sorted(plan.calibration.items())))
        )
    return facts


def show_memory(page: Page, plan: Plan) -> None:
    """A bar of each memory and its parts; that of the device against the budget."""
    memory, device = plan.memory, plan.devices[0]
    page.heading(f"memory on {device.name}: {format_bytes(memory.device_bytes)} of {format_bytes(device.budget_bytes)}")
    _bar_and_legend(page, _parts(memory, DEVICE_PARTS), device.budget_bytes, free="free")
    page.heading(f"host memory: {format_bytes(memory.host_bytes)}" + " beside that" * (device.name == "cpu"))
    if memory.host_bytes:
        _bar_and_legend(page, _parts(memory, HOST_PARTS), memory.host_bytes)


def show_layers(page: Page, plan: Plan) -> None:
    """The map of layers, one mark each, and what the marks mean."""
    marks = layer_marks(plan)
    page.heading(f"{len(marks)} layers, in the order of a pass")
    page.marks([(mark, _PLACES[mark][0]) for mark in marks])
    counts = Counter(marks)
    page.lines(f"{mark} {_PLACES[mark][1]}: {counts[mark]}" for mark in _PLACES if counts[mark])
    page.facts(_around_layers(plan.units))


def show_predictions(page: Page, plan: Plan) -> None:
    """P10, P50 and P90 of each component, the parts of a round, and how often so many drafted tokens are accepted."""
    predicted = plan.predicted
    known = [entry for entry in COMPONENTS if not entry.is_memory and entry.of(predicted) is not None]
    if not known:
        page.heading("predicted")
        page.lines([f"{NOT_PREDICTED}: the plan was made by memory alone; planner recommend predicts"])
        return
    ends = (plan.predicted_p10, predicted, plan.predicted_p90)
    rows = []
    for entry in known:
        values = [None if end is None else entry.of(end) for end in ends]
        rows.append([entry.label, *(UNKNOWN if value is None else entry.shown(value) for value in values)])
    if page.width < _COLUMNS_OF_ENDS:
        page.heading("predicted: P50 (P10 to P90)")
        page.facts((label, f"{middle} ({low} to {high})") for label, low, middle, high in rows)
    else:
        page.heading("predicted")
        page.table(("", "P10", "P50", "P90"), rows)
    if predicted.round is not None:
        page.heading("a round, predicted")
        show_rounds(page, {"": predicted.round})
    if predicted.survival:
        page.heading("share of rounds in which at least 1, 2, ... drafted tokens are accepted")
        page.lines([survival_text(predicted.survival)])


def show_rounds(page: Page, splits: dict[str, RoundSplit]) -> None:
    """A bar for each split of a round, all at one scale, and what the marks mean."""
    whole_s = max(split.round_s for split in splits.values())
    margin = max(map(len, splits))
    seen = set()
    for name, split in splits.items():
        parts = [
            Part(mark=mark, name=name, amount=getattr(split, f"{field}_s"), style=style)
            for field, (mark, name, style) in _ROUND_PARTS.items()
        ]
        page.bar(parts, whole_s, label=f"{name:<{margin}} " if margin else "")
        seen |= {part.mark for part in parts if part.amount > 0}
    page.items(f"{mark} {name}" for mark, name, _ in _ROUND_PARTS.values() if mark in seen)


def survival_text(survival: Sequence[float]) -> str:
    """The shares in order, without those beyond what one reads."""
    shares = " ".join(f"{share:.2f}" for share in survival[:_MOST_SURVIVAL])
    return shares + " ..." * (len(survival) > _MOST_SURVIVAL)


def layer_marks(plan: Plan) -> str:
    """One mark per decoder layer: where it, or its attention and its MLP, lie."""
    by_layer: dict[int, list[Unit]] = {}
    for unit in plan.units:
        if unit.kind in DECODER_KINDS:
            by_layer.setdefault(unit.index, []).append(unit)
    return "".join(_mark(by_layer[index]) for index in sorted(by_layer))


def _mark(units: Sequence[Unit]) -> str:
    """The mark of a layer that is one unit, or two parts."""
    resident = {unit.kind for unit in units if unit.placement == "resident"}
    if len(resident) == len(units):
        return "#"
    if resident:
        return "a" if "attention" in resident else "m"
    places = {unit.placement for unit in units}
    if "routed" in places:
        return "r"
    if "host" in places:
        return "h"
    sources = {unit.source for unit in units}
    return "~" if len(sources) > 1 else "-" if "disk" in sources else "="


def _around_layers(units: Sequence[Unit]) -> list[tuple[str, str]]:
    """Where the embedding and the head's chunks lie, and experts that have a place of their own."""
    facts = []
    for kind, name in (("embedding", "embedding"), ("head_chunk", "head"), ("expert", "experts")):
        found = [unit for unit in units if unit.kind == kind]
        places = Counter(_place(unit) for unit in found)
        if len(found) == 1:
            facts.append((name, next(iter(places))))
        elif found:
            facts.append((name, ", ".join(f"{count} of {len(found)} {place}" for place, count in places.items())))
    return facts


def _place(unit: Unit) -> str:
    source = "host memory" if unit.source == "ram" else "disk"
    match unit.placement:
        case "resident":
            return "resident"
        case "host":
            return f"rows read from {source}" if unit.kind == "embedding" else "computed by the host"
        case "routed":
            return f"copied from {source} when chosen"
    return f"streamed from {source}"


def _parts(memory: MemorySplit, marks: dict[str, tuple[str, str, str]]) -> list[Part]:
    return [
        Part(mark=mark, name=name, amount=getattr(memory, f"{field}_bytes"), style=style)
        for field, (mark, name, style) in marks.items()
    ]


def _bar_and_legend(page: Page, parts: Sequence[Part], whole: float, *, free: str = "") -> None:
    """The bar, and below it each part with its size and share."""
    page.bar(parts, whole)
    rows = [
        [f"{part.mark} {part.name}", format_bytes(part.amount), f"{part.amount / whole:.1%}"]
        for part in parts
        if part.amount
    ]
    left = whole - sum(part.amount for part in parts)
    if free and left > 0:
        rows.append([f". {free}", format_bytes(left), f"{left / whole:.1%}"])
    page.table(("", "size", "share"), rows)


def _streamed(plan: Plan) -> str:
    if not plan.streamed:
        return "nothing streams"
    return f"{format_bytes(plan.streamed_bytes)} travel in every pass"


def _through(plan: Plan) -> str:
    """The slots, and the buffers between disk and link."""
    if plan.slots == 0:
        return ""
    slots = (
        f", through {plan.slots} slot{'s' * (plan.slots > 1)} of {format_bytes(plan.memory.slots_bytes / plan.slots)}"
    )
    if plan.staging is None:
        return slots
    return f"{slots}; from disk through {plan.staging.num_buffers} buffers of {format_bytes(plan.staging.buffer_bytes)}"


def _draft(plan: Plan) -> str:
    match plan.draft:
        case NoDraft():
            return "none"
        case SelfDraft(num_layers=num_layers, draft_len=draft_len):
            return f"chain of {draft_len} by the target's own first {num_layers} layers"
    label = drafting_of(plan.draft).label
    if not isinstance(plan.draft, ModelDraft):
        return label
    names = dict(enumerate(device.name for device in plan.devices))
    device = "" if plan.draft.device == 0 else f", on {names.get(plan.draft.device, 'a device that the plan lacks')}"
    return f"{label}, by {plan.draft.model} in {plan.draft.dtype}{device}"
