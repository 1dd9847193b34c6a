"""An open checkpoint: the source of each unit's bytes, and single rows of the embedding."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from planner.contracts.model_folder import ModelFolder
from runtime.checkpoint.layout import Layout, TensorSlice
from runtime.checkpoint.rows import ParameterRows, parameter_rows
from runtime.link.source import FileRange, FileRun, OpenFile, Piece, Source, byte_view, read_scattered


class Checkpoint:
    """A checkpoint's files, held open, and where each parameter of one skeleton lies in them."""

    def __init__(self, folder: ModelFolder, skeleton: PreTrainedModel, *, drops_pages: bool = False) -> None:
        paths = {entry.file.name: entry.file for entry in folder.tensors.values()}
        self._drops_pages = drops_pages
        self._files: dict[str, OpenFile] = {}
        try:
            for name, path in paths.items():
                self._files[name] = OpenFile(path)
            self._rows = parameter_rows(skeleton, folder.tensors, self._files)
        except BaseException:
            self.close()
            raise

    def source(self, layout: Layout, prefix: str = "", rows: tuple[int, int] | None = None) -> Source:
        """The bytes of a unit whose parameters are named `prefix` + the layout's names, or some rows of one matrix.

        Straight reads where the model runs in the dtype it is stored in, else reads with a cast.
        """
        parts = []
        for part in layout.slices:
            parameter = self._rows[prefix + part.name]
            parts.append((part, parameter if rows is None else parameter.between(*rows)))
        if all(part.dtype == parameter.dtype for part, parameter in parts):
            return FileRange(_merged(parts), self._drops_pages)
        return CastRange(tuple(parts))

    def table(self, name: str) -> "RowTable":
        """A matrix of which single rows are wanted."""
        return RowTable(self._rows[name])

    def is_shared(self, name: str, other: str) -> bool:
        """Whether two parameters are the same bytes, as those of a tied head and its embedding."""
        return self._rows[name] == self._rows[other]

    def replaced_files(self) -> list[str]:
        """Files whose path leads elsewhere by now; reading went on from those that were opened."""
        return [name for name, file in self._files.items() if file.was_replaced()]

    def close(self) -> None:
        """Close every file."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class CastRange:
    """A unit that is stored in another dtype than it runs in: each tensor is read, then cast into its place."""

    parts: tuple[tuple[TensorSlice, ParameterRows], ...]

    def read_into(self, region: Tensor) -> None:
        """Fill the region. Raises: ResourceFailureError, where a file changed."""
        for part, parameter in self.parts:
            stored = torch.empty(part.shape, dtype=parameter.dtype)
            _read_rows(parameter, stored)
            view = region[part.offset : part.offset + part.num_bytes].view(part.dtype).view(part.shape)
            view.copy_(stored)

    def prepared_for(self, region: Tensor) -> "CastRange":
        """Itself: the cast takes far longer than what could be worked out beforehand."""
        return self


class RowTable:
    """A matrix on disk of which single rows are read; nothing of it stays in memory."""

    def __init__(self, rows: ParameterRows) -> None:
        self._rows = rows

    def read(self, dtype: torch.dtype) -> Tensor:
        """The whole matrix, in host memory."""
        stored = torch.empty(self._rows.shape, dtype=self._rows.dtype)
        _read_rows(self._rows, stored)
        return stored.to(dtype)

    def gather(self, row_numbers: list[int], table_RH: Tensor) -> None:
        """Read the rows, in ascending order, into the first rows of a host matrix; a cast where dtypes differ.

        Raises: IndexError, where the matrix has no such row, as an embedding in memory does.
        """
        if row_numbers and not 0 <= row_numbers[0] <= row_numbers[-1] < self._rows.shape[0]:
            raise IndexError(f"rows {row_numbers[0]} to {row_numbers[-1]} of a matrix of {self._rows.shape[0]}")
        num_rows = len(row_numbers)
        is_cast = table_RH.dtype != self._rows.dtype
        stored_RH = torch.empty(num_rows, table_RH.shape[1], dtype=self._rows.dtype) if is_cast else table_RH[:num_rows]
        start = 0
        while start < num_rows:
            stop = start + 1
            while stop < num_rows and row_numbers[stop] == row_numbers[stop - 1] + 1:
                stop += 1
            wanted = self._rows.between(row_numbers[start], row_numbers[stop - 1] + 1)
            _read_rows(wanted, stored_RH[start:stop])
            start = stop
        if is_cast:
            table_RH[:num_rows].copy_(stored_RH)


def _read_rows(parameter: ParameterRows, tensor: Tensor) -> None:
    """Fill a contiguous host tensor of the stored dtype with all rows of a parameter."""
    target = byte_view(tensor)
    for run in parameter.runs:
        start = run.first_row * parameter.row_bytes
        read_scattered(run.file, [target[start : start + run.num_rows * parameter.row_bytes]], run.file_offset)
        run.file.check_unchanged()


def _merged(parts: list[tuple[TensorSlice, ParameterRows]]) -> tuple[FileRun, ...]:
    """One read for every stretch of consecutive file bytes, scattered over the region."""
    moves = sorted(
        (
            run.file.path.name,
            run.file_offset,
            part.offset + run.first_row * parameter.row_bytes,
            run.num_rows * parameter.row_bytes,
            run.file,
        )
        for part, parameter in parts
        for run in parameter.runs
    )
    runs: list[FileRun] = []
    end = -1
    for _, file_offset, region_offset, num_bytes, file in moves:
        piece = Piece(region_offset, num_bytes)
        if runs and runs[-1].file is file and file_offset == end:
            runs[-1] = FileRun(file, runs[-1].file_offset, _appended(runs[-1].pieces, piece))
        else:
            runs.append(FileRun(file, file_offset, (piece,)))
        end = file_offset + num_bytes
    return tuple(runs)


def _appended(pieces: tuple[Piece, ...], piece: Piece) -> tuple[Piece, ...]:
    last = pieces[-1]
    if last.region_offset + last.num_bytes == piece.region_offset:
        return (*pieces[:-1], Piece(last.region_offset, last.num_bytes + piece.num_bytes))
    return (*pieces, piece)
