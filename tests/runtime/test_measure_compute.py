"""Passes of the truncated twin: it computes what the target's first layers do, and its tables cover every unit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_models import FAST_LINK, NUM_LAYERS, VOCAB_SIZE, TinyModel, resident
from torch import Tensor, nn

from planner.contracts.layer_parts import DECODER_KINDS
from planner.contracts.model_folder import open_model_folder
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import DiskLink, LinkChoice
from planner.contracts.profile import Spread
from runtime.measure import twin as twin_module
from runtime.measure.compute import Effort, PassTimer, compute_table, edge_rows, measure_passes, recording_cost_s
from runtime.measure.rounds import ScriptedModel, measure_catch_up, measure_rounds, open_draft
from runtime.measure.spans import HostClock, SpanRecorder
from runtime.measure.spread import spread
from runtime.measure.twin import Truncation, Twin, open_twin, truncate
from runtime.proposal import ROOT, Proposal
from runtime.tokenizer import load_tokenizer
from runtime.verify import verify_greedy

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
EFFORT = Effort(seconds_per_point=0.0, warm_up_s=0.0, least=2, least_wide=1)
CONTEXT_TOKENS = 160
AMPLE_BYTES = 2**40


def truncated(folder: Path, *, least_bytes: int = 1) -> Truncation:
    shape = ModelShape.from_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin_module, "LEAST_TWIN_BYTES", least_bytes)
        patch.setattr(twin_module, "LEAST_LAYERS", 1)
        return truncate(open_model_folder(folder), shape, shape.stored_dtype, AMPLE_BYTES)


@contextmanager
def twin_of(folder: Path, link: LinkChoice | None) -> Iterator[Twin]:
    with open_twin(truncated(folder), link, CONTEXT_TOKENS, CPU) as twin:
        yield twin


@pytest.mark.parametrize(("family", "num_layers"), [("llama", 1), ("gemma3", 3), ("qwen2-mixed", 2), ("mixtral", 1)])
def test_twin_has_every_shape_of_layer_and_no_more(family: str, num_layers: int, tiny_model: TinyModel) -> None:
    truncation = truncated(tiny_model(family))
    assert truncation.shape.num_layers == num_layers
    assert set(truncation.layer_classes) == set(ModelShape.from_config(tiny_model(family)).layers)


def test_twin_is_the_whole_model_where_that_is_small(tiny_model: TinyModel) -> None:
    assert truncated(tiny_model("llama"), least_bytes=AMPLE_BYTES).shape.num_layers == NUM_LAYERS


def test_twin_takes_no_more_layers_than_fit_memory(tiny_model: TinyModel) -> None:
    folder = tiny_model("gemma3")
    shape = ModelShape.from_config(folder)
    layer_bytes = shape.layers[0].region_bytes(shape.stored_dtype)
    truncation = truncate(open_model_folder(folder), shape, shape.stored_dtype, 5 * layer_bytes)
    assert truncation.shape.num_layers == 2


@pytest.mark.parametrize("family", ["llama", "qwen2-mixed", "gemma3", "mixtral", "gpt-neox", "llama-tied"])
@pytest.mark.parametrize("link", [None, DiskLink(), FAST_LINK], ids=["resident", "disk", "emulated"])
def test_twins_layers_give_what_the_targets_do(family: str, link: LinkChoice | None, tiny_model: TinyModel) -> None:
    folder = tiny_model(family)
    whole = resident(folder)
    tokens = torch.arange(6)[None]
    with twin_of(folder, link) as twin, torch.inference_mode():
        outputs: list[Tensor] = []
        twin.skeleton.layers[-1][1].register_forward_hook(
            lambda _module, _args, output: outputs.append(output[0] if isinstance(output, tuple) else output)
        )
        twin.cached.forward(tokens[0].tolist(), 6)
        hidden_states = whole(tokens, output_hidden_states=True).hidden_states
        if len(twin.skeleton.layers) < NUM_LAYERS:  # the last of transformers' states has passed the norm
            torch.testing.assert_close(outputs[0].view(6, -1), hidden_states[len(twin.skeleton.layers)][0])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("link", [None, DiskLink()], ids=["resident", "disk"])
def test_table_covers_every_class_of_unit_at_every_count(
    family: str, link: LinkChoice | None, tiny_model: TinyModel
) -> None:
    counts = (1, 2, 5, 70)
    with twin_of(tiny_model(family), link) as twin:
        samples = measure_passes(PassTimer(twin, HostClock()), 8, counts, EFFORT)
        rows = compute_table(twin, samples, 8, has_head=True)
        classes = set(twin.truncation.layer_classes.values())
        chunk_rows = twin.truncation.chunk_rows
    units = {(row.unit, row.index, row.num_rows) for row in rows}
    expected: set[tuple[str, int, int | None]] = {(kind, index, None) for kind in DECODER_KINDS for index in classes}
    expected |= {("head_chunk", 0, chunk_rows)}
    if link is None:
        expected |= {("pass", 0, None), ("head_chunk", 0, VOCAB_SIZE)}
    assert units == expected
    for unit in units:
        assert [row.num_tokens for row in rows if (row.unit, row.index, row.num_rows) == unit] == list(counts)
    assert all((row.load_bytes_per_s > 0) == (link is not None) for row in rows)
    assert all(row.duration_s.median > 0 for row in rows if row.unit != "pass")


def test_others_work_is_not_taken_for_the_cost_of_recording() -> None:
    # Most recorded passes were disturbed, and one plain one: by medians recording would cost eight passes.
    recorded_s = [0.011, 0.090, 0.011, 0.090, 0.090, 0.090, 0.011, 0.090]
    plain_s = [0.010, 0.010, 0.010, 0.050, 0.010, 0.010, 0.010, 0.010]
    assert recording_cost_s(recorded_s, plain_s) == pytest.approx(0.001)
    assert recording_cost_s([0.090] * 8, plain_s) == pytest.approx(0.005)  # half a pass at the most
    assert recording_cost_s(plain_s, recorded_s) == 0.0


def test_parts_of_a_streamed_pass_add_up_to_it(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    with twin_of(folder, DiskLink()) as twin:
        samples = measure_passes(PassTimer(twin, HostClock()), 8, (1, 4), EFFORT)
        rows = edge_rows(twin, samples, 8, dict.fromkeys((1, 4), 0.0))
        num_streamed = len(twin.streamed.plan.streamed)
    (edge,) = [row for row in rows if row.unit == "edge"]
    gathering = {row.num_tokens: row.duration_s.median for row in rows if row.unit == "embedding"}
    edges = sorted(
        (entry.rest_s - gathering[num_tokens]) / num_streamed
        for num_tokens, taken in samples.items()
        for entry in taken
    )
    assert edges[0] <= edge.duration_s.median <= edges[-1]
    assert set(gathering) == {1, 4}


class CountingClock:
    """A clock on which every mark is a second after the one before it."""

    def __init__(self) -> None:
        self.num_marks = 0

    def mark(self) -> int:
        self.num_marks += 1
        return self.num_marks

    def seconds(self, start: int, stop: int) -> float:
        return float(stop - start)

    def restart(self) -> None:
        self.num_marks = 0


def test_spans_are_taken_from_whatever_clock_there_is(tiny_model: TinyModel) -> None:
    with twin_of(tiny_model("llama"), DiskLink()) as twin:
        recorder = SpanRecorder(twin.skeleton, CountingClock())
        with recorder.attached():
            twin.cached.forward([1, 2, 3], 1)
        kinds = [(span.kind, span.index) for span in recorder.spans()]
        num_chunks = sum(unit.kind == "head_chunk" for unit in twin.streamed.plan.units)
        assert kinds == [
            ("embedding", 0),
            ("mlp", 0),
            ("layer", 0),
            *(("head_chunk", index) for index in range(num_chunks)),
        ]
        durations_s = {span.kind: span.duration_s for span in recorder.spans()}
        assert durations_s == {"embedding": 1.0, "mlp": 1.0, "layer": 3.0, "head_chunk": 1.0}


def test_attention_is_all_of_a_layer_but_its_mlp(tiny_model: TinyModel) -> None:
    with twin_of(tiny_model("llama"), None) as twin:
        samples = measure_passes(PassTimer(twin, HostClock()), 8, (1,), EFFORT)
        rows = compute_table(twin, samples, 8, has_head=False)
    for entry in samples[1]:
        assert 0 < entry.kind_s("mlp") < entry.kind_s("layer")
    seconds = {row.unit: row.duration_s for row in rows}
    least = [entry.kind_s("layer") - entry.kind_s("mlp") for entry in samples[1]]
    assert min(least) <= seconds["attention"].median <= max(least)


def test_layers_that_do_not_come_apart_are_measured_whole(tiny_model: TinyModel) -> None:
    with twin_of(tiny_model("lfm2"), None) as twin:
        samples = measure_passes(PassTimer(twin, HostClock()), 0, (4,), EFFORT)
        rows = compute_table(twin, samples, 0, has_head=False)
    assert {row.unit for row in rows} == {"layer", "pass"}


def test_recorder_leaves_the_model_as_it_was(tiny_model: TinyModel) -> None:
    with twin_of(tiny_model("llama"), None) as twin:
        layer: nn.Module = twin.skeleton.layers[0][1]
        recorder = SpanRecorder(twin.skeleton, HostClock())
        num_hooks = len(layer._forward_hooks)
        with recorder.attached():
            assert len(layer._forward_hooks) == num_hooks + 1
        assert len(layer._forward_hooks) == num_hooks
        assert "forward" not in vars(twin.skeleton.head)


@pytest.mark.parametrize("link", [None, DiskLink()], ids=["resident", "disk"])
def test_rounds_time_first_passes_of_one_and_of_two_tokens(link: LinkChoice | None, tiny_model: TinyModel) -> None:
    folder, draft_folder = tiny_model("llama"), tiny_model("llama", noise=0.3)
    with (
        twin_of(folder, link) as twin,
        open_draft(open_model_folder(draft_folder), "fingerprint", twin.streamed.plan, "fp32") as draft,
    ):
        tokenizer = load_tokenizer(folder)
        tables = measure_rounds(twin, draft, tokenizer, 8, 3, has_rounds=True)
        plain = measure_rounds(twin, None, tokenizer, 8, 3, has_rounds=True)
        reading = measure_catch_up(draft, 8, 2)
    of_chains = [row for row in tables.draft_passes if not row.is_tree_level]
    assert [(row.num_tokens, row.position) for row in of_chains] == [(1, position) for position in range(5)] + [(2, 1)]
    of_trees = [row.num_tokens for row in tables.draft_passes if row.is_tree_level]
    assert {4, 8} <= set(of_trees), "full levels"
    rounds = {unit: [row.num_tokens for row in tables.rounds if row.unit == unit] for unit in ("round", "tree_round")}
    assert rounds == {"round": [2, 3, 5, 9], "tree_round": [9, 33, 129]}
    assert [(row.unit, row.num_tokens) for row in plain.rounds] == [("round", 1)]
    assert plain.draft_passes == []
    loads = [row.load_bytes_per_s for row in tables.draft_passes] + [row.load_bytes_per_s for row in tables.rounds]
    assert all((load > 0) == (link is not None) for load in loads)
    assert [row.num_tokens for row in reading] == [4, 16, 64]


def test_the_scripted_twin_accepts_none_all_and_half_of_a_chain_and_of_a_trees_first_path(
    tiny_model: TinyModel,
) -> None:
    chain = Proposal.chain([7, 8, 9, 10])
    tree = Proposal(
        tokens=(7, 8, 9, 10, 11, 12), parents=(ROOT, ROOT, 0, 1, 2, 4), sources=("model",) * 6, row_of=(None,) * 6
    )
    with twin_of(tiny_model("llama"), None) as twin:
        model = ScriptedModel(twin.streamed, CONTEXT_TOKENS, 8)
        model.forward([1, 2, 3], 1)
        paths = [verify_greedy(model.forward([4, *chain.tokens], 5), chain).path for _ in range(3)]
        assert paths == [(), (0, 1, 2, 3), (0, 1)]
        for first_path in ((), (0, 2, 4, 5), (0, 2)):
            logits_TV = model.forward_tree([4, *tree.tokens], [ROOT, *(parent + 1 for parent in tree.parents)])
            model.keep_path([0])
            assert verify_greedy(logits_TV, tree).path[:4] == first_path


def test_spread_leaves_out_what_lies_far_from_the_quartiles() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == Spread(p25=1.75, median=2.5, p75=3.25, num_samples=4)


def test_spread_of_few_samples_keeps_them_all() -> None:
    assert spread([1.0, 100.0]).num_samples == 2
    assert spread([7.0]) == Spread(p25=7.0, median=7.0, p75=7.0, num_samples=1)
