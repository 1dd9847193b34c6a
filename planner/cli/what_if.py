"""`planner what-if`: what another memory, link, draft length or machine would change; as tables, a page or pictures."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.options import (
    AsJson,
    Calibrate,
    DeviceMemory,
    DraftMemory,
    Drafts,
    DtypeFlag,
    Force,
    Headroom,
    HostMemory,
    Html,
    Link,
    Machines,
    MaxTokens,
    ProfileArgument,
    PromptTokens,
    Sampled,
    Target,
    TargetMemory,
    Text,
    Threads,
)
from planner.cli.progress import progress_bar

if TYPE_CHECKING:
    from planner.cli.sources import Asked, Situation
    from planner.contracts.errors import DraftstreamError
    from planner.what_if_view import View


def what_if(
    profile: ProfileArgument = None,
    machine: Machines = None,
    target: Target = None,
    draft: Drafts = None,
    text: Text = None,
    prompt_tokens: PromptTokens = 512,
    max_tokens: MaxTokens = 256,
    ctx_size: Annotated[
        list[int] | None,
        typer.Option(
            "--ctx-size",
            "-c",
            min=2,
            help="Tokens of prompt and text; given several times, the page has a slider from the first to the others.",
        ),
    ] = None,
    dtype: DtypeFlag = None,
    link: Link = None,
    threads: Threads = None,
    device_memory: DeviceMemory = None,
    target_memory: TargetMemory = None,
    draft_memory: DraftMemory = None,
    host_memory: HostMemory = None,
    headroom: Headroom = None,
    sampled: Sampled = False,
    calibrate: Calibrate = None,
    html: Html = None,
    svg: Annotated[Path | None, typer.Option(help="Write each figure as SVG into this folder.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write each figure as PNG into this folder.")] = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Show what would change with more memory, a faster link, other lengths of draft, or on other machines."""
    from planner.cli.sources import Asked
    from planner.contracts.plan import Workload

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
        context_tokens=ctx_size[0] if ctx_size else None,
        is_sampled=sampled,
        calibrate=tuple(calibrate or ()),
        force=force,
    )
    from planner.extras import check_page, need_report_extra

    if html is not None:
        check_page(html)
    if svg is not None or png is not None:
        need_report_extra("--png" if svg is None else "--svg")
    view = _look(asked)
    if html is not None:
        _write_page(view, html, ctx_size or [])
    for folder, suffix in ((svg, "svg"), (png, "png")):
        if folder is not None:
            _draw(view, folder, suffix)
    if as_json:
        from planner.what_if_document import document_of

        sys.stdout.write(document_of(view))
        return
    from planner.page import Page
    from planner.render import console_for_stdout
    from planner.show_what_if import show_what_if

    show_what_if(Page(console_for_stdout()), view)


def _look(asked: "Asked") -> "View":
    """The first machine that can run it, with all of them side by side where several are named.

    Raises: as `planner recommend` does, where none can.
    """
    from planner.changes import Situation
    from planner.contracts.errors import DraftstreamError
    from planner.what_if import Advice, WhatIf, compared
    from planner.what_if_view import look

    known: dict[str, WhatIf] = {}
    failed: dict[str, DraftstreamError] = {}
    for name, entry in _situations(asked).items():
        if isinstance(entry, DraftstreamError):
            failed[name] = entry
        else:
            known[name] = WhatIf(Situation(profile=entry.profile, request=entry.request))
    if not known:
        raise next(iter(failed.values()))
    names = list(known)
    if len(known) + len(failed) == 1:
        return look(names[0], known[names[0]])
    advice = [*compared(known), *(Advice.refused(name, error) for name, error in failed.items())]
    running = {entry.name for entry in advice if entry.recommendation is not None}
    first = next((name for name in names if name in running), names[0])
    return look(first, known[first], advice)


def _situations(asked: "Asked") -> "dict[str, Situation | DraftstreamError]":
    """By machine what it can do, or what its catalogue entry does not say. Raises: BadInputError, for unknown names."""
    from planner.cli.sources import situations
    from planner.contracts.errors import DraftstreamError
    from profiles import catalogue

    if len(asked.machines) < 2:
        (one,) = situations(asked, one_per_draft=False)
        return {one.label: one}
    found: dict[str, Situation | DraftstreamError] = {}
    for name in [catalogue.machine(name).name for name in asked.machines]:
        try:
            (found[name],) = situations(replace(asked, machines=(name,)), one_per_draft=False)
        except DraftstreamError as error:
            found[name] = error
    return found


def _write_page(view: "View", path: Path, contexts_tokens: list[int]) -> None:
    """Compute the grid, and write the page; how far that is goes to stderr, and that a page became large."""
    from planner.console import printable
    from planner.report_page.html import MOST_BYTES, write_page
    from planner.report_page.situation import what_if_document

    with progress_bar("what if") as show:
        document = what_if_document(
            view, contexts_tokens, lambda num_done, num_points: show("computing what if", num_done, num_points)
        )
    num_bytes = write_page(path, document)
    if num_bytes > MOST_BYTES:
        large = f"{num_bytes / 1e6:.1f} MB, more than the {MOST_BYTES / 1e6:.0f} MB that open at once on a phone"
        sys.stderr.write(f"{printable(str(path))} has {large}: each further --ctx-size adds as much again\n")


def _draw(view: "View", folder: Path, suffix: str) -> None:
    """Write each figure of the view into the folder. Raises: ResourceFailureError."""
    from planner.contracts.errors import ResourceFailureError
    from planner.figures.static import write_static
    from planner.figures.view import view_figures

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceFailureError(
            f"cannot write pictures to {folder}", why=str(error), remedy="name a folder that is writable and has room"
        ) from error
    for key, figure in view_figures(view).items():
        write_static(figure, folder / f"{key}.{suffix}")
