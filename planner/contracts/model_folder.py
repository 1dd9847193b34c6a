"""A local Hugging Face model folder: its config and where every tensor lies, checked before any weight is read.

Covers config.json, one safetensors file or shards with their index, and links into the Hugging Face cache. Whether
transformers knows the model, and whether its tensors fit the config, is decided elsewhere. No remote code, ever.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from planner.contracts.checkpoint_formats import (
    config_parts,
    foreign_file_error,
    refuse_foreign_folder,
    refuse_quantised_config,
    refuse_quantised_tensors,
    weight_file_names,
)
from planner.contracts.errors import BadInputError
from planner.contracts.safetensors_header import TensorEntry, read_header
from planner.contracts.untrusted_files import DOWNLOAD_AGAIN, read_json_object, shown

MAX_CONFIG_BYTES = 10 * 2**20
MAX_INDEX_BYTES = 32 * 2**20
MAX_CONFIG_DEPTH = 32
INDEX_NAME = "model.safetensors.index.json"

_SHARD_NAME = re.compile(r"model-\d+-of-\d+\.safetensors")
_VOLATILE_KEYS = {"transformers_version", "_name_or_path"}
_DOWNLOAD_ALL = "download the whole repository again into an empty folder, for example with `hf download <id>`"
_NUM_NAMES_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """What a model folder holds: `config` without any `trust_remote_code`, and the tensors of all shards by name."""

    path: Path
    config: dict[str, object]
    tensors: dict[str, TensorEntry]


def open_model_folder(path: Path) -> ModelFolder:
    """The folder's config and tensor table; only headers are read.

    Raises: BadInputError, naming the file or tensor at fault, why, and what to try.
    """
    names = _file_names(path)
    refuse_foreign_folder(path, names)
    config = _read_config(path, names)
    refuse_quantised_config(path, config)
    if INDEX_NAME in names:
        tensors = _read_shards(path, names, _read_weight_map(path))
    else:
        tensors = read_header(_contained(path, _single_file_name(path, names)))
    if not tensors:
        raise BadInputError(f"{shown(path)} holds no tensors", why="its header is empty", remedy=DOWNLOAD_AGAIN)
    refuse_quantised_tensors(path, tensors)
    return ModelFolder(path=path, config=config, tensors=tensors)


def has_remote_code(config: Mapping[str, object]) -> bool:
    """Whether the config, or a part of it, names Python files of its own (`auto_map`); they are never run."""
    return any(part.get("auto_map") for part in config_parts(config))


def fingerprint(folder: ModelFolder) -> str:
    """32 hex digits that change with the config, the tensor table or a shard's size, and not with the folder's place.

    A shard's size is the end of its last tensor, since `read_header` lets nothing follow it.
    """
    table = sorted(
        [entry.name, entry.dtype, list(entry.shape), entry.file.name, entry.offset_bytes]
        for entry in folder.tensors.values()
    )
    shard_bytes: dict[str, int] = {}
    for entry in folder.tensors.values():
        end = entry.offset_bytes + entry.num_bytes
        shard_bytes[entry.file.name] = max(end, shard_bytes.get(entry.file.name, 0))
    identity = [_without_keys(folder.config, _VOLATILE_KEYS), table, shard_bytes]
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:32]


def _file_names(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir())
    except NotADirectoryError as error:
        raise foreign_file_error(path) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInputError(
            f"{shown(path)} is not a model folder", why=str(why), remedy="give a folder that holds config.json"
        ) from error


def _read_config(path: Path, names: list[str]) -> dict[str, object]:
    if "config.json" not in names:
        remedy = _DOWNLOAD_ALL
        if "params.json" in names:
            remedy = "params.json is the vendor's own format: use the repository in transformers format, often '-hf'"
        raise BadInputError(f"{shown(path)} has no config.json", why="it says how to build the model", remedy=remedy)
    config_path = _contained(path, "config.json")
    config = read_json_object(config_path, max_bytes=MAX_CONFIG_BYTES)
    if _depth(config) > MAX_CONFIG_DEPTH:
        why = f"no model's config has more than {MAX_CONFIG_DEPTH} levels"
        raise BadInputError(f"{shown(config_path)} is nested too deeply", why=why, remedy=DOWNLOAD_AGAIN)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        why = f"model_type names the architecture, and is {shown(model_type)}"
        remedy = "use a model that transformers loads without remote code; its config.json states a model_type"
        raise BadInputError(f"{shown(config_path)} states no model_type", why=why, remedy=remedy)
    # Loaders have believed a config's own trust_remote_code (CVE-2026-5241): nobody downstream may see one.
    return _without_keys(config, {"trust_remote_code"})


def _single_file_name(path: Path, names: list[str]) -> str:
    shard = next((name for name in names if _SHARD_NAME.fullmatch(name)), None)
    if shard is not None:
        why = f"{shown(shard)} is one of several shards, and only the index says which tensors belong to the model"
        raise BadInputError(f"{shown(path)} has shards without {INDEX_NAME}", why=why, remedy=_DOWNLOAD_ALL)
    candidates = weight_file_names(names)
    if "model.safetensors" in candidates:
        return "model.safetensors"
    if len(candidates) > 1:
        raise BadInputError(
            f"{shown(path)} has several safetensors files and no {INDEX_NAME}",
            why=f"which of them is the model cannot be known: {_listed(candidates)}",
            remedy="keep one of them in the folder, or download the index",
        )
    return candidates[0]


def _read_weight_map(path: Path) -> dict[str, str]:
    index_path = _contained(path, INDEX_NAME)
    weight_map = read_json_object(index_path, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        why = f"it must map each tensor to its file, and is {shown(weight_map)}"
        raise BadInputError(f"{shown(index_path)} has no weight_map", why=why, remedy=DOWNLOAD_AGAIN)
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_bare_name(shard):
            raise BadInputError(
                f"{shown(index_path)} maps tensor {shown(tensor)} to {shown(shard)}",
                why="a shard must be the bare name of a .safetensors file in the same folder",
                remedy="do not use this download: an honest index never points elsewhere",
            )
    return weight_map


def _is_bare_name(name: str) -> bool:
    is_plain = name.isprintable() and not any(separator in name for separator in ("/", "\\", ":"))
    return is_plain and name.endswith(".safetensors") and not name.startswith(".")


def _read_shards(path: Path, names: list[str], weight_map: dict[str, str]) -> dict[str, TensorEntry]:
    """The tensors of all shards, where the index and the shards' headers say the same."""
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if shard not in names or not _leads_somewhere(path / shard)]
    if missing:
        why = f"{len(missing)} of {len(shards)} files are not there: {_listed(missing)}"
        raise BadInputError(f"{shown(path)} lacks shards that {INDEX_NAME} lists", why=why, remedy=_DOWNLOAD_ALL)
    for name in names:
        if name not in shards and (_SHARD_NAME.fullmatch(name) or name == "model.safetensors"):
            raise _mixed(path, f"{shown(name)} is in the folder, and {INDEX_NAME} does not list it")
    headers = {shard: read_header(_contained(path, shard)) for shard in shards}
    tensors: dict[str, TensorEntry] = {}
    for shard, header in headers.items():
        for name, entry in header.items():
            listed = weight_map.get(name)
            if name in tensors:
                raise _mixed(path, f"tensor {shown(name)} is in both {tensors[name].file.name} and {shard}")
            if listed is None:
                raise _mixed(path, f"{shard} holds tensor {shown(name)}, and {INDEX_NAME} does not list it")
            if listed != shard and name not in headers[listed]:
                raise _mixed(path, f"{INDEX_NAME} places tensor {shown(name)} in {listed}, and it is in {shard}")
            tensors[name] = entry
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        why = f"{INDEX_NAME} places tensor {shown(absent[0])} in {weight_map[absent[0]]}, and it is not there"
        raise _mixed(path, f"{why} ({len(absent):,} such)")
    return tensors


def _contained(folder: Path, name: str) -> Path:
    """`folder / name`, once its links are known to end in the folder or in the same repository's Hugging Face blobs.

    Raises: BadInputError, before anything outside is opened.
    """
    path = folder / name
    try:
        root, target = folder.resolve(strict=True), path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        why = error.strerror if isinstance(error, OSError) else "its links form a circle"
        raise BadInputError(f"{shown(path)} cannot be found", why=str(why), remedy=_DOWNLOAD_ALL) from error
    in_blobs = root.parent.name == "snapshots" and target.is_relative_to(root.parent.parent / "blobs")
    if not target.is_relative_to(root) and not in_blobs:
        raise BadInputError(
            f"{shown(path)} links out of the model folder",
            why=f"it leads to {shown(target)}",
            remedy="if you made the link yourself, give the folder that holds the real files, or copy them here",
        )
    return path


def _leads_somewhere(path: Path) -> bool:
    # An interrupted download leaves links in a Hugging Face cache whose blobs are not there.
    try:
        path.stat()
    except OSError:
        return False
    return True


def _depth(config: dict[str, object]) -> int:
    """Levels of objects and lists in the config, counted without recursion."""
    depth = 0
    level: list[dict[str, object] | list[object]] = [config]
    while level:
        depth += 1
        children = [child for part in level for child in (part.values() if isinstance(part, dict) else part)]
        level = [child for child in children if isinstance(child, dict | list)]
    return depth


def _without_keys(config: dict[str, object], keys: set[str]) -> dict[str, object]:
    """A copy of the config that has none of the keys at any level."""

    def cleaned(part: object) -> object:
        if isinstance(part, dict):
            return {key: cleaned(value) for key, value in part.items() if key not in keys}
        return [cleaned(value) for value in part] if isinstance(part, list) else part

    return {key: cleaned(value) for key, value in config.items() if key not in keys}


def _listed(names: list[str]) -> str:
    hidden = len(names) - _NUM_NAMES_SHOWN
    return ", ".join(names[:_NUM_NAMES_SHOWN]) + (f" and {hidden:,} more" if hidden > 0 else "")


def _mixed(path: Path, why: str) -> BadInputError:
    return BadInputError(f"{shown(path)} mixes two downloads", why=why, remedy=_DOWNLOAD_ALL)
