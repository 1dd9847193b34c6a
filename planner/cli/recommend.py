"""`planner recommend`: the best way to run a target here, or on a machine of the catalogue, and why."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from planner.cli.options import (
    AsJson,
    Calibrate,
    ContextTokens,
    DeviceMemory,
    DraftKindOption,
    DraftLen,
    DraftMemory,
    DraftOnHost,
    Drafts,
    DraftStatic,
    DraftTiers,
    DraftTree,
    DtypeFlag,
    Force,
    Headroom,
    HostMemory,
    Html,
    Link,
    Machines,
    MaxTokens,
    NoSpec,
    PromptTokens,
    Sampled,
    Slots,
    Target,
    TargetMemory,
    Text,
    Threads,
)
from planner.contracts.errors import DraftstreamError, UsageError

if TYPE_CHECKING:
    from planner.cli.sources import Situation
    from planner.contracts.recommendation import Recommendation
    from planner.what_if_view import View

QualityFloor = Literal["stored", "16bit"]
Files = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[PROFILE]",
        help="What planner profile measured; the cached one of this machine if left out. Further reports may follow "
        "that of --calibrate.",
        show_default=False,
    ),
]


def recommend(
    files: Files = None,
    machine: Machines = None,
    target: Target = None,
    draft: Drafts = None,
    text: Text = None,
    prompt_tokens: PromptTokens = 512,
    max_tokens: MaxTokens = 256,
    ctx_size: ContextTokens = None,
    dtype: DtypeFlag = None,
    link: Link = None,
    threads: Threads = None,
    device_memory: DeviceMemory = None,
    target_memory: TargetMemory = None,
    draft_memory: DraftMemory = None,
    host_memory: HostMemory = None,
    headroom: Headroom = None,
    draft_len: DraftLen = None,
    draft_kind: DraftKindOption = None,
    draft_tree: DraftTree = None,
    draft_static: DraftStatic = False,
    draft_tiers: DraftTiers = None,
    slots: Slots = None,
    no_spec: NoSpec = False,
    resident_only: Annotated[bool, typer.Option(help="Never stream.")] = False,
    draft_on_host: DraftOnHost = False,
    sampled: Sampled = False,
    quality_floor: Annotated[
        QualityFloor, typer.Option(help="Never below: the stored precision, or 16 bits of a wider model.")
    ] = "stored",
    calibrate: Calibrate = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the plan here; else into the cache.")] = None,
    compare: Annotated[bool, typer.Option(help="A table of machines, or of drafts on one machine.")] = False,
    explain: Annotated[bool, typer.Option(help="Every draft length, rival and refusal.")] = False,
    html: Html = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Choose residents, slots, draft and prefill chunk; say how fast that will be, and why nothing else."""
    from planner.cli.sources import Asked, profile_and_reports, situations
    from planner.contracts.plan import Workload
    from planner.drafting import draftings_for
    from planner.recommend import recommend as choose
    from planner.render import command_line, show_comparison, show_recommendation

    if html is not None:
        from planner.extras import check_page

        check_page(html)
    profile, reports = profile_and_reports(files or (), calibrate or ())
    asked = Asked(
        profile=profile,
        machines=tuple(machine or ()),
        target=target,
        drafts=tuple(draft or ()),
        dtype=dtype,
        link=link,
        num_threads=threads,
        memory={
            "device": device_memory,
            "target": target_memory,
            "draft": draft_memory,
            "host": host_memory,
            "headroom": headroom,
        },
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
        resident_only=resident_only,
        draft_on_host=draft_on_host,
        is_sampled=sampled,
        quality_floor=quality_floor,
        calibrate=reports,
        force=force,
    )
    several = situations(asked, one_per_draft=compare and len(machine or ()) < 2)
    if len(several) == 1:
        (situation,) = several
        view = _look(situation)
        recommendation = view.recommendation
        is_kept = out is not None or html is not None or not as_json
        plan_path = situation.keep(recommendation.plan, out) if is_kept else Path()
        if html is not None:
            line = command_line(
                recommendation.plan, plan_path, is_sampled=sampled, num_threads=threads, memory=asked.memory
            )
            _write_page(view, line, html)
        if as_json:
            sys.stdout.write(recommendation.to_json())
            return
        show_recommendation(
            recommendation,
            plan_path=plan_path,
            is_here=situation.is_here,
            explain=explain,
            is_sampled=sampled,
            num_threads=threads,
            memory=asked.memory,
        )
        return
    if out is not None:
        raise UsageError("--out holds one plan", why=f"{len(several)} are compared", remedy="leave --out out")
    found, failures = [], []
    for situation in several:
        try:
            found.append((situation.label, choose(situation.profile, situation.request)))
        except DraftstreamError as error:
            failures.append((situation.label, error))
    if not found:
        raise failures[0][1]
    if html is not None:
        _write_comparison(found, failures, html)
    if as_json:
        documents = [entry.model_dump(mode="json") for _, entry in found]
        sys.stdout.write(json.dumps(documents, indent=2) + "\n")
    else:
        show_comparison(found, [(label, f"{error.what}; try {error.remedy}") for label, error in failures])


def _look(situation: "Situation") -> "View":
    """What is recommended, and what a page draws of it beside that. Raises: as `recommend` does."""
    from planner.changes import Situation
    from planner.what_if_view import look_at_it_alone

    return look_at_it_alone(situation.label, Situation(profile=situation.profile, request=situation.request))


def _write_page(view: "View", line: str, path: Path) -> None:
    """Write the recommendation, its figures and the line to paste as a page. Raises: ResourceFailureError."""
    from planner.report_page.html import write_page
    from planner.report_page.situation import recommendation_document

    write_page(path, recommendation_document(view, line))


def _write_comparison(
    found: "list[tuple[str, Recommendation]]", failures: list[tuple[str, DraftstreamError]], path: Path
) -> None:
    """Write the recommendations side by side as a page, the fastest first. Raises: ResourceFailureError."""
    from planner.report_page.html import write_page
    from planner.report_page.situation import comparison_document
    from planner.what_if import Advice

    advice = [Advice(name=label, recommendation=entry) for label, entry in found]
    advice.sort(key=lambda entry: -entry.tokens_per_s)
    advice += [Advice.refused(label, error) for label, error in failures]
    write_page(path, comparison_document(advice))
