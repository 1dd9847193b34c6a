"""Texts by domain, whose beginnings a target continues while acceptance is recorded."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from planner.contracts.errors import BadInputError

_MOST_FILE_BYTES = 32 * 2**20
_LEAST_TEXT_CHARS = 16
_OWN_DOMAIN = "own"
_REMEDY = 'name a text file, its paragraphs apart by empty lines, or JSON lines {"domain": "code", "text": "..."}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text of one domain."""

    domain: str
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts in a file: JSON lines with domain and text, or the paragraphs of a plain text.

    Raises: BadInputError, where it is empty, not text, or its lines are not what they begin like.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_FILE_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"cannot read the prompts in {path}", why=str(error), remedy=_REMEDY) from error
    if len(content) > _MOST_FILE_BYTES or "\0" in text:
        why = "it holds NUL bytes, as no text does" if "\0" in text else f"it exceeds {_MOST_FILE_BYTES} bytes"
        raise BadInputError(f"cannot read the prompts in {path}", why=why, remedy=_REMEDY)
    is_json = text.lstrip().startswith("{")
    prompts = list(_json_lines(path, text)) if is_json else list(_paragraphs(text))
    if not prompts:
        raise BadInputError(
            f"there are no prompts in {path}",
            why=f"it holds no paragraph of {_LEAST_TEXT_CHARS} characters or more",
            remedy=_REMEDY,
        )
    return prompts


def round_robin(prompts: Iterable[Prompt], most_per_domain: int) -> list[Prompt]:
    """Prompts of each domain, drawn with a fixed seed, the domains in turn, so that a cut leaves a fair sample of each.

    Neighbours in a file are often alike, so that its first prompts would speak for a few of its texts only.
    """
    by_domain: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_domain[prompt.domain].append(prompt)
    drawn = random.Random(0)
    columns = [drawn.sample(column, min(most_per_domain, len(column))) for column in by_domain.values()]
    return [prompt for row in zip_longest(*columns) for prompt in row if prompt is not None]


def _json_lines(path: Path, text: str) -> Iterator[Prompt]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad_line(path, number, str(error)) from error
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise _bad_line(path, number, 'it has no "text"')
        domain = entry.get("domain", _OWN_DOMAIN)
        if not isinstance(domain, str) or not domain.isprintable() or not 0 < len(domain) <= 40:
            raise _bad_line(path, number, '"domain" is no short name')
        if entry["text"].strip():
            yield Prompt(domain=domain, text=entry["text"])


def _paragraphs(text: str) -> Iterator[Prompt]:
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            paragraphs[-1].append(line)
        else:
            paragraphs.append([])
    for lines in paragraphs:
        paragraph = "\n".join(lines)
        if len(paragraph) >= _LEAST_TEXT_CHARS:
            yield Prompt(domain=_OWN_DOMAIN, text=paragraph)


def _bad_line(path: Path, number: int, why: str) -> BadInputError:
    return BadInputError(f"line {number} of {path} is no prompt", why=why, remedy=_REMEDY)
