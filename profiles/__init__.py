"""Data that ships with draftstream, each number with its source; here: where the embedded demo pair lies."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

Role = Literal["target", "draft"]


def demo_folder(role: Role) -> Path:
    """The folder of the demo pair's target or draft, as `from_pretrained` takes it."""
    return _demo_root() / role


def heldout_path() -> Path:
    """The JSON lines (`domain`, `path`, `text`) that neither model of the demo pair was trained on."""
    return _demo_root() / "heldout.jsonl"


def _demo_root() -> Path:
    return Path(str(files(__name__).joinpath("demo")))
