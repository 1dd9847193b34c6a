"""Models on this machine that might draft for a target, and whether they speak its tokens: folders and the hub's cache.

The network is never asked. Whatever a folder holds, it is listed with its fault and the search goes on. Sizes, memory
and speed are the planner's to judge.
"""

import re
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from planner.contracts.errors import BadInputError, DraftstreamError
from planner.contracts.model_folder import open_model_folder
from planner.contracts.model_shape import ModelShape
from planner.contracts.untrusted_files import DOWNLOAD_AGAIN, open_untrusted, shown
from runtime.hub import model_folder
from runtime.skeleton import read_config
from runtime.tokenizer import check_same_tokens, load_tokenizer

MOST_DEPTH = 3  # of folders below one that the user names
MOST_FOLDERS = 10_000  # that are looked into below one root
MOST_TOKENIZER_BYTES = 256 * 2**20  # of one file; the largest published vocabularies take 35 MB

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_REPOSITORY = re.compile(r"models--[\w.-]+")
_MARKS = ("config.json", "adapter_config.json", "model_index.json")  # of a folder that holds a model, or seems to
_MAKES_TEXT = re.compile(r"(CausalLM|LMHeadModel|ForConditionalGeneration)$")
_COMMIT_BYTES = 64
_MOST_REASON_CHARS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A folder that seems to hold a model, or one that could not be looked into."""

    name: str  # what to type: a path or a hub id
    folder: Path
    why_unread: str | None = None


def local_folder(name: str) -> Path:
    """The folder of a model that is on this machine: a path, or a hub id that was downloaded before.

    Raises: BadInputError, where it is neither.
    """
    match = _HUB_ID.fullmatch(name)
    if match is None or _is_there(Path(name)):
        return model_folder(name)  # which asks the hub for nothing that is a path, or no id
    repository = _cache() / f"models--{match[1].replace('/', '--')}"
    revision = match[2] or "main"
    snapshot = repository / "snapshots" / (_commit(repository, revision) or revision)
    if not _is_there(snapshot):
        raise BadInputError(
            f"the model {name} is not on this machine",
            why="no such folder exists, and the hub's cache does not hold it",
            remedy=f"download it first: hf download {match[1]}; without its files tokenizers cannot be compared",
        )
    return snapshot


def find_models(target: Path, folders: Sequence[Path]) -> list[LocalModel]:
    """Models other than the target: below `folders`, beside the target, and in the hub's cache, each folder once.

    Raises: BadInputError, where one of `folders` does not exist.
    """
    seen = {_identity(target)}
    found: list[LocalModel] = []
    for folder in folders:
        if not _is_there(folder):
            raise BadInputError(
                f"there is no folder {shown(folder)}", why="it was named to be searched", remedy="name an existing one"
            )
        found += _models_below(folder, MOST_DEPTH, seen)
    beside = target.resolve() if ".." in target.parts else target.absolute()
    if beside.parent.name != "snapshots":  # there lie other revisions of the same model
        found += [model for folder in _subfolders(beside.parent) for model in _models_below(folder, 0, seen)]
    return [*found, *_cached_models(seen)]


def read_shape(model: LocalModel) -> ModelShape:
    """The model's shape under the name to type. Raises: BadInputError, where it is no decoder that can run."""
    if model.why_unread is not None:
        raise BadInputError("it cannot be read", why=model.why_unread, remedy="check the folder's permissions")
    try:
        _check_makes_text(open_model_folder(model.folder).config)
        return ModelShape.from_config(model.folder).model_copy(update={"name": model.name})
    except DraftstreamError:
        raise
    except Exception as error:  # a stranger's numbers, which may contradict each other in ways nobody thought of
        raise _unreadable("the model", error) from error


def check_can_draft(model: LocalModel, target: PreTrainedTokenizerBase) -> None:
    """Returns where transformers ships the model's architecture as a decoder, and its tokens are the target's.

    Raises: BadInputError, saying which of it is not so.
    """
    try:
        model_type = read_config(open_model_folder(model.folder)).model_type
        if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise _no_decoder(f"transformers knows no causal language model of type {shown(model_type)}")
        _check_tokenizer_files(model.folder)
        check_same_tokens(target, load_tokenizer(model.folder))
    except DraftstreamError:
        raise
    except Exception as error:  # a stranger's tokenizer; the libraries raise what they like
        raise _unreadable("the tokenizer", error) from error


def reason(model: LocalModel, error: DraftstreamError) -> str:
    """The error as the reason for a refusal: one printable line that does not repeat where the model lies."""
    text = f"{error.what}: {error.why}".replace(f"{model.folder}/", "").replace(str(model.folder), "it")
    return _printable(" ".join(text.split()))


# --- folders ---


def _models_below(root: Path, most_depth: int, seen: set[tuple[int, int]]) -> Iterator[LocalModel]:
    """Models in a folder and below it, breadth first; links are followed, and no folder is looked into twice."""
    pending = deque([(root, most_depth)])
    num_looked = 0
    while pending:
        folder, depth = pending.popleft()
        if num_looked == MOST_FOLDERS:
            why = f"the search ends after {MOST_FOLDERS:,} folders: name a smaller one"
            yield LocalModel(name=_typed(root), folder=root, why_unread=why)
            return
        num_looked += 1
        try:
            identity = _identity(folder)
            if identity in seen:
                continue
            seen.add(identity)
            names = {entry.name for entry in folder.iterdir()}
        except OSError as error:
            yield LocalModel(name=_typed(folder), folder=folder, why_unread=str(error.strerror))
            continue
        if not names.isdisjoint(_MARKS) or any(name.lower().endswith(".gguf") for name in names):
            yield LocalModel(name=_typed(folder), folder=folder)
        if depth and "config.json" not in names:
            pending += [(below, depth - 1) for below in _subfolders(folder)]


def _subfolders(folder: Path) -> list[Path]:
    """Folders in a folder but for hidden ones, by name; none where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and _is_folder(path))
    except OSError:
        return []


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, RuntimeError):  # links in a circle
        return False


def _is_there(path: Path) -> bool:
    try:
        return path.expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, no such user's home, a NUL
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _typed(folder: Path) -> str:
    """The folder as a user would type it, relative where it lies below the working folder."""
    here = Path.cwd()
    return _printable(str(folder.relative_to(here) if folder != here and folder.is_relative_to(here) else folder))


# --- the hub's cache ---


def _cache() -> Path:
    """Where downloads lie; HF_HOME and HF_HUB_CACHE are honoured."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached_models(seen: set[tuple[int, int]]) -> Iterator[LocalModel]:
    """Every snapshot of every model in the cache, that of `main` first.

    Not by huggingface_hub's scan_cache_dir, which one unreadable file, or a pipe among the refs, would end or block.
    """
    for repository in _subfolders(_cache()):
        if not _REPOSITORY.fullmatch(repository.name):
            continue
        hub_id = repository.name.removeprefix("models--").replace("--", "/", 1)
        main = _commit(repository, "main")
        snapshots = _subfolders(repository / "snapshots")
        for snapshot in sorted(snapshots, key=lambda path: path.name != main):
            name = hub_id if snapshot.name == main else f"{hub_id}@{snapshot.name}"
            for model in _models_below(snapshot, 0, seen):
                is_id = _HUB_ID.fullmatch(name) is not None  # the oldest models have no owner
                yield LocalModel(name=name if is_id else model.name, folder=model.folder, why_unread=model.why_unread)


def _commit(repository: Path, revision: str) -> str | None:
    """The commit that a branch or tag of a cached repository stands for; None where the cache does not say."""
    try:
        with open_untrusted(repository / "refs" / revision) as file:
            content = file.read(min(file.num_bytes, _COMMIT_BYTES), offset_bytes=0)
    except BadInputError:
        return None
    commit = content.decode("ascii", errors="replace").strip()
    return commit if commit.isalnum() else None


# --- what a model must be ---


def _check_makes_text(config: dict[str, object]) -> None:
    """Raises: BadInputError, where the config says that the model is an encoder, or has one before its decoder."""
    architectures = config.get("architectures")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    if names and not any(_MAKES_TEXT.search(name) for name in names):
        raise _no_decoder(f"its architecture is {shown(names[0])}")
    if config.get("is_encoder_decoder") is True:
        raise _no_decoder("it has an encoder before its decoder")


def _check_tokenizer_files(folder: Path) -> None:
    """Raises: BadInputError, where a library that reads the folder would block on a pipe, or read without end."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".txt", ".model", ".jinja"):
            continue
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadInputError(
                f"{path.name} is not a regular file", why="a pipe or a device holds no tokenizer", remedy=DOWNLOAD_AGAIN
            )
        if status.st_size > MOST_TOKENIZER_BYTES:
            raise BadInputError(
                f"{path.name} is too large",
                why=f"it has {status.st_size:,} bytes, and the limit is {MOST_TOKENIZER_BYTES:,}",
                remedy=DOWNLOAD_AGAIN,
            )


def _no_decoder(why: str) -> BadInputError:
    return BadInputError("it is not a decoder", why=why, remedy="use a causal language model")


def _unreadable(what: str, error: Exception) -> BadInputError:
    why = " ".join(str(error).split())[:_MOST_REASON_CHARS] or type(error).__name__
    return BadInputError(f"{what} cannot be read", why=why, remedy=DOWNLOAD_AGAIN)


def _printable(text: str) -> str:
    """The text with control characters and broken bytes escaped, since strangers name files."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
