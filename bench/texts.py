"""Recordings to replay: given texts taken as if a target had written them, a text that changes its kind, and an edit.

A recording is a prompt and an output as token ids; of an output that a target wrote, also what a draft made of each of
its positions. Others can be read from JSON lines with the same fields.
"""

import gzip
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from profiles import heldout_texts

DATA = Path(__file__).parent / "data"
Encode = Callable[[str], list[int]]

_PROMPT_TOKENS, _OUTPUT_TOKENS = 128, 512  # of running text
_PHASE_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One text. `phases` are where each kind of text begins in the output, with its name."""

    kind: str
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    phases: tuple[tuple[int, str], ...] = ()
    ranks: tuple[int, ...] = ()  # of the output's tokens in the draft's list
    draft_probs: tuple[float, ...] = ()


def read_recordings(path: Path) -> list[Recording]:
    """Recordings from JSON lines: prompt, output, and optionally kind, ranks and draft_probs."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        found.append(
            Recording(
                kind=entry.get("kind", path.stem),
                prompt=tuple(entry["prompt"]),
                output=tuple(entry["output"]),
                ranks=tuple(entry.get("ranks", ())),
                draft_probs=tuple(entry.get("draft_probs", ())),
            )
        )
    return found


def natural_texts(encode: Encode) -> list[Recording]:
    """Programs after their descriptions, answers after questions, plays."""
    code = [
        Recording(kind="HumanEval", prompt=tuple(encode(prompt)), output=tuple(encode(solution)))
        for prompt, solution in humaneval()
    ]
    mathematics = [
        Recording(kind="GSM8K", prompt=tuple(encode(entry["question"] + "\n")), output=tuple(encode(entry["answer"])))
        for entry in _json_lines((DATA / "gsm8k_test_head.jsonl").read_text(encoding="utf-8"))
    ]
    play = encode((DATA / "tinyshakespeare_head.txt").read_text(encoding="utf-8"))
    return [*code, *mathematics, *_windows("Shakespeare", play)]


def phased_texts(encode: Encode, num_texts: int = 24) -> list[Recording]:
    """Outputs of three kinds in turn: the prompt word for word, a program, a play."""
    drawn = random.Random(0)
    play = encode((DATA / "tinyshakespeare_head.txt").read_text(encoding="utf-8"))
    programs = [encode(prompt + solution) for prompt, solution in humaneval()]
    prose = [encode(entry.text) for entry in heldout_texts("evaluation")]
    found = []
    for _ in range(num_texts):
        start = drawn.randrange(len(play) - 2 * _PHASE_TOKENS)
        prompt = drawn.choice([text for text in prose if len(text) >= _PHASE_TOKENS])[:_PHASE_TOKENS]
        parts = {
            "repetition": prompt,
            "code": list(itertools.chain.from_iterable(drawn.sample(programs, 4)))[:_PHASE_TOKENS],
            "free text": play[start : start + _PHASE_TOKENS],
        }
        output: list[int] = []
        phases = []
        for name, tokens in parts.items():
            phases.append((len(output), name))
            output += tokens
        found.append(Recording(kind="three phases", prompt=tuple(prompt), output=tuple(output), phases=tuple(phases)))
    return found


def edited_texts(encode: Encode) -> list[Recording]:
    """A program in the prompt, and in the output the same with a name changed throughout and a few lines taken out."""
    programs = [entry.text for entry in heldout_texts("evaluation") if entry.domain == "code"]
    return [
        Recording(kind="editing", prompt=tuple(encode(before)), output=tuple(encode(after)))
        for program in programs
        for before in [program[:1600]]
        for after in [edited(before)]
    ]


def edited(program: str) -> str:
    """The program with its commonest name renamed, and every ninth line left out."""
    names = re.findall(r"\b[a-z_]{4,}\b", program)
    commonest = max(sorted(set(names)), key=names.count)
    renamed = re.sub(rf"\b{commonest}\b", f"new_{commonest}", program)
    return "".join(line for index, line in enumerate(renamed.splitlines(keepends=True)) if index % 9 != 8)


def humaneval() -> list[tuple[str, str]]:
    """Prompts and solutions."""
    with gzip.open(DATA / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [(entry["prompt"], entry["canonical_solution"]) for entry in _json_lines(stream.read())]


def _json_lines(text: str) -> Iterator[dict[str, str]]:
    return (json.loads(line) for line in text.splitlines())


def _windows(kind: str, tokens: Sequence[int]) -> Iterator[Recording]:
    size = _PROMPT_TOKENS + _OUTPUT_TOKENS
    for start in range(0, len(tokens) - size, size):
        window = tuple(tokens[start : start + size])
        yield Recording(kind=kind, prompt=window[:_PROMPT_TOKENS], output=window[_PROMPT_TOKENS:])
