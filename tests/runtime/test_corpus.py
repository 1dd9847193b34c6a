"""Files to draft from: what is read, that texts stay apart, and what is refused with what to do about it."""

import random
import tracemalloc
from array import array
from pathlib import Path

import pytest

from planner.contracts.copied_text import CORPUS_TOKEN_BYTES
from planner.contracts.errors import BadInputError
from runtime.draft.automaton import NO_MATCH, SEPARATOR
from runtime.draft.corpus import Corpus, num_bytes_left_out, read_texts


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


def test_beyond_the_limit_the_oldest_text_is_left_out(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("old.txt", "middle.txt", "new.txt")]
    for path, text in zip(paths, ("0123456789", "ähnlich", "abcdefghij"), strict=True):
        path.write_text(text, encoding="utf-8")
    whole = read_texts(paths, letters, most_bytes=28)
    assert [len(text) for text in whole] == [10, 7, 10]
    assert num_bytes_left_out(paths, most_bytes=28) == 0
    for most_bytes, kept in (
        (27, ["123456789", "ähnlich", "abcdefghij"]),
        (17, ["hnlich", "abcdefghij"]),
        (4, ["ghij"]),
    ):
        texts = read_texts(paths, letters, most_bytes)
        assert ["".join(map(chr, text)) for text in texts] == kept
        assert num_bytes_left_out(paths, most_bytes) == 28 - most_bytes


@pytest.mark.parametrize("most_bytes", [1, 2, 3, 4])
def test_less_than_a_character_of_a_file_is_nothing_of_it(most_bytes: int, tmp_path: Path) -> None:
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("ends in 𝄞", encoding="utf-8")
    new.write_text("new")
    texts = read_texts([old, new], letters, 3 + most_bytes)
    assert ["".join(map(chr, text)) for text in texts] == (["𝄞", "new"] if most_bytes == 4 else ["new"])


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
