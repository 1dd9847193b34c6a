"""ModelShape: the sizes of a decoder that planning needs, from config.json and the safetensors headers alone.

Covers text decoders; of a checkpoint that also sees or hears only the text part counts. Where an old configuration does
not say which layers slide over a window, all count as full attention, so that memory is over- and never under-stated.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field

from planner.contracts.base import Contract, ContractFile
from planner.contracts.errors import BadInputError
from planner.contracts.layer_parts import PART_KINDS, SPLIT_MODEL_TYPES, TENSORS_OF, LayerPart, part_of
from planner.contracts.model_folder import fingerprint, open_model_folder
from planner.contracts.plan import DTYPE_BYTES, Dtype
from planner.contracts.safetensors_header import TensorEntry
from planner.contracts.untrusted_files import shown

REGION_ALIGN_BYTES = 256
KV_SLACK_TOKENS = 128  # a sliding window keeps so many more, so that rejected tokens can be rolled back

LayerKind = Literal["full", "sliding", "recurrent"]

_STORED_DTYPES: dict[str, Dtype] = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64"}
_LAYER = re.compile(r"^(?P<prefix>.*?)\.(?P<index>[0-9]{1,9})\.(?P<rest>.+)$")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings|tok_embeddings)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
_RECURRENCE = re.compile(r"\.A_log$")  # the decay of a Mamba or a gated delta rule; not every config names such layers
_OTHER_TOWERS = ("vision", "visual", "audio", "multi_modal", "image", "mtp.")


class TensorGroup(Contract):
    """`count` tensors of `num_params` parameters each, of one part of a layer."""

    num_params: int = Field(ge=0)
    count: int = Field(ge=1)
    part: LayerPart = "rest"


class LayerShape(Contract):
    """One decoder layer: its tensors, and what its attention keeps of each token."""

    tensors: tuple[TensorGroup, ...]
    kind: LayerKind
    window_tokens: int | None = None

    def num_params(self, *parts: LayerPart) -> int:
        """Parameters of some parts of the layer, or of all."""
        return sum(group.num_params * group.count for group in self._groups(parts))

    def wire_bytes(self, dtype: Dtype, *parts: LayerPart) -> int:
        """Bytes of the tensors, unpadded."""
        return self.num_params(*parts) * DTYPE_BYTES[dtype]

    def region_bytes(self, dtype: Dtype, *parts: LayerPart) -> int:
        """Bytes of a region that holds them, every tensor aligned; never less than the runtime's own layout."""
        return sum(align(group.num_params * DTYPE_BYTES[dtype]) * group.count for group in self._groups(parts))

    def _groups(self, parts: tuple[LayerPart, ...]) -> list[TensorGroup]:
        return [group for group in self.tensors if not parts or group.part in parts]


class _LayerSizes(NamedTuple):
    """Bytes of some parts of each layer, and the layers that they are of."""

    layers: tuple[LayerShape, ...]
    wire_bytes: tuple[int, ...]
    region_bytes: tuple[int, ...]


class ModelShape(ContractFile):
    """A decoder's sizes. Parameters are counted per tensor; bytes follow from the dtype it runs in."""

    name: str
    fingerprint: str
    model_type: str
    stored_dtype: Dtype
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    key_values_per_token: int = Field(gt=0)  # elements of keys and values that one layer caches per token
    query_values_per_token: int = Field(gt=0)
    num_experts: int = Field(default=0, ge=0)
    experts_per_token: int = Field(default=0, ge=0)
    max_context_tokens: int = Field(gt=0)
    is_tied: bool
    layers: tuple[LayerShape, ...] = Field(min_length=1)
    embedding_params: int = Field(gt=0)
    head_params: int = Field(gt=0)
    rest: tuple[TensorGroup, ...]  # outside layers, embedding and head: final norm, learned positions

    def __hash__(self) -> int:
        """By what tells models apart; hashing every layer would take longer than planning with it."""
        return hash((self.name, self.fingerprint))

    @classmethod
    def from_config(cls, folder: Path) -> Self:
        """The shape of the checkpoint in a folder.

        Raises: BadInputError, where the folder is damaged or its configuration does not describe a decoder.
        """
        model = open_model_folder(folder)
        tensors = tuple(model.tensors.values())
        return cls.from_tensors(
            str(folder), fingerprint(model), model.config, tensors, stored_dtype=_stored_dtype(folder, tensors)
        )

    @classmethod
    def from_tensors(
        cls,
        name: str,
        fingerprint: str,
        config: dict[str, object],
        entries: Iterable[TensorEntry],
        *,
        stored_dtype: Dtype,
    ) -> Self:
        """The shape of a decoder whose configuration and tensors are known, wherever they came from.

        Raises: BadInputError, where both do not describe one decoder.
        """
        text = _text_config(config)
        tensors = _Grouped.of(entries, _size(text, "num_hidden_layers"))
        vocab_size, head = _size(text, "vocab_size"), tensors.head or tensors.embedding
        if head.num_params == 0 or head.num_params % vocab_size:
            raise _other_decoder(f"vocab_size is {vocab_size}, and the head has {head.num_params} parameters")
        num_heads = _size(text, "num_attention_heads")
        num_kv_heads = _size(text, "num_key_value_heads", num_heads)
        head_dim = _size(text, "head_dim", _size(text, "hidden_size") // num_heads)
        if text.get("kv_lora_rank") is not None:  # latent attention: cached compressed, one for all heads
            rope_dim = _integer(text, "qk_rope_head_dim")
            key_values = _size(text, "kv_lora_rank") + rope_dim
            # A pass expands the context: keys, a copy of them with their positions, and values, in two such widths.
            queries = num_heads * (_size(text, "qk_nope_head_dim") + rope_dim + _size(text, "v_head_dim") // 2)
        else:
            key_values, queries = 2 * num_kv_heads * head_dim, num_heads * head_dim
        return cls(
            name=name,
            fingerprint=fingerprint,
            model_type=str(text.get("model_type", config["model_type"])),
            stored_dtype=stored_dtype,
            hidden_size=_size(text, "hidden_size"),
            intermediate_size=_size(text, "intermediate_size", 4 * _size(text, "hidden_size")),
            vocab_size=vocab_size,
            num_heads=num_heads,
            key_values_per_token=key_values,
            query_values_per_token=queries,
            num_experts=_first_integer(text, ("num_local_experts", "num_experts", "n_routed_experts"), 0),
            experts_per_token=_integer(text, "num_experts_per_tok", 0),
            max_context_tokens=_size(text, "max_position_embeddings"),
            is_tied=tensors.head is None,  # the config may say so of a checkpoint that holds two different tables
            layers=tuple(
                LayerShape(
                    tensors=_counted(layer),
                    kind="recurrent" if index in tensors.recurrent else kind,
                    window_tokens=window,
                )
                for index, (layer, (kind, window)) in enumerate(
                    zip(tensors.layers, _attention_kinds(text), strict=True)
                )
            ),
            embedding_params=tensors.embedding.num_params,
            head_params=head.num_params,
            rest=_counted(tensors.rest),
        )

    @property
    def num_layers(self) -> int:
        """The number of decoder layers."""
        return len(self.layers)

    @property
    def can_split(self) -> bool:
        """Whether attention and MLP of every layer may have places of their own."""
        return self.model_type in SPLIT_MODEL_TYPES and all(
            layer.num_params(*TENSORS_OF[kind]) for layer in dict.fromkeys(self.layers) for kind in PART_KINDS
        )

    def layer_bytes(self, dtype: Dtype, *parts: LayerPart) -> tuple[int, ...]:
        """Bytes of the region of each layer, or of some of its parts."""
        return self._layer_sizes(dtype, parts).region_bytes

    def layer_wire_bytes(self, dtype: Dtype, *parts: LayerPart) -> tuple[int, ...]:
        """Bytes of the tensors of each layer, or of some of its parts, unpadded."""
        return self._layer_sizes(dtype, parts).wire_bytes

    def _layer_sizes(self, dtype: Dtype, parts: tuple[LayerPart, ...]) -> _LayerSizes:
        """Worked out once, as a search asks for it many times."""
        known = self.known_layer_sizes.get((dtype, parts))
        if known is None or known.layers is not self.layers:  # a copy with other layers brings its original's along
            known = _LayerSizes(
                layers=self.layers,
                wire_bytes=tuple(layer.wire_bytes(dtype, *parts) for layer in self.layers),
                region_bytes=tuple(layer.region_bytes(dtype, *parts) for layer in self.layers),
            )
            self.known_layer_sizes[dtype, parts] = known
        return known

    @cached_property
    def known_layer_sizes(self) -> dict[tuple[Dtype, tuple[LayerPart, ...]], _LayerSizes]:
        """What was worked out so far of the layers' sizes, and for which layers."""
        return {}

    def rest_bytes(self, dtype: Dtype) -> int:
        """Bytes of the parameters outside layers, embedding and head."""
        return sum(align(group.num_params * DTYPE_BYTES[dtype]) * group.count for group in self.rest)

    def weights_bytes(self, dtype: Dtype) -> int:
        """Bytes of all parameters, a tied head counted once."""
        tables = self.embedding_params + (0 if self.is_tied else self.head_params)
        return sum(self.layer_bytes(dtype)) + tables * DTYPE_BYTES[dtype] + self.rest_bytes(dtype)

    @cached_property
    def _windows(self) -> Counter[int | None]:
        """How many layers see so many tokens, or all."""
        return Counter(layer.window_tokens for layer in self.layers)

    def kv_bytes(self, context_tokens: int, dtype: Dtype, num_nodes: int = 0) -> int:
        """Bytes of the preallocated keys and values at a context, sliding layers with their slack, and of a tree's."""
        num_tokens = sum(
            count * kv_capacity_tokens(context_tokens, window_tokens, num_nodes)
            for window_tokens, count in self._windows.items()
        )
        return num_tokens * self.key_values_per_token * DTYPE_BYTES[dtype]


def align(num_bytes: int) -> int:
    """Bytes rounded up to the alignment of tensors in a region."""
    return -(-num_bytes // REGION_ALIGN_BYTES) * REGION_ALIGN_BYTES


def kv_capacity_tokens(context_tokens: int, window_tokens: int | None, num_nodes: int = 0) -> int:
    """Tokens that one layer's preallocated cache holds: the context, or twice a sliding window with its slack.

    `num_nodes` more where a tree of so many hangs on the sequence at once.
    """
    if window_tokens is None:
        return context_tokens + num_nodes
    return min(context_tokens, 2 * (window_tokens + KV_SLACK_TOKENS)) + num_nodes


class _Grouped(Contract):
    """A checkpoint's tensors, each where it belongs."""

    layers: tuple[tuple[tuple[LayerPart, int], ...], ...]
    recurrent: frozenset[int]
    rest: tuple[tuple[LayerPart, int], ...]
    embedding: TensorGroup
    head: TensorGroup | None

    @classmethod
    def of(cls, entries: Iterable[TensorEntry], num_layers: int) -> Self:
        text = [entry for entry in entries if not any(tower in entry.name for tower in _OTHER_TOWERS)]
        if num_layers > len(text):
            raise _other_decoder(f"num_hidden_layers is {num_layers}, and it has {len(text)} tensors")
        prefix = _layer_prefix(text)
        layers: list[list[tuple[LayerPart, int]]] = [[] for _ in range(num_layers)]
        recurrent = set()
        rest: list[tuple[LayerPart, int]] = []
        tables = {}
        for entry in text:
            match = _LAYER.match(entry.name)
            if match is not None and match["prefix"] == prefix:
                if int(match["index"]) >= num_layers:
                    continue  # a multi-token-prediction layer behind the decoder's own: not loaded
                layers[int(match["index"])].append((part_of(match["rest"]), _num_params(entry)))
                if _RECURRENCE.search(entry.name):
                    recurrent.add(int(match["index"]))
            elif _EMBEDDING.search(entry.name):
                tables["embedding"] = TensorGroup(num_params=_num_params(entry), count=1)
            elif _HEAD.search(entry.name):
                tables["head"] = TensorGroup(num_params=_num_params(entry), count=1)
            else:
                rest.append(("rest", _num_params(entry)))
        missing = [index for index, layer in enumerate(layers) if not layer]
        if missing or "embedding" not in tables:
            lacking = f"decoder layer {missing[0]}" if missing else "the token embedding"
            raise _other_decoder(f"it has no tensor of {lacking}")
        return cls(
            layers=tuple(map(tuple, layers)),
            recurrent=frozenset(recurrent),
            rest=tuple(rest),
            embedding=tables["embedding"],
            head=tables.get("head"),
        )


def _layer_prefix(entries: list[TensorEntry]) -> str:
    """The module list that holds the decoder's layers: the numbered prefix with the most parameters."""
    sizes: Counter[str] = Counter()
    for entry in entries:
        match = _LAYER.match(entry.name)
        if match is not None:
            sizes[match["prefix"]] += _num_params(entry)
    return sizes.most_common(1)[0][0] if sizes else ""


def _num_params(entry: TensorEntry) -> int:
    num_params = 1
    for size in entry.shape:
        num_params *= size
    return num_params


def _other_decoder(why: str) -> BadInputError:
    return BadInputError(
        "the checkpoint does not hold the decoder that its config.json describes",
        why=why,
        remedy="download the model again; weights and config.json must be of the same model",
    )


def _counted(sizes: Iterable[tuple[LayerPart, int]]) -> tuple[TensorGroup, ...]:
    return tuple(
        TensorGroup(num_params=size, count=count, part=part) for (part, size), count in sorted(Counter(sizes).items())
    )


def _text_config(config: dict[str, object]) -> dict[str, object]:
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


_OLDER_NAMES = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "hidden_size": ("n_embd", "n_embed", "d_model"),
    "num_attention_heads": ("n_head", "n_heads"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len", "seq_length"),
    "intermediate_size": ("n_inner", "ffn_dim"),
}


def _integer(config: dict[str, object], key: str, default: int | None = None, *, least: int = 0) -> int:
    names = (key, *_OLDER_NAMES.get(key, ()))
    value = next((config[name] for name in names if config.get(name) is not None), None)
    if value is None and default is not None and default >= least:
        return default
    if isinstance(value, list) and value and all(isinstance(entry, int) for entry in value):
        value = max(value)  # one size a layer; the widest bounds them all
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**40:
        raise BadInputError(
            "config.json does not describe a decoder",
            why=f"{key} is {shown(value)}, not a whole number of at least {least}",
            remedy="download config.json again; encoders and diffusion models cannot be run",
        )
    return value


def _size(config: dict[str, object], key: str, default: int | None = None) -> int:
    return _integer(config, key, default, least=1)


def _first_integer(config: dict[str, object], keys: tuple[str, ...], default: int) -> int:
    present = [key for key in keys if config.get(key) is not None]
    return _integer(config, present[0]) if present else default


def _stored_dtype(folder: Path, entries: Iterable[TensorEntry]) -> Dtype:
    """The dtype of most parameters."""
    sizes: Counter[str] = Counter()
    for entry in entries:
        sizes[entry.dtype] += entry.num_bytes
    name = sizes.most_common(1)[0][0] if sizes else "none"
    if name not in _STORED_DTYPES:
        raise BadInputError(
            f"the weights in {folder} cannot be run",
            why=f"they are stored as {name}; bf16, fp16, fp32 and fp64 run",
            remedy="use the model's original checkpoint in bf16 or fp16",
        )
    return _STORED_DTYPES[name]


def _attention_kinds(text: dict[str, object]) -> list[tuple[LayerKind, int | None]]:
    """Kind and window of each layer, by the rules of transformers' own dynamic cache."""
    num_layers = _integer(text, "num_hidden_layers")
    uses_window = text.get("use_sliding_window", True) is not False
    window = _first_integer(text, ("sliding_window", "attention_chunk_size"), 0) if uses_window else 0
    types = text.get("layer_types")
    if not isinstance(types, list):
        pattern = _integer(text, "sliding_window_pattern", 2 if text.get("model_type") == "gemma2" else 0)
        if window and pattern:
            types = ["sliding" if (index + 1) % pattern else "full_attention" for index in range(num_layers)]
        else:
            types = ["sliding" if window else "full_attention"] * num_layers
    if len(types) != num_layers:
        raise BadInputError(
            "config.json contradicts itself",
            why=f"layer_types has {len(types)} entries, num_hidden_layers is {num_layers}",
            remedy="download config.json again",
        )
    kinds: list[tuple[LayerKind, int | None]] = []
    for name in types:
        if name in ("mamba", "mamba2", "linear_attention", "recurrent", "conv"):
            kinds.append(("recurrent", None))
        elif window and name not in ("full_attention", "attention"):
            kinds.append(("sliding", window))
        else:
            kinds.append(("full", None))
    return kinds
