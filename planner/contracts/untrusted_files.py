"""Files that a stranger wrote: opened without blocking, sized before they are read, parsed under caps.

Covers opening, exact reading and JSON objects. What the JSON must say is the caller's concern.
"""

import json
import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from planner.contracts.errors import BadInputError

MAX_JSON_COMMAS = 2_000_000  # bounds the parsed objects: a cap on bytes alone lets 16 MiB grow to 1 GiB
DOWNLOAD_AGAIN = "download the file again; if the fault stays, the file is broken at its source"

_NUM_SNIFFED_BYTES = 256
_PLACEHOLDERS = (
    (b"version https://git-lfs", "a Git-LFS pointer, not the file itself", "fetch the content with `git lfs pull`"),
    *(
        (start, "a web page, saved instead of the file", "download the file itself, for example with `hf download`")
        for start in (b"<!doctype", b"<html", b"<?xml")
    ),
)


class _DuplicateKeyError(Exception):
    """A JSON object that says the same key twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """A regular file, open for reading, with the size that the descriptor itself reports."""

    path: Path
    descriptor: int
    num_bytes: int

    def read(self, num_bytes: int, *, offset_bytes: int) -> bytes:
        """Exactly `num_bytes` bytes from `offset_bytes`.

        Raises: BadInputError, where the file cannot be read or ends earlier.
        """
        content = b""
        while len(content) < num_bytes:
            try:
                chunk = os.pread(self.descriptor, num_bytes - len(content), offset_bytes + len(content))
            except OSError as error:
                raise BadInputError(
                    f"{shown(self.path)} cannot be read", why=str(error.strerror), remedy="check the disk, then again"
                ) from error
            if not chunk:
                raise BadInputError(
                    f"{shown(self.path)} became shorter while it was read",
                    why=f"it ends before byte {offset_bytes + num_bytes:,}",
                    remedy="wait until the download has finished, then start again",
                )
            content = content + chunk if content else chunk
        return content


@contextmanager
def open_untrusted(path: Path) -> Iterator[OpenFile]:
    """The open file, which is a regular one and holds content rather than a pointer or a web page.

    Raises: BadInputError, naming the path, without ever blocking on a FIFO or a device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL or an unpaired surrogate
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInputError(
            f"{shown(path)} cannot be opened", why=str(why), remedy="check the path and its permissions"
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadInputError(
                f"{shown(path)} is not a regular file",
                why="it is a folder" if stat.S_ISDIR(status.st_mode) else "it is a pipe or a device",
                remedy="name the file itself",
            )
        file = OpenFile(path=path, descriptor=descriptor, num_bytes=status.st_size)
        _refuse_placeholder(file)
        yield file
    finally:
        os.close(descriptor)


def read_json_object(path: Path, *, max_bytes: int) -> dict[str, object]:
    """The JSON object that a file of at most `max_bytes` holds.

    Raises: BadInputError, naming the path and the fault.
    """
    with open_untrusted(path) as file:
        if file.num_bytes > max_bytes:
            raise BadInputError(
                f"{shown(path)} is too large",
                why=f"it has {file.num_bytes:,} bytes, and the limit is {max_bytes:,}",
                remedy="check that this is the file that the model's authors published",
            )
        content = file.read(file.num_bytes, offset_bytes=0)
    return parse_json_object(content, source=shown(path))


def parse_json_object(content: bytes, *, source: str) -> dict[str, object]:
    """The JSON object in `content`, which is UTF-8, says no key twice and has a bounded number of values.

    Raises: BadInputError, whose first line begins with `source`.
    """
    if content.count(b",") > MAX_JSON_COMMAS:
        why = f"it lists more than {MAX_JSON_COMMAS:,} values"
        raise BadInputError(f"{source} is too large to parse", why=why, remedy=DOWNLOAD_AGAIN)
    try:
        parsed: object = json.loads(content.decode("utf-8"), object_pairs_hook=_object_without_duplicates)
    except UnicodeDecodeError as error:
        why = f"byte {error.start:,} does not continue the text"
        raise BadInputError(f"{source} is not UTF-8 text", why=why, remedy=DOWNLOAD_AGAIN) from error
    except RecursionError as error:
        raise BadInputError(
            f"{source} is nested too deeply", why="no model needs such a depth", remedy=DOWNLOAD_AGAIN
        ) from error
    except _DuplicateKeyError as error:
        why = "two readers could take two different values"
        remedy = "download the file again, or delete the wrong one of the two"
        raise BadInputError(f"{source} says the key {error} twice", why=why, remedy=remedy) from error
    except ValueError as error:  # JSONDecodeError, or an integer of more digits than Python reads
        raise BadInputError(f"{source} is not JSON", why=str(error)[:200], remedy=DOWNLOAD_AGAIN) from error
    if not isinstance(parsed, dict):
        why = f"it holds a {type(parsed).__name__} at the top level"
        raise BadInputError(f"{source} is not a JSON object", why=why, remedy=DOWNLOAD_AGAIN)
    return parsed


def shown(thing: object) -> str:
    """Text for a message: printable paths as they are, everything else quoted, escaped and cut to a short length."""
    if isinstance(thing, Path):
        text = str(thing)
        return text if text.isprintable() else repr(text)
    if isinstance(thing, str):
        return repr(thing if len(thing) <= 200 else f"{thing[:200]}...")
    return reprlib.repr(thing)


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(shown(key))
            seen.add(key)
    return unique


def _refuse_placeholder(file: OpenFile) -> None:
    start = file.read(min(file.num_bytes, _NUM_SNIFFED_BYTES), offset_bytes=0)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for opening, kind, remedy in _PLACEHOLDERS:
        if text.startswith(opening):
            raise BadInputError(
                f"{shown(file.path)} is {kind}",
                why=f"it begins with {shown(text[:40].decode('latin-1'))}",
                remedy=remedy,
            )
