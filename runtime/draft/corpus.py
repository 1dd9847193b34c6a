"""Text files whose continuations n-gram drafting offers besides the text's own: read once, used by every request."""

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from planner.contracts.copied_text import CORPUS_TOKEN_BYTES
from planner.contracts.errors import BadInputError
from planner.contracts.performance import Performance
from planner.contracts.plan import HybridDraft, NgramDraft, Plan
from planner.contracts.untrusted_files import open_untrusted, shown
from runtime.draft.automaton import SEPARATOR, SuffixAutomaton

MOST_CORPUS_BYTES = 16 * 2**20
_MOST_CHARACTER_BYTES = 4  # of UTF-8; all but the first begin with the bits 10


def read_texts(
    paths: Sequence[Path], encode: Callable[[str], Sequence[int]], most_bytes: int = MOST_CORPUS_BYTES
) -> list[Sequence[int]]:
    """The tokens of each of these UTF-8 files, the oldest first; beyond `most_bytes` the oldest text is left out.

    Raises: BadInputError, naming a file that cannot be read, is empty, or is no text.
    """
    texts: list[Sequence[int]] = []
    num_bytes_left = most_bytes
    for path in reversed(paths):
        text, num_bytes = _text(path, num_bytes_left)
        num_bytes_left = max(0, num_bytes_left - num_bytes)
        if text:
            texts.append(array("i", encode(text)))
    return texts[::-1]


def num_bytes_left_out(paths: Sequence[Path], most_bytes: int = MOST_CORPUS_BYTES) -> int:
    """Bytes of the oldest text for which these files are too large together. Raises: BadInputError."""
    num_bytes = 0
    for path in paths:
        with open_untrusted(path) as file:
            num_bytes += file.num_bytes
    return max(0, num_bytes - most_bytes)


def num_corpus_tokens(texts: Sequence[Sequence[int]]) -> int:
    """Tokens of a corpus of these texts, with one more for the end of each."""
    return sum(len(tokens) + 1 for tokens in texts)


def with_corpus(plan: Plan, num_tokens: int) -> Plan:
    """The plan with the memory of so large a corpus, where it was made for a smaller one and copies from it."""
    more_bytes = (num_tokens - plan.corpus_tokens) * CORPUS_TOKEN_BYTES
    if more_bytes <= 0 or not isinstance(plan.draft, NgramDraft | HybridDraft):
        return plan
    host_overhead_bytes = plan.memory.host_overhead_bytes + more_bytes
    return plan.model_copy(
        update={
            "corpus_tokens": num_tokens,
            "memory": plan.memory.model_copy(update={"host_overhead_bytes": host_overhead_bytes}),
            "predicted": _larger(plan.predicted, more_bytes),
            "predicted_p10": None if plan.predicted_p10 is None else _larger(plan.predicted_p10, more_bytes),
            "predicted_p90": None if plan.predicted_p90 is None else _larger(plan.predicted_p90, more_bytes),
        }
    )


def _larger(predicted: Performance, more_bytes: int) -> Performance:
    sizes = {"host_bytes": predicted.host_bytes, "total_bytes": predicted.total_bytes}
    update = {name: None if num_bytes is None else num_bytes + more_bytes for name, num_bytes in sizes.items()}
    return predicted.model_copy(update=update)


class Corpus:
    """The automaton of several texts; no match and no continuation runs from one into the next."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.text = SuffixAutomaton()
        for tokens in texts:
            for token in tokens:
                self.text.append(token)
            self.text.append(SEPARATOR)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts, with one more for the end of each."""
        return len(self.text)

    @classmethod
    def read(
        cls, paths: Sequence[Path], encode: Callable[[str], Sequence[int]], most_bytes: int = MOST_CORPUS_BYTES
    ) -> Self:
        """The corpus of files; see `read_texts`. Raises: BadInputError."""
        return cls(read_texts(paths, encode, most_bytes))


def _text(path: Path, most_bytes: int) -> tuple[str, int]:
    """The last `most_bytes` of a file, from the start of a character on, and how large the file is."""
    with open_untrusted(path) as file:
        skipped = max(0, file.num_bytes - most_bytes)
        content = file.read(file.num_bytes - skipped, offset_bytes=skipped)
    if skipped:
        starts = [index for index, byte in enumerate(content[:_MOST_CHARACTER_BYTES]) if byte >> 6 != 0b10]
        is_part = not starts and len(content) < _MOST_CHARACTER_BYTES  # of a single character
        within = len(content) if is_part else min(starts, default=0)
        skipped, content = skipped + within, content[within:]
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{shown(path)} is not UTF-8 text",
            why=f"byte {skipped + error.start:,} does not continue the text",
            remedy="give a text file, or convert this one to UTF-8",
        ) from error
    if "\0" in text:
        raise BadInputError(
            f"{shown(path)} is not a text file",
            why=f"it holds a NUL byte, at {skipped + content.index(0):,}",
            remedy="give source code, notes or other plain text",
        )
    if not skipped and not text.strip():
        raise BadInputError(
            f"{shown(path)} is empty",
            why="nothing in it could be drafted from",
            remedy="leave it out, or check that it was written completely",
        )
    return text, file.num_bytes
