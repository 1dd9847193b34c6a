"""`planner plan`: fits a model to memory budgets without predicting its speed."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer


def plan(
    target: Annotated[str, typer.Argument(help="The big model: a folder or a hub id (owner/name@revision).")],
    draft: Annotated[str | None, typer.Option("--draft", "-md", help="A small model with the same tokenizer.")] = None,
    draft_len: Annotated[
        int, typer.Option("--draft-len", "--num-speculative-tokens", min=1, max=64, help="Tokens drafted a round.")
    ] = 4,
    ctx_size: Annotated[int | None, typer.Option("--ctx-size", "-c", min=2, help="Tokens of prompt and text.")] = None,
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32", "fp64"] | None, typer.Option(help="As stored, if left out.")
    ] = None,
    link: Annotated[
        str | None, typer.Option(help="disk, disk:cached, disk:direct, cuda, emulated:2GB/s[,10us].")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, max=16, help="Buffers that streamed layers pass through.")] = 2,
    device_memory: Annotated[str | None, typer.Option(help="For target and draft together, such as 12GiB.")] = None,
    target_memory: Annotated[str | None, typer.Option(help="Cap for the target, within --device-memory.")] = None,
    draft_memory: Annotated[str | None, typer.Option(help="Cap for the draft, within --device-memory.")] = None,
    host_memory: Annotated[str | None, typer.Option(help="For weights kept in host memory.")] = None,
    headroom: Annotated[str | None, typer.Option(help="Left free on the device for others.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the plan here instead of to stdout.")] = None,
) -> None:
    """Fit a model to memory budgets and write the plan, which `runtime generate --plan` runs."""
    from runtime.api import Limits, make_plan

    made = make_plan(
        target,
        draft=draft,
        limits=Limits(
            device=device_memory, target=target_memory, draft=draft_memory, host=host_memory, headroom=headroom
        ),
        context_tokens=ctx_size,
        draft_len=draft_len,
        num_slots=slots,
        dtype=dtype,
        link=link,
    )
    if out is None:
        sys.stdout.write(made.to_json())
    else:
        made.write(out)
