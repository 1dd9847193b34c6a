"""The steps of a profile: which measurements there are for a target, its drafts and this machine."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch

from planner.contracts.plan import LinkChoice
from planner.contracts.profile import Processor
from runtime.cached import CachedModel
from runtime.measure.acceptance import RecordingLimits, record
from runtime.measure.bench import CPU, Bench, Subject
from runtime.measure.compute import compute_table, edge_rows, measure_passes
from runtime.measure.journal import Findings
from runtime.measure.links import CUDA_PATHS, CudaPath, measure_cuda, measure_disk, measure_host_memory, region_sizes
from runtime.measure.memory import measure_memory
from runtime.measure.ngrams import measure_ngrams
from runtime.measure.prompts import Prompt, round_robin
from runtime.measure.rounds import measure_catch_up, measure_rounds
from runtime.measure.session import Step

_MOST_PROMPTS, _QUICK_PROMPTS = 24, 3  # of each domain


def all_steps(bench: Bench) -> list[Step]:
    """Every step of a profile, in the order in which they are taken."""
    return [
        *_link_steps(bench),
        *_compute_steps(bench),
        *_round_steps(bench),
        *_memory_steps(bench),
        *_acceptance_steps(bench),
    ]


def _link_steps(bench: Bench) -> Iterator[Step]:
    """The links that plans need first, so that a deadline leaves them."""
    modes: tuple[Literal["cached", "direct"], ...] = ("cached", "direct")
    for is_loaded in (False, True):
        suffix = ", loaded" if is_loaded else ""
        for path in CUDA_PATHS if bench.subject.device.type == "cuda" else ():
            yield Step(group="links", name=f"{path}{suffix}", run=partial(_cuda, bench, path, is_loaded))
        for mode in modes:
            yield Step(group="links", name=f"disk {mode}{suffix}", run=partial(_disk, bench, mode, is_loaded))
        yield Step(group="links", name=f"host memory{suffix}", run=partial(_host_memory, bench, is_loaded))


def _host_memory(bench: Bench, is_loaded: bool) -> Findings:
    return Findings(links=tuple(measure_host_memory(bench.subject.copies, bench.computing(is_loaded))))


def _disk(bench: Bench, mode: Literal["cached", "direct"], is_loaded: bool) -> Findings:
    rows = measure_disk(bench.truncation, mode, bench.subject.copies, bench.computing(is_loaded))
    return Findings(links=tuple(rows))


def _cuda(bench: Bench, path: CudaPath, is_loaded: bool) -> Findings:
    subject, sizes = bench.subject, region_sizes(bench.truncation)
    return Findings(links=tuple(measure_cuda(subject.device, path, sizes, subject.copies, bench.computing(is_loaded))))


def _compute_steps(bench: Bench) -> Iterator[Step]:
    subject = bench.subject
    can_roll_back = bench.twin(None).cached.can_roll_back
    base = subject.base_context_tokens if can_roll_back else 0
    counts = subject.token_counts(subject.base_context_tokens)
    for context in (base, *(subject.far_contexts if can_roll_back else ())):
        here = counts if context == base else subject.token_counts(context)
        run = partial(_table, bench, None, subject.device, context, here, context == base)
        yield Step(group="compute", name=f"resident after {context} tokens", run=run)
    for name, link in subject.streamed_links.items():
        run = partial(_table, bench, link, subject.device, base, counts, True)
        yield Step(group="compute", name=f"streamed over {name}", run=run)
    for context in (base, *(subject.far_contexts if can_roll_back else ())) if subject.has_host_beside else ():
        few = subject.host_token_counts(context)
        run = partial(_table, bench, None, CPU, context, few, context == base)
        yield Step(group="compute", name=f"on the CPU after {context} tokens", run=run)


def _table(
    bench: Bench,
    link: LinkChoice | None,
    device: torch.device,
    context_tokens: int,
    token_counts: tuple[int, ...],
    has_head: bool,
) -> Findings:
    timer = bench.timer(link, device)
    samples = measure_passes(timer, context_tokens, token_counts, bench.subject.effort)
    processor: Processor = "device" if device == bench.subject.device else "host"
    rows = compute_table(timer.twin, samples, context_tokens, has_head=has_head, processor=processor)
    if link is not None:
        rows += edge_rows(timer.twin, samples, context_tokens, bench.resident_rest_s(context_tokens))
    return Findings(compute=tuple(rows))


def _round_steps(bench: Bench) -> Iterator[Step]:
    subject = bench.subject
    base = subject.base_context_tokens
    plain = partial(_rounds, bench, None, None, base)
    yield Step(group="rounds", name=f"plain after {base} tokens", run=plain)
    if bench.twin(None).cached.why_no_trees is None:
        yield Step(group="rounds", name="n-grams", run=partial(_ngrams, bench))
    for index in range(len(subject.draft_names)):
        yield from _draft_steps(bench, index, "device")
        if subject.has_host_beside:
            yield from _draft_steps(bench, index, "host")


def _draft_steps(bench: Bench, index: int, processor: Processor) -> Iterator[Step]:
    """Rounds with a draft on the device, or on the host, which hardly notices over which link copies pass it by."""
    subject = bench.subject
    base, *far = subject.round_contexts
    beside = [(f"streamed over {name}", link, base) for name, link in subject.streamed_links.items()]
    conditions: list[tuple[str, LinkChoice | None, int]] = [("resident", None, base)]
    conditions += beside if processor == "device" else beside[:1]
    conditions += [("resident", None, context) for context in far]
    name = subject.draft_names[index] + (" on the CPU" if processor == "host" else "")
    for where, link, context in conditions:
        run = partial(_rounds, bench, index, link, context, processor)
        yield Step(group="rounds", name=f"{name}, {where} after {context} tokens", run=run)
    yield Step(group="rounds", name=f"{name}, reading a prompt", run=partial(_catch_up, bench, index, processor))


def _rounds(
    bench: Bench, index: int | None, link: LinkChoice | None, context_tokens: int, processor: Processor = "device"
) -> Findings:
    subject = bench.subject
    tables = measure_rounds(
        bench.twin(link),
        None if index is None else bench.draft(index, processor),
        bench.tokenizer,
        context_tokens,
        subject.num_rounds,
        has_rounds=context_tokens == subject.base_context_tokens and processor == "device",
    )
    return Findings(draft_passes=tuple(tables.draft_passes), compute=tuple(tables.rounds))


def _ngrams(bench: Bench) -> Findings:
    subject = bench.subject
    return Findings(compute=tuple(measure_ngrams(subject.target_shape.vocab_size, subject.num_rounds)))


def _catch_up(bench: Bench, index: int, processor: Processor) -> Findings:
    subject, draft = bench.subject, bench.draft(index, processor)
    rows = measure_catch_up(draft, subject.base_context_tokens, subject.num_rounds // 3)
    return Findings(draft_passes=tuple(rows))


def _memory_steps(bench: Bench) -> Iterator[Step]:
    if not bench.subject.is_quick:
        yield Step(group="memory", name="overheads", run=partial(_memory, bench.subject))


def _memory(subject: Subject) -> Findings:
    drafts = zip(subject.draft_names, subject.draft_shapes, strict=True)
    draft, _ = max(drafts, key=lambda draft: draft[1].weights_bytes(subject.dtype), default=(None, None))
    most_tokens = subject.target_shape.max_context_tokens
    return Findings(
        memory=tuple(measure_memory(subject.target_name, draft, subject.dtype, subject.own_link, most_tokens))
    )


def _acceptance_steps(bench: Bench) -> Iterator[Step]:
    subject = bench.subject
    most_per_domain = _QUICK_PROMPTS if subject.is_quick else _MOST_PROMPTS
    for index, prompt in enumerate(round_robin(subject.prompts, most_per_domain)):
        yield Step(group="acceptance", name=f"{prompt.domain} {index}", run=partial(_recorded, bench, prompt))


def _recorded(bench: Bench, prompt: Prompt) -> Findings:
    subject = bench.subject
    limits = RecordingLimits(
        prompt_tokens=subject.prompt_tokens,
        new_tokens=subject.new_tokens,
        stop_at_s=subject.stop_at_s,
        keeps_text=subject.keeps_text,
    )
    drafts: list[tuple[str, CachedModel]] = [
        (shape.fingerprint, bench.draft(index).cached) for index, shape in enumerate(subject.draft_shapes)
    ]
    return Findings(acceptance=tuple(record(bench.engine(), drafts, prompt, limits)))
