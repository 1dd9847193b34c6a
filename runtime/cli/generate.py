"""`runtime generate`: continues a prompt. The text alone goes to stdout."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from planner.contracts.errors import BadInputError, SelfCheckError, UsageError
from planner.contracts.plan import Plan
from planner.contracts.quantities import format_bytes
from runtime.cli.page import prepare_page, write_run_page
from runtime.statistics import show_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.drafting import Drafting
    from runtime.engine import Generation


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; - or nothing reads stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-m", help="Folder or hub id (owner/name@revision); the demo if left out.")
    ] = None,
    draft: Annotated[str | None, typer.Option("--draft", "-md", help="A small model with the same tokenizer.")] = None,
    no_spec: Annotated[bool, typer.Option("--no-spec", help="Never draft.")] = False,
    draft_len: Annotated[
        int | None,
        typer.Option(
            "--draft-len",
            "--num-speculative-tokens",
            min=1,
            max=64,
            help="A chain of so many drafted tokens a round; planned if left out.",
        ),
    ] = None,
    draft_kind: Annotated[
        Literal["auto", "none", "chain", "tree", "ngram", "hybrid"] | None,
        typer.Option(help="How to draft; planned if left out. ngram copies from earlier text and needs no model."),
    ] = None,
    draft_tree: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Nodes of a tree, a hybrid or of n-grams in a round.")
    ] = None,
    draft_static: Annotated[
        bool, typer.Option("--draft-static", help="A tree of one shape for every round, the best by the profile.")
    ] = False,
    draft_tiers: Annotated[
        str | None, typer.Option(help="A chain whose length each round picks from these, such as 1,3,7,15.")
    ] = None,
    draft_on_host: Annotated[
        bool, typer.Option("--draft-on-host", help="Let the CPU draft, beside a device that verifies.")
    ] = False,
    ngram_corpus: Annotated[
        list[Path] | None,
        typer.Option(help="A text file for n-grams to copy from, too; may be given several times, the newest last."),
    ] = None,
    draft_may_fail: Annotated[
        bool, typer.Option("--draft-may-fail", help="Go on without the draft where it fails; else the run ends.")
    ] = False,
    plan: Annotated[Path | None, typer.Option(help="Run this plan; it decides models, memory and link.")] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Plan by this file, or none: by memory alone. The cached or a quick profile if left out."),
    ] = None,
    ctx_size: Annotated[
        int | None,
        typer.Option("--ctx-size", "-c", min=2, help="Tokens of prompt and text; as many as needed if left out."),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens to write at most.")] = 256,
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32", "fp64"] | None, typer.Option(help="As stored if left out.")
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(help="disk, disk:cached, disk:direct, cuda, or emulated:2GB/s."),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, max=16, help="Buffers that streamed layers pass through; planned if left out.")
    ] = None,
    device_memory: Annotated[str | None, typer.Option(help="For target and draft together, such as 12GiB.")] = None,
    target_memory: Annotated[str | None, typer.Option(help="Cap for the target.")] = None,
    draft_memory: Annotated[str | None, typer.Option(help="Cap for the draft.")] = None,
    host_memory: Annotated[str | None, typer.Option(help="For weights kept in host memory.")] = None,
    headroom: Annotated[str | None, typer.Option(help="Left free on the device for others, such as 2GiB.")] = None,
    temperature: Annotated[float, typer.Option("--temp", "--temperature", help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the most probable tokens that make up p.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Draw from tokens at least p times as probable as the best.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat a run that samples.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--raw", help="Prompt as a chat turn; a chat if the model has a template.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt of a chat.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="CPU threads that compute.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Score the text again afterwards, and list near-ties.")
    ] = False,
    trace: Annotated[Path | None, typer.Option(help="Write a timeline for Perfetto or chrome://tracing.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a report for any browser: text, predicted beside measured, timelines.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No statistics and no live line.")] = False,
    no_status: Annotated[bool, typer.Option("--no-status", help="No live line; only terminals have one.")] = False,
) -> None:
    """Continue a prompt: the text goes to stdout, statistics to stderr."""
    if plan is not None:
        planned = {
            "--target": target,
            "--draft": draft,
            "--no-spec": no_spec or None,
            "--draft-len": draft_len,
            "--draft-kind": draft_kind,
            "--draft-tree": draft_tree,
            "--draft-static": draft_static or None,
            "--draft-tiers": draft_tiers,
            "--draft-on-host": draft_on_host or None,
            "--ctx-size": ctx_size,
            "--profile": profile,
            "--dtype": dtype,
            "--link": link,
            "--slots": slots,
            "--device-memory": device_memory,
            "--target-memory": target_memory,
            "--draft-memory": draft_memory,
            "--host-memory": host_memory,
            "--headroom": headroom,
        }
        _refuse_beside_plan([name for name, value in planned.items() if value is not None])
    text = _read_prompt(prompt, file)
    for name, given in (("the prompt", text), ("--system", system or ""), *(("--stop", end) for end in stop or ())):
        _check_is_text(name, given)

    from planner.console import ending_in_order
    from runtime.api import Limits, corpus_texts, load, prompt_tokens
    from runtime.draft.corpus import MOST_CORPUS_BYTES, num_bytes_left_out, num_corpus_tokens
    from runtime.engine import check_prompt_fits
    from runtime.sampling import SamplingSettings
    from runtime.status_line import shown_status
    from runtime.trace import Trace

    if html is not None:
        prepare_page(html)
    if threads is not None:
        _set_threads(threads)
    sampling = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    if plan is None:
        from runtime.cli.planning import Wanted, choose_plan

        target, draft = _models(target, draft)
        tokens = prompt_tokens(target, text, is_chat=chat, system=system)
        settled = choose_plan(
            Wanted(
                target=target,
                draft=None if no_spec or draft_kind == "none" else draft,
                no_spec=no_spec or draft_kind == "none",
                draftings=_draftings(draft_kind, no_spec, draft_len, draft_tree, draft_tiers, draft_static),
                draft_on_host=draft_on_host,
                profile=profile,
                context_tokens=ctx_size,
                prompt_tokens=len(tokens),
                max_tokens=max_tokens,
                dtype=dtype,
                link=link,
                num_slots=slots,
                limits=Limits(
                    device=device_memory, target=target_memory, draft=draft_memory, host=host_memory, headroom=headroom
                ),
                is_sampled=temperature > 0,
                is_quiet=quiet,
                corpus_tokens=num_corpus_tokens(corpus_texts(target, ngram_corpus or ())),
            )
        )
    else:
        settled = Plan.read(plan)
        tokens = prompt_tokens(settled.target.name, text, is_chat=chat, system=system)
    check_prompt_fits(len(tokens), settled.context_tokens)
    if ngram_corpus and settled.draft.kind not in ("ngram", "hybrid"):
        sys.stderr.write(
            f"--ngram-corpus is not used: the plan drafts with kind {settled.draft.kind} "
            "(--draft-kind hybrid or ngram copies from it)\n"
        )
    elif left_out_bytes := num_bytes_left_out(ngram_corpus or ()):
        sys.stderr.write(
            f"--ngram-corpus: the oldest {format_bytes(left_out_bytes)} are left out, beyond "
            f"{format_bytes(MOST_CORPUS_BYTES)} of the latest\n"
        )
    tracer = None if trace is None and html is None else Trace()
    with load(plan=settled, trace=tracer, ngram_corpus=ngram_corpus or (), draft_may_fail=draft_may_fail) as engine:
        generation = engine.generate(tokens, max_tokens=max_tokens, sampling=sampling, stop=stop or (), verify=verify)
        with ending_in_order():
            try:
                with shown_status(generation.progress, is_wanted=not (quiet or no_status)) as write:
                    _write_tokens(generation, write, is_shown=not as_json)
            finally:
                report = generation.report()
                if as_json:
                    sys.stdout.write(report.to_json())
                if not quiet:
                    show_statistics(report)
                if tracer is not None and trace is not None:
                    tracer.write(trace, f"runtime generate, {report.link_label}")
                if tracer is not None and html is not None:
                    write_run_page(html, report, text, tracer.spans())
    if report.verify is not None and not report.verify.passed:
        raise SelfCheckError(
            "the text is not what the target writes",
            why=f"{report.verify.num_checked_tokens - report.verify.num_agreeing_tokens} of "
            f"{report.verify.num_checked_tokens} tokens differ, by more than this machine's rounding explains",
            remedy="report this as a bug, with the model, the plan and the prompt",
        )


def _draftings(
    kind: str | None, no_spec: bool, draft_len: int | None, num_nodes: int | None, tiers: str | None, is_static: bool
) -> "tuple[Drafting, ...] | None":
    """What the planner may choose among; None where nothing was stated."""
    from planner.drafting import draftings_for

    sizes = (draft_len, num_nodes, tiers)
    if kind in (None, "auto") and all(size is None for size in sizes) and not is_static:
        return None
    return draftings_for(
        kind, no_spec=no_spec, draft_len=draft_len, num_nodes=num_nodes, tiers=tiers, is_static=is_static
    )


def _models(target: str | None, draft: str | None) -> tuple[str, str | None]:
    """Target and draft as named; the demo pair where no target is."""
    if target is not None:
        return target, draft
    from profiles import demo_folder

    return str(demo_folder("target")), draft or str(demo_folder("draft"))


def _refuse_beside_plan(options: list[str]) -> None:
    if options:
        raise UsageError(
            "--plan decides the models, the memory and the link",
            why=f"{', '.join(options)} would decide them too",
            remedy="leave that out, or plan again with it",
        )


def _check_is_text(name: str, text: str) -> None:
    """Raises: BadInputError, where the shell passed bytes that are no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInputError(f"{name} is not UTF-8 text", why=str(error), remedy="write it in UTF-8") from error


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from the argument, the file or stdin; exactly one of them."""
    if prompt is not None and file is not None:
        raise UsageError("two prompts", why="an argument and --file were given", remedy="give one of them")
    if file is not None:
        try:
            return file.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(
                f"cannot read the prompt file {file}", why=str(error), remedy="name a text file in UTF-8"
            ) from error
    if prompt is not None and prompt != "-":
        return prompt
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        raise UsageError("no prompt", why="neither text nor --file was given", remedy='runtime generate "some text"')
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError("cannot read the prompt from stdin", why=str(error), remedy="pipe text in UTF-8") from error


def _set_threads(num_threads: int) -> None:
    import torch

    torch.set_num_threads(num_threads)


def _write_tokens(generation: "Generation", write: "Callable[[str], None]", *, is_shown: bool) -> None:
    """Write the text as it becomes final; to a terminal without control characters."""
    from runtime.tokenizer import printable

    is_terminal = sys.stdout.isatty()
    for token in generation:
        if is_shown and token.text:
            write(printable(token.text) if is_terminal else token.text)
    if is_shown:
        write("\n")
