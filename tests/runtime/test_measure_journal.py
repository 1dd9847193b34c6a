"""The journal of a measuring run: whatever byte a kill leaves last, whole measurements stay and torn ones are gone."""

from pathlib import Path

import pytest

from planner.contracts.errors import ResourceFailureError
from planner.contracts.profile import MemoryMeasurement
from runtime.measure.journal import Findings, Journal


def found(num_bytes: int) -> Findings:
    return Findings(memory=(MemoryMeasurement(part="host_overhead", num_bytes=num_bytes),))


def written(path: Path, key: str, *steps: str) -> None:
    journal = Journal.open(path, key)
    for number, step in enumerate(steps):
        journal.add(step, found(number))
    journal.close()


def test_journal_cut_at_any_byte_keeps_just_the_whole_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    written(path, "key", "one", "two", "three")
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        journal = Journal.open(path, "key")
        num_whole = max(0, content[:length].count(b"\n") - 1)  # without the header
        assert list(journal.found) == ["one", "two", "three"][:num_whole]
        journal.add("four", found(4))
        journal.close()
        again = Journal.open(path, "key")
        assert list(again.found) == [*["one", "two", "three"][:num_whole], "four"]
        assert again.found["four"] == found(4)
        again.close()


def test_journal_of_another_key_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    written(path, "key", "one")
    journal = Journal.open(path, "other")
    assert journal.found == {}
    journal.close()
    journal = Journal.open(path, "key")
    assert journal.found == {}
    journal.close()


def test_journal_asked_to_be_fresh_forgets(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    written(path, "key", "one")
    journal = Journal.open(path, "key", is_fresh=True)
    assert journal.found == {}
    journal.close()


def test_dropped_step_stays_dropped_and_can_be_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    written(path, "key", "one", "two")
    journal = Journal.open(path, "key")
    journal.drop("one")
    journal.close()
    journal = Journal.open(path, "key")
    assert list(journal.found) == ["two"]
    journal.add("one", found(7))
    journal.close()
    journal = Journal.open(path, "key")
    assert journal.found == {"two": found(1), "one": found(7)}
    journal.close()


def test_damaged_line_ends_what_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    written(path, "key", "one", "two", "three")
    header, one, _, three = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + one + b'{"step": "two", "findings": {"links": 3}}\n' + three)
    journal = Journal.open(path, "key")
    assert list(journal.found) == ["one"]
    journal.close()


def test_journal_that_cannot_be_written_is_a_resource_failure(tmp_path: Path) -> None:
    with pytest.raises(ResourceFailureError, match="cannot write the journal"):
        Journal.open(tmp_path / "missing" / "a.journal", "key")
