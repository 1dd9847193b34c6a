"""Attention and MLP placed by themselves: bit for bit the resident model, for every family that may be split.

Shapes: T tokens fed, V vocabulary.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from test_families import are_equal, cached_logits, generated, step_tokens, stock_logits, streaming
from tiny_models import (
    FAMILIES,
    FAST_LINK,
    NUM_LAYERS,
    RECURRENT_FAMILIES,
    VOCAB_SIZE,
    TinyModel,
    placed,
    recounted,
    resident,
)
from torch import nn

from planner.budget import Budget, Wishes, plan_for_budget
from planner.contracts.errors import PlanMismatchError
from planner.contracts.layer_parts import PART_KINDS, SPLIT_MODEL_TYPES, TENSORS_OF, DecoderKind
from planner.contracts.model_folder import open_model_folder
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import DiskLink, Dtype, LinkChoice, Plan, Staging, Unit
from runtime.api import load
from runtime.checkpoint import Checkpoint, Layout
from runtime.model import StreamedModel
from runtime.parts import layer_parts
from runtime.skeleton import build_skeleton
from runtime.trace import Trace

pytestmark = pytest.mark.usefixtures("one_thread")

DISK = DiskLink()
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
ALL = tuple((kind, index) for index in range(NUM_LAYERS) for kind in PART_KINDS)
ATTENTION, MLP = ([part for part in ALL if part[0] == kind] for kind in PART_KINDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A way to place the parts of a model."""

    streamed: tuple[tuple[DecoderKind, int], ...] = ALL
    on_disk: tuple[tuple[DecoderKind, int], ...] = ()  # under another link than the disk's: read through staging
    link: LinkChoice = DISK
    num_slots: int = 2
    head_rows: tuple[int, ...] = (VOCAB_SIZE,)
    streamed_chunks: tuple[int, ...] = (0,)
    is_embedding_resident: bool = False

    def plan(self, folder: Path, dtype: Dtype | None = None) -> Plan:
        """The plan for a model."""
        plan = placed(
            folder,
            link=self.link,
            num_slots=self.num_slots,
            head_rows=self.head_rows,
            streamed_chunks=self.streamed_chunks,
            is_embedding_resident=self.is_embedding_resident,
            dtype=dtype,
        )
        return self.split(plan, ModelShape.from_config(folder))

    def split(self, plan: Plan, shape: ModelShape) -> Plan:
        """The plan with the parts of its layers placed by themselves."""
        embedding, *others = [unit for unit in plan.units if unit.kind != "layer"]
        parts = [self._unit(plan, shape, kind, index) for kind, index in ALL]
        staging = Staging(num_buffers=2, buffer_bytes=max(unit.dense_bytes for unit in parts))
        return recounted(plan, units=(embedding, *parts, *others), staging=staging if self.on_disk else None)

    def _unit(self, plan: Plan, shape: ModelShape, kind: DecoderKind, index: int) -> Unit:
        is_streamed = (kind, index) in self.streamed
        is_read = self.link.kind == "disk" or (kind, index) in self.on_disk
        return Unit(
            kind=kind,
            index=index,
            placement="streamed" if is_streamed else "resident",
            source="ram" if is_streamed and not is_read else "disk",
            wire_bytes=shape.layers[index].wire_bytes(plan.dtype, *TENSORS_OF[kind]),
            dense_bytes=shape.layers[index].region_bytes(plan.dtype, *TENSORS_OF[kind]),
        )


SETTINGS = (
    Setting(num_slots=1),
    Setting(streamed=(ALL[0], ALL[3], ALL[4]), head_rows=(128, VOCAB_SIZE), streamed_chunks=(1,)),
    Setting(streamed=tuple(MLP), link=FAST_LINK, num_slots=3, is_embedding_resident=True, streamed_chunks=()),
    Setting(link=FAST_LINK, on_disk=(ALL[1], ALL[4]), head_rows=(128, 256, VOCAB_SIZE), streamed_chunks=(0, 1, 2)),
    Setting(streamed=tuple(ATTENTION)),
)


@EVERY_FAMILY
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_streamed_parts_give_the_logits_of_the_resident_model_bit_for_bit(
    family: str, dtype: Dtype, tiny_model: TinyModel
) -> None:
    folder = tiny_model(family, dtype)
    expected = stock_logits(resident(folder, dtype))
    for setting in SETTINGS if dtype == "fp32" else SETTINGS[1::2]:
        with streaming(folder, setting.plan(folder)) as streamed:
            assert are_equal(cached_logits(streamed), expected), setting


def test_every_model_type_that_may_be_split_is_among_the_tested_families(tiny_model: TinyModel) -> None:
    tested = {ModelShape.from_config(tiny_model(family)).model_type for family in FAMILIES}
    assert tested == set(SPLIT_MODEL_TYPES)


@EVERY_FAMILY
def test_parts_and_norms_take_no_more_than_the_plan_says(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family)
    shape = ModelShape.from_config(folder)
    assert shape.can_split
    opened = open_model_folder(folder)
    skeleton = build_skeleton(opened, "fp32")
    for index, (name, layer) in enumerate(skeleton.layers):
        parts = dict(layer_parts(name, layer))
        for kind, part in zip(PART_KINDS, parts.values(), strict=True):
            planned = shape.layers[index].region_bytes("fp32", *TENSORS_OF[kind])
            assert Layout.of(part.named_parameters()).num_bytes <= planned
        inside = tuple(f"{part.removeprefix(name)[1:]}." for part in parts)
        norms = [entry for entry in layer.named_parameters() if not entry[0].startswith(inside)]
        assert Layout.of(norms).num_bytes <= shape.layers[index].region_bytes("fp32", "rest")


@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral"])
def test_plan_for_a_budget_streams_parts_beside_resident_norms(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family)
    shape = ModelShape.from_config(folder)
    wishes = Wishes(dtype="fp32", context_tokens=64, link=DiskLink(), device="cpu", granularity="parts")
    whole = plan_for_budget(shape, None, Budget(device_bytes=2**30, host_bytes=2**30), wishes).memory
    budget = Budget(device_bytes=int(0.6 * whole.device_bytes), host_bytes=2**30)
    plan = plan_for_budget(shape, None, budget, wishes)
    assert plan.granularity == "parts"
    norms_bytes = sum(layer.region_bytes("fp32", "rest") for layer in shape.layers)
    residents_bytes = sum(unit.dense_bytes for unit in plan.units if unit.placement == "resident")
    assert plan.memory.residents_bytes == residents_bytes + norms_bytes + shape.rest_bytes("fp32")
    with streaming(folder, plan) as streamed:
        assert are_equal(cached_logits(streamed), stock_logits(resident(folder)))


def test_text_is_that_of_whole_layers(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama", "fp64")
    texts = []
    for plan in (placed(folder), SETTINGS[1].plan(folder)):
        with load(plan=plan) as engine:
            texts.append(generated(engine, (3, 1, 4)))
    assert texts[0] == texts[1]


def test_trace_names_the_parts(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    opened, trace = open_model_folder(folder), Trace()
    skeleton = build_skeleton(opened, "fp32")
    with StreamedModel(skeleton, Checkpoint(opened, skeleton.model), SETTINGS[0].plan(folder), trace) as streamed:
        cached_logits(streamed, step_tokens()[:1])
    names = [event["name"] for event in json.loads(trace.to_json("test"))["traceEvents"]]
    assert {f"{kind} {index}" for kind, index in ALL} <= set(names)


def test_replaced_module_of_a_part_keeps_streaming(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    calls = []

    class Counted(nn.Linear):
        def forward(self, hidden_TD: torch.Tensor) -> torch.Tensor:
            calls.append(hidden_TD.shape)
            return super().forward(hidden_TD)

    def replace(model: nn.Module) -> None:
        for layer in model.model.layers:  # type: ignore[union-attr]
            old = layer.mlp.down_proj
            layer.mlp.down_proj = Counted(old.in_features, old.out_features, bias=False, dtype=old.weight.dtype)

    opened = open_model_folder(folder)
    skeleton = build_skeleton(opened, "fp32", replace)
    with StreamedModel(skeleton, Checkpoint(opened, skeleton.model), SETTINGS[0].plan(folder)) as streamed:
        assert are_equal(cached_logits(streamed), stock_logits(resident(folder)))
    assert len(calls) == NUM_LAYERS * len(step_tokens())


# --- refusals ---


@pytest.mark.parametrize("family", RECURRENT_FAMILIES)
def test_family_that_was_not_tried_is_refused_by_name(family: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(family)
    shape = ModelShape.from_config(folder)
    assert not shape.can_split
    with (
        pytest.raises(PlanMismatchError, match=f"attention and MLP of a {shape.model_type} by themselves"),
        streaming(folder, SETTINGS[0].plan(folder)),
    ):
        pass


@pytest.mark.parametrize(("children", "why"), [((), "none"), (("mlp", "shared_mlp"), "mlp and shared_mlp")])
def test_layer_without_exactly_one_module_of_a_part_is_refused(children: Iterable[str], why: str) -> None:
    layer = nn.ModuleDict({"self_attn": nn.Linear(2, 2), **{name: nn.Linear(2, 2) for name in children}})
    with pytest.raises(
        PlanMismatchError, match=rf"model.layers.3 has no single module that is its mlp\n.*it has {why}"
    ):
        list(layer_parts("model.layers.3", layer))


def test_plan_with_parts_of_fewer_layers_describes_another_model(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    plan = SETTINGS[0].plan(folder)
    fewer = plan.model_copy(update={"units": tuple(unit for unit in plan.units if unit.index != NUM_LAYERS - 1)})
    with pytest.raises(PlanMismatchError, match="describes another model"), streaming(folder, fewer):
        pass
