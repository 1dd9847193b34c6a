"""Where a unit's bytes come from: ranges of files, or host memory. The read function is the one that profiles measure.

Reads are positional (preadv) into memory that the caller owns, never mmap: a file that shrinks under the reader is an
error here, not a SIGBUS. File pages are dropped from the page cache after reading where the link's mode is `direct`.
"""

import contextlib
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from planner.contracts.errors import ResourceFailureError

_MAX_PIECES_PER_CALL = 1024  # IOV_MAX
_CLOSED = -1


class Source(Protocol):
    """The bytes of one unit, in the layout of its region."""

    def read_into(self, region: Tensor) -> None:
        """Fill the region, a uint8 host tensor; blocks until the bytes are there."""

    def prepared_for(self, region: Tensor) -> "Source":
        """The same bytes for this one region, with all that can be worked out beforehand.

        Copies run beside the compute lane's Python, which waits while they hold the interpreter lock.
        """


class OpenFile:
    """A checkpoint file held open for the whole run, with the size and time that its header was read at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self.descriptor)
        self._inode = (status.st_dev, status.st_ino)
        self._state = (status.st_size, status.st_mtime_ns)

    def check_unchanged(self) -> None:
        """Raises: ResourceFailureError, where the file was truncated or written to since it was opened."""
        status = os.fstat(self.descriptor)
        if (status.st_size, status.st_mtime_ns) != self._state:
            raise self.changed()

    def changed(self) -> ResourceFailureError:
        """The error for a file that is no longer what its header described."""
        return ResourceFailureError(
            f"{self.path} changed while the model was running",
            why="it was truncated or written to; its weights can no longer be trusted",
            remedy="leave a model's files alone while it runs, and start again",
        )

    def was_replaced(self) -> bool:
        """Whether the path now leads to another file; reading goes on from the one that was opened."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return True
        return (status.st_dev, status.st_ino) != self._inode

    def close(self) -> None:
        """Close the descriptor; what still reads raises, and never from another file that was given its number."""
        os.close(self.descriptor)
        self.descriptor = _CLOSED


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that go to `region_offset` of a region."""

    region_offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class FileRun:
    """Consecutive bytes of one file, scattered over pieces of a region by one read."""

    file: OpenFile
    file_offset: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class FileRange:
    """A unit that lies in the checkpoint just as it lies in its region, up to the order of its parts."""

    runs: tuple[FileRun, ...]
    drops_pages: bool = False

    def read_into(self, region: Tensor) -> None:
        """Fill the region from disk. Raises: ResourceFailureError, where a file changed."""
        target = byte_view(region)
        for run in self.runs:
            read_scattered(
                run.file,
                [target[piece.region_offset : piece.region_offset + piece.num_bytes] for piece in run.pieces],
                run.file_offset,
            )
            run.file.check_unchanged()
            if self.drops_pages:
                num_bytes = sum(piece.num_bytes for piece in run.pieces)
                os.posix_fadvise(run.file.descriptor, run.file_offset, num_bytes, os.POSIX_FADV_DONTNEED)

    def prepared_for(self, region: Tensor) -> "PreparedRead":
        """One call of the system per run, where it reads all."""
        return PreparedRead(self, region)


class PreparedRead:
    """A file range bound to one region of memory."""

    def __init__(self, whole: FileRange, region: Tensor) -> None:
        self._whole = whole
        target = byte_view(region)
        self._reads = [
            (
                run.file,
                run.file_offset,
                [target[piece.region_offset : piece.region_offset + piece.num_bytes] for piece in run.pieces],
                sum(piece.num_bytes for piece in run.pieces),
            )
            for run in whole.runs
        ]
        self._is_simple = not whole.drops_pages and all(
            len(views) <= _MAX_PIECES_PER_CALL and num_bytes > 0 for _, _, views, num_bytes in self._reads
        )

    def read_into(self, region: Tensor) -> None:
        """Fill the region, which must be the one prepared for. Raises: ResourceFailureError, where a file changed."""
        if not self._is_simple:
            self._whole.read_into(region)
            return
        for file, offset, views, num_bytes in self._reads:
            try:
                is_whole = os.preadv(file.descriptor, views, offset) == num_bytes
            except OSError:
                is_whole = False
            if not is_whole:  # a short read or an error is for the general way to judge
                self._whole.read_into(region)
                return
            file.check_unchanged()

    def prepared_for(self, region: Tensor) -> "Source":
        """The range, prepared for another region."""
        return self._whole.prepared_for(region)


@dataclass(frozen=True, slots=True)
class HostRange:
    """A unit packed in host memory."""

    region: Tensor

    def read_into(self, region: Tensor) -> None:
        """Fill the region by a copy within host memory."""
        region[: self.region.numel()].copy_(self.region)

    def prepared_for(self, region: Tensor) -> "HostRange":
        """Itself: nothing can be worked out beforehand."""
        return self


def read_scattered(file: OpenFile, buffers: Sequence[memoryview], file_offset: int) -> None:
    """Fill the buffers, one after the other, from consecutive bytes of the file. Releases the interpreter lock.

    Raises: ResourceFailureError, where the file ends early or the disk fails.
    """
    if file.descriptor == _CLOSED:
        raise RuntimeError(f"the checkpoint is closed: {file.path}")
    pending = [buffer for buffer in buffers if len(buffer)]
    while pending:
        try:
            num_read = os.preadv(file.descriptor, pending[:_MAX_PIECES_PER_CALL], file_offset)
        except OSError as error:
            raise ResourceFailureError(
                f"cannot read {file.path}", why=str(error), remedy="check the disk and start again"
            ) from error
        if num_read == 0:
            raise file.changed()
        file_offset += num_read
        while pending and num_read >= len(pending[0]):
            num_read -= len(pending.pop(0))
        if num_read:
            pending[0] = pending[0][num_read:]


def byte_view(tensor: Tensor) -> memoryview:
    """A contiguous host tensor's memory as writable bytes."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy 2 hides the buffer


def page_aligned(num_bytes: int) -> Tensor:
    """A uint8 host tensor in exact size, page-aligned and on huge pages where the kernel has them."""
    memory = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:num_bytes]
