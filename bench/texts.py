"""Recordings to replay: given texts taken as if a target had written them, a text that changes its kind, and an edit.

A recording is a prompt and an output as token ids, and where a draft read them, what it made of each position of the
output. `written_texts` makes such ones with the demo pair; others can be read from JSON lines with the same fields.
"""

import gzip
import itertools
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from profiles import HeldoutPart, heldout_texts
from runtime.engine import Engine
from runtime.measure.acceptance import judge

DATA = Path(__file__).parent / "data"
Encode = Callable[[str], list[int]]

_PROMPT_TOKENS, _OUTPUT_TOKENS = 128, 512  # of running text
_PHASE_TOKENS = 256
_EDIT_CHARACTERS = 1600
# For the demo pair, which is good for 256 tokens:
_MOST_TOKENS = 240  # of prompt and output
_LEAST_OUTPUT_TOKENS = 48
_SHORT_PROMPT_TOKENS = 96
_SHORT_PHASE_TOKENS = _MOST_TOKENS // 4
_SHORT_EDIT_CHARACTERS = 420
_TEXTS_OF_A_KIND = 8
_KINDS_IN_PARTS = ("greedy code", "greedy prose", "three phases", "editing")  # whose texts are those of the part


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One text. `phases` are where each kind of text begins in the output, with its name."""

    kind: str
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    phases: tuple[tuple[int, str], ...] = ()
    ranks: tuple[int, ...] = ()  # of the output's tokens in the draft's list
    draft_probs: tuple[float, ...] = ()
    top_probs: tuple[float, ...] = ()  # NUM_TOP_PROBS of each position, falling


def read_recordings(path: Path) -> list[Recording]:
    """Recordings from JSON lines, plain or .gz: prompt, output, and optionally the other fields."""
    found = []
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for line in content.decode().splitlines():
        entry = json.loads(line)
        found.append(
            Recording(
                kind=entry.get("kind", path.stem),
                prompt=tuple(entry["prompt"]),
                output=tuple(entry["output"]),
                phases=tuple((start, name) for start, name in entry.get("phases", ())),
                ranks=tuple(entry.get("ranks", ())),
                draft_probs=tuple(entry.get("draft_probs", ())),
                top_probs=tuple(entry.get("top_probs", ())),
            )
        )
    return found


def write_recordings(path: Path, recordings: Iterable[Recording]) -> None:
    """Write them as JSON lines, compressed where the name ends in .gz."""
    lines = [json.dumps(asdict(one), separators=(",", ":")) for one in recordings]
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def written_texts(engine: Engine, part: HeldoutPart = "evaluation") -> list[Recording]:
    """What the engine's target writes greedily after held-out code and prose, and given texts of every kind.

    Each with what the engine's draft makes of it by teacher forcing, and within what the demo pair is good for. No text
    is in both parts, but for what the phases are drawn from; there are twice as many to profile.
    """

    def encode(text: str) -> list[int]:
        return list(engine.tokenizer.encode(text))

    num_phased = _TEXTS_OF_A_KIND * (2 if part == "profile" else 1)
    given = [
        *natural_texts(encode, _SHORT_PROMPT_TOKENS, _MOST_TOKENS - _SHORT_PROMPT_TOKENS),
        *phased_texts(encode, num_phased, _SHORT_PHASE_TOKENS, part),
        *edited_texts(encode, _SHORT_EDIT_CHARACTERS, part, num_windows=4 if part == "profile" else 1),
    ]
    by_kind: dict[str, list[Recording]] = defaultdict(list)
    for one in _heldout_prompts(encode, part):
        by_kind[one.kind].append(one)
    for one in given:
        if len(one.prompt) + len(one.output) <= _MOST_TOKENS and len(one.output) >= _LEAST_OUTPUT_TOKENS:
            by_kind[one.kind].append(one)
    chosen = [one for kind in by_kind.values() for one in _spread(kind, part)]
    return [_judged(one if one.output else _written(one, engine), engine) for one in chosen]


def _heldout_prompts(encode: Encode, part: HeldoutPart) -> Iterator[Recording]:
    """The starts of held-out texts, whose output is yet to be written."""
    for entry in heldout_texts(part):
        tokens = encode(entry.text)
        for start in range(0, len(tokens) - _SHORT_PROMPT_TOKENS, 2 * _SHORT_PROMPT_TOKENS):
            prompt = tuple(tokens[start : start + _SHORT_PROMPT_TOKENS])
            yield Recording(kind=f"greedy {entry.domain}", prompt=prompt, output=())


def _spread(recordings: Sequence[Recording], part: HeldoutPart) -> Sequence[Recording]:
    """Some of a kind at equal distances; to profile, of those that are left."""
    chosen = recordings[:: max(1, len(recordings) // _TEXTS_OF_A_KIND)][:_TEXTS_OF_A_KIND]
    if part == "evaluation":
        return chosen
    is_own = recordings[0].kind in _KINDS_IN_PARTS
    left = recordings if is_own else [one for one in recordings if one not in chosen]
    return left[:: max(1, len(left) // (2 * _TEXTS_OF_A_KIND))][: 2 * _TEXTS_OF_A_KIND]


def _written(recording: Recording, engine: Engine) -> Recording:
    tokens = engine.generate(recording.prompt, max_tokens=_MOST_TOKENS - len(recording.prompt))
    return replace(recording, output=tuple(token.token_id for token in tokens if token.token_id is not None))


def _judged(recording: Recording, engine: Engine) -> Recording:
    assert engine.draft is not None
    vocab_size = engine.target.streamed.vocab_size
    no_overlaps_TV = torch.zeros(len(recording.output), vocab_size)
    judged = judge(engine.draft, [no_overlaps_TV], recording.prompt, recording.output)
    return replace(recording, ranks=judged.ranks, draft_probs=judged.draft_probs, top_probs=judged.top_probs)


def natural_texts(
    encode: Encode, prompt_tokens: int = _PROMPT_TOKENS, output_tokens: int = _OUTPUT_TOKENS
) -> list[Recording]:
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
    return [*code, *mathematics, *_windows("Shakespeare", play, prompt_tokens, output_tokens)]


def phased_texts(
    encode: Encode, num_texts: int = 24, phase_tokens: int = _PHASE_TOKENS, part: HeldoutPart = "evaluation"
) -> list[Recording]:
    """Outputs of three kinds in turn: the prompt word for word, a program, a play."""
    drawn = random.Random(0 if part == "evaluation" else 1)
    play = encode((DATA / "tinyshakespeare_head.txt").read_text(encoding="utf-8"))
    programs = [encode(prompt + solution) for prompt, solution in humaneval()]
    prose = [encode(entry.text) for entry in heldout_texts(part)]
    found = []
    for _ in range(num_texts):
        start = drawn.randrange(len(play) - 2 * phase_tokens)
        prompt = drawn.choice([text for text in prose if len(text) >= phase_tokens])[:phase_tokens]
        parts = {
            "repetition": prompt,
            "code": list(itertools.chain.from_iterable(drawn.sample(programs, 4)))[:phase_tokens],
            "free text": play[start : start + phase_tokens],
        }
        output: list[int] = []
        phases = []
        for name, tokens in parts.items():
            phases.append((len(output), name))
            output += tokens
        found.append(Recording(kind="three phases", prompt=tuple(prompt), output=tuple(output), phases=tuple(phases)))
    return found


def edited_texts(
    encode: Encode, num_characters: int = _EDIT_CHARACTERS, part: HeldoutPart = "evaluation", num_windows: int = 1
) -> list[Recording]:
    """A program in the prompt, and in the output the same with a name changed throughout and a few lines taken out."""
    programs = [entry.text for entry in heldout_texts(part) if entry.domain == "code"]
    return [
        Recording(kind="editing", prompt=tuple(encode(before)), output=tuple(encode(after)))
        for program in programs
        for start in range(0, min(len(program), num_windows * num_characters), num_characters)
        for before in [program[start : start + num_characters]]
        for after in [edited(before)]
    ]


def edited(program: str) -> str:
    """The program with its commonest name renamed, and every ninth line left out."""
    names = re.findall(r"\b[a-z_]{4,}\b", program)
    commonest = max(sorted(set(names)), key=names.count, default="self")
    renamed = re.sub(rf"\b{commonest}\b", f"new_{commonest}", program)
    return "".join(line for index, line in enumerate(renamed.splitlines(keepends=True)) if index % 9 != 8)


def humaneval() -> list[tuple[str, str]]:
    """Prompts and solutions."""
    with gzip.open(DATA / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [(entry["prompt"], entry["canonical_solution"]) for entry in _json_lines(stream.read())]


def _json_lines(text: str) -> Iterator[dict[str, str]]:
    return (json.loads(line) for line in text.splitlines())


def _windows(kind: str, tokens: Sequence[int], prompt_tokens: int, output_tokens: int) -> Iterator[Recording]:
    size = prompt_tokens + output_tokens
    for start in range(0, len(tokens) - size, size):
        window = tuple(tokens[start : start + size])
        yield Recording(kind=kind, prompt=window[:prompt_tokens], output=window[prompt_tokens:])
