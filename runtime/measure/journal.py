"""The journal of a measuring run: every finished measurement is one line on disk before the next begins.

A run that is killed loses at most the measurement under way; the next run with the same key goes on from there.
"""

import json
import os
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from planner.contracts.base import Contract
from planner.contracts.errors import ResourceFailureError
from planner.contracts.profile import (
    AcceptanceRecording,
    ComputeMeasurement,
    DraftMeasurement,
    LinkMeasurement,
    MemoryMeasurement,
)


class Findings(Contract):
    """What one step found; the tables of a profile are the findings of all steps, one after the other."""

    links: tuple[LinkMeasurement, ...] = ()
    compute: tuple[ComputeMeasurement, ...] = ()
    draft_passes: tuple[DraftMeasurement, ...] = ()
    memory: tuple[MemoryMeasurement, ...] = ()
    acceptance: tuple[AcceptanceRecording, ...] = ()
    sentinel_s: tuple[float, ...] = ()


class _Header(Contract):
    key: str


class _Line(Contract):
    step: str
    findings: Findings | None  # None: what the step found before is void


class Journal:
    """An append-only file of finished steps. `found` holds them by name, those of an earlier run included."""

    def __init__(self, path: Path, descriptor: int, found: dict[str, Findings]) -> None:
        self.path = path
        self.found = found
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path, key: str, *, is_fresh: bool = False) -> Self:
        """The journal at a path; one with another key, or with `is_fresh`, is begun anew. A torn last line is cut off.

        Raises: ResourceFailureError, where the file cannot be written.
        """
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
            content = b"" if is_fresh else _read_all(descriptor)
            found, num_kept = _replay(content, key)
            os.ftruncate(descriptor, num_kept)
            os.lseek(descriptor, 0, os.SEEK_END)
            journal = cls(path, descriptor, found)
            if num_kept == 0:
                journal._append(_Header(key=key))
        except OSError as error:
            raise _unwritable(path, error) from error
        return journal

    def add(self, step: str, findings: Findings) -> None:
        """Note what a step found; returns when it is on disk. Raises: ResourceFailureError, where that fails."""
        self._write(_Line(step=step, findings=findings))
        self.found[step] = findings

    def drop(self, step: str) -> None:
        """Let the step be taken again."""
        if self.found.pop(step, None) is not None:
            self._write(_Line(step=step, findings=None))

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _write(self, line: _Line) -> None:
        try:
            self._append(line)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _append(self, line: Contract) -> None:
        os.write(self._descriptor, line.model_dump_json().encode() + b"\n")
        os.fsync(self._descriptor)


def _replay(content: bytes, key: str) -> tuple[dict[str, Findings], int]:
    """The steps of a journal, and how many bytes of it are whole lines of this key."""
    found: dict[str, Findings] = {}
    header, *lines = content.split(b"\n")[:-1] or [b""]
    if not _is_header(header, key):
        return {}, 0
    num_kept = len(header) + 1
    for text in lines:
        try:
            line = _Line.model_validate_json(text)
        except ValidationError:
            break
        if line.findings is None:
            found.pop(line.step, None)
        else:
            found[line.step] = line.findings
        num_kept += len(text) + 1
    return found, num_kept


def _is_header(text: bytes, key: str) -> bool:
    try:
        return bool(json.loads(text) == {"key": key})
    except ValueError:
        return False


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        return stream.read()


def _unwritable(path: Path, error: OSError) -> ResourceFailureError:
    return ResourceFailureError(
        f"cannot write the journal {path}",
        why=str(error),
        remedy="free the disk, or set DRAFTSTREAM_CACHE to a folder of yours",
    )
