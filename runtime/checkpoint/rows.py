"""Which rows of which checkpoint tensor make up each parameter of the model, read off transformers' own conversion.

A checkpoint may name tensors otherwise than the model, and hold each expert of a mixture by itself where the model has
them fused. transformers' renames and converters only place whole rows, so they are run here on row numbers instead of
weights: the result says where each row lies on disk, for any architecture, and no table of architectures is needed.
A converter that changes the inside of a row (a transpose) cannot be followed; such a checkpoint is refused by name.
"""

import bisect
import itertools
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from planner.contracts.errors import BadInputError
from planner.contracts.safetensors_header import TensorEntry
from runtime.link.source import OpenFile

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_IGNORED = re.compile(
    r"rotary_emb\.inv_freq$|attn\.(bias|masked_bias)$|attention\.(bias|masked_bias)$|vision|visual|audio"
)


@dataclass(frozen=True, slots=True)
class RowRun:
    """Consecutive rows of a parameter that are consecutive bytes of a file."""

    file: OpenFile
    file_offset: int
    first_row: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class ParameterRows:
    """All rows of one parameter, in order. A row is the last dimension; a vector is one row."""

    dtype: torch.dtype  # as stored
    row_bytes: int  # as stored
    shape: tuple[int, ...]
    runs: tuple[RowRun, ...]

    def between(self, start: int, stop: int) -> "ParameterRows":
        """The rows from `start` to before `stop` of a matrix."""
        runs = []
        for run in self.runs:
            first, last = max(run.first_row, start), min(run.first_row + run.num_rows, stop)
            if first < last:
                offset = run.file_offset + (first - run.first_row) * self.row_bytes
                runs.append(RowRun(run.file, offset, first - start, last - first))
        return replace(self, shape=(stop - start, *self.shape[1:]), runs=tuple(runs))


def parameter_rows(
    skeleton: PreTrainedModel, tensors: Mapping[str, TensorEntry], files: Mapping[str, OpenFile]
) -> dict[str, ParameterRows]:
    """The rows of every parameter and persistent buffer of a meta skeleton.

    Raises: BadInputError, where a tensor is missing, unexpected, of another shape than the configuration says, or needs
    a conversion that changes the inside of its rows.
    """
    parameters = skeleton.state_dict()
    jobs = _conversions(skeleton, tensors, parameters)
    rows: dict[str, ParameterRows] = {}
    for target, job in jobs.items():
        for name, parameter in _follow(skeleton, target, job, files):
            if name in parameters:
                rows[name] = parameter
                _check_shape(name, parameter.shape, tuple(parameters[name].shape))
    _tie(skeleton, rows)
    missing = sorted(set(parameters) - set(rows))
    if missing:
        raise BadInputError(
            f"the checkpoint lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            why="config.json describes a model that has it",
            remedy="download the model again; weights and config.json must be of the same model",
        )
    return rows


@dataclass(frozen=True, slots=True)
class _Job:
    """One conversion of transformers, and the checkpoint tensors that enter it."""

    transform: WeightConverter | WeightRenaming
    inputs: list[tuple[TensorEntry, str]]  # with the pattern under which the converter expects each


def _conversions(
    skeleton: PreTrainedModel, tensors: Mapping[str, TensorEntry], parameters: Mapping[str, Tensor]
) -> dict[str, _Job]:
    mapping = get_model_conversion_mapping(skeleton) or []
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = skeleton.base_model_prefix
    jobs: dict[str, _Job] = {}
    unexpected = []
    for key in sorted(tensors, key=dot_natural_key):  # the order in which transformers converts
        name, pattern = rename_source_key(key, renamings, converters, prefix, parameters)
        if name not in parameters and key in parameters:
            name, pattern = key, None
        if name not in parameters:
            unexpected.append(key)
            continue
        transform = WeightRenaming(key, name) if pattern is None else by_pattern[pattern]
        job = jobs.setdefault(name, _Job(deepcopy(transform), []))
        job.inputs.append((tensors[key], key if pattern is None else pattern))
    _check_unexpected(skeleton, unexpected)
    return jobs


def _follow(
    skeleton: PreTrainedModel, target: str, job: _Job, files: Mapping[str, OpenFile]
) -> Iterator[tuple[str, ParameterRows]]:
    """Run one conversion on row numbers, and read off where each row of its results lies."""
    firsts, entries, base = [], [], 0
    for entry, pattern in job.inputs:
        num_rows = _num_rows(entry.shape)
        numbers = torch.arange(base, base + num_rows).view(*entry.shape[:-1], 1)
        job.transform.add_tensor(target, entry.name, pattern, lambda numbers=numbers: numbers)
        firsts.append(base)
        entries.append(entry)
        base += num_rows
    row_elements = {entry.shape[-1] if entry.shape else 1 for entry in entries}
    dtypes = {entry.dtype for entry in entries}
    if len(row_elements) > 1 or len(dtypes) > 1:
        raise _cannot_follow(target)
    (elements,), (dtype,) = row_elements, dtypes
    if dtype not in TORCH_DTYPES:
        raise BadInputError(
            f"{entries[0].name} is stored as {dtype}",
            why="weights run in bf16, fp16, fp32 or fp64",
            remedy="use the model's original checkpoint in bf16 or fp16",
        )
    for name, converted in job.transform.convert(target, model=skeleton, config=skeleton.config).items():
        numbers = converted[0] if isinstance(converted, list) else converted
        if numbers.shape[-1] != 1:
            raise _cannot_follow(name)
        row_bytes = elements * TORCH_DTYPES[dtype].itemsize
        shape = (*numbers.shape[:-1], elements) if entries[0].shape else ()
        runs = tuple(_runs(numbers.reshape(-1), firsts, entries, row_bytes, files))
        yield name, ParameterRows(TORCH_DTYPES[dtype], row_bytes, shape, runs)


def _runs(
    numbers: Tensor, firsts: list[int], entries: list[TensorEntry], row_bytes: int, files: Mapping[str, OpenFile]
) -> Iterator[RowRun]:
    """Cut a column of row numbers where it is not consecutive, and where one checkpoint tensor ends."""
    breaks = torch.nonzero(numbers[1:] != numbers[:-1] + 1).reshape(-1) + 1
    edges = [0, *breaks.tolist(), numbers.numel()]
    for start, stop in itertools.pairwise(edges):
        row = start
        while row < stop:
            number = int(numbers[row])
            which = bisect.bisect_right(firsts, number) - 1
            entry = entries[which]
            within = number - firsts[which]
            num_rows = min(stop - row, _num_rows(entry.shape) - within)
            yield RowRun(files[entry.file.name], entry.offset_bytes + within * row_bytes, row, num_rows)
            row += num_rows


def _num_rows(shape: tuple[int, ...]) -> int:
    num_rows = 1
    for size in shape[:-1]:
        num_rows *= size
    return num_rows


def _tie(skeleton: PreTrainedModel, rows: dict[str, ParameterRows]) -> None:
    """Give a tied head the rows of the embedding; also one that was replaced by a module with a weight of its own.

    A checkpoint that holds both tables keeps both, as transformers does not tie them where they differ.
    """
    embedding, head = skeleton.get_input_embeddings(), skeleton.get_output_embeddings()
    if head is None:
        return
    if head.weight is not embedding.weight and not getattr(skeleton.config, "tie_word_embeddings", False):
        return
    tables = (embedding.weight, head.weight)
    names = [name for name, tensor in skeleton.state_dict(keep_vars=True).items() if any(tensor is t for t in tables)]
    present = [name for name in names if name in rows]
    for name in names:
        if present and name not in rows:
            rows[name] = rows[present[0]]


def _check_shape(name: str, stored: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if stored != expected:
        raise BadInputError(
            f"{name} has shape {list(stored)} in the checkpoint",
            why=f"config.json describes a model in which it has {list(expected)}",
            remedy="download the model again; weights and config.json must be of the same model",
        )


def _check_unexpected(skeleton: PreTrainedModel, names: list[str]) -> None:
    patterns = [re.compile(p) for p in getattr(skeleton, "_keys_to_ignore_on_load_unexpected", None) or ()]
    strangers = [n for n in names if not _IGNORED.search(n) and not any(p.search(n) for p in patterns)]
    if strangers:
        raise BadInputError(
            f"the checkpoint holds {strangers[0]}, which the model does not have",
            why=f"config.json describes a {skeleton.config.model_type} without it",
            remedy="download the model again; weights and config.json must be of the same model",
        )


def _cannot_follow(name: str) -> BadInputError:
    return BadInputError(
        f"the checkpoint's layout of {name} cannot be streamed",
        why="loading it changes the inside of its rows",
        remedy="load it once with transformers and write it with save_pretrained(..., save_original_format=False)",
    )
