"""`planner profile`: measures this machine with a target and its drafts."""

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from planner.cli.progress import progress_bar
from planner.contracts.errors import UsageError
from planner.contracts.profile import ComputeMeasurement, Profile
from planner.contracts.quantities import finite, format_bytes_per_s, format_s

if TYPE_CHECKING:
    from runtime.measure.prompts import Prompt
    from runtime.measure.session import Group

_DEMO_TOKENS = 96  # of a prompt, and written after it: the demo pair is good for about 256
_DEMO_SECONDS = 57.0  # nobody waits longer to see the demo
_SHOWN_DRAFT_LEN = 4
_SHOWN_TOKENS = (1, 8)


def profile(
    target: Annotated[
        str | None, typer.Argument(help="The big model: a folder or a hub id; the demo pair if left out.")
    ] = None,
    draft: Annotated[
        list[str] | None, typer.Option("--draft", "-md", help="A small model with the same tokenizer; repeatable.")
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(help="Measure beside this link too, such as emulated:2GB/s; repeatable."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Your kind of text: JSON lines with domain and text, or a plain text.")
    ] = None,
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32", "fp64"] | None, typer.Option(help="As stored, if left out.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="CPU threads that compute.")] = None,
    ctx_size: Annotated[
        int | None, typer.Option("--ctx-size", "-c", min=2, help="The longest context measured; 2048 if left out.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Measure this group only: links, compute, rounds, memory, acceptance; repeatable."),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=1, callback=finite, help="Stop in time; 540, or 48 with --quick, if left out.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points, within a minute.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the profile here, beside the cache.")] = None,
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Keep what the target wrote in the profile.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Keep the result of an unsteady machine.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Take up no earlier run that was cut off.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile instead of a summary.")] = False,
) -> None:
    """Measure links, compute, drafts and acceptance here, for `planner recommend`; a killed run is taken up again."""
    from planner.console import ending_in_order
    from profiles import demo_folder
    from runtime.measure.profile import ProfileOptions, measure_profile, stored_path

    is_demo = target is None
    drafts = [str(demo_folder("draft"))] if is_demo and draft is None else draft or []
    options = ProfileOptions(
        dtype=dtype,
        links=tuple(link or ()),
        num_threads=threads,
        context_tokens=ctx_size,
        only=_groups(only),
        max_seconds=max_seconds or (_DEMO_SECONDS if is_demo and not quick else None),
        is_quick=quick,
        keeps_text=keep_text,
        is_forced=force,
        is_fresh=fresh,
        out=out,
    )
    if is_demo:
        options = replace(options, prompt_tokens=_DEMO_TOKENS, new_tokens=_DEMO_TOKENS)
    texts = _prompts(prompts, is_demo=is_demo)
    with ending_in_order(), progress_bar("profile") as show:
        measured = measure_profile(
            target or str(demo_folder("target")),
            drafts,
            options,
            texts,
            lambda done: show(f"{done.group}: {done.step}", done.num_done, done.num_steps),
        )
    if as_json:
        sys.stdout.write(measured.to_json())
    else:
        path = out or stored_path(measured, options)
        sys.stdout.write("".join(f"{line}\n" for line in (f"profile: {path}", *_summary(measured))))


def _groups(names: list[str] | None) -> "tuple[Group, ...]":
    """The groups named, all of them where none is. Raises: UsageError."""
    from runtime.measure.session import GROUPS

    unknown = [name for name in names or () if name not in GROUPS]
    if unknown:
        raise UsageError(
            f"nothing is measured under the name {unknown[0]!r}",
            why=f"the groups are {', '.join(GROUPS)}",
            remedy="--only with one of them",
        )
    return tuple(group for group in GROUPS if names is None or group in names)


def _prompts(path: Path | None, *, is_demo: bool) -> "list[Prompt]":
    """The user's prompts, or those that ship for this target."""
    from profiles import domain_prompts, heldout_texts
    from runtime.measure.prompts import Prompt, read_prompts

    if path is not None:
        return read_prompts(path)
    texts = heldout_texts("profile") if is_demo else domain_prompts()
    return [Prompt(domain=entry.domain, text=entry.text) for entry in texts]


def _summary(measured: Profile) -> Iterator[str]:
    yield f"machine: {measured.machine.name}, {measured.num_threads} compute thread(s)"
    yield from _links(measured)
    yield from _layers(measured)
    yield from _drafts(measured)
    yield from _acceptance(measured)
    if measured.drift_frac is not None:
        yield f"drift: the machine was at most {measured.drift_frac:.1%} slower than at its best"
    yield from (f"note: {note}" for note in measured.notes)


def _links(measured: Profile) -> Iterator[str]:
    """Each link's rate and latency, fitted over all sizes; alone and beside compute."""
    from planner.contracts.plan import DiskLink
    from planner.timing import Timing

    timing = Timing(measured, DiskLink())
    for name in dict.fromkeys(entry.link for entry in measured.links):
        alone, loaded = (timing.link_fit(name, loaded=is_loaded) for is_loaded in (False, True))
        rates = [f"{format_bytes_per_s(alone.bytes_per_s)} after {format_s(alone.latency_s)}"] if alone else []
        rates += [f"{format_bytes_per_s(loaded.bytes_per_s)} beside compute"] if loaded else []
        yield f"link {name}: {', '.join(rates)}"


def _layers(measured: Profile) -> Iterator[str]:
    """Each class of layers at a few token counts, resident."""
    alone = [row for row in measured.compute if row.load_bytes_per_s == 0 and row.processor == "device"]
    layers = [row for row in alone if row.unit == "layer"]
    for index in sorted({row.index for row in layers}):
        times = []
        for num_tokens in _SHOWN_TOKENS:
            rows = [row for row in layers if row.index == index and row.num_tokens == num_tokens]
            if rows:
                times.append(f"{_ms(min(rows, key=_context))} at {num_tokens} token{'s' * (num_tokens > 1)}")
        yield f"layer {index} and alike: {', '.join(times)}"


def _drafts(measured: Profile) -> Iterator[str]:
    for shape in measured.drafts:
        rows = [row for row in measured.draft_passes if row.fingerprint == shape.fingerprint and row.num_tokens == 1]
        times = []
        for processor, where in (("device", ""), ("host", " on the CPU")):
            alike = [row for row in rows if row.processor == processor]
            if alike:
                row = min(alike, key=lambda row: (row.load_bytes_per_s, row.context_tokens))
                times.append(f"{format_s(row.duration_s.median)} a token{where}")
        if times:
            yield f"draft {shape.name}: {', '.join(times)}"


def _acceptance(measured: Profile) -> Iterator[str]:
    """Tokens per round at one draft length, by domain: each recording followed round by round."""
    from planner.acceptance import replay

    for shape in measured.drafts:
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for recording in measured.acceptance:
            if recording.fingerprint == shape.fingerprint and len(recording.ranks) > 1:
                num_rounds = len(replay(recording.ranks[1:], _SHOWN_DRAFT_LEN))
                for slot, count in enumerate((1, len(recording.ranks) - 1, num_rounds)):
                    counts[recording.domain][slot] += count
        for domain, (num_prompts, num_tokens, num_rounds) in sorted(counts.items()):
            rate = num_tokens / num_rounds
            yield f"{domain}: {rate:.2f} tokens per round at draft length {_SHOWN_DRAFT_LEN}, {num_prompts} prompts"


def _context(row: ComputeMeasurement) -> int:
    return row.context_tokens


def _ms(row: ComputeMeasurement) -> str:
    return f"{row.duration_s.median * 1e3:.3g} ms"
