"""`planner recommend`: the best way to run a target here, or on a machine of the catalogue, and why."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from planner.contracts.errors import UsageError

QualityFloor = Literal["stored", "16bit"]


def recommend(
    profile: Annotated[
        Path | None, typer.Argument(help="What planner profile measured; the cached one of this machine if left out.")
    ] = None,
    machine: Annotated[
        list[str] | None,
        typer.Option(
            help="A machine of the catalogue, such as rtx-4090, without measuring; may be given several times."
        ),
    ] = None,
    target: Annotated[str | None, typer.Option("--target", "-m", help="Folder, hub id, or catalogue name.")] = None,
    draft: Annotated[
        list[str] | None, typer.Option("--draft", "-md", help="A draft to consider; may be given several times.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="The kind of text: code, prose, chat, math; all if left out.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt to plan for.")] = 512,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens of text to plan for.")] = 256,
    ctx_size: Annotated[
        int | None, typer.Option("--ctx-size", "-c", min=2, help="Tokens of prompt and text; their sum if left out.")
    ] = None,
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32", "fp64"] | None, typer.Option(help="As stored, if left out.")
    ] = None,
    link: Annotated[str | None, typer.Option(help="disk:cached, disk:direct, cuda, emulated:2GB/s[,10us].")] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="CPU threads that compute.")] = None,
    device_memory: Annotated[str | None, typer.Option(help="For target and draft together, such as 12GiB.")] = None,
    target_memory: Annotated[str | None, typer.Option(help="Cap for the target, within --device-memory.")] = None,
    draft_memory: Annotated[str | None, typer.Option(help="Cap for the drafts, within --device-memory.")] = None,
    host_memory: Annotated[str | None, typer.Option(help="For weights kept in host memory.")] = None,
    headroom: Annotated[str | None, typer.Option(help="Left free on the device for others.")] = None,
    draft_len: Annotated[
        int | None, typer.Option("--draft-len", "--num-speculative-tokens", min=1, max=64, help="Only this length.")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, max=16, help="Only so many slots.")] = None,
    no_spec: Annotated[bool, typer.Option("--no-spec", help="Never draft.")] = False,
    resident_only: Annotated[bool, typer.Option(help="Never stream.")] = False,
    draft_on_host: Annotated[bool, typer.Option(help="Let the CPU draft, beside a device that verifies.")] = False,
    sampled: Annotated[bool, typer.Option(help="Plan for sampling at temperature 1 instead of greedy text.")] = False,
    quality_floor: Annotated[
        QualityFloor, typer.Option(help="Never below: the stored precision, or 16 bits of a wider model.")
    ] = "stored",
    calibrate: Annotated[
        list[Path] | None, typer.Option(help="Reports of runtime generate --json; may be given several times.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the plan here; else into the cache.")] = None,
    compare: Annotated[bool, typer.Option(help="A table of machines, or of drafts on one machine.")] = False,
    explain: Annotated[bool, typer.Option(help="Every draft length, rival and refusal.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
    force: Annotated[
        bool, typer.Option(help="Use a profile of another machine or of other versions all the same.")
    ] = False,
) -> None:
    """Choose residents, slots, draft, length and prefill chunk; say how fast that will be, and why nothing else."""
    from planner.cli.sources import Asked, situations
    from planner.contracts.plan import Workload
    from planner.recommend import recommend as choose
    from planner.render import show_comparison, show_recommendation

    if out is not None and machine is not None and len(machine) > 1:
        raise UsageError(
            "--out holds one plan", why="several machines were named", remedy="name one machine with --out"
        )
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
        draft_len=draft_len,
        slots=slots,
        no_spec=no_spec,
        resident_only=resident_only,
        draft_on_host=draft_on_host,
        is_sampled=sampled,
        quality_floor=quality_floor,
        calibrate=tuple(calibrate or ()),
        force=force,
    )
    found = [
        (situation, choose(situation.profile, situation.request))
        for situation in situations(asked, one_per_draft=compare and len(machine or ()) < 2)
    ]
    if as_json:
        documents = [recommendation.to_json().rstrip() for _, recommendation in found]
        sys.stdout.write((documents[0] if len(documents) == 1 else f"[{','.join(documents)}]") + "\n")
    elif len(found) > 1:
        show_comparison([(situation.label, recommendation) for situation, recommendation in found])
    else:
        situation, recommendation = found[0]
        path = situation.keep(recommendation.plan, out)
        show_recommendation(recommendation, plan_path=path, is_runnable=situation.is_here, explain=explain)
    if as_json and out is not None:
        found[0][1].plan.write(out)
