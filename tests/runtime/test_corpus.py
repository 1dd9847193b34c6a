"""Files to draft from: what is read, that texts stay apart, and what is refused with what to do about it."""

import random
import tracemalloc
from array import array
from pathlib import Path

import pytest

from planner.contracts.copied_text import CORPUS_TOKEN_BYTES
from planner.contracts.errors import BadInputError
from runtime.draft.automaton import NO_MATCH, SEPARATOR
from runtime.draft.corpus import Corpus


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def longest_match(corpus: Corpus, text: str) -> int:
    match = NO_MATCH
    for token in letters(text):
        match = corpus.text.step(match, token)
    return match.length


def test_files_are_read_as_utf8_and_matched_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("größer\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("als er", encoding="utf-8")
    corpus = Corpus.read([tmp_path / "a.txt", tmp_path / "b.txt"], letters)
    assert corpus.num_tokens == 7 + 1 + 6 + 1
    assert longest_match(corpus, "größer\n") == 7
    assert longest_match(corpus, "größer\nals er") == 6  # no match runs from one file into the next
    assert list(corpus.text.tokens).count(SEPARATOR) == 2


@pytest.mark.parametrize("num_letters", [2, 3, 20, 5000])
def test_no_text_takes_more_memory_than_a_plan_counts(num_letters: int) -> None:
    drawn = random.Random(num_letters)
    text = array("i", (drawn.randrange(num_letters) for _ in range(20_000)))
    tracemalloc.start()
    try:
        corpus = Corpus([text])
        num_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_bytes <= CORPUS_TOKEN_BYTES * corpus.num_tokens


def test_limit_holds_for_all_files_together(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("0123456789")
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert Corpus.read(paths, letters, most_bytes=20).num_tokens == 22
    with pytest.raises(BadInputError, match=r"b\.txt is too large.*\n.*10 bytes, and 9 of 19 are left.*\n.*fewer"):
        Corpus.read(paths, letters, most_bytes=19)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", r"is empty"),
        (b" \n\t\n", r"is empty"),
        (b"abc\0def", r"not a text file.*\n.*NUL byte, at 3"),
        (b"abc\xff\xfe", r"not UTF-8.*\n.*byte 3.*\n.*convert"),
    ],
)
def test_what_is_no_text_is_refused_with_its_name(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=rf"odd\.txt.*{fault}"):
        Corpus.read([path], letters)


def test_files_that_cannot_be_opened_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be opened"):
        Corpus.read([tmp_path / "missing.txt"], letters)
    with pytest.raises(BadInputError, match=r"not a regular file\n.*it is a folder"):
        Corpus.read([tmp_path], letters)
