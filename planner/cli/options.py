"""The options that several commands share: what is planned, on which machine, and what it may take."""

from pathlib import Path
from typing import Annotated, Literal

import typer

DraftKindFlag = Literal["auto", "none", "chain", "tree", "ngram", "hybrid"]

ProfileArgument = Annotated[
    Path | None, typer.Argument(help="What planner profile measured; the cached one of this machine if left out.")
]
Machines = Annotated[
    list[str] | None,
    typer.Option(
        "--machine",
        help="A machine of the catalogue, such as rtx-4090, without measuring; may be given several times.",
    ),
]
Target = Annotated[str | None, typer.Option("--target", "-m", help="Folder, hub id, or catalogue name.")]
Drafts = Annotated[
    list[str] | None, typer.Option("--draft", "-md", help="A draft to consider; may be given several times.")
]
Text = Annotated[str | None, typer.Option(help="The kind of text: code, prose, chat, math; all if left out.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Tokens of the prompt to plan for.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens of text to plan for.")]
ContextTokens = Annotated[
    int | None, typer.Option("--ctx-size", "-c", min=2, help="Tokens of prompt and text; their sum if left out.")
]
DtypeFlag = Annotated[Literal["bf16", "fp16", "fp32", "fp64"] | None, typer.Option(help="As stored, if left out.")]
Link = Annotated[str | None, typer.Option(help="disk:cached, disk:direct, cuda, emulated:2GB/s[,10us].")]
Threads = Annotated[int | None, typer.Option("--threads", "-t", min=1, help="CPU threads that compute.")]
DeviceMemory = Annotated[str | None, typer.Option(help="For target and draft together, such as 12GiB.")]
TargetMemory = Annotated[str | None, typer.Option(help="Cap for the target, within --device-memory.")]
DraftMemory = Annotated[str | None, typer.Option(help="Cap for the drafts, within --device-memory.")]
HostMemory = Annotated[str | None, typer.Option(help="For weights kept in host memory.")]
Headroom = Annotated[str | None, typer.Option(help="Left free on the device for others.")]
DraftLen = Annotated[
    int | None,
    typer.Option("--draft-len", "--num-speculative-tokens", min=1, max=64, help="Only chains of this length."),
]
DraftKindOption = Annotated[
    DraftKindFlag | None, typer.Option(help="Only this kind of draft; all are considered if left out.")
]
DraftTree = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Only trees, hybrids and n-grams of so many nodes.")
]
DraftStatic = Annotated[
    bool, typer.Option("--draft-static", help="Only trees of one shape for every round, the best by recordings.")
]
DraftTiers = Annotated[
    str | None, typer.Option(help="Only a chain whose length each round picks from these, such as 1,3,7,15.")
]
Slots = Annotated[int | None, typer.Option(min=1, max=16, help="Only so many slots.")]
NoSpec = Annotated[bool, typer.Option("--no-spec", help="Never draft.")]
DraftOnHost = Annotated[bool, typer.Option(help="Let the CPU draft, beside a device that verifies.")]
Sampled = Annotated[bool, typer.Option(help="Plan for sampling at temperature 1 instead of greedy text.")]
Calibrate = Annotated[
    list[Path] | None,
    typer.Option(
        help="Reports of runtime generate --json to learn from, or a folder, of which those count that fit; may be "
        "given several times."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
Force = Annotated[bool, typer.Option(help="Use a profile of another machine or of other versions all the same.")]
Html = Annotated[
    Path | None, typer.Option("--html", help="Write a report for any browser: one file, which works offline.")
]
