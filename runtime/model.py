"""A transformers decoder whose weights lie and travel as a plan says; its own forward stays untouched.

Hooks sit at a unit's edge only: a streamed layer, or its attention and its MLP, waits for its slot before and frees it
after, the head runs once per row chunk, the embedding reads the rows that a pass needs. Parameters are bound by name,
so a module that the user put in place of another keeps streaming.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from transformers import PreTrainedModel

from planner.contracts.errors import PlanMismatchError
from planner.contracts.layer_parts import DECODER_KINDS
from planner.contracts.plan import Plan, Unit, UnitKind
from runtime.binding import Binder, Parameters, as_parameters, names_on_meta
from runtime.checkpoint import Checkpoint, Layout
from runtime.embedding import HostTable, gather_on_host
from runtime.head import HeadChunk, keep_strides_plain, run_in_chunks
from runtime.link import HostRange, Link, PinningError, Source, open_link, page_aligned
from runtime.parts import check_can_split, layer_parts
from runtime.skeleton import DTYPES, Skeleton
from runtime.trace import Trace
from runtime.weight_stream import Stream, StreamedUnit, StreamTimes

_NUM_BOUNCE_BUFFERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamProgress:
    """The streamed unit that the compute lane uses or waits for, and the bytes copied since the stream opened."""

    unit: Unit
    copied_bytes: int


class StreamedModel:
    """Binds a skeleton's parameters as the plan places them, and streams while it is open.

    Raises: PlanMismatchError, where the plan asks for a variant that is not implemented, or describes another model.
    """

    def __init__(self, skeleton: Skeleton, checkpoint: Checkpoint, plan: Plan, trace: Trace | None = None) -> None:
        check_implemented(plan)
        _check_describes(plan, skeleton)
        self.model: PreTrainedModel = skeleton.model
        self.plan = plan
        self._skeleton = skeleton
        self._checkpoint = checkpoint
        self.link: Link = open_link(plan.link, torch.device(plan.devices[0].name))
        self._travelling: list[tuple[StreamedUnit, Layout]] = []
        self._streamed_units: list[Unit] = []  # in the order of their turns
        self._parameters: list[list[Parameters]] = []  # of each travelling unit, in each slot
        self._modules_in_slots: list[tuple[Binder, int]] = []  # with the module's turn
        self._stream: Stream | None = None
        modules = _decoder_modules(plan, skeleton)
        for unit, (name, module) in zip(_units(plan, *DECODER_KINDS), modules, strict=True):
            self._place_module(unit, name, module)
        self._place_rest([name for name, _ in modules])
        self._place_embedding(whole_head=self._place_head())
        if self._travelling:
            self._open_stream(trace)
        stranded = names_on_meta(self.model)
        assert not stranded, f"left without memory: {stranded[:4]}"
        self._finalizer = weakref.finalize(self.model, _close, self._stream, self.link, checkpoint)

    @property
    def vocab_size(self) -> int:
        """Rows of the head: the width of a row of logits."""
        return max(unit.rows[1] for unit in self.plan.units if unit.rows is not None)

    def times(self) -> StreamTimes:
        """Link and waiting times since the model was opened; zeros where nothing streams."""
        return StreamTimes() if self._stream is None else self._stream.times()

    def progress(self) -> StreamProgress | None:
        """Where a pass is, for another thread to show; None where nothing streams."""
        if self._stream is None:
            return None
        return StreamProgress(unit=self._streamed_units[self._stream.turn], copied_bytes=self._stream.copied_bytes)

    def replaced_files(self) -> list[str]:
        """Checkpoint files whose path leads elsewhere by now."""
        return self._checkpoint.replaced_files()

    def close(self) -> None:
        """End the threads and close the files; the model cannot run afterwards."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _place_module(self, unit: Unit, name: str, module: nn.Module) -> None:
        """Bind a layer or a part of one, or let it wait for its slot."""
        layout = Layout.of(module.named_parameters())
        source = self._checkpoint.source(layout, prefix=f"{name}.")
        binder = Binder(module, layout)
        if unit.placement == "resident":
            binder.bind(as_parameters(layout, self.link.load(source, layout.num_bytes)))
            return
        self._modules_in_slots.append((binder, len(self._travelling)))
        enter = self._travel(unit, layout, source)
        module.register_forward_pre_hook(lambda _module, _args: binder.bind(enter()), prepend=True)
        module.register_forward_hook(lambda _module, _args, _output: self._leave())

    def _place_head(self) -> nn.Parameter | None:
        """Bind or hook the head; its whole weight, where that is resident in one piece."""
        head, units = self._skeleton.head, _units(self.plan, "head_chunk")
        keep_strides_plain(head)
        meta_VH, bias_V = head.get_parameter("weight"), head._parameters.get("bias")
        chunks = []
        for unit in units:
            assert unit.rows is not None
            first, stop = unit.rows
            layout = Layout.of([("weight", meta_VH[first:stop])])
            source = self._checkpoint.source(layout, prefix=f"{self._skeleton.head_name}.", rows=unit.rows)
            bias = {} if bias_V is None else {"bias": nn.Parameter(bias_V[first:stop], requires_grad=False)}
            if unit.placement == "streamed":
                chunks.append(HeadChunk(self._travel(unit, layout, source), self._leave, bias))
                continue
            parameters = as_parameters(layout, self.link.load(source, layout.num_bytes))
            if len(units) == 1:
                head._parameters["weight"] = parameters["weight"]
                return parameters["weight"]
            chunks.append(HeadChunk(_always(parameters), _nothing, bias))
        head._parameters["weight"] = nn.Parameter(
            meta_VH.new_zeros(0, meta_VH.shape[1], device=self.link.device), False
        )
        run_in_chunks(head, chunks)
        return None

    def _place_embedding(self, whole_head: nn.Parameter | None) -> None:
        (unit,) = _units(self.plan, "embedding")
        skeleton = self._skeleton
        name = f"{skeleton.embedding_name}.weight"
        meta_VH = skeleton.embedding.get_parameter("weight")
        if unit.placement == "resident":
            if whole_head is not None and self._checkpoint.is_shared(name, f"{skeleton.head_name}.weight"):
                weight = whole_head
            else:
                layout = Layout.of([(name, meta_VH)])
                weight = as_parameters(layout, self.link.load(self._checkpoint.source(layout), layout.num_bytes))[name]
            skeleton.embedding._parameters["weight"] = weight
            return
        table = self._checkpoint.table(name)
        dtype = DTYPES[self.plan.dtype]
        source = HostTable(table.read(dtype)) if unit.source == "ram" else table
        gather_on_host(skeleton.embedding, source, row_elements=meta_VH.shape[1], dtype=dtype, device=self.link.device)

    def _place_rest(self, placed: Sequence[str]) -> None:
        """Load what is in no unit: norms (those of layers too, beside their parts), positions, persistent buffers."""
        skeleton = self._skeleton
        tables = {f"{skeleton.embedding_name}.weight", f"{skeleton.head_name}.weight"}
        inside = tuple(f"{name}." for name in placed)
        rest = [
            (name, parameter)
            for name, parameter in self.model.named_parameters()
            if name not in tables and not name.startswith(inside)
        ]
        layout = Layout.of(rest)
        region = self.link.load(self._checkpoint.source(layout), layout.num_bytes)
        Binder(self.model, layout).bind(as_parameters(layout, region))
        stored = self.model.state_dict().keys()
        for name, buffer in list(self.model.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            if name in stored:
                layout = Layout.of([(name, buffer)])
                region = self.link.load(self._checkpoint.source(layout), layout.num_bytes)
                buffer = layout.views(region)[name]
            self.model.get_submodule(owner)._buffers[leaf] = buffer.to(self.link.device)

    def _travel(self, unit: Unit, layout: Layout, source: Source) -> Callable[[], Parameters]:
        """Give a unit its turn in the stream; the returned function waits for it and returns its parameters."""
        is_staged = self.plan.link.kind != "disk" and unit.source == "disk"
        if unit.source == "ram":
            try:
                region = self.link.allocate_host(layout.num_bytes)
            except PinningError:
                region, is_staged = page_aligned(layout.num_bytes), True
            source.read_into(region)
            source = HostRange(region)
        label = f"{unit.kind} {unit.index}"
        turn = len(self._travelling)
        streamed = StreamedUnit(label=label, num_bytes=layout.num_bytes, source=source, is_staged=is_staged)
        self._travelling.append((streamed, layout))
        self._streamed_units.append(unit)

        def enter() -> Parameters:
            assert self._stream is not None
            return self._parameters[turn][self._stream.enter(turn)]

        return enter

    def _leave(self) -> None:
        assert self._stream is not None
        self._stream.leave()

    def _open_stream(self, trace: Trace | None) -> None:
        staging = self.plan.staging
        self._stream = Stream(
            self.link,
            [unit for unit, _ in self._travelling],
            num_slots=self.plan.slots,
            num_staging_buffers=_NUM_BOUNCE_BUFFERS if staging is None else staging.num_buffers,
            trace=trace,
        )
        layouts = {layout for _, layout in self._travelling}
        in_slots = {layout: [as_parameters(layout, slot) for slot in self._stream.slots] for layout in layouts}
        self._parameters = [in_slots[layout] for _, layout in self._travelling]
        for binder, turn in self._modules_in_slots:
            binder.bind(self._parameters[turn][0])


def all_resident(plan: Plan, skeleton: Skeleton) -> Plan:
    """The plan's twin in which nothing streams, for a draft or for comparison; its memory split is not changed."""
    num_rows = skeleton.head.get_parameter("weight").shape[0]
    first = Unit(kind="layer", index=0, placement="resident", source="disk", wire_bytes=0, dense_bytes=0)
    units = [
        first.model_copy(update={"kind": "embedding"}),
        *(first.model_copy(update={"index": index}) for index in range(len(skeleton.layers))),
        first.model_copy(update={"kind": "head_chunk", "rows": (0, num_rows)}),
    ]
    return plan.model_copy(update={"units": tuple(units), "slots": 0, "staging": None})


def _units(plan: Plan, *kinds: UnitKind) -> list[Unit]:
    return [unit for unit in plan.units if unit.kind in kinds]


def _decoder_modules(plan: Plan, skeleton: Skeleton) -> list[tuple[str, nn.Module]]:
    """The modules of the plan's layers, or of their attention and MLP, with their names, in pass order."""
    if plan.granularity == "layers":
        return list(skeleton.layers)
    return [part for name, layer in skeleton.layers for part in layer_parts(name, layer)]


def _always(parameters: Parameters) -> Callable[[], Parameters]:
    return lambda: parameters


def _nothing() -> None:
    """What is resident is not given up."""


def _close(stream: Stream | None, link: Link, checkpoint: Checkpoint) -> None:
    if stream is not None:
        stream.close()
    link.close()
    checkpoint.close()


def check_implemented(plan: Plan) -> None:
    """Raises: PlanMismatchError, naming what this version does not run."""
    drafting = {0, getattr(plan.draft, "device", 0)}
    if any(index not in drafting for index in range(len(plan.devices))) or plan.batch > 1:
        raise _not_implemented(f"{len(plan.devices)} devices with batch {plan.batch}", "one device and batch 1")
    for unit in plan.units:
        if unit.kind == "expert":
            raise _not_implemented("a unit of kind expert", "whole layers")
        if unit.codec != "raw":
            raise _not_implemented(f"the codec {unit.codec}", "raw")
        is_gathered = unit.kind == "embedding" and unit.placement == "host"
        if unit.placement in ("host", "routed") and not is_gathered:
            raise _not_implemented(f"a {unit.kind} with placement {unit.placement}", "resident and streamed layers")
        if unit.kind == "embedding" and unit.placement == "streamed":
            raise _not_implemented("a streamed embedding", "an embedding that is resident or gathered on the host")


def _check_describes(plan: Plan, skeleton: Skeleton) -> None:
    """Raises: PlanMismatchError, where the plan was made for another size of model, or for layers that come apart."""
    if plan.granularity == "parts":
        check_can_split(skeleton)
    head_rows = [unit.rows[1] for unit in plan.units if unit.rows is not None]
    planned = (len(_units(plan, "layer", "mlp")), head_rows[-1] if head_rows else 0, len(_units(plan, "embedding")))
    actual = (len(skeleton.layers), skeleton.head.get_parameter("weight").shape[0], 1)
    if planned != actual:
        raise PlanMismatchError(
            "the plan describes another model",
            why=f"layers, head rows and embeddings are {planned} in the plan and {actual} in the model",
            remedy="plan again for this model",
        )


def _not_implemented(what: str, instead: str) -> PlanMismatchError:
    return PlanMismatchError(
        f"the plan asks for {what}",
        why="this version does not implement it",
        remedy=f"plan again with {instead}",
    )
