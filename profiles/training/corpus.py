"""The training text: Python's standard library and the sources of its documentation.

On CPython 3.11.7 the code half is exactly the demo pair's: 1,405 files to train on, 32 held out. Not covered: any other
text, and anything but UTF-8.
"""

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Domain = Literal["code", "prose"]

MIN_CHARS = 400
HELD_OUT_ONE_IN = 50
HELD_OUT_CHARS = 4_000

# Tables and foreign test inputs, not the Python that people write; installed packages are not the standard library.
SKIPPED_CODE = (
    "dist-packages/",
    "encodings/",
    "lib2to3/tests/data/",
    "pydoc_data/",
    "site-packages/",
    "test/test_email/",
)


class CorpusError(ValueError):
    """A folder that holds no text to train on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One source file; `path` is relative to its collection and decides whether it is held out."""

    domain: Domain
    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Documents to train on and documents that no training step sees."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]


def is_held_out(path: str) -> bool:
    """True iff the SHA-256 of the relative path, read as a number, is divisible by 50."""
    return int(hashlib.sha256(path.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def collect_code(folder: Path) -> tuple[Document, ...]:
    """The Python files of a standard library, sorted by path."""
    found = ((file.relative_to(folder).as_posix(), file) for file in folder.rglob("*.py"))
    return _read("code", ((path, file) for path, file in found if _is_wanted_code(path)), folder)


def collect_prose(folder: Path) -> tuple[Document, ...]:
    """The reStructuredText files of CPython's `Doc/`, sorted by path.

    Paths end in `.rst.txt`, as in the `_sources` of built documentation: either origin holds out the same files.
    """
    found = ((file.relative_to(folder).as_posix(), file) for file in folder.rglob("*.rst*"))
    return _read(
        "prose", ((_with_txt(path), file) for path, file in found if path.endswith((".rst", ".rst.txt"))), folder
    )


def split(documents: Iterable[Document]) -> Corpus:
    """The documents, divided by `is_held_out`.

    Raises:
        CorpusError: one of the two halves would be empty.
    """
    every = tuple(documents)
    corpus = Corpus(
        training=tuple(document for document in every if not is_held_out(document.path)),
        held_out=tuple(document for document in every if is_held_out(document.path)),
    )
    if not corpus.training or not corpus.held_out:
        raise CorpusError(
            f"{len(every)} files leave {len(corpus.training)} to train on and {len(corpus.held_out)} held out; "
            f"both must be at least 1 (one file in {HELD_OUT_ONE_IN} is held out): name folders with more files"
        )
    return corpus


def sample(corpus: Corpus, max_training_chars: int, max_held_out: int, seed: int) -> Corpus:
    """A small corpus for a trial run: files drawn at random until either bound would be passed."""
    rng = random.Random(seed)
    drawn: list[Document] = []
    num_chars = 0
    for document in rng.sample(corpus.training, len(corpus.training)):
        if num_chars + len(document.text) <= max_training_chars:
            drawn.append(document)
            num_chars += len(document.text)
    return Corpus(
        training=tuple(drawn), held_out=tuple(rng.sample(corpus.held_out, min(max_held_out, len(corpus.held_out))))
    )


def write_held_out(documents: Iterable[Document], file: Path) -> None:
    """Write `domain`, `path` and the first 4,000 characters of each document as JSON lines."""
    rows = (
        {"domain": document.domain, "path": document.path, "text": document.text[:HELD_OUT_CHARS]}
        for document in documents
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_held_out(file: Path) -> tuple[Document, ...]:
    """The documents that `write_held_out` wrote."""
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return tuple(Document(domain=row["domain"], path=row["path"], text=row["text"]) for row in rows)


def _is_wanted_code(path: str) -> bool:
    # `_sysconfigdata*` records the paths of the machine that built the interpreter.
    return not path.startswith(SKIPPED_CODE) and not Path(path).name.startswith("_sysconfigdata")


def _with_txt(path: str) -> str:
    return path if path.endswith(".txt") else f"{path}.txt"


def _read(domain: Domain, files: Iterable[tuple[str, Path]], folder: Path) -> tuple[Document, ...]:
    """Files of at least 400 characters; those that are not UTF-8 (test inputs on purpose) are left out."""
    documents = []
    for path, file in sorted(files):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if len(text) >= MIN_CHARS:
            documents.append(Document(domain=domain, path=path, text=text))
    if not documents:
        wanted = "*.py of a standard library" if domain == "code" else "*.rst, such as Doc/ of CPython's source release"
        raise CorpusError(f"{folder} holds no {domain} of {MIN_CHARS} characters or more: name a folder with {wanted}")
    return tuple(documents)
