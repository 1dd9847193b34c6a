"""A draft's steps of fixed width give the logits of passes of any length, run by Python or replayed from a recording.

Shapes: T nodes or tokens fed, V vocabulary.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from test_tree_mask import lineage, random_parents
from tiny_models import FAMILIES, FAST_LINK, VOCAB_SIZE, TinyModel, placed, resident, stock_greedy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from planner.contracts.errors import SelfCheckError
from planner.contracts.model_folder import open_model_folder
from runtime.cached import CachedModel
from runtime.checkpoint import Checkpoint
from runtime.draft.model import ChainDrafter
from runtime.draft.step_memory import StepMask
from runtime.draft.step_runner import CapturedSteps, EagerSteps, Step, host_reads
from runtime.draft.steps import WIDTHS, MakeRunner, SteppedModel, draft_model
from runtime.draft.tree import TreeDrafter
from runtime.model import StreamedModel, all_resident
from runtime.proposal import ROOT
from runtime.sampling import SamplingSettings, Uniforms
from runtime.skeleton import build_skeleton

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXT_TOKENS = 200
MOST_NODES = 160
CLOSE = 1e-9
STEPPED = ("llama", "llama-tied", "qwen3", "phi3", "gpt-neox", "olmo2")
WITH_WINDOWS = ("mistral", "gemma2", "gemma3", "qwen2-mixed")
WITH_EXPERTS = ("mixtral", "qwen3-moe")


# --- a recording on the CPU ---


@dataclass(frozen=True, slots=True)
class Launch:
    """One operation with the very tensors that it read and wrote when it was recorded."""

    func: Callable[..., object]
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    outputs: tuple[Tensor, ...]

    def again(self) -> None:
        """Run on what those tensors hold now. Views stay views; what was allocated is written in place."""
        fresh = tensors_of(self.func(*self.args, **self.kwargs))
        read = {tensor.untyped_storage().data_ptr() for tensor in tensors_of((self.args, self.kwargs))}
        for output, value in zip(self.outputs, fresh, strict=True):
            if output.untyped_storage().data_ptr() not in read:
                output.copy_(value)


class Recording(TorchDispatchMode):
    """All operations of a block, in order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: list[Launch] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        output = func(*args, **(kwargs or {}))
        self.launches.append(Launch(func, args, kwargs or {}, tuple(tensors_of(output))))
        return output


class RecordedSteps:
    """What a CUDA graph is, on the CPU: the operations of one step per width, replayed without any other Python."""

    def __init__(self, step: Step, widths: Sequence[int]) -> None:
        self.recordings: dict[int, Recording] = {}
        self.ran: list[int] = []
        for width in widths:
            with Recording() as self.recordings[width]:
                step(width)

    @torch.inference_mode()
    def run(self, width: int) -> None:
        """Replay."""
        self.ran.append(width)
        for launch in self.recordings[width].launches:
            launch.again()


def tensors_of(value: object) -> list[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for entry in value.values() for tensor in tensors_of(entry)]
    if isinstance(value, (tuple, list)):
        return [tensor for entry in value for tensor in tensors_of(entry)]
    return []


class SimulatedCuda:
    """The parts of torch.cuda that record a step, on the CPU; `log` tells in which order they were used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[object] = []
        self._num_pools = 0
        for name in ("graph_pool_handle", "current_stream", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "Stream", lambda: SimulatedStream("side", self.log))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", SimulatedGraph)

    def graph_pool_handle(self) -> int:
        """A pool of its own in each call."""
        self._num_pools += 1
        return self._num_pools

    def current_stream(self) -> "SimulatedStream":
        """The main one."""
        return SimulatedStream("main", self.log)

    @contextmanager
    def stream(self, stream: "SimulatedStream") -> Iterator[None]:
        """Work goes to the stream."""
        self.log.append(f"on {stream.name}")
        yield

    @contextmanager
    def graph(
        self, graph: "SimulatedGraph", pool: int, stream: "SimulatedStream", capture_error_mode: str
    ) -> Iterator[None]:
        """Record; unlike a device, run as well, which a later replay must not depend on."""
        self.log.append(f"record on {stream.name} in pool {pool}, {capture_error_mode}")
        with graph.recording:
            yield


@dataclass(frozen=True, slots=True)
class SimulatedStream:
    """A stream that only tells whom it waits for."""

    name: str
    log: list[object]

    def wait_stream(self, other: "SimulatedStream") -> None:
        """Wait."""
        self.log.append(f"{self.name} waits for {other.name}")


class SimulatedGraph:
    """A graph that replays a recording."""

    def __init__(self) -> None:
        self.recording = Recording()

    @torch.inference_mode()
    def replay(self) -> None:
        """Run again what was recorded."""
        for launch in self.recording.launches:
            launch.again()


RUNNERS: dict[str, MakeRunner] = {"eager": EagerSteps, "recorded": RecordedSteps}
EVERY_RUNNER = pytest.mark.parametrize("make_runner", RUNNERS.values(), ids=RUNNERS)


# --- models ---


@contextmanager
def opened(folder: Path) -> Iterator[StreamedModel]:
    """A resident float64 model, as drafts are."""
    model_folder = open_model_folder(folder)
    skeleton = build_skeleton(model_folder, "fp64")
    plan = all_resident(placed(folder, link=FAST_LINK), skeleton)
    with StreamedModel(skeleton, Checkpoint(model_folder, skeleton.model), plan) as streamed:
        yield streamed


@dataclass(frozen=True, slots=True)
class Twins:
    """The same calls to the ordinary model and to the one with steps."""

    plain: CachedModel
    stepped: SteppedModel

    def forward(self, tokens: Sequence[int], num_rows: int) -> None:
        """A pass over the sequence, whose logits are to be equal."""
        self.check(self.stepped.forward(tokens, num_rows), self.plain.forward(tokens, num_rows))

    def forward_tree(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """A pass over nodes, whose logits are to be equal."""
        self.check(self.stepped.forward_tree(tokens, parents), self.plain.forward_tree(tokens, parents))

    def keep_path(self, path: Sequence[int]) -> None:
        """End the trees."""
        self.stepped.keep_path(path)
        self.plain.keep_path(path)

    def drop(self, num_tokens: int) -> None:
        """Forget tokens."""
        self.stepped.drop(num_tokens)
        self.plain.drop(num_tokens)

    def reset(self) -> None:
        """Forget everything."""
        self.stepped.reset()
        self.plain.reset()

    def check(self, rows_TV: Tensor, expected_TV: Tensor) -> None:
        """Equal rows, and equally long sequences."""
        torch.testing.assert_close(rows_TV, expected_TV, rtol=0, atol=CLOSE)
        assert self.stepped.num_seen == self.plain.num_seen


@contextmanager
def twins(
    folder: Path, make_runner: MakeRunner = EagerSteps, *, context_tokens: int = CONTEXT_TOKENS, most_rows: int = 64
) -> Iterator[Twins]:
    with opened(folder) as streamed:
        stepped = SteppedModel(streamed, context_tokens, MOST_NODES, most_rows=most_rows, make_runner=make_runner)
        assert stepped.why_no_steps is None
        yield Twins(CachedModel(streamed, context_tokens, MOST_NODES), stepped)


def random_tokens(num_tokens: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(VOCAB_SIZE) for _ in range(num_tokens)]


# --- the same logits ---


@EVERY_RUNNER
@pytest.mark.parametrize("family", STEPPED)
def test_chains_of_every_length_have_the_logits_of_plain_passes(
    family: str, make_runner: MakeRunner, tiny_model: TinyModel
) -> None:
    with twins(tiny_model(family, "fp64"), make_runner) as both:
        both.forward(random_tokens(70, seed=0), 1)  # longer than any step
        for num_tokens in (1, 1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64):
            both.forward(random_tokens(num_tokens, seed=num_tokens), num_tokens)
            both.drop(num_tokens - 1)


@EVERY_RUNNER
@pytest.mark.parametrize("family", STEPPED)
def test_trees_that_grow_by_every_width_have_the_logits_of_plain_passes(
    family: str, make_runner: MakeRunner, tiny_model: TinyModel
) -> None:
    with twins(tiny_model(family, "fp64"), make_runner) as both:
        both.forward(random_tokens(5, seed=0), 1)
        for round_idx, calls in enumerate([(1, 2, 3, 4, 7), (64, 33, 1), (70, 5, 16), (1,), (32, 32, 64, 31)]):
            tokens, parents = random_tokens(sum(calls), round_idx), random_parents(sum(calls), round_idx)
            first = 0
            for num_nodes in calls:
                both.forward_tree(tokens[first : first + num_nodes], parents[first : first + num_nodes])
                first += num_nodes
            both.keep_path(lineage(parents, len(parents) - 1))
            both.forward([3], 1)


@EVERY_RUNNER
@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_calls_gives_the_logits_of_plain_passes(
    seed: int, make_runner: MakeRunner, tiny_model: TinyModel
) -> None:
    generator = random.Random(seed)
    with twins(tiny_model("llama", "fp64"), make_runner, context_tokens=230) as both:
        for call in range(60):
            tokens = random_tokens(generator.choice([1, 1, 2, 5, 11, 20, 40, 64, 65]), call)
            room = 230 - both.plain.num_seen
            if room < len(tokens) or generator.random() < 0.05:
                both.reset()
            if generator.random() < 0.5:
                both.forward(tokens, generator.randint(1, len(tokens)))
                both.drop(generator.randint(0, both.plain.num_seen))
                continue
            parents = random_parents(len(tokens), call)
            cut = generator.randint(0, len(tokens) - 1)
            for part in (slice(0, cut), slice(cut, None)):
                if tokens[part]:
                    both.forward_tree(tokens[part], parents[part])
            both.keep_path(lineage(parents, generator.randrange(len(parents)))[: generator.randint(0, 9)])


@EVERY_RUNNER
def test_the_last_places_of_the_context_can_be_used(make_runner: MakeRunner, tiny_model: TinyModel) -> None:
    with opened(tiny_model("llama", "fp64")) as streamed:
        for context_tokens in (31, 32, 33):
            stepped = SteppedModel(streamed, context_tokens, make_runner=make_runner)
            both = Twins(CachedModel(streamed, context_tokens), stepped)
            both.forward(random_tokens(20, seed=1), 1)
            for num_tokens in (3, 1, 2, context_tokens - 26):
                both.forward(random_tokens(num_tokens, seed=num_tokens), num_tokens)
            with pytest.raises(RuntimeError, match=f"context of {context_tokens} tokens is full"):
                stepped.forward([1], 1)
            both.drop(9)
            both.forward([7, 8, 9], 3)


def test_steps_are_the_next_wider_ones_and_longer_passes_are_none(tiny_model: TinyModel) -> None:
    runners: list[RecordedSteps] = []

    def recorded(step: Step, widths: Sequence[int]) -> RecordedSteps:
        runners.append(RecordedSteps(step, widths))
        return runners[-1]

    with twins(tiny_model("llama", "fp64"), recorded, most_rows=12) as both:
        (runner,) = runners
        assert tuple(runner.recordings) == WIDTHS[:5]
        both.forward(random_tokens(17, seed=1), 1)
        assert runner.ran == []
        for num_tokens, width in ((1, 1), (2, 2), (3, 4), (9, 16), (16, 16)):
            both.forward(random_tokens(num_tokens, seed=2), 1)
            both.forward_tree(random_tokens(num_tokens, seed=3), random_parents(num_tokens, 3))
            both.keep_path([])
            assert runner.ran[-2:] == [width, width]


@EVERY_RUNNER
@pytest.mark.parametrize("settings", [SamplingSettings(), SamplingSettings(temperature=1.5, seed=3)], ids=["0", "1.5"])
def test_drafters_propose_the_same_with_steps(
    settings: SamplingSettings, make_runner: MakeRunner, tiny_model: TinyModel
) -> None:
    with twins(tiny_model("llama", "fp64"), make_runner) as both:
        proposals = []
        for model in (both.plain, both.stepped):
            chain = ChainDrafter(model, settings, Uniforms(1), vocab_size=VOCAB_SIZE, chunk_tokens=40)
            context, proposed = random_tokens(50, seed=4), []
            for num_accepted in (0, 3, 7, 1):
                proposed.append(chain.propose(context, 7))
                context += [*proposed[-1].tokens[:num_accepted], 11]
            model.reset()
            tree = TreeDrafter(
                model,
                settings,
                Uniforms(1),
                vocab_size=VOCAB_SIZE,
                chunk_tokens=40,
                num_nodes=40,
                max_depth=6,
                pass_nodes=9,
            )
            for _ in range(3):
                proposed.append(tree.propose(context, 6))
                context += [proposed[-1].tokens[0], 12]
            proposals.append([(proposal.tokens, proposal.parents) for proposal in proposed])
        assert proposals[0] == proposals[1]


def test_a_chain_with_steps_is_the_models_own_text(tiny_model: TinyModel) -> None:
    folder = tiny_model("qwen3", "fp64")
    with opened(folder) as streamed:
        drafter = ChainDrafter(
            SteppedModel(streamed, CONTEXT_TOKENS),
            SamplingSettings(),
            Uniforms(None),
            vocab_size=VOCAB_SIZE,
            chunk_tokens=16,
        )
        assert list(drafter.propose([5, 6, 7], 20).tokens) == stock_greedy(resident(folder, "fp64"), [5, 6, 7], 20)


# --- what is no number ---


def feed_chain(model: CachedModel, tokens: Sequence[int]) -> Tensor:
    return model.forward(tokens, len(tokens))


def feed_siblings(model: CachedModel, tokens: Sequence[int]) -> Tensor:
    return model.forward_tree(tokens, [ROOT] * len(tokens))


@pytest.mark.parametrize("feed", [feed_chain, feed_siblings])
def test_what_is_no_number_is_refused_and_gone_after_a_reset(
    feed: Callable[[CachedModel, Sequence[int]], Tensor], tiny_model: TinyModel
) -> None:
    with twins(tiny_model("llama", "fp64")) as both:
        both.forward([1, 2, 3], 1)
        embedding = both.plain.streamed.model.get_input_embeddings().weight
        kept_H = embedding[9].clone()
        with torch.inference_mode():
            embedding[9] = torch.nan
        with pytest.raises(SelfCheckError, match="cannot be sampled"):
            feed(both.stepped, [4, 9, 5])
        with torch.inference_mode():
            embedding[9] = kept_H
        both.reset()
        both.forward([1], 1)
        both.forward([2, 3, 4], 3)


def test_a_hidden_place_that_holds_no_number_would_be_seen(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SteppedModel, "_wipe", lambda model: setattr(model, "_is_tainted", False))
    with pytest.raises(SelfCheckError, match="cannot be sampled"):
        test_what_is_no_number_is_refused_and_gone_after_a_reset(feed_chain, tiny_model)


# --- who has steps ---


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_steps_or_a_reason(family: str, tiny_model: TinyModel) -> None:
    reasons = {**dict.fromkeys(WITH_WINDOWS, "sliding window"), **dict.fromkeys(WITH_EXPERTS, "host wait for values")}
    with opened(tiny_model(family, "fp64")) as streamed:
        stepped = SteppedModel(streamed, CONTEXT_TOKENS)
        if family in STEPPED:
            assert stepped.why_no_steps is None
        else:
            assert stepped.why_no_steps is not None
            assert reasons[family] in stepped.why_no_steps
        Twins(CachedModel(streamed, CONTEXT_TOKENS), stepped).forward(random_tokens(12, seed=1), 12)


def test_a_model_whose_weights_travel_has_no_steps(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama", "fp64")
    model_folder = open_model_folder(folder)
    skeleton = build_skeleton(model_folder, "fp64")
    with StreamedModel(skeleton, Checkpoint(model_folder, skeleton.model), placed(folder, link=FAST_LINK)) as streamed:
        assert SteppedModel(streamed, CONTEXT_TOKENS).why_no_steps == "its weights travel"


def test_a_device_that_cannot_record_is_told_and_the_ordinary_way_taken(tiny_model: TinyModel) -> None:
    def refuse(step: Step, widths: Sequence[int]) -> EagerSteps:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with opened(tiny_model("llama", "fp64")) as streamed:
        stepped = SteppedModel(streamed, CONTEXT_TOKENS, make_runner=refuse)
        assert (
            stepped.why_no_steps == "the device could not record them: operation not permitted when stream is capturing"
        )
        Twins(CachedModel(streamed, CONTEXT_TOKENS), stepped).forward([1, 2, 3], 2)


def test_values_that_the_host_waits_for_are_found() -> None:
    numbers = torch.ones(4)
    assert host_reads(lambda _: None) == []
    assert host_reads(lambda width: numbers[:width].add_(1)) == []
    assert host_reads(lambda _: int(numbers[0])) == ["_local_scalar_dense"]
    assert host_reads(lambda _: numbers.nonzero()) == ["nonzero"]


def test_a_cpu_keeps_the_ordinary_way_and_a_device_takes_steps(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr("runtime.draft.steps.SteppedModel", lambda *args, **kwargs: made.append((args, kwargs)))
    with opened(tiny_model("llama", "fp64")) as streamed:
        model = draft_model(streamed, CONTEXT_TOKENS, MOST_NODES, 9)
        assert type(model) is CachedModel
        assert not made
    on_device = cast(StreamedModel, SimpleNamespace(link=SimpleNamespace(device=torch.device("cuda", 0))))
    draft_model(on_device, CONTEXT_TOKENS, MOST_NODES, 9)
    assert made == [((on_device, CONTEXT_TOKENS, MOST_NODES), {"most_rows": 9})]


# --- would these tests see an error? ---


def test_rows_that_were_not_hidden_again_would_be_seen(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tail = StepMask._tail

    def forgetful(mask: StepMask, num_seen: int, num_nodes: int, width: int) -> Tensor:
        mask._tail_WN = None
        return tail(mask, num_seen, num_nodes, width)

    monkeypatch.setattr(StepMask, "_tail", forgetful)
    with pytest.raises(AssertionError, match="close"):
        test_trees_that_grow_by_every_width_have_the_logits_of_plain_passes("llama", EagerSteps, tiny_model)


def test_a_step_that_remembers_its_tokens_would_be_seen(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Launch.again

    def stale(launch: Launch) -> None:
        if "embedding" not in str(launch.func):
            again(launch)

    monkeypatch.setattr(Launch, "again", stale)
    with pytest.raises(AssertionError, match="close"):
        test_chains_of_every_length_have_the_logits_of_plain_passes("llama", RecordedSteps, tiny_model)


# --- on a device ---


def test_each_width_is_recorded_once_after_a_warm_up_and_then_replayed(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = SimulatedCuda(monkeypatch)

    def captured(step: Step, widths: Sequence[int]) -> CapturedSteps:
        def logged(width: int) -> None:
            cuda.log.append(width)
            step(width)

        return CapturedSteps(logged, widths)

    with twins(tiny_model("llama", "fp64"), captured, most_rows=3) as both:
        for width in (4, 2, 1):  # the widest first
            before, warm_up, recorded = cuda.log[:2], cuda.log[2:5], cuda.log[5:8]
            assert before == ["side waits for main", "on side"]
            assert warm_up == [width] * 3
            assert recorded == ["main waits for side", "record on side in pool 1, thread_local", width]
            del cuda.log[:8]
        both.forward(random_tokens(9, seed=0), 1)
        for num_tokens in (1, 1, 2, 3, 4, 1):
            both.forward(random_tokens(num_tokens, seed=num_tokens), num_tokens)
            both.forward_tree(random_tokens(num_tokens, seed=1), random_parents(num_tokens, 1))
            both.keep_path(lineage(random_parents(num_tokens, 1), num_tokens - 1))
        assert cuda.log == [], "a step was run by Python"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_steps_are_those_of_python(tiny_model: TinyModel) -> None:
    model = resident(tiny_model("llama", "fp64"), "fp64").to("cuda")
    plan = SimpleNamespace(units=())
    streamed = cast(
        StreamedModel, SimpleNamespace(model=model, plan=plan, link=SimpleNamespace(device=torch.device("cuda", 0)))
    )
    stepped = SteppedModel(streamed, CONTEXT_TOKENS, MOST_NODES)
    assert stepped.why_no_steps is None
    assert isinstance(stepped._runner, CapturedSteps)
    both = Twins(CachedModel(streamed, CONTEXT_TOKENS, MOST_NODES), stepped)
    both.forward(random_tokens(70, seed=0), 1)
    for num_tokens in (1, 1, 2, 3, 9, 33, 64):
        both.forward(random_tokens(num_tokens, seed=num_tokens), num_tokens)
        both.drop(num_tokens - 1)
        tokens, parents = random_tokens(num_tokens, seed=1), random_parents(num_tokens, 1)
        both.forward_tree(tokens, parents)
        both.keep_path(lineage(parents, num_tokens - 1)[:2])
    memory_bytes = torch.cuda.memory_allocated()
    for num_tokens in range(1, 20):
        both.stepped.forward(random_tokens(num_tokens, seed=2), 1)
        both.stepped.drop(num_tokens)
    assert torch.cuda.memory_allocated() == memory_bytes
