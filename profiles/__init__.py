"""Data that ships with draftstream, each number with its source; here: the embedded demo pair, and texts by domain."""

import json
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

Role = Literal["target", "draft"]
HeldoutPart = Literal["profile", "evaluation"]

PROMPT_DOMAINS = ("code", "chat", "math", "prose")


@dataclass(frozen=True, slots=True)
class DomainText:
    """A text and the domain it is of."""

    domain: str
    text: str


def demo_folder(role: Role) -> Path:
    """The folder of the demo pair's target or draft, as `from_pretrained` takes it."""
    return _root() / "demo" / role


def heldout_path() -> Path:
    """The JSON lines (`domain`, `path`, `text`) that neither model of the demo pair was trained on."""
    return _root() / "demo" / "heldout.jsonl"


def heldout_texts(part: HeldoutPart) -> list[DomainText]:
    """The held-out texts that profiles may be measured on (of each domain the first, third and so on), or the others.

    No text is in both, so that a prediction is never evaluated on what it was fitted to.
    """
    num_seen: Counter[str] = Counter()
    chosen = []
    for entry in _read_texts(heldout_path()):
        if num_seen[entry.domain] % 2 == (part == "evaluation"):
            chosen.append(entry)
        num_seen[entry.domain] += 1
    return chosen


def domain_prompts() -> list[DomainText]:
    """Sixteen public prompts of each domain, for models that know more than the demo pair."""
    return [entry for domain in PROMPT_DOMAINS for entry in _read_texts(_root() / "prompts" / f"{domain}.jsonl")]


def _read_texts(path: Path) -> list[DomainText]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [DomainText(row["domain"], row["text"]) for row in rows]


def _root() -> Path:
    return Path(str(files(__name__)))
