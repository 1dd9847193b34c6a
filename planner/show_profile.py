"""A profile as a page: the machine, every table that was measured, what the recordings accept, and what is missing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from planner.acceptance_curves import by_domain
from planner.contracts.errors import BadInputError
from planner.contracts.machine import Quantity
from planner.contracts.plan import DiskLink
from planner.contracts.profile import AcceptanceRecording, ComputeMeasurement, DraftMeasurement, Profile
from planner.contracts.quantities import format_bytes, format_bytes_per_s, format_flops_per_s, format_latency, format_ms
from planner.drafting import Drafting, chain, ngram, tree
from planner.page import NOT_MEASURED, UNKNOWN, Page
from planner.show_plan import survival_text
from planner.timing import LinkFit, Timing
from planner.yields import Yields

_UNITS = (
    *("layer", "attention", "mlp", "expert", "head_chunk", "embedding"),
    *("pass", "edge", "round", "tree_round", "ngram"),
)
_MODEL_DRAFTINGS = {
    "chain\nof 1": chain(1),
    "chain\nof 4": chain(4),
    "chain\nof 8": chain(8),
    "tree\nof 32": tree(32, 8),
}
_NGRAM_DRAFTINGS = {"4 copied": ngram(4), "8 copied": ngram(8), "16 copied": ngram(16)}
_MOST_RANKS_OF_A_UNIT = 2**32
_AFTER_ALL_POSITIONS = 100
_Measured = TypeVar("_Measured", ComputeMeasurement, DraftMeasurement)
_SURVIVAL_OF = chain(8)
_EVERY_TEXT = "all"


class _Cell(NamedTuple):
    """Where a time stands: its column, of that rank from the left, its row, and its table."""

    rank: int
    column: str
    num_tokens: int
    context_tokens: int


def show_profile(page: Page, profile: Profile) -> None:
    """Print all of the profile but its recorded texts."""
    page.title(f"profile of {profile.target.name} on {profile.machine.name}")
    page.facts(_facts(profile))
    page.heading("machine")
    page.facts(_machine_facts(profile))
    _show_links(page, profile)
    _show_compute(page, profile)
    _show_draft_passes(page, profile)
    _show_acceptance(page, profile)
    if profile.memory:
        page.heading("memory beside weights, caches and activations")
        page.facts((entry.part.replace("_", " "), format_bytes(entry.num_bytes)) for entry in profile.memory)
    if profile.notes:
        page.heading("notes")
        page.lines(profile.notes, style="yellow")
    missing = list(missing_of(profile))
    if missing:
        page.heading(f"not {profile.kind}")
        page.lines(missing, style="yellow")


def missing_of(profile: Profile) -> Iterator[str]:
    """What the profile has no number for, and what becomes of it."""
    if not profile.links:
        yield "links: nothing can be streamed by this profile, but over an emulated link"
    elif not any(entry.loaded for entry in profile.links):
        yield "links beside compute: taken to be as fast as alone"
    units = {entry.unit for entry in profile.compute}
    for unit in ("layer", "head_chunk", "pass", "round"):
        if unit not in units:
            yield f"compute of a {unit.replace('_', ' ')}"
    if "layer" in units and not {"attention", "mlp"} <= units:
        yield "attention and MLP by themselves: layers are placed whole"
    if profile.compute and not any(entry.load_bytes_per_s > 0 for entry in profile.compute):
        yield "compute beside copies: taken to be as fast as alone"
    for draft in profile.drafts:
        if not any(entry.fingerprint == draft.fingerprint for entry in profile.draft_passes):
            yield f"passes of the draft {draft.name}"
        is_recorded = any(entry.fingerprint == draft.fingerprint for entry in profile.acceptance)
        if not is_recorded and not any(curve.draft == draft.name for curve in profile.curves):
            yield f"acceptance of the draft {draft.name}"
    if not any(entry.match_lengths for entry in profile.acceptance):
        yield "matches within the text: n-grams and hybrids are not planned"
    if not profile.memory:
        yield "memory beside weights: the planner's defaults are taken"


def _facts(profile: Profile) -> list[tuple[str, str]]:
    target = profile.target
    drift = NOT_MEASURED if profile.drift_frac is None else f"at most {profile.drift_frac:.1%} slower than at its best"
    return [
        (
            profile.kind,
            f"{profile.created}, with {profile.num_threads} compute thread{'s' * (profile.num_threads > 1)}",
        ),
        (
            "target",
            f"{target.num_layers} layers, {format_bytes(target.weights_bytes(profile.dtype))} in {profile.dtype}",
        ),
        ("drafts", ", ".join(draft.name for draft in profile.drafts) or "none"),
        ("drift", drift),
        ("versions", ", ".join(f"{name} {version}" for name, version in profile.versions.items()) or "unknown"),
    ]


def _machine_facts(profile: Profile) -> list[tuple[str, str]]:
    """Each number with how it is known."""
    machine = profile.machine
    facts = []
    for device in machine.devices:
        rates = (
            _known(device.memory_bytes_per_s, format_bytes_per_s),
            _known(device.matmul_flops_per_s, format_flops_per_s),
        )
        facts.append(
            (device.name, f"{_known(device.memory_bytes, format_bytes)}, {rates[0]}, matrix products {rates[1]}")
        )
    rate = _known(machine.host_memory_bytes_per_s, format_bytes_per_s)
    flops = _known(machine.host_matmul_flops_per_s, format_flops_per_s)
    facts.append(("host", f"{_known(machine.host_memory_bytes, format_bytes)}, {rate}, matrix products {flops}"))
    for link in machine.links:
        latency = "" if link.latency_s is None else f", latency {_known(link.latency_s, format_latency)}"
        facts.append((link.kind.replace("_", " "), _known(link.bytes_per_s, format_bytes_per_s) + latency))
    return facts


def _known(quantity: Quantity | None, shown: Callable[[float], str]) -> str:
    return "unknown" if quantity is None else f"{shown(quantity.value)} ({quantity.kind})"


def _show_links(page: Page, profile: Profile) -> None:
    """Rate and latency of each link, fitted over all its sizes; alone and beside compute."""
    page.heading("links")
    if not profile.links:
        page.lines([NOT_MEASURED])
        return
    timing = Timing(profile, DiskLink())
    rows = []
    for name in dict.fromkeys(entry.link for entry in profile.links):
        alone, loaded = (timing.link_fit(name, loaded=is_loaded) for is_loaded in (False, True))
        sizes = [entry.num_bytes for entry in profile.links if entry.link == name]
        rows.append(
            (
                name,
                _rate(alone),
                UNKNOWN if alone is None else format_latency(alone.latency_s),
                _rate(loaded),
                format_bytes(max(sizes)),
            )
        )
    page.table_in_blocks(("link", "alone", "latency", "beside\ncompute", "largest\ncopy"), rows)


def _rate(fit: LinkFit | None) -> str:
    return UNKNOWN if fit is None else format_bytes_per_s(fit.bytes_per_s)


def _show_compute(page: Page, profile: Profile) -> None:
    """Times alone, then those beside copies, by what was copied over."""
    alone = [entry for entry in profile.compute if entry.load_bytes_per_s == 0]
    _show_times(page, "compute alone", _times(alone, _compute_column))
    loaded = [entry for entry in profile.compute if entry.load_bytes_per_s > 0]
    for link in dict.fromkeys(entry.load_link for entry in loaded):
        entries = [entry for entry in loaded if entry.load_link == link]
        rates = sorted(entry.load_bytes_per_s for entry in entries)
        span = " to ".join(dict.fromkeys(format_bytes_per_s(rate) for rate in (rates[0], rates[-1])))
        _show_times(page, f"compute beside copies over {link or 'a link'} at {span}", _times(entries, _compute_column))


def _show_draft_passes(page: Page, profile: Profile) -> None:
    """Times alone, then those beside copies, by what was copied over."""
    for draft in profile.drafts:
        entries = [entry for entry in profile.draft_passes if entry.fingerprint == draft.fingerprint]
        alone = [entry for entry in entries if entry.load_bytes_per_s == 0]
        _show_times(page, f"draft {draft.name}", _times(alone, _draft_column))
        loaded = [entry for entry in entries if entry.load_bytes_per_s > 0]
        for link in dict.fromkeys(entry.load_link for entry in loaded):
            beside = _times([entry for entry in loaded if entry.load_link == link], _draft_column)
            _show_times(page, f"draft {draft.name} beside copies over {link or 'a link'}", beside)


def _times(entries: Sequence[_Measured], column_of: Callable[[_Measured], tuple[int, str]]) -> dict[_Cell, float]:
    """Medians in seconds."""
    return {
        _Cell(*column_of(entry), entry.num_tokens, entry.context_tokens): entry.duration_s.median for entry in entries
    }


def _show_times(page: Page, title: str, times_s: Mapping[_Cell, float]) -> None:
    """A table for each context, a row for each number of tokens, columns in the order of their ranks."""
    if not times_s:
        page.heading(title)
        page.lines([NOT_MEASURED])
    for context_tokens in sorted({cell.context_tokens for cell in times_s}):
        page.heading(f"{title}: ms by tokens of a pass, after a context of {context_tokens}")
        here = {cell: time_s for cell, time_s in times_s.items() if cell.context_tokens == context_tokens}
        columns = sorted({(cell.rank, cell.column) for cell in here})
        rows = []
        for num_tokens in sorted({cell.num_tokens for cell in here}):
            found = [here.get(_Cell(*column, num_tokens, context_tokens)) for column in columns]
            rows.append((str(num_tokens), *(UNKNOWN if time_s is None else format_ms(time_s) for time_s in found)))
        page.table_in_blocks(("tokens", *(name for _, name in columns)), rows)


def _compute_column(entry: ComputeMeasurement) -> tuple[int, str]:
    rows = "" if entry.num_rows is None else f"\n{entry.num_rows} rows"
    index = f" {entry.index}" if entry.unit in ("layer", "attention", "mlp", "expert") else ""
    host = "\non the host" if entry.processor == "host" else ""
    rank = _UNITS.index(entry.unit) * _MOST_RANKS_OF_A_UNIT + (entry.num_rows or entry.index)
    return rank, f"{entry.unit.removesuffix('_chunk')}{index}{rows}{host}"


def _draft_column(entry: DraftMeasurement) -> tuple[int, str]:
    host = "\non the host" if entry.processor == "host" else ""
    if entry.is_tree_level:
        return _AFTER_ALL_POSITIONS + 1, f"tree level{host}"
    if entry.position:
        return entry.position, f"pass {entry.position}{host}"
    return _AFTER_ALL_POSITIONS, f"pass 2 on{host}"


def _show_acceptance(page: Page, profile: Profile) -> None:
    """Tokens per round of a few ways to draft, replayed by kind of text, and how long drafts stay right."""
    for draft in profile.drafts:
        entries = [entry for entry in profile.acceptance if entry.fingerprint == draft.fingerprint]
        page.heading(f"tokens per round with the draft {draft.name}")
        _show_yields(page, profile, draft.fingerprint, entries, _MODEL_DRAFTINGS)
        if entries:
            page.heading("share of rounds in which at least 1, 2, ... drafted tokens are accepted, of a chain of 8")
            page.facts(_survivals(profile, draft.fingerprint, entries))
    page.heading("tokens per round with copies of earlier text")
    matches = [entry for entry in profile.acceptance if entry.match_lengths]
    _show_yields(page, profile, None, matches, _NGRAM_DRAFTINGS)
    if profile.curves:
        page.heading("published acceptance: share of rounds with at least 1, 2, ... accepted")
        page.facts(
            (f"{curve.draft}, {curve.domain}", f"{survival_text(curve.survival)} ({curve.source})")
            for curve in profile.curves
        )


def _show_yields(
    page: Page,
    profile: Profile,
    fingerprint: str | None,
    entries: Sequence[AcceptanceRecording],
    draftings: dict[str, Drafting],
) -> None:
    if not entries:
        page.lines([NOT_MEASURED])
        return
    rows = []
    for domain, of_domain in by_domain(entries):
        yields = Yields(profile, domain, is_sampled=False)
        num_tokens = sum(max(len(entry.ranks), len(entry.match_lengths)) for entry in of_domain)
        means = [_tokens_per_round(yields, fingerprint, drafting) for drafting in draftings.values()]
        rows.append((domain or _EVERY_TEXT, str(len(of_domain)), str(num_tokens), *means))
    page.table_in_blocks(("text", "prompts", "tokens", *draftings), rows)


def _survivals(profile: Profile, fingerprint: str, entries: Sequence[AcceptanceRecording]) -> Iterator[tuple[str, str]]:
    for domain, _ in by_domain(entries):
        try:
            survival = Yields(profile, domain, is_sampled=False).of(fingerprint, _SURVIVAL_OF).survival
        except BadInputError:
            continue
        yield domain or _EVERY_TEXT, survival_text(survival)


def _tokens_per_round(yields: Yields, fingerprint: str | None, drafting: Drafting) -> str:
    try:
        return f"{yields.of(fingerprint, drafting).mean:.2f}"
    except BadInputError:
        return UNKNOWN  # an older profile, or too short a text
