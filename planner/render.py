"""Recommendations as a person reads them: the answer, why, the runner-up, and the line to paste. To stdout."""

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.contracts.link_text import link_text
from planner.contracts.plan import ChainDraft, HybridDraft, ModelDraft, NgramDraft, NoDraft, Plan, TreeDraft
from planner.contracts.quantities import format_bytes, format_s, format_tokens_per_s, tokens_per_s_digits
from planner.contracts.recommendation import Choice, Crossover, Recommendation, Rival, UnpricedRival

_COLUMNS_IN_A_FILE = 120
COMPARED = ("", "tok/s (P10-P90)", "first token", "draft", "how", "slots", "resident", "binds", "best other engine")
_CAPS = ("target", "draft", "host")
_UNKNOWN = "unknown"
_BY_NAME = "catalogue:"  # how the fingerprints begin of models that nobody has opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Lines under a title, beside which the subject may stand."""

    title: str
    subject: str = ""
    lines: Sequence[str]


def console_for_stdout() -> Console:
    """A console on stdout; in a file or a pipe it neither wraps at a terminal's width nor colours."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _COLUMNS_IN_A_FILE)


def show_recommendation(
    recommendation: Recommendation,
    *,
    plan_path: Path,
    is_here: bool,
    explain: bool,
    is_sampled: bool = False,
    num_threads: int | None = None,
    memory: Mapping[str, str | None] | None = None,
) -> None:
    """Print one recommendation; with `explain` every draft length, rival and refusal."""
    console = console_for_stdout()
    plan = recommendation.plan
    console.print(headline(recommendation), style="bold", markup=False)
    _list(console, [f"{name:12} {fact}" for name, fact in facts(recommendation.plan, recommendation.choice)])
    for section in sections(recommendation, explain=explain):
        beside = f": {section.subject}" if section.subject else ""
        console.print(Text.assemble("\n", (section.title, "bold"), beside))
        _list(console, section.lines)
    if explain:
        _explain(console, recommendation)
    elif recommendation.refused:
        names = ", ".join(refusal.draft for refusal in recommendation.refused)
        console.print(f"\nrefused drafts: {names} (--explain says why)", markup=False)
    console.print(f"\n{recommendation.basis}; {recommendation.num_scored} plans scored", markup=False)
    for warning in recommendation.warnings:
        console.print(f"note: {warning}", style="yellow", markup=False)
    for source in recommendation.sources if explain else ():
        console.print(f"source: {source}", markup=False)
    console.print()
    if not is_here:
        console.print(f"the plan for that machine: {plan_path}; there, with the models' folders:", markup=False)
    line = command_line(plan, plan_path, is_sampled=is_sampled, num_threads=num_threads, memory=memory)
    console.print(line, style="bold", markup=False)


def headline(recommendation: Recommendation) -> str:
    """The answer and the speed."""
    return f"{recommendation.answer}: {speed(recommendation.plan)}"


def speed(plan: Plan) -> str:
    """Predicted tok/s and their interval."""
    tokens_per_s = plan.predicted.generated_tokens_per_s
    return f"{'speed unknown' if tokens_per_s is None else format_tokens_per_s(tokens_per_s)} ({interval(plan)})"


def interval(plan: Plan) -> str:
    """P10 to P90 of its tok/s, or that nobody predicted them."""
    return f"P10-P90 {_low_high(plan)}"


def sections(recommendation: Recommendation, *, explain: bool) -> Iterator[Section]:
    """Why, and what else was considered; with `explain` every rival of a kind."""
    yield Section(title="why", lines=recommendation.reasons)
    if recommendation.runner_up is not None:
        lost = recommendation.runner_up_lost or ""
        yield Section(title="runner-up", subject=_described(recommendation.runner_up), lines=(lost,))
    if recommendation.crossovers:
        yield Section(title="where speculation pays", lines=[_crossed(entry) for entry in recommendation.crossovers])
    if len(recommendation.kinds) > 2:
        lines = [_kind(entry) for entry in recommendation.kinds]
        yield Section(title="kinds of draft, each at its best size", lines=lines)
    if recommendation.prices:
        lines = [
            f"{price.what}: {tokens_per_s_digits(price.gain_tokens_per_s, '+')} tok/s"
            for price in recommendation.prices
        ]
        yield Section(title="what more would give", lines=lines)
    if recommendation.rivals or recommendation.unpriced_rivals:
        rivals = _shown(recommendation.rivals, explain=explain)
        lines = [_rival(entry, recommendation.choice) for entry in rivals]
        lines += _without_price(recommendation, explain=explain)
        yield Section(title="other engines, from the same numbers", lines=lines)


def show_comparison(rows: Sequence[tuple[str, Recommendation]], failures: Sequence[tuple[str, str]]) -> None:
    """Print several recommendations as a table, one row each, and below it what could not be planned and why."""
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for name in COMPARED:
        table.add_column(name, no_wrap=True)
    for label, entry in rows:
        table.add_row(*compared_row(label, entry))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for label, why in failures:
        console.print(f"{label}: {why}", style="red", markup=False, soft_wrap=True)
    for warning in dict.fromkeys(warning for _, entry in rows for warning in entry.warnings):
        console.print(f"note: {warning}", style="yellow", markup=False, soft_wrap=True)


def compared_row(label: str, entry: Recommendation) -> tuple[str, ...]:
    """The cells of a recommendation among others, under the names of COMPARED."""
    choice = entry.choice
    return (
        label,
        f"{tokens_per_s_digits(choice.tokens_per_s)} ({_low_high(entry.plan)})",
        format_s(choice.ttft_s),
        choice.draft or "none",
        choice.drafting,
        str(choice.slots),
        f"{choice.num_resident_layers}/{choice.num_layers}",
        entry.binds,
        f"{entry.rivals[0].name} {tokens_per_s_digits(entry.rivals[0].tokens_per_s)}" if entry.rivals else "",
    )


def command_line(
    plan: Plan,
    path: Path,
    *,
    is_sampled: bool = False,
    num_threads: int | None = None,
    memory: Mapping[str, str | None] | None = None,
) -> str:
    """What to paste to run the plan, or where models are known by name only, to plan the same there and run that.

    `memory` are the caps that were asked for, by what they hold for; the device's is in the plan.
    """
    words = ["runtime generate"]
    if plan.target.fingerprint.startswith(_BY_NAME):
        words += [f"-m {shlex.quote(plan.target.name)}", f"--dtype {plan.dtype}", f"--link {link_text(plan.link)}"]
        words += [f"--device-memory {plan.devices[0].budget_bytes // 2**20}MiB"]
        caps = {name: (memory or {}).get(name) for name in _CAPS}
        words += [f"--{name}-memory {shlex.quote(size)}" for name, size in caps.items() if size is not None]
        words += [f"--ctx-size {plan.context_tokens}"]
        words += [f"--slots {plan.slots}"] * (plan.slots > 0)
        words += _draft_flags(plan)
    else:
        words += [f"--plan {shlex.quote(str(path))}"]
    words += [] if plan.workload is None else [f"--max-tokens {plan.workload.new_tokens}"]
    words += ["--temp 1"] * is_sampled + ([] if num_threads is None else [f"--threads {num_threads}"])
    return " ".join([*words, "--file prompt.txt"])


def _draft_flags(plan: Plan) -> list[str]:
    draft = plan.draft
    words = ["--draft-on-host"] if isinstance(draft, ModelDraft) and draft.device != 0 else []
    match draft:
        case NoDraft():
            return ["--no-spec"]
        case ChainDraft(tiers=tiers):
            size = f"--draft-tiers {','.join(map(str, tiers))}" if tiers else f"--draft-len {draft.draft_len}"
            return [f"-md {shlex.quote(draft.model)}", size, *words]
        case TreeDraft() | HybridDraft():
            size = f"--draft-kind {draft.kind} --draft-tree {draft.num_nodes}"
            return [f"-md {shlex.quote(draft.model)}", size, *words]
        case NgramDraft(num_nodes=num_nodes):
            return ["--draft-kind ngram", f"--draft-tree {num_nodes}"]
    return []


def _low_high(plan: Plan) -> str:
    ends = (plan.predicted_p10, plan.predicted_p90)
    low, high = (None if end is None else end.generated_tokens_per_s for end in ends)
    return _between(low, high, tokens_per_s_digits)


def _between(low: float | None, high: float | None, shown: Callable[[float], str]) -> str:
    return _UNKNOWN if low is None or high is None else f"{shown(low)}-{shown(high)}"


def facts(plan: Plan, choice: Choice) -> list[tuple[str, str]]:
    """What runs, when the first token comes, and what memory it takes."""
    low, high = plan.predicted_p10, plan.predicted_p90
    found = [("plan", _described(choice))]
    if low is not None and high is not None and plan.workload is not None:
        ends = _between(low.ttft_s, high.ttft_s, format_s)
        prompt_tokens = plan.workload.prompt_tokens
        prompt = f"after a prompt of {prompt_tokens} token{'s' * (prompt_tokens != 1)}"
        found.append(("first token", f"{format_s(choice.ttft_s)} (P10-P90 {ends}) {prompt}"))
    memory = (
        f"{format_bytes(plan.memory.device_bytes)} on the device (budget "
        f"{format_bytes(plan.devices[0].budget_bytes)}), {format_bytes(plan.memory.host_bytes)} on the host"
    )
    return [*found, ("memory", memory)]


def _described(choice: Choice) -> str:
    draft = f"draft {choice.draft}, {choice.drafting}" if choice.draft else choice.drafting
    if choice.slots == 0:
        return f"{draft}; everything resident"
    return (
        f"{draft}; resident {choice.residents}; "
        f"{choice.slots} slot{'s' * (choice.slots > 1)}; "
        f"{format_tokens_per_s(choice.tokens_per_s)}"
    )


def _kind(choice: Choice) -> str:
    of_model = f" of {choice.draft}" if choice.draft else ""
    return (
        f"{choice.drafting}{of_model}: {format_tokens_per_s(choice.tokens_per_s)}, "
        f"{choice.tokens_per_round:.2f} tokens per round of {format_s(choice.round_s)}"
    )


def _crossed(crossover: Crossover) -> str:
    if crossover.first_draft_len is None:
        best = max((point.speedup_frac for point in crossover.points), default=0.0)
        return f"{crossover.draft}: at no length; at best {best:.2f} times the speed without a draft"
    best_point = max(crossover.points, key=lambda point: point.tokens_per_s)
    longest = max(point.draft_len for point in crossover.points)
    last = (
        f"to {longest}, the longest considered"
        if crossover.last_draft_len == longest
        else f"to {crossover.last_draft_len}"
    )
    return (
        f"{crossover.draft}: from {crossover.first_draft_len} {last} drafted tokens; best {best_point.draft_len} "
        f"({best_point.speedup_frac:.2f} times)"
    )


def _shown(rivals: Iterable[Rival], *, explain: bool) -> list[Rival]:
    """All of them, or the fastest of each kind."""
    if explain:
        return list(rivals)
    fastest: dict[str, Rival] = {}
    for rival in rivals:
        fastest.setdefault(rival.name, rival)
    return list(fastest.values())


def _without_price(recommendation: Recommendation, *, explain: bool) -> list[str]:
    """Engines without a price and why: all of them, or one of each kind that has none at all."""
    first: dict[str, UnpricedRival] = {}
    for entry in recommendation.unpriced_rivals:
        if all(entry.name != rival.name for rival in recommendation.rivals):
            first.setdefault(entry.name, entry)
    found = recommendation.unpriced_rivals if explain else first.values()
    return [f"{entry.name}{f' with {entry.draft}' * bool(entry.draft)}: not priced: {entry.why}" for entry in found]


def _rival(rival: Rival, choice: Choice) -> str:
    draft = f" with {rival.draft} at {rival.draft_len}" if rival.draft else ", no draft"
    ratio = rival.tokens_per_s / choice.tokens_per_s
    verdict = "FASTER than this plan" if ratio > 1 else "of this plan"
    return f"{rival.name}{draft}: {format_tokens_per_s(rival.tokens_per_s)}, {ratio:.2f} times {verdict}; {rival.how}"


def _explain(console: Console, recommendation: Recommendation) -> None:
    for crossover in recommendation.crossovers:
        console.print(f"\n[bold]{crossover.draft}[/bold]")
        table = Table(box=None, padding=(0, 2), pad_edge=False)
        for name in ("K", "tokens/round", "round", "tok/s", "times no draft"):
            table.add_column(name, justify="right")
        for point in crossover.points:
            table.add_row(
                str(point.draft_len),
                f"{point.tokens_per_round:.2f}",
                format_s(point.round_s),
                f"{point.tokens_per_s:.2f}",
                f"{point.speedup_frac:.2f}",
            )
        console.print(table)
    memory = Table.grid(padding=(0, 2))
    memory.add_column(style="bold")
    memory.add_column(justify="right")
    for name, num_bytes in recommendation.plan.memory:
        if num_bytes:
            memory.add_row(name.removesuffix("_bytes").replace("_", " "), format_bytes(num_bytes))
    console.print("\n[bold]memory[/bold]")
    console.print(memory)
    if recommendation.refused:
        console.print("\n[bold]refused drafts[/bold]")
        _list(console, [f"{refusal.draft}: {refusal.why}" for refusal in recommendation.refused])


def _list(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(f"  {line}", markup=False)
