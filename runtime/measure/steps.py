"""The steps of a profile, and the models that they share: opened when first needed, closed at the end."""

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch

from planner.contracts.model_folder import ModelFolder
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import CudaLink, DiskLink, Dtype, LinkChoice
from planner.contracts.profile import Processor
from runtime.api import load, make_plan
from runtime.cached import CachedModel
from runtime.engine import Engine
from runtime.host import free_device_bytes, free_host_bytes
from runtime.link import HostRange, page_aligned
from runtime.link.choice import choose_link
from runtime.measure.acceptance import RecordingLimits, record
from runtime.measure.compute import (
    BASE_CONTEXT_TOKENS,
    COARSE_TOKEN_COUNTS,
    FULL_EFFORT,
    PREFILL_TOKENS,
    QUICK_EFFORT,
    QUICK_TOKEN_COUNTS,
    TOKEN_COUNTS,
    Effort,
    PassTimer,
    compute_table,
    edge_rows,
    measure_passes,
)
from runtime.measure.journal import Findings
from runtime.measure.links import (
    FULL_COPIES,
    QUICK_COPIES,
    CopyEffort,
    CudaPath,
    measure_cuda,
    measure_disk,
    measure_host_memory,
    region_sizes,
)
from runtime.measure.memory import measure_memory
from runtime.measure.prompts import Prompt, round_robin
from runtime.measure.rounds import Draft, measure_catch_up, measure_rounds, open_draft
from runtime.measure.session import Step
from runtime.measure.spans import clock_of
from runtime.measure.twin import Twin, open_twin, truncate

_CPU = torch.device("cpu")
_SENTINEL_S = 0.3
_SENTINEL_LEAST = 9
_TEMPLATE_TOKENS = 128  # of a chat template around a prompt
_ENGINE_DRAFT_LEN = 4
_MOST_PROMPTS, _QUICK_PROMPTS = 12, 3  # of each domain


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured, and how thoroughly."""

    target_name: str
    target: ModelFolder
    target_shape: ModelShape
    draft_names: tuple[str, ...]
    drafts: tuple[ModelFolder, ...]
    draft_shapes: tuple[ModelShape, ...]
    dtype: Dtype
    device: torch.device
    links: tuple[str, ...]
    context_tokens: int
    prompts: tuple[Prompt, ...]
    prompt_tokens: int
    new_tokens: int
    keeps_text: bool
    is_quick: bool
    stop_at_s: float

    @property
    def effort(self) -> Effort:
        """How often passes are repeated."""
        return QUICK_EFFORT if self.is_quick else FULL_EFFORT

    @property
    def copies(self) -> CopyEffort:
        """How often copies are repeated."""
        return QUICK_COPIES if self.is_quick else FULL_COPIES

    @property
    def num_rounds(self) -> int:
        """Rounds of each draft length."""
        return 6 if self.is_quick else 12

    @property
    def own_link(self) -> LinkChoice:
        """The link that this machine has."""
        return CudaLink() if self.device.type == "cuda" else DiskLink()

    @property
    def streamed_links(self) -> dict[str, LinkChoice]:
        """The links over which the twin streams, by name: the machine's own, and those asked for."""
        links: dict[str, LinkChoice] = {"own link": self.own_link}
        for text in self.links:
            link = choose_link(text, 0)
            if link not in links.values():
                links[text] = link
        return links

    @property
    def base_context_tokens(self) -> int:
        """The context after which all token counts are measured."""
        return min(BASE_CONTEXT_TOKENS, self.context_tokens // 4)

    @property
    def round_contexts(self) -> tuple[int, ...]:
        """The contexts after which rounds with drafts are measured."""
        base, far = self.base_context_tokens, self.context_tokens * 3 // 4
        return (base, far) if far >= 4 * base else (base,)

    @property
    def far_contexts(self) -> tuple[int, ...]:
        """Longer contexts, at which a few token counts say how attention grows."""
        longest = self.context_tokens - max(COARSE_TOKEN_COUNTS)
        contexts = (longest,) if self.is_quick else (self.context_tokens // 2, longest)
        return tuple(context for context in contexts if context > 2 * self.base_context_tokens)

    def token_counts(self, context_tokens: int) -> tuple[int, ...]:
        """The counts measured after a context, as far as the whole context goes."""
        if context_tokens == self.base_context_tokens:
            counts: tuple[int, ...] = QUICK_TOKEN_COUNTS if self.is_quick else TOKEN_COUNTS
        else:
            counts = COARSE_TOKEN_COUNTS if self.is_quick else (*COARSE_TOKEN_COUNTS, PREFILL_TOKENS)
        return tuple(count for count in counts if context_tokens + count <= self.context_tokens)


class Bench:
    """The models under measurement."""

    def __init__(self, subject: Subject, found: Mapping[str, Findings]) -> None:
        self.subject = subject
        self._found = found  # of the steps taken so far
        free_bytes = min(free_device_bytes(subject.device), free_host_bytes())
        self.truncation = truncate(subject.target, subject.target_shape, subject.dtype, free_bytes)
        self._opened = ExitStack()
        self._timers: dict[tuple[LinkChoice | None, str], PassTimer] = {}
        self._drafts: dict[str, Draft] = {}
        self._engine: Engine | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def timer(self, link: LinkChoice | None, device: torch.device | None = None) -> PassTimer:
        """The passes of the twin over a link, or of the resident one."""
        device = device or self.subject.device
        key = (link, str(device))
        if key not in self._timers:
            twin = open_twin(self.truncation, link, self.subject.context_tokens, device)
            self._timers[key] = PassTimer(self._opened.enter_context(twin), clock_of(device))
        return self._timers[key]

    def twin(self, link: LinkChoice | None, device: torch.device | None = None) -> Twin:
        """The twin over a link, or the resident one."""
        return self.timer(link, device).twin

    def computing(self, is_loaded: bool) -> Twin | None:
        """What computes on the CPU while copies are measured under load."""
        return self.twin(None, _CPU) if is_loaded else None

    def draft(self, index: int) -> Draft:
        """A draft, resident."""
        fingerprint = self.subject.draft_shapes[index].fingerprint
        if fingerprint not in self._drafts:
            plan = self.twin(None).streamed.plan
            draft = open_draft(self.subject.drafts[index], fingerprint, plan, self.subject.dtype)
            self._drafts[fingerprint] = self._opened.enter_context(draft)
        return self._drafts[fingerprint]

    def engine(self) -> Engine:
        """The whole target as this machine runs it, with the first draft if there is one."""
        if self._engine is None:
            subject = self.subject
            most_tokens = subject.target_shape.max_context_tokens
            plan = make_plan(
                subject.target_name,
                draft=subject.draft_names[0] if subject.draft_names else None,
                context_tokens=min(most_tokens, subject.prompt_tokens + _TEMPLATE_TOKENS + subject.new_tokens),
                draft_len=_ENGINE_DRAFT_LEN,
                dtype=subject.dtype,
            )
            self._engine = self._opened.enter_context(load(plan=plan))
        return self._engine

    def resident_rest_s(self, context_tokens: int) -> dict[int, float]:
        """What resident passes were found to take beside their units, by number of tokens."""
        rows = [row for entry in self._found.values() for row in entry.compute]
        return {
            row.num_tokens: row.duration_s.median
            for row in rows
            if row.unit == "pass" and row.processor == "device" and row.context_tokens == context_tokens
        }

    def sentinel(self) -> tuple[float, ...]:
        """Median seconds of a pass over one token and of a copy within memory."""
        timer = self.timer(None)
        timer.fill(self.subject.base_context_tokens)
        source, slot = (page_aligned(self.truncation.slot_bytes).fill_(1) for _ in range(2))
        passes_s: list[float] = []
        copies_s: list[float] = []
        stop_s = time.perf_counter() + _SENTINEL_S
        while time.perf_counter() < stop_s or len(passes_s) < _SENTINEL_LEAST:
            passes_s.append(timer.run(1).total_s)
            started_s = time.perf_counter()
            HostRange(source).read_into(slot)
            copies_s.append(time.perf_counter() - started_s)
        return statistics.median(passes_s), statistics.median(copies_s)


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
    modes: tuple[Literal["cached", "direct"], ...] = ("cached", "direct")
    paths: tuple[CudaPath, ...] = ("cuda", "cuda:pageable", "cuda:device_to_host")
    for is_loaded in (False, True):
        suffix = ", loaded" if is_loaded else ""
        yield Step(group="links", name=f"host memory{suffix}", run=partial(_host_memory, bench, is_loaded))
        for mode in modes:
            yield Step(group="links", name=f"disk {mode}{suffix}", run=partial(_disk, bench, mode, is_loaded))
        for path in paths if bench.subject.device.type == "cuda" else ():
            yield Step(group="links", name=f"{path}{suffix}", run=partial(_cuda, bench, path, is_loaded))


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
    if subject.device.type != "cpu":
        few = tuple(count for count in COARSE_TOKEN_COUNTS if count in counts)
        yield Step(group="compute", name="on the CPU", run=partial(_table, bench, None, _CPU, base, few, True))


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
    base, *far = subject.round_contexts
    conditions: list[tuple[str, LinkChoice | None, int]] = [("resident", None, base)]
    conditions += [(f"streamed over {name}", link, base) for name, link in subject.streamed_links.items()]
    conditions += [("resident", None, context) for context in far]
    for index, name in enumerate(subject.draft_names):
        for where, link, context in conditions:
            run = partial(_rounds, bench, index, link, context)
            yield Step(group="rounds", name=f"{name}, {where} after {context} tokens", run=run)
        yield Step(group="rounds", name=f"{name}, reading a prompt", run=partial(_catch_up, bench, index))


def _rounds(bench: Bench, index: int, link: LinkChoice | None, context_tokens: int) -> Findings:
    subject = bench.subject
    tables = measure_rounds(
        bench.twin(link),
        bench.draft(index),
        context_tokens,
        subject.num_rounds,
        has_rounds=context_tokens == subject.base_context_tokens,
    )
    return Findings(draft_passes=tuple(tables.draft_passes), compute=tuple(tables.rounds))


def _catch_up(bench: Bench, index: int) -> Findings:
    rows = measure_catch_up(bench.draft(index), bench.subject.base_context_tokens, bench.subject.num_rounds // 3)
    return Findings(draft_passes=tuple(rows))


def _memory_steps(bench: Bench) -> Iterator[Step]:
    if not bench.subject.is_quick:
        yield Step(group="memory", name="overheads", run=partial(_memory, bench.subject))


def _memory(subject: Subject) -> Findings:
    draft = subject.draft_names[0] if subject.draft_names else None
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
