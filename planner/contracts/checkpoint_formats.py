"""Checkpoints that people own and that cannot run here: each refused by its name, with the way out.

Covers formats (GGUF, pickle, ONNX, ...), adapters, pipelines and quantised weights. Nothing is decoded or converted.
Source of the method names: `QuantizationMethod` in transformers 5.23.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from planner.contracts.errors import BadInputError
from planner.contracts.safetensors_header import TensorEntry
from planner.contracts.untrusted_files import shown

_RUNS = "only safetensors weights in bf16, fp16 or fp32 run"
_CONVERT_PICKLE = (
    "convert it, only if you trust its source: AutoModelForCausalLM.from_pretrained('<this folder>', dtype='auto')"
    ".save_pretrained('<new folder>', safe_serialization=True)"
)
_SAFETENSORS_ORIGINAL = "download the safetensors original that it was made from"

# What a folder without safetensors holds: kind, file-name patterns, remedy. The first match names the folder.
_FOREIGN_FORMATS = (
    ("GGUF", ("*.gguf",), f"{_SAFETENSORS_ORIGINAL}; its hub id is usually this one without '-GGUF'"),
    ("pickle", ("pytorch_model*.bin", "*.pt", "*.pth"), _CONVERT_PICKLE),
    ("ONNX", ("*.onnx", "onnx"), _SAFETENSORS_ORIGINAL),
    ("TensorFlow", ("tf_model*.h5", "saved_model.pb", "*.ckpt.index"), _SAFETENSORS_ORIGINAL),
    ("Flax", ("flax_model*.msgpack",), _SAFETENSORS_ORIGINAL),
    ("OpenVINO", ("openvino_*.xml",), _SAFETENSORS_ORIGINAL),
)

# How the quantised copy's hub id usually differs from the original's.
_HUB_ID_HINTS = {
    "aqlm": "'-AQLM-2Bit-1x16'",
    "auto-round": "'-AutoRound'",
    "awq": "'-AWQ'",
    "bitsandbytes": "'-bnb-4bit'",
    "compressed-tensors": "'-FP8-dynamic' or '-quantized.w4a16'",
    "fbgemm_fp8": "'-FP8'",
    "fp8": "'-FP8'",
    "fp8 or compressed-tensors": "'-FP8' or '-FP8-dynamic'",
    "gptq": "'-GPTQ-Int4'",
    "gptq or awq": "'-GPTQ-Int4' or '-AWQ'",
    "hqq": "'-HQQ'",
    "int8": "'-int8'",
    "mlx": "'-4bit', and its owner another than 'mlx-community'",
    "mxfp4": "'-MXFP4'",
    "nvfp4": "'-NVFP4'",
    "quanto": "'-quanto'",
    "torchao": "'-torchao'",
}
# Without save_original_format=False, transformers 5.23 quantises fp8 again and keeps mxfp4's names when it saves.
_DEQUANTISING_CONFIGS = {
    "compressed-tensors": "CompressedTensorsConfig",
    "fp8": "FineGrainedFP8Config",
    "mxfp4": "Mxfp4Config",
}

# Tensor names that give a quantised checkpoint away: suffix, the suffix its companion must have, method.
_QUANTISED_NAMES = (
    (".qweight", ".qzeros", "gptq or awq"),
    (".weight_scale_inv", None, "fp8"),
    (".absmax", None, "bitsandbytes"),
    (".quant_map", None, "bitsandbytes"),
    (".SCB", None, "bitsandbytes"),
    ("_blocks", "_scales", "mxfp4"),
    (".weight_packed", None, "compressed-tensors"),
    (".weight_scale", None, "fp8 or compressed-tensors"),
    (".codes", ".codebooks", "aqlm"),
)
# transformers' key, compressed-tensors' former one, and MLX's, which other models use for other settings.
_QUANTISATION_KEYS = ("quantization_config", "compression_config", "quantization")
_LEGACY_QUANTISATION_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
# Attention masks were once stored as U8, so an integer tensor counts only where its name says weight.
_QUANTISED_WEIGHT_DTYPES = {"I8": "int8", "U8": "bitsandbytes", "U32": "mlx"}


def weight_file_names(names: list[str]) -> list[str]:
    """The safetensors files that may hold the model: not Mistral's second copy (`consolidated`), not an adapter."""
    return [
        name for name in names if name.endswith(".safetensors") and not name.startswith(("consolidated", "adapter"))
    ]


def foreign_file_error(path: Path) -> BadInputError:
    """Why a path that is a file is no model folder, naming its format where the name tells."""
    for kind, patterns, remedy in _FOREIGN_FORMATS:
        if _matching([path.name], patterns):
            return BadInputError(f"{shown(path)} holds {kind} weights", why=_RUNS, remedy=remedy)
    return BadInputError(
        f"{shown(path)} is a file", why="a model is a folder with config.json and weights", remedy="give its folder"
    )


def refuse_foreign_folder(folder: Path, names: list[str]) -> None:
    """Returns where a folder with the files `names` may hold a model that runs.

    Raises: BadInputError, naming what the folder holds instead.
    """
    if "model_index.json" in names:
        why = "it has a model_index.json, and only language models run"
        remedy = "give a language model; diffusers runs pipelines"
        raise BadInputError(f"{shown(folder)} is a diffusers pipeline", why=why, remedy=remedy)
    if "adapter_config.json" in names and "config.json" not in names:
        raise BadInputError(
            f"{shown(folder)} is an adapter, not a model",
            why="it has adapter_config.json and no config.json",
            remedy="merge the adapter: PeftModel.from_pretrained(<base model>, <this folder>)"
            ".merge_and_unload().save_pretrained('<new folder>'), and give the new folder",
        )
    for name, method in _LEGACY_QUANTISATION_FILES.items():
        if name in names:
            raise _quantised(folder, method, f"it has a {name}")
    if weight_file_names(names):
        return
    for kind, patterns, remedy in _FOREIGN_FORMATS:
        found = _matching(names, patterns)
        if found:
            why = f"it has {shown(found[0])} and no safetensors; {_RUNS}"
            raise BadInputError(f"{shown(folder)} holds {kind} weights", why=why, remedy=remedy)
    raise BadInputError(
        f"{shown(folder)} holds no weights",
        why=f"it has no model.safetensors, shards or other safetensors file; {_RUNS}",
        remedy="download the whole repository, for example with `hf download <id>`",
    )


def refuse_quantised_config(folder: Path, config: Mapping[str, object]) -> None:
    """Returns where neither the config nor a part of it, such as `text_config`, says that the weights are quantised.

    Raises: BadInputError, naming the method.
    """
    for part in config_parts(config):
        for key in _QUANTISATION_KEYS:
            stated = part.get(key)
            is_other_setting = key == "quantization" and not (isinstance(stated, dict) and "bits" in stated)
            if stated is not None and not is_other_setting:
                raise _quantised(folder, _stated_method(key, stated), f"config.json has the block {key!r}")


def refuse_quantised_tensors(folder: Path, tensors: Mapping[str, TensorEntry]) -> None:
    """Returns where neither names nor dtypes show that the weights are quantised.

    Raises: BadInputError, naming the method and one tensor.
    """
    for name, entry in tensors.items():
        for suffix, companion, method in _QUANTISED_NAMES:
            if name.endswith(suffix) and (companion is None or name.removesuffix(suffix) + companion in tensors):
                raise _quantised(folder, method, f"it has the tensor {shown(name)}")
        method_of_dtype = _method_of_dtype(entry)
        if method_of_dtype is not None:
            raise _quantised(folder, method_of_dtype, f"the tensor {shown(name)} is stored as {entry.dtype}")


def config_parts(config: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """The config and every object inside it, at any depth."""
    pending: list[object] = [dict(config)]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield part
            pending.extend(part.values())
        elif isinstance(part, list):
            pending.extend(part)


def _method_of_dtype(entry: TensorEntry) -> str | None:
    if entry.dtype.startswith("F8_"):
        return "fp8"
    is_matrix = len(entry.shape) >= 2
    if is_matrix and entry.name.endswith(("weight", "_proj")):
        return _QUANTISED_WEIGHT_DTYPES.get(entry.dtype)
    return None


def _stated_method(key: str, stated: object) -> str:
    """The method's name, lower case; blocks without one are those of MLX and of old bitsandbytes."""
    if not isinstance(stated, dict):
        return shown(stated)
    method = stated.get("quant_method")
    if isinstance(method, str):
        return method.lower() if method.isprintable() and len(method) <= 40 else shown(method)
    if stated.get("load_in_4bit") or stated.get("load_in_8bit"):
        return "bitsandbytes"
    if key == "compression_config":
        return "compressed-tensors"
    return "mlx" if "group_size" in stated and "bits" in stated else "an unnamed method"


def _quantised(folder: Path, method: str, evidence: str) -> BadInputError:
    hint = _HUB_ID_HINTS.get(method)
    remedy = "use the bf16 or fp16 original" + (f"; its hub id is usually this one without {hint}" if hint else "")
    if method == "bitsandbytes":
        remedy += "; or load it with transformers, call model.dequantize(), then model.save_pretrained('<new folder>')"
    elif method in _DEQUANTISING_CONFIGS:
        remedy += (
            "; or write a bf16 copy: AutoModelForCausalLM.from_pretrained('<this folder>', dtype='bfloat16', "
            f"quantization_config={_DEQUANTISING_CONFIGS[method]}(dequantize=True))"
            ".save_pretrained('<new folder>', save_original_format=False)"
        )
    return BadInputError(f"{shown(folder)} is quantised with {method}", why=f"{evidence}; {_RUNS}", remedy=remedy)


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(fnmatch(name.lower(), pattern) for pattern in patterns)]
