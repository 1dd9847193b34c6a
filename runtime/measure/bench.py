"""What is measured, and the models under measurement: opened when first needed, closed together at the end."""

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import torch

from planner.contracts.model_folder import ModelFolder
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import CudaLink, DiskLink, Dtype, LinkChoice
from planner.contracts.profile import Processor
from runtime.api import load, make_plan
from runtime.engine import Engine
from runtime.host import free_device_bytes, free_host_bytes
from runtime.link import HostRange, page_aligned
from runtime.link.choice import choose_link
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
)
from runtime.measure.journal import Findings
from runtime.measure.links import FULL_COPIES, QUICK_COPIES, CopyEffort
from runtime.measure.prompts import Prompt
from runtime.measure.rounds import Draft, open_draft
from runtime.measure.spans import clock_of
from runtime.measure.twin import Twin, open_twin, truncate
from runtime.tokenizer import load_tokenizer

CPU = torch.device("cpu")
_SENTINEL_S = 0.3
_SENTINEL_LEAST = 9
_SENTINEL_COPY_BYTES = 16 * 2**20
_TEMPLATE_TOKENS = 128  # of a chat template around a prompt
_ENGINE_DRAFT_LEN = 4


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
        contexts = (self.context_tokens // 2, *(() if self.is_quick else (longest,)))
        return tuple(context for context in contexts if context > 2 * self.base_context_tokens)

    @property
    def has_host_beside(self) -> bool:
        """Whether the CPU is another processor than the device, so that it could compute or draft beside it."""
        return self.device.type != "cpu"

    def token_counts(self, context_tokens: int) -> tuple[int, ...]:
        """The counts measured after a context, as far as the whole context goes."""
        if context_tokens == self.base_context_tokens:
            counts: tuple[int, ...] = QUICK_TOKEN_COUNTS if self.is_quick else TOKEN_COUNTS
        else:
            counts = COARSE_TOKEN_COUNTS if self.is_quick else (*COARSE_TOKEN_COUNTS, PREFILL_TOKENS)
        return tuple(count for count in counts if context_tokens + count <= self.context_tokens)

    def host_token_counts(self, context_tokens: int) -> tuple[int, ...]:
        """The counts measured on the CPU beside the device: fewer, as it is slow, but at the same contexts."""
        is_base = context_tokens == self.base_context_tokens
        counts = QUICK_TOKEN_COUNTS if is_base and not self.is_quick else COARSE_TOKEN_COUNTS
        return tuple(count for count in counts if count in self.token_counts(context_tokens))


class Bench:
    """The models under measurement."""

    def __init__(self, subject: Subject, found: Mapping[str, Findings]) -> None:
        self.subject = subject
        self._found = found  # of the steps taken so far
        free_bytes = min(free_device_bytes(subject.device), free_host_bytes())
        self.truncation = truncate(subject.target, subject.target_shape, subject.dtype, free_bytes)
        self.tokenizer = load_tokenizer(subject.target.path)
        self._opened = ExitStack()
        self._timers: dict[tuple[LinkChoice | None, str], PassTimer] = {}
        self._drafts: dict[tuple[str, Processor], Draft] = {}
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
        return self.twin(None, CPU) if is_loaded else None

    def draft(self, index: int, processor: Processor = "device") -> Draft:
        """A draft, resident on the device or on the host beside it."""
        key = (self.subject.draft_shapes[index].fingerprint, processor)
        if key not in self._drafts:
            plan = self.twin(None).streamed.plan
            draft = open_draft(self.subject.drafts[index], key[0], plan, self.subject.dtype, processor)
            self._drafts[key] = self._opened.enter_context(draft)
        return self._drafts[key]

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
        source, slot = (page_aligned(_SENTINEL_COPY_BYTES).fill_(1) for _ in range(2))
        passes_s: list[float] = []
        copies_s: list[float] = []
        stop_s = time.perf_counter() + _SENTINEL_S
        while time.perf_counter() < stop_s or len(passes_s) < _SENTINEL_LEAST:
            passes_s.append(timer.run(1).total_s)
            started_s = time.perf_counter()
            HostRange(source).read_into(slot)
            copies_s.append(time.perf_counter() - started_s)
        return statistics.median(passes_s), statistics.median(copies_s)
