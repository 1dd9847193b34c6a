"""The truncated twin: the first layers of a target, with its embedding, head and weights, opened as deployed.

So that a target far larger than memory can be measured: every distinct shape of layer occurs in the twin, and its
weights exceed the last-level cache wherever the target's do. What it writes means nothing.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from planner.contracts.link_text import link_text
from planner.contracts.model_folder import ModelFolder
from planner.contracts.model_shape import LayerShape, ModelShape, align
from planner.contracts.performance import Performance
from planner.contracts.plan import (
    DTYPE_BYTES,
    CudaLink,
    Device,
    DiskLink,
    Dtype,
    LinkChoice,
    MemorySplit,
    ModelRef,
    NoDraft,
    Placement,
    Plan,
    Unit,
)
from runtime.cached import CachedModel
from runtime.checkpoint import Checkpoint
from runtime.model import StreamedModel
from runtime.skeleton import Skeleton, build_skeleton

LEAST_TWIN_BYTES = 128 * 2**20  # more than the last-level cache of nearly every CPU
LEAST_LAYERS = 3  # so that what belongs to a pass is told apart from what belongs to each unit
_MOST_MEMORY_FRAC = 0.5  # of what is free, for the layers of a resident twin
_HEAD_ROW_MULTIPLE = 64
_NUM_SLOTS = 2
_LAYER = re.compile(r"^(?P<prefix>.*?)\.(?P<index>[0-9]{1,9})\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """The first `num_layers` layers of a target, as a folder and a shape of their own."""

    folder: ModelFolder
    shape: ModelShape
    dtype: Dtype

    @property
    def layer_classes(self) -> dict[LayerShape, int]:
        """The distinct shapes of layers, each with the index of the first layer that has it."""
        first: dict[LayerShape, int] = {}
        for index, layer in enumerate(self.shape.layers):
            first.setdefault(layer, index)
        return first

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot: of the largest layer."""
        return max(layer.region_bytes(self.dtype) for layer in self.shape.layers)

    @property
    def chunk_rows(self) -> int:
        """Rows of the head that plans stream as one chunk: no more than a slot holds, chunks of equal size."""
        vocab_size = self.shape.vocab_size
        row_bytes = self.shape.head_params // vocab_size * DTYPE_BYTES[self.dtype]
        multiple = _HEAD_ROW_MULTIPLE if self.slot_bytes >= _HEAD_ROW_MULTIPLE * row_bytes else 1
        most_rows = max(1, self.slot_bytes // row_bytes // multiple * multiple)
        num_chunks = -(-vocab_size // most_rows)
        return min(vocab_size, -(-vocab_size // num_chunks // multiple) * multiple)


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """An open twin: `link` is None where everything is resident."""

    truncation: Truncation
    link: LinkChoice | None
    skeleton: Skeleton
    streamed: StreamedModel
    cached: CachedModel

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.streamed.link.device

    @property
    def link_text(self) -> str | None:
        """The link as on the command line; None where nothing is copied."""
        return None if self.link is None else link_text(self.link)

    def rewind_to(self, num_tokens: int) -> None:
        """Forget all but the first tokens; a model that cannot roll back forgets them all."""
        if self.cached.can_roll_back:
            self.cached.drop(self.cached.num_seen - num_tokens)
        else:
            self.cached.reset()


def truncate(folder: ModelFolder, shape: ModelShape, dtype: Dtype, free_bytes: int) -> Truncation:
    """The shortest truncation with every shape of layer, and enough layers and bytes, within half the free memory.

    The first layers of a model whose shapes come late may not fit; the twin then lacks those shapes.
    """
    wanted, seen, num_bytes, num_layers = set(shape.layers), set[LayerShape](), 0, 0
    for layer in shape.layers:
        num_bytes += layer.region_bytes(dtype)
        if num_layers and num_bytes > _MOST_MEMORY_FRAC * free_bytes:
            break
        seen.add(layer)
        num_layers += 1
        if seen == wanted and num_bytes >= LEAST_TWIN_BYTES and num_layers >= LEAST_LAYERS:
            break
    return Truncation(
        folder=_first_layers(folder, num_layers),
        shape=shape.model_copy(update={"layers": shape.layers[:num_layers]}),
        dtype=dtype,
    )


@contextmanager
def open_twin(
    truncation: Truncation, link: LinkChoice | None, context_tokens: int, device: torch.device
) -> Iterator[Twin]:
    """The twin with all layers and the head streamed over a link through two slots, or with everything resident."""
    skeleton = build_skeleton(truncation.folder, truncation.dtype, num_layers=truncation.shape.num_layers)
    checkpoint = Checkpoint(
        truncation.folder, skeleton.model, drops_pages=isinstance(link, DiskLink) and link.mode == "direct"
    )
    try:
        streamed = StreamedModel(skeleton, checkpoint, _plan(truncation, link, context_tokens, device))
    except BaseException:
        checkpoint.close()
        raise
    with streamed:
        yield Twin(
            truncation=truncation,
            link=link,
            skeleton=skeleton,
            streamed=streamed,
            cached=CachedModel(streamed, context_tokens),
        )


def _plan(truncation: Truncation, link: LinkChoice | None, context_tokens: int, device: torch.device) -> Plan:
    shape, dtype = truncation.shape, truncation.dtype
    is_resident = link is None
    chunk_rows = shape.vocab_size if is_resident else truncation.chunk_rows
    row_bytes = shape.head_params // shape.vocab_size * DTYPE_BYTES[dtype]
    placement: Placement = "resident" if is_resident else "streamed"
    in_ram = link is not None and link.kind != "disk"
    first = Unit(
        kind="embedding",
        index=0,
        placement="resident" if is_resident else "host",
        source="ram" if in_ram and not shape.is_tied else "disk",
        wire_bytes=0,
        dense_bytes=align(shape.embedding_params * DTYPE_BYTES[dtype]),
    )
    unit = first.model_copy(update={"placement": placement, "source": "ram" if in_ram else "disk"})
    layers = [
        unit.model_copy(
            update={
                "kind": "layer",
                "index": index,
                "wire_bytes": layer.wire_bytes(dtype),
                "dense_bytes": layer.region_bytes(dtype),
            }
        )
        for index, layer in enumerate(shape.layers)
    ]
    chunks = []
    for index, start in enumerate(range(0, shape.vocab_size, chunk_rows)):
        rows = (start, min(start + chunk_rows, shape.vocab_size))
        num_bytes = (rows[1] - rows[0]) * row_bytes
        sizes = {"wire_bytes": num_bytes, "dense_bytes": align(num_bytes)}
        chunks.append(unit.model_copy(update={"kind": "head_chunk", "index": index, "rows": rows, **sizes}))
    default_link: LinkChoice = CudaLink() if device.type == "cuda" else DiskLink()
    return Plan(
        target=ModelRef(name=shape.name, fingerprint=shape.fingerprint),
        dtype=dtype,
        context_tokens=context_tokens,
        prefill_chunk_tokens=1,
        devices=(Device(name=str(device), budget_bytes=1),),
        link=link or default_link,
        slots=0 if is_resident else _NUM_SLOTS,
        draft=NoDraft(),
        units=(first, *layers, *chunks),
        memory=MemorySplit(**dict.fromkeys(MemorySplit.model_fields, 0)),
        predicted=Performance(),
    )


def _first_layers(folder: ModelFolder, num_layers: int) -> ModelFolder:
    """The folder without the tensors of later layers; the layers are the numbered prefix with the most bytes."""
    sizes: Counter[str] = Counter()
    for name, entry in folder.tensors.items():
        match = _LAYER.match(name)
        if match is not None:
            sizes[match["prefix"]] += entry.num_bytes
    prefix = sizes.most_common(1)[0][0] if sizes else ""

    def is_kept(name: str) -> bool:
        match = _LAYER.match(name)
        return match is None or match["prefix"] != prefix or int(match["index"]) < num_layers

    return replace(folder, tensors={name: entry for name, entry in folder.tensors.items() if is_kept(name)})
