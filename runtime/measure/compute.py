"""Compute time of every class of unit over tokens and context, on passes of the truncated twin as they are deployed.

Resident passes give times without copies beside them; streamed passes the same with the copy lane busy, and what a
unit's hand-over costs. Token counts take turns, so that a drift of the machine meets all alike.
"""

import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from planner.contracts.plan import UnitKind
from planner.contracts.profile import ComputeMeasurement, Processor
from runtime.measure.spans import Clock, Span, SpanKind, SpanRecorder
from runtime.measure.spread import spread
from runtime.measure.twin import Twin

TOKEN_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
QUICK_TOKEN_COUNTS = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 512)
COARSE_TOKEN_COUNTS = (1, 4, 16, 64)
PREFILL_TOKENS = 512
BASE_CONTEXT_TOKENS = 128

_MOST_EDGE_TOKENS = 16  # in longer passes the noise of the compute hides what hand-overs take
_WIDE_TOKENS = 64  # passes of more tokens are long, and repeated less often
_RECORDING_S, _LEAST_RECORDING_PAIRS = 0.3, 6
_MOST_LOGITS_BYTES = 256 * 2**20
_LOGIT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How often each point is repeated: for some seconds, within bounds."""

    seconds_per_point: float
    warm_up_s: float
    least: int
    least_wide: int
    most: int = 15

    def repetitions(self, num_tokens: int, pass_s: float) -> int:
        """Repetitions of a point whose pass takes so long."""
        least = self.least_wide if num_tokens > _WIDE_TOKENS else self.least
        return max(least, min(self.most, int(self.seconds_per_point / pass_s)))


FULL_EFFORT = Effort(seconds_per_point=0.1, warm_up_s=0.5, least=5, least_wide=3)
QUICK_EFFORT = Effort(seconds_per_point=0.04, warm_up_s=0.3, least=3, least_wide=1, most=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSample:
    """One pass: its seconds, those it waited for weights, its units' spans, and what was copied meanwhile."""

    total_s: float
    waiting_s: float
    recording_s: float  # what taking the spans cost
    copied_bytes: int
    spans: tuple[Span, ...]
    chunk_s: float | None  # a slot-sized chunk of a resident head

    @property
    def rest_s(self) -> float:
        """Seconds that belong neither to waiting nor to layers or head."""
        return max(0.0, self.total_s - self.waiting_s - self.recording_s - self.kind_s("layer", "head_chunk"))

    def kind_s(self, *kinds: SpanKind) -> float:
        """Seconds of all spans of some kinds."""
        return sum(span.duration_s for span in self.spans if span.kind in kinds)

    def mean_s(self, kind: SpanKind, indices: Collection[int]) -> float:
        """Mean seconds of some units of a kind."""
        return sum(span.duration_s for span in self.spans if span.kind == kind and span.index in indices) / len(indices)


Samples = dict[int, list[PassSample]]  # by number of tokens


class PassTimer:
    """Runs passes of one twin, again and again after the same context."""

    def __init__(self, twin: Twin, clock: Clock) -> None:
        self.twin = twin
        self._clock = clock
        self._recorder = SpanRecorder(twin.skeleton, clock)
        generator = torch.Generator().manual_seed(0)
        vocab_size = twin.truncation.shape.vocab_size
        self._tokens: list[int] = torch.randint(vocab_size, (twin.cached.context_tokens,), generator=generator).tolist()
        self._context_tokens = 0
        self._recording_s: float | None = None

    def fill(self, context_tokens: int) -> None:
        """Let the passes that follow come after so many tokens."""
        self._context_tokens = context_tokens
        self.twin.cached.reset()
        for start in range(0, context_tokens, PREFILL_TOKENS):
            self.twin.cached.forward(self._tokens[start : min(start + PREFILL_TOKENS, context_tokens)], 1)
        if self._recording_s is None:
            self._recording_s = self._measure_recording()

    def run(self, num_tokens: int) -> PassSample:
        """One pass, after which the tokens are forgotten again. All tokens get a row of logits, as in verification."""
        streamed = self.twin.streamed
        self._clock.restart()
        before = streamed.times()
        with self._recorder.attached():
            total_s = self._pass_s(num_tokens)
        after = streamed.times()
        spans = _without_recording(self._recorder.spans(), self._recording_s or 0.0)
        chunk_s = self._time_chunk(self._num_rows(num_tokens)) if self.twin.link is None else None
        return PassSample(
            total_s=total_s,
            waiting_s=min(after.compute_waiting_s - before.compute_waiting_s, total_s),
            recording_s=self._recording_s or 0.0,
            copied_bytes=after.copied_bytes - before.copied_bytes,
            spans=spans,
            chunk_s=chunk_s,
        )

    def _pass_s(self, num_tokens: int) -> float:
        tokens = self._tokens[self._context_tokens : self._context_tokens + num_tokens]
        start = self._clock.mark()
        self.twin.cached.forward(tokens, self._num_rows(num_tokens))
        total_s = self._clock.seconds(start, self._clock.mark())
        self.twin.rewind_to(self._context_tokens if self.twin.cached.can_roll_back else 0)
        return total_s

    def _measure_recording(self) -> float:
        """Seconds that a recorded pass takes more than a plain one: hooks cost most where code and data are cold."""
        recorded_s: list[float] = []
        plain_s: list[float] = []
        stop_s = time.perf_counter() + _RECORDING_S
        while time.perf_counter() < stop_s or len(plain_s) <= _LEAST_RECORDING_PAIRS:
            recorded = self.run(1)
            recorded_s.append(recorded.total_s - recorded.waiting_s)
            before_s = self.twin.streamed.times().compute_waiting_s
            total_s = self._pass_s(1)
            plain_s.append(total_s - (self.twin.streamed.times().compute_waiting_s - before_s))
        return recording_cost_s(recorded_s[1:], plain_s[1:])

    def _num_rows(self, num_tokens: int) -> int:
        row_bytes = self.twin.truncation.shape.vocab_size * _LOGIT_BYTES
        return num_tokens if num_tokens * row_bytes <= _MOST_LOGITS_BYTES else 1

    @torch.inference_mode()
    def _time_chunk(self, num_rows: int) -> float | None:
        """Seconds of a slot-sized chunk of the resident head; None where the whole head is no larger."""
        head, chunk_rows = self.twin.skeleton.head, self.twin.truncation.chunk_rows
        whole = dict(head._parameters)
        weight = head.get_parameter("weight")
        if chunk_rows >= weight.shape[0]:
            return None
        hidden_BTH = torch.zeros(1, num_rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
        for name, parameter in whole.items():
            if parameter is not None:
                head._parameters[name] = nn.Parameter(parameter[:chunk_rows], requires_grad=False)
        try:
            start = self._clock.mark()
            head.forward(hidden_BTH)
            return self._clock.seconds(start, self._clock.mark())
        finally:
            head._parameters.update(whole)


def recording_cost_s(recorded_s: Sequence[float], plain_s: Sequence[float]) -> float:
    """Seconds that recording adds to a pass, by the faster quarter of both kinds, and no more than half a pass.

    Others' work makes single passes many times as long; taken for the cost of recording, it would leave layers no time.
    """
    fast_recorded_s, fast_s = (sorted(passes_s)[len(passes_s) // 4] for passes_s in (recorded_s, plain_s))
    return min(max(0.0, fast_recorded_s - fast_s), fast_s / 2)


def measure_passes(timer: PassTimer, context_tokens: int, token_counts: Sequence[int], effort: Effort) -> Samples:
    """Passes by token count, all counts in turn."""
    timer.fill(context_tokens)
    pass_s = {}
    for num_tokens in token_counts:  # the first pass of each count makes its kernels
        firsts_s = [timer.run(num_tokens).total_s for _ in range(1 if num_tokens > _WIDE_TOKENS else 2)]
        pass_s[num_tokens] = min(firsts_s)
    stop_s = time.perf_counter() + effort.warm_up_s
    while time.perf_counter() < stop_s:
        timer.run(min(token_counts))
    wanted = {num_tokens: effort.repetitions(num_tokens, pass_s[num_tokens]) for num_tokens in token_counts}
    samples: Samples = {num_tokens: [] for num_tokens in token_counts}
    for repetition in range(max(wanted.values())):
        for num_tokens in token_counts:
            if repetition >= wanted[num_tokens]:
                continue
            if timer.twin.link is not None and num_tokens <= _WIDE_TOKENS:
                timer.run(num_tokens)  # so that the copy lane is as far ahead as passes of this kind leave it
            samples[num_tokens].append(timer.run(num_tokens))
    return samples


def compute_table(
    twin: Twin,
    samples: Samples,
    context_tokens: int,
    *,
    has_head: bool,
    processor: Processor = "device",
) -> list[ComputeMeasurement]:
    """The measurements of one twin's passes: layers by class, and what is not a unit's where all is resident.

    The head does not depend on the context, so that one context's measurements of it are enough.
    """
    rows: list[ComputeMeasurement] = []
    for num_tokens, taken in samples.items():
        point = ComputeMeasurement(
            unit="pass",
            processor=processor,
            load_bytes_per_s=0.0 if twin.link is None else _load_bytes_per_s(taken),
            load_link=twin.link_text,
            num_tokens=num_tokens,
            context_tokens=context_tokens,
            duration_s=spread([entry.rest_s for entry in taken]),
        )
        rows += _layer_rows(twin, taken, point)
        if has_head:
            rows += _head_rows(twin, taken, point)
        if twin.link is None:
            rows.append(point)
    return rows


def edge_rows(
    twin: Twin, samples: Samples, context_tokens: int, resident_rest_s: Mapping[int, float]
) -> list[ComputeMeasurement]:
    """What a streamed pass takes beside its units and what a resident one takes so (by number of tokens).

    Gathering the embedding on the host, and for each streamed unit its hand-over; with these a streamed pass adds up.
    """
    num_streamed = len(twin.streamed.plan.streamed)
    rows, edges_s = [], []
    for num_tokens, taken in samples.items():
        gathering_s = [entry.kind_s("embedding") for entry in taken]
        rows.append(
            ComputeMeasurement(
                unit="embedding",
                processor="host",
                load_bytes_per_s=_load_bytes_per_s(taken),
                load_link=twin.link_text,
                num_tokens=num_tokens,
                context_tokens=context_tokens,
                duration_s=spread(gathering_s),
            )
        )
        if num_tokens <= _MOST_EDGE_TOKENS:
            beside_s = resident_rest_s[num_tokens] + statistics.median(gathering_s)
            edges_s += [max(0.0, entry.rest_s - beside_s) / num_streamed for entry in taken]
    least_tokens = min(samples)
    edge = ComputeMeasurement(
        unit="edge",
        load_bytes_per_s=_load_bytes_per_s(samples[least_tokens]),
        load_link=twin.link_text,
        num_tokens=least_tokens,
        context_tokens=context_tokens,
        duration_s=spread(edges_s),
    )
    return [edge, *rows]


def _load_bytes_per_s(taken: list[PassSample]) -> float:
    """What the copy lane moved meanwhile."""
    return sum(entry.copied_bytes for entry in taken) / sum(entry.total_s for entry in taken)


def _without_recording(spans: tuple[Span, ...], recording_s: float) -> tuple[Span, ...]:
    """The spans; those of layers less what taking the span of the MLP within them cost."""
    split = {span.index for span in spans if span.kind == "mlp"}
    each_s = recording_s / max(len(spans), 1)
    return tuple(
        replace(span, duration_s=max(0.0, span.duration_s - each_s))
        if span.kind == "layer" and span.index in split
        else span
        for span in spans
    )


def _layer_rows(twin: Twin, taken: list[PassSample], point: ComputeMeasurement) -> list[ComputeMeasurement]:
    """One per class of layers: the mean over its layers in each pass, so that its median adds up to a pass.

    Where layers may be split their parts too: the MLP, and all the rest, norms and sums included, as the attention.
    """
    rows = []
    for shape, first in twin.truncation.layer_classes.items():
        alike = [index for index, layer in enumerate(twin.truncation.shape.layers) if layer == shape]
        layers_s = [entry.mean_s("layer", alike) for entry in taken]
        times_s: dict[UnitKind, list[float]] = {"layer": layers_s}
        if twin.truncation.shape.can_split:
            times_s["mlp"] = [entry.mean_s("mlp", alike) for entry in taken]
            times_s["attention"] = [max(0.0, a - b) for a, b in zip(layers_s, times_s["mlp"], strict=True)]
        rows += [
            point.model_copy(update={"unit": unit, "index": first, "duration_s": spread(durations_s)})
            for unit, durations_s in times_s.items()
        ]
    return rows


def _head_rows(twin: Twin, taken: list[PassSample], point: ComputeMeasurement) -> list[ComputeMeasurement]:
    """The head by rows: the whole and a chunk of it where it is resident, else the chunks that travel."""
    chunk_rows, vocab_size = twin.truncation.chunk_rows, twin.truncation.shape.vocab_size
    if twin.link is None:
        times_s = {vocab_size: [entry.kind_s("head_chunk") for entry in taken]}
        chunks_s = [entry.chunk_s for entry in taken if entry.chunk_s is not None]
        if chunks_s:
            times_s[chunk_rows] = chunks_s
    else:
        alike = range(max(1, vocab_size // chunk_rows))  # all but perhaps the last
        times_s = {chunk_rows: [entry.mean_s("head_chunk", alike) for entry in taken]}
    return [
        point.model_copy(update={"unit": "head_chunk", "num_rows": num_rows, "duration_s": spread(durations_s)})
        for num_rows, durations_s in times_s.items()
    ]
