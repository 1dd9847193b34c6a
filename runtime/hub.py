"""From what the user names a model to a folder on this machine: a local path, or a hub id with an optional revision."""

import re
from pathlib import Path

from planner.contracts.errors import BadInputError
from planner.contracts.untrusted_files import shown

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_WANTED_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")


def model_folder(name: str) -> Path:
    """The folder of a model; an existing path wins over a hub id. HF_HOME and HF_HUB_OFFLINE are honoured.

    Raises: BadInputError, where it is neither, or the hub has no such model or cannot be reached.
    """
    if _is_path(name):
        return Path(name).expanduser()
    if not _HUB_ID.fullmatch(name):
        raise BadInputError(
            f"there is no model {shown(Path(name))}",
            why="no such file or folder exists, and it is no hub id of the form owner/name",
            remedy="name a folder with config.json and safetensors, or a hub id such as owner/name@revision",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whichever library it uses

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(_WANTED_FILES)))
    except (HTTPError, OSError, ValueError, ImportError) as error:  # the last two: proxies it cannot use
        raise BadInputError(
            f"the model {name} cannot be had from the hub",
            why=(str(error).strip().splitlines() or [type(error).__name__])[0],
            remedy="check the name and revision, your network and HF_TOKEN; offline, only downloaded models are found",
        ) from error


def _is_path(name: str) -> bool:
    """Whether the name leads to something on this machine that may be opened."""
    try:
        name.encode("utf-8")  # other names could not be written into a plan
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError, UnicodeEncodeError):  # too long, no such user's home
        return False
