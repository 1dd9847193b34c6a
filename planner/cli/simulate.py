"""`planner simulate`: plays a plan's rounds, and shows what each lane does and which of them decides the speed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.options import (
    AsJson,
    ContextTokens,
    DeviceMemory,
    DraftKindOption,
    DraftLen,
    Drafts,
    DraftStatic,
    DraftTiers,
    DraftTree,
    DtypeFlag,
    Force,
    HostMemory,
    Link,
    Machines,
    MaxTokens,
    NoSpec,
    PromptTokens,
    Slots,
    Target,
    Text,
    Threads,
)
from planner.contracts.errors import UsageError

if TYPE_CHECKING:
    from planner.cli.sources import Asked
    from planner.contracts.plan import Plan
    from planner.contracts.timeline import Span
    from planner.simulate import RoundView

_SHADES = " .-=#"
_COLUMNS_IN_A_FILE = 100
_PROMPT_TOKENS, _NEW_TOKENS = 512, 256
_FLAGS = {  # by the fields of Asked
    "workload": "--text, --prompt-tokens or --max-tokens",
    "machines": "--machine",
    "target": "--target",
    "drafts": "--draft",
    "dtype": "--dtype",
    "link": "--link",
    "num_threads": "--threads",
    "memory": "--device-memory or --host-memory",
    "context_tokens": "--ctx-size",
    "draftings": "a kind or size of draft",
    "slots": "--slots",
    "no_spec": "--no-spec",
    "force": "--force",
}


def simulate(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PLAN]",
            help="A plan that planner recommend wrote; or a profile to plan by, the cached one if left out.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds to draw, after a first pass.")] = 3,
    trace: Annotated[Path | None, typer.Option(help="Write a timeline for Perfetto or chrome://tracing.")] = None,
    machine: Machines = None,
    target: Target = None,
    draft: Drafts = None,
    text: Text = None,
    prompt_tokens: PromptTokens = _PROMPT_TOKENS,
    max_tokens: MaxTokens = _NEW_TOKENS,
    ctx_size: ContextTokens = None,
    dtype: DtypeFlag = None,
    link: Link = None,
    threads: Threads = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    draft_len: DraftLen = None,
    draft_kind: DraftKindOption = None,
    draft_tree: DraftTree = None,
    draft_static: DraftStatic = False,
    draft_tiers: DraftTiers = None,
    slots: Slots = None,
    no_spec: NoSpec = False,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Play the rounds that a plan predicts: what binds, what waits, and a timeline of disk, link, compute and draft.

    Without a plan, of the one that planner recommend would choose.
    """
    from planner.cli.sources import Asked
    from planner.contracts.base import write_atomically
    from planner.contracts.plan import Workload
    from planner.contracts.timeline import chrome_trace
    from planner.drafting import drafting_of, draftings_for
    from planner.schedule import schedule_of
    from planner.simulate import simulate as spans_of
    from planner.simulate import view_round

    asked = Asked(
        machines=tuple(machine or ()),
        target=target,
        drafts=tuple(draft or ()),
        dtype=dtype,
        link=link,
        num_threads=threads,
        memory={"device": device_memory, "host": host_memory},
        workload=Workload(prompt_tokens=prompt_tokens, new_tokens=max_tokens, domain=text),
        context_tokens=ctx_size,
        draftings=draftings_for(
            draft_kind,
            no_spec=no_spec,
            draft_len=draft_len,
            num_nodes=draft_tree,
            tiers=draft_tiers,
            is_static=draft_static,
        ),
        slots=slots,
        no_spec=no_spec or draft_kind == "none",
        force=force,
    )
    made = _plan(file, asked)
    schedule = schedule_of(made)
    view = view_round(schedule, made.predicted.tokens_per_round)
    spans = spans_of(schedule, rounds)
    if trace is not None:
        name = made.target.name if file is None else file.name
        write_atomically(trace, chrome_trace(spans, f"planner simulate {name}"))
    drafting = drafting_of(made.draft).label
    if as_json:
        _print_json(view, drafting)
    else:
        _print(view, spans, drafting)


def _plan(file: Path | None, asked: "Asked") -> "Plan":
    """The plan in the file, or the one that is best by a profile or the catalogue.

    Raises: UsageError, where a plan is named and something that it decides; as `planner recommend` does.
    """
    from dataclasses import replace

    from planner.cli.sources import situations
    from planner.contracts.plan import Plan
    from planner.contracts.profile import Profile
    from planner.contracts.recognise import kind_of
    from planner.search import plan_of, rank

    if file is not None and kind_of(file) is not Profile:
        _refuse_beside_plan(asked)
        return Plan.read(file)
    found = situations(replace(asked, profile=file), one_per_draft=False)
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} machines", why="one plan is simulated", remedy="name one; planner recommend compares them"
        )
    (situation,) = found
    ranking = rank(situation.profile, situation.request)
    return plan_of(situation.profile, situation.request, ranking.best)[0]


def _refuse_beside_plan(asked: "Asked") -> None:
    from dataclasses import fields

    from planner.cli.sources import Asked
    from planner.contracts.plan import Workload
    from planner.drafting import draftings_for

    usual = Asked(
        workload=Workload(prompt_tokens=_PROMPT_TOKENS, new_tokens=_NEW_TOKENS),
        memory={"device": None, "host": None},
        draftings=draftings_for(None),
    )
    named = [entry.name for entry in fields(asked) if getattr(asked, entry.name) != getattr(usual, entry.name)]
    if named:
        raise UsageError(
            f"a plan and {', '.join(_FLAGS[name] for name in named)}",
            why="the plan has decided the models, the memory, the link and the draft",
            remedy="leave out the plan, or the options beside it",
        )


def _print_json(view: "RoundView", drafting: str) -> None:
    import json
    from dataclasses import asdict

    sys.stdout.write(json.dumps({**asdict(view), "drafting": drafting}, indent=2) + "\n")


def _print(view: "RoundView", spans: tuple["Span", ...], drafting: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from planner.contracts.quantities import format_s, format_tokens_per_s

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _COLUMNS_IN_A_FILE)
    summary = Table.grid(padding=(0, 2))
    summary.add_column(style="bold")
    summary.add_column()
    if view.generated_tokens_per_s is not None:
        tokens = f", {view.tokens_per_round:.2f} tokens each"
        summary.add_row("speed", format_tokens_per_s(view.generated_tokens_per_s) + tokens)
    summary.add_row("draft", drafting)
    summary.add_row("round", format_s(view.round_s) + f", the first pass {format_s(view.first_pass_s)}")
    summary.add_row("binds", _binds(view))
    summary.add_row("waiting for weights", format_s(view.waiting_for_weights_s))
    console.print(summary)
    lanes = Table(box=None, padding=(0, 2), pad_edge=False)
    for name in ("lane", "busy", "idle", "of the round"):
        lanes.add_column(name, justify="left" if name == "lane" else "right")
    for lane, busy_s in view.busy_s.items():
        lanes.add_row(lane, format_s(busy_s), format_s(view.round_s - busy_s), f"{busy_s / view.round_s:.1%}")
    console.print()
    console.print(lanes)
    console.print()
    for line in _drawing(spans, console.width):
        console.print(line, markup=False, no_wrap=True, overflow="crop")


def _binds(view: "RoundView") -> str:
    """What decides the round, and what would make it shorter."""
    from planner.contracts.quantities import format_s

    if view.binds == "turns":
        more = f"; with a slot more, {format_s(view.round_with_another_slot_s)}"
        return "link and compute wait for each other in turns" + more
    return {
        "disk": "the disk: it is never idle",
        "link": "the link: it is never idle",
        "compute": "compute and draft: they never wait",
    }[view.binds]


def _drawing(spans: tuple["Span", ...], width: int) -> list[str]:
    """One row per lane, darker where it is busier; a bar where a pass ends. ASCII, as wide as the terminal."""
    lanes = [lane for lane in ("disk", "link", "compute", "draft") if any(span.lane == lane for span in spans)]
    margin = max(len("passes"), *map(len, lanes)) + 2
    num_columns = max(20, width - margin - 1)
    end_s = max(span.stop_s for span in spans)
    columns_per_s = num_columns / end_s if end_s > 0 else 0.0
    rows = {lane: [0.0] * num_columns for lane in lanes}
    for span in spans:
        start, stop = span.start_s * columns_per_s, span.stop_s * columns_per_s
        for column in range(int(start), min(num_columns, int(stop) + 1)):
            rows[span.lane][column] += max(0.0, min(stop, column + 1) - max(start, column))
    lines = []
    for lane, shares in rows.items():
        cells = (_SHADES[min(len(_SHADES) - 1, round(share * (len(_SHADES) - 1)))] for share in shares)
        lines.append(f"{lane:<{margin}}" + "".join(cells))
    last = [span for span in spans if span.lane == "compute"][-1].label
    ends = {
        min(num_columns - 1, int(span.stop_s * columns_per_s))
        for span in spans
        if span.lane == "compute" and span.label == last
    }
    lines.append(f"{'passes':<{margin}}" + "".join("|" if column in ends else " " for column in range(num_columns)))
    return [line.rstrip() for line in lines]
