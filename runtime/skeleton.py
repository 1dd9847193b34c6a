"""A transformers decoder without weights: parameters on meta, buffers real, its own forward untouched."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from planner.contracts.errors import BadInputError
from planner.contracts.model_folder import MAX_CONFIG_BYTES, ModelFolder, has_remote_code
from planner.contracts.plan import Dtype
from planner.contracts.untrusted_files import read_json_object

DTYPES: dict[Dtype, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}

_GENERATION_CONFIG = "generation_config.json"

ReplaceModules = Callable[[PreTrainedModel], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A meta model and the places in it that weights are bound to."""

    model: PreTrainedModel
    layers: tuple[tuple[str, nn.Module], ...]
    embedding_name: str
    embedding: nn.Module
    head_name: str
    head: nn.Module


def read_config(folder: ModelFolder) -> PretrainedConfig:
    """transformers' configuration of a local model; code in the folder is never run.

    Raises: BadInputError, where this version of transformers does not know the architecture.
    """
    try:
        config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a stranger's numbers; the configurations fail on them in many ways
        raise BadInputError(
            f"the model in {folder.path} cannot be built",
            why="it needs code of its own, which is never run"
            if has_remote_code(folder.config)
            else _first_line(error),
            remedy="use a model whose architecture transformers ships",
        ) from error
    return config.get_text_config(decoder=True)


def build_skeleton(
    folder: ModelFolder, dtype: Dtype, replace_modules: ReplaceModules | None = None, *, num_layers: int | None = None
) -> Skeleton:
    """The decoder in a folder, on meta, after the user's function (if any) has swapped modules in it.

    `num_layers` cuts it off after its first so many layers. Raises: BadInputError, where the architecture is no decoder
    that transformers ships, or the user's function changed the names or shapes of parameters.
    """
    config = read_config(folder)
    if num_layers is not None:
        _truncate(config, num_layers)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], trust_remote_code=False)
    except Exception as error:  # a stranger's numbers; the architectures fail on them in many ways
        raise BadInputError(
            f"the model in {folder.path} cannot be built",
            why=_first_line(error),
            remedy="use a causal language model whose architecture transformers ships",
        ) from error
    model.eval().requires_grad_(False)
    if dtype == "fp64":
        model.set_experts_implementation("eager")  # torch has no grouped product of float64 matrices
    _make_buffers(model)
    if (folder.path / _GENERATION_CONFIG).exists():
        model.generation_config = _generation_config(folder)
    if replace_modules is not None:
        _replace(model, replace_modules)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise BadInputError(
            f"the model in {folder.path} cannot be streamed",
            why=f"{config.model_type} has no token embedding or no language-model head",
            remedy="use a causal language model",
        )
    names = {module: name for name, module in model.named_modules()}
    return Skeleton(
        model=model,
        layers=tuple(_decoder_layers(model)),
        embedding_name=names[embedding],
        embedding=embedding,
        head_name=names[head],
        head=head,
    )


def _truncate(config: PretrainedConfig, num_layers: int) -> None:
    """Let a configuration describe its first layers only; its lists with an entry for each layer are cut with them."""
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and "layer" in name and len(value) == config.num_hidden_layers:
            setattr(config, name, value[:num_layers])
    config.num_hidden_layers = num_layers


def _generation_config(folder: ModelFolder) -> GenerationConfig:
    """The folder's generation settings, which tell the tokens that end a text."""
    read_json_object(folder.path / _GENERATION_CONFIG, max_bytes=MAX_CONFIG_BYTES)
    try:
        return GenerationConfig.from_pretrained(folder.path, local_files_only=True)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, StrictDataclassError) as error:
        raise BadInputError(
            f"the generation settings in {folder.path} cannot be read",
            why=_first_line(error),
            remedy=f"download {_GENERATION_CONFIG} of the model again, or remove it",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _make_buffers(model: PreTrainedModel) -> None:
    """Give the buffers real memory and content (rotary frequencies), as loading a checkpoint would."""
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._buffers[leaf] = torch.empty_like(buffer, device="cpu")
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # so that only buffers are initialised
    model.initialize_weights()


def _replace(model: PreTrainedModel, replace_modules: ReplaceModules) -> None:
    """Run the user's function; parameters must stay what they were, since weights are bound by name."""

    def parameters() -> dict[str, str]:
        return {name: f"{tuple(tensor.shape)} of {tensor.dtype}" for name, tensor in model.state_dict().items()}

    before = parameters()
    with torch.device("meta"):
        replace_modules(model)
    model.eval().requires_grad_(False)
    after = parameters()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        name = changed[0]
        raise BadInputError(
            f"the replaced modules do not fit the checkpoint: {name}",
            why=f"it was {before.get(name, 'absent')} and is now {after.get(name, 'absent')}",
            remedy="keep the names, shapes and dtypes of all parameters; derived tensors can be made in forward",
        )
    meta = torch.device("meta")
    empty = [name for name, buffer in model.named_buffers() if buffer.device == meta and name not in after]
    if empty:
        raise BadInputError(
            f"the replaced modules hold a buffer without content: {empty[0]}",
            why="it was made before any weight is loaded",
            remedy="make tensors that derive from weights in forward, and others with an explicit device",
        )


def _decoder_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The module list whose members transformers will not split over devices; the longest of these."""
    unsplit = set(getattr(model, "_no_split_modules", None) or ())
    lists = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    ]

    def rank(entry: tuple[str, nn.ModuleList]) -> tuple[bool, int]:
        return all(type(member).__name__ in unsplit for member in entry[1]), len(entry[1])

    name, layers = max(lists, key=rank)
    for index, layer in enumerate(layers):
        yield f"{name}.{index}", layer
