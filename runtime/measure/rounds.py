"""Live rounds of the truncated twin with a draft: what each pass of the draft takes, and what a round takes beside.

The loop, the drafter and the verification are the runtime's own. The twin's logits are bent so that acceptance follows
a script, from none to all, as the first pass of a draft feeds two tokens after all were accepted and else one.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from planner.contracts.model_folder import ModelFolder
from planner.contracts.plan import ChainDraft, Device, DiskLink, Dtype, NoDraft, Plan, TreeDraft
from planner.contracts.profile import ComputeMeasurement, DraftMeasurement, Processor
from runtime.cached import CachedModel
from runtime.checkpoint import Checkpoint
from runtime.clock import RoundClock
from runtime.decode import Sampling, decode_rounds
from runtime.draft import ChainDrafter, Drafter
from runtime.draft.tree import TreeDrafter
from runtime.measure.spread import spread
from runtime.measure.twin import Twin
from runtime.model import StreamedModel, all_resident
from runtime.proposal import Proposal, Verdict
from runtime.sampling import SamplingSettings
from runtime.skeleton import build_skeleton
from runtime.tokenizer import TextStream

DRAFT_LENS = (1, 2, 4, 8)
TREE_SIZES = ((8, 4), (32, 8), (128, 8))  # nodes, depth
CATCH_UP_TOKENS = (4, 16, 64, 256, 512)

_CHUNK_TOKENS = 512
_NUM_WARM_ROUNDS = 2
Size = NoDraft | ChainDraft | TreeDraft
_RoundUnit = Literal["round", "tree_round"]

_LAST_POSITION = 4  # of a pass in its proposal that is told apart; later ones are like it
_MOST_FIRST_TOKENS = 2  # that the first pass of a proposal feeds: the last drafted token, if accepted, and the bonus


@dataclass(frozen=True, slots=True, order=True)
class DraftPass:
    """One pass of a draft: which kind of pass it was, and the tokens it fed."""

    is_tree_level: bool
    num_tokens: int
    position: int = 0  # in its proposal, from 1; 0: not told apart


class _RoundSize(NamedTuple):
    """What a round verifies: of a chain, or of a tree."""

    unit: _RoundUnit
    num_verified: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An open draft, all resident: where the twin computes, or on the host beside it."""

    fingerprint: str
    processor: Processor
    cached: "TimedModel"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTables:
    """What live rounds gave."""

    draft_passes: list[DraftMeasurement]
    rounds: list[ComputeMeasurement]


class TimedModel(CachedModel):
    """A draft that notes when each of its passes begins, and over how many tokens."""

    def __init__(self, streamed: StreamedModel, context_tokens: int, most_nodes: int) -> None:
        super().__init__(streamed, context_tokens, most_nodes)
        self.begun: list[tuple[DraftPass, float]] = []

    def forward(self, tokens: Sequence[int], num_rows: int) -> Tensor:
        """One pass, noted."""
        self.begun.append((DraftPass(is_tree_level=False, num_tokens=len(tokens)), time.perf_counter()))
        return super().forward(tokens, num_rows)

    def forward_tree(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """One pass over a tree's level, noted."""
        self.begun.append((DraftPass(is_tree_level=True, num_tokens=len(tokens)), time.perf_counter()))
        return super().forward_tree(tokens, parents)


class ScriptedModel(CachedModel):
    """A twin whose logits accept as much of a chain, or of a tree's first path, as a script says: none, all, half."""

    def __init__(self, streamed: StreamedModel, context_tokens: int, most_nodes: int) -> None:
        super().__init__(streamed, context_tokens, most_nodes)
        self._shares = itertools.cycle((0.0, 1.0, 0.5))

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], num_rows: int) -> Tensor:
        """One pass; a pass for verification comes back with the logits of the script."""
        logits_RV = super().forward(tokens, num_rows)
        if num_rows > 1:
            self._bend(logits_RV, tokens, range(num_rows))
        return logits_RV

    @torch.inference_mode()
    def forward_tree(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """One pass over a tree; it comes back with the logits of the script."""
        logits_TV = super().forward_tree(tokens, parents)
        first_path = [0]
        for node, parent in enumerate(parents):
            if parent == first_path[-1]:
                first_path.append(node)
        self._bend(logits_TV, tokens, first_path)
        return logits_TV

    def _bend(self, logits_TV: Tensor, tokens: Sequence[int], path: Sequence[int]) -> None:
        """Let the rows of a path, whose first is that of the context's last token, accept as the script says."""
        num_accepted = round(next(self._shares) * (len(path) - 1))
        largest = float(logits_TV.amax())
        for depth, (row, node) in enumerate(itertools.pairwise(path)):
            logits_TV[row, tokens[node]] = largest + 1 if depth < num_accepted else -abs(largest) - 1


class TimedDrafter:
    """A drafter whose passes are timed one by one: each from its start to the start of the next, its pick included."""

    def __init__(self, drafter: Drafter, model: TimedModel) -> None:
        self._drafter = drafter
        self._model = model
        self.passes_s: list[list[tuple[DraftPass, float]]] = []  # of each proposal

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        """The drafter's own proposal."""
        self._model.begun = []
        started_s = time.perf_counter()
        proposal = self._drafter.propose(context, max_depth)
        stopped_s = time.perf_counter()
        fed = [
            made if made.is_tree_level else replace(made, position=min(position, _LAST_POSITION))
            for position, (made, _) in enumerate(self._model.begun, start=1)
        ]
        edges_s = [started_s, *(begun_s for _, begun_s in self._model.begun[1:]), stopped_s]
        self.passes_s.append([(made, b - a) for made, (a, b) in zip(fed, itertools.pairwise(edges_s), strict=True)])
        return proposal

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        """What became of the proposal."""
        self._drafter.observe(proposal, verdict)


@contextmanager
def open_draft(
    folder: ModelFolder, fingerprint: str, plan: Plan, dtype: Dtype, processor: Processor = "device"
) -> Iterator[Draft]:
    """A draft as the runtime opens it beside a plan's target: resident, its context no longer than its own."""
    if processor == "host":
        plan = plan.model_copy(update={"devices": (Device(name="cpu", budget_bytes=1),), "link": DiskLink()})
    skeleton = build_skeleton(folder, dtype)
    checkpoint = Checkpoint(folder, skeleton.model)
    try:
        streamed = StreamedModel(skeleton, checkpoint, all_resident(plan, skeleton))
    except BaseException:
        checkpoint.close()
        raise
    with streamed:
        context_tokens = min(plan.context_tokens, int(skeleton.model.config.max_position_embeddings))
        cached = TimedModel(streamed, context_tokens, _most_nodes(streamed))
        yield Draft(fingerprint=fingerprint, processor=processor, cached=cached)


def measure_rounds(
    twin: Twin,
    draft: Draft | None,
    tokenizer: PreTrainedTokenizerBase,
    context_tokens: int,
    num_rounds: int,
    *,
    has_rounds: bool,
) -> RoundTables:
    """Passes of the draft after a context, and with `has_rounds` what rounds take beside, by verified tokens.

    Without a draft, plain rounds of one token.
    """
    target = ScriptedModel(twin.streamed, twin.cached.context_tokens, _most_nodes(twin.streamed))
    live = _LiveTwin(target, draft, tokenizer)
    longest = twin.cached.context_tokens if draft is None else draft.cached.context_tokens
    passes_s: dict[DraftPass, list[float]] = defaultdict(list)
    beside_s: dict[_RoundSize, list[float]] = defaultdict(list)
    before, started_s = twin.streamed.times(), time.perf_counter()
    for size in (NoDraft(),) if draft is None else _sizes(live):
        if context_tokens + _longest_run(size, num_rounds) > longest:
            continue
        for proposal in _run(live, context_tokens, size, num_rounds, beside_s):
            for made, duration_s in proposal:
                passes_s[made].append(duration_s)
                if made.position > 1:
                    passes_s[replace(made, position=0)].append(duration_s)
    copied_bytes = twin.streamed.times().copied_bytes - before.copied_bytes
    load = 0.0 if twin.link is None else copied_bytes / (time.perf_counter() - started_s)
    draft_passes = [
        _draft_row(draft, made, context_tokens, taken, load, twin.link_text)
        for made, taken in sorted(passes_s.items())
        if draft is not None
    ]
    rounds = [
        ComputeMeasurement(
            unit=size.unit,
            load_bytes_per_s=load,
            load_link=twin.link_text,
            num_tokens=size.num_verified,
            context_tokens=context_tokens,
            duration_s=spread(taken),
        )
        for size, taken in sorted(beside_s.items())
        if has_rounds
    ]
    return RoundTables(draft_passes=draft_passes, rounds=rounds)


def measure_catch_up(draft: Draft, context_tokens: int, repetitions: int) -> list[DraftMeasurement]:
    """Passes over many tokens, as a draft makes when it reads a prompt."""
    model = draft.cached
    counts = [count for count in CATCH_UP_TOKENS if context_tokens + count <= model.context_tokens]
    durations_s: dict[int, list[float]] = {count: [] for count in counts}
    model.reset()
    _feed(model, context_tokens)
    for repetition in range(repetitions + 1):
        for count in counts:
            started_s = time.perf_counter()
            int(model.forward([1] * count, 1)[0].argmax())
            if repetition:
                durations_s[count].append(time.perf_counter() - started_s)
            model.drop(count)
    return [
        _draft_row(draft, DraftPass(is_tree_level=False, num_tokens=count), context_tokens, taken, 0.0, None)
        for count, taken in durations_s.items()
    ]


@dataclass(frozen=True, slots=True)
class _LiveTwin:
    """What a run of rounds needs."""

    target: ScriptedModel
    draft: Draft | None
    tokenizer: PreTrainedTokenizerBase

    @property
    def known_tokens(self) -> int:
        """Tokens that both models know."""
        most = self.target.streamed.vocab_size
        return most if self.draft is None else min(most, self.draft.cached.streamed.vocab_size)

    def drafter(self, sampling: Sampling, size: Size) -> TimedDrafter | None:
        """The draft's drafter, from the start of a text."""
        if self.draft is None or isinstance(size, NoDraft):
            return None
        model = self.draft.cached
        model.reset()
        settings, uniforms, vocab_size = sampling.settings, sampling.uniforms, self.target.streamed.vocab_size
        if isinstance(size, ChainDraft):
            chain = ChainDrafter(
                model,
                settings,
                uniforms,
                vocab_size=vocab_size,
                chunk_tokens=_CHUNK_TOKENS,
                draft_len=size.draft_len,
            )
            return TimedDrafter(chain, model)
        tree = TreeDrafter(
            model,
            settings,
            uniforms,
            vocab_size=vocab_size,
            chunk_tokens=_CHUNK_TOKENS,
            num_nodes=size.num_nodes,
            max_depth=size.max_depth,
            pass_nodes=size.pass_nodes,
        )
        return TimedDrafter(tree, model)


def _run(
    live: _LiveTwin, context_tokens: int, size: Size, num_rounds: int, beside_s: dict[_RoundSize, list[float]]
) -> list[list[tuple[DraftPass, float]]]:
    """Rounds of one size of draft: each proposal's passes; and into `beside_s` the rest of each full round.

    Between rounds the tokens become text, as in every run; the loop counts that as the host's time.
    """
    live.target.reset()
    _feed(live.target, context_tokens)
    context = [1] * (context_tokens + 1)
    sampling = Sampling(SamplingSettings())
    drafter = live.drafter(sampling, size)
    text = TextStream(live.tokenizer, context, ())
    rounds = decode_rounds(
        live.target,
        drafter,
        context,
        sampling,
        max_tokens=_longest_run(size, num_rounds),
        clock=RoundClock(),
    )
    for index, entry in enumerate(itertools.islice(rounds, _NUM_WARM_ROUNDS + num_rounds)):
        for token in entry.tokens:
            text.push(token)
        if index >= _NUM_WARM_ROUNDS and entry.num_draft_tokens == _num_nodes(size):
            unit: _RoundUnit = "tree_round" if isinstance(size, TreeDraft) else "round"
            taken_s = entry.compute.host_s + entry.compute.unexplained_s
            beside_s[_RoundSize(unit, entry.num_draft_tokens + 1)].append(taken_s)
        if context[-1] >= live.known_tokens:  # a token that the draft does not know would end its drafting
            context[-1] = 1
    proposals = [] if drafter is None else drafter.passes_s[_NUM_WARM_ROUNDS:]
    return [proposal for proposal in proposals if proposal and proposal[0][0].num_tokens <= _MOST_FIRST_TOKENS]


def _sizes(live: _LiveTwin) -> Iterator[Size]:
    """The drafts that are run: chains, and trees where both models can run over one."""
    assert live.draft is not None
    fingerprint = live.draft.fingerprint
    for draft_len in DRAFT_LENS:
        yield ChainDraft(model="", fingerprint=fingerprint, draft_len=draft_len, dtype="fp32")
    for num_nodes, depth in TREE_SIZES if live.target.most_nodes and live.draft.cached.most_nodes else ():
        yield TreeDraft(
            model="",
            fingerprint=fingerprint,
            num_nodes=num_nodes,
            max_depth=depth,
            pass_nodes=2 * num_nodes // depth,
            dtype="fp32",
        )


def _num_nodes(size: Size) -> int:
    match size:
        case NoDraft():
            return 0
        case ChainDraft():
            return size.draft_len
        case TreeDraft():
            return size.num_nodes


def _most_nodes(streamed: StreamedModel) -> int:
    """Nodes of the largest tree that is measured, its root too; 0 where the model cannot run over a tree."""
    is_able = CachedModel(streamed, 1).why_no_trees is None
    return TREE_SIZES[-1][0] + 1 if is_able else 0


def _longest_run(size: Size, num_rounds: int) -> int:
    """Tokens that so many rounds emit at the most, and then some, so that none is clipped."""
    depth = size.max_depth if isinstance(size, TreeDraft) else _num_nodes(size)
    return (depth + 1) * (_NUM_WARM_ROUNDS + num_rounds + 1)


@torch.inference_mode()
def _feed(model: CachedModel, num_tokens: int) -> None:
    for start in range(0, num_tokens, _CHUNK_TOKENS):
        model.forward([1] * min(_CHUNK_TOKENS, num_tokens - start), 1)


def _draft_row(
    draft: Draft, made: DraftPass, context_tokens: int, durations_s: Sequence[float], load: float, link: str | None
) -> DraftMeasurement:
    return DraftMeasurement(
        fingerprint=draft.fingerprint,
        position=made.position,
        is_tree_level=made.is_tree_level,
        processor=draft.processor,
        load_bytes_per_s=load,
        load_link=link,
        num_tokens=made.num_tokens,
        context_tokens=context_tokens,
        duration_s=spread(durations_s),
    )
