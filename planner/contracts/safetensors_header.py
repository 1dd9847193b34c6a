"""The header of a safetensors file, read under caps and checked in full before a single weight is.

Covers where each tensor lies and that the file holds exactly those bytes. The values of the weights are not looked at.
Source: the format's README and `safetensors/src/tensor.rs` of safetensors 0.8, whose rules these are, with lower caps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from planner.contracts.errors import BadInputError
from planner.contracts.untrusted_files import DOWNLOAD_AGAIN, OpenFile, open_untrusted, parse_json_object, shown

MAX_HEADER_BYTES = 16 * 2**20  # 100,000 tensors need about 10 MiB; the format's own limit parses to more than 1 GiB
MAX_TENSORS = 100_000
MAX_TENSOR_BYTES = 2**63 - 1

DTYPE_BYTES: dict[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "C64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
}

_LENGTH_BYTES = 8
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies: `num_bytes` bytes from the absolute `offset_bytes` of `file`."""

    name: str
    dtype: str  # safetensors' name, such as "BF16"
    shape: tuple[int, ...]
    file: Path
    offset_bytes: int
    num_bytes: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Each tensor's entry by name, in the header's order; together they cover the file's data without hole or overlap.

    Raises: BadInputError, naming the file, the tensor where there is one, and what to try.
    """
    with open_untrusted(path) as file:
        header_bytes = _header_bytes(file)
        content = file.read(header_bytes, offset_bytes=_LENGTH_BYTES)
    # Each tensor needs a brace that no JSON escape can hide; two more are the header's own and the metadata's.
    if content.count(b"{") > MAX_TENSORS + 2:
        raise _too_many_tensors(path)
    header = parse_json_object(content, source=f"{shown(path)}: the header")
    _check_metadata(path, header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise _too_many_tensors(path)
    data_start = _LENGTH_BYTES + header_bytes
    data_bytes = file.num_bytes - data_start
    entries = {name: _entry(path, name, fields, data_start, data_bytes) for name, fields in header.items()}
    _check_layout(path, list(entries.values()), data_start, data_bytes)
    return entries


def _header_bytes(file: OpenFile) -> int:
    if file.num_bytes < _LENGTH_BYTES:
        why = f"it has {file.num_bytes} bytes, fewer than the 8 that state the header's length"
        raise BadInputError(f"{shown(file.path)} is not a safetensors file", why=why, remedy=DOWNLOAD_AGAIN)
    header_bytes = int.from_bytes(file.read(_LENGTH_BYTES, offset_bytes=0), "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise BadInputError(
            f"{shown(file.path)}: the header is too large",
            why=f"it claims {header_bytes:,} bytes, and the limit is {MAX_HEADER_BYTES:,}",
            remedy=f"check that this is a safetensors file; {DOWNLOAD_AGAIN}",
        )
    if header_bytes > file.num_bytes - _LENGTH_BYTES:
        raise BadInputError(
            f"{shown(file.path)} is truncated inside its header",
            why=f"the header claims {header_bytes:,} bytes, and the file has {file.num_bytes:,} in all",
            remedy=DOWNLOAD_AGAIN,
        )
    return header_bytes


def _check_metadata(path: Path, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        why = f"__metadata__ must map text to text, and is {shown(metadata)}"
        raise BadInputError(f"{shown(path)}: the header's metadata is malformed", why=why, remedy=DOWNLOAD_AGAIN)


def _entry(path: Path, name: str, fields: object, data_start: int, data_bytes: int) -> TensorEntry:
    """The checked entry of one tensor, whose `fields` are still whatever the JSON held."""
    if not isinstance(fields, dict) or set(fields) != _ENTRY_KEYS:
        raise _malformed(path, name, f"an entry holds dtype, shape and data_offsets, and this is {shown(fields)}")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise BadInputError(
            f"{shown(path)}: tensor {shown(name)} has the unknown dtype {shown(dtype)}",
            why=f"known are {', '.join(DTYPE_BYTES)}",
            remedy="use the model's bf16 or fp16 original",
        )
    if not _are_naturals(shape):
        raise _malformed(path, name, f"its shape must list integers >= 0, and is {shown(shape)}")
    if not _are_naturals(offsets) or len(offsets) != 2:
        raise _malformed(path, name, f"its data_offsets must be two integers >= 0, and are {shown(offsets)}")
    start, end = offsets
    if end < start:
        raise _malformed(path, name, f"its data_offsets are reversed: {shown(offsets)}")
    if end > data_bytes:
        raise BadInputError(
            f"{shown(path)} is truncated: tensor {shown(name)} lies outside the file",
            why=f"its data_offsets are {shown(offsets)}, and {data_bytes:,} bytes follow the header",
            remedy=DOWNLOAD_AGAIN,
        )
    num_bytes = _num_bytes(path, name, dtype, tuple(shape))
    if num_bytes != end - start:
        why = f"{dtype} of shape {shown(shape)} takes {num_bytes:,} bytes, and its data_offsets span {end - start:,}"
        raise _malformed(path, name, why)
    return TensorEntry(
        name=name, dtype=dtype, shape=tuple(shape), file=path, offset_bytes=data_start + start, num_bytes=num_bytes
    )


def _num_bytes(path: Path, name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; the only place that multiplies a shape, and it stops at the first product past 2^63 - 1."""
    num_bytes = DTYPE_BYTES[dtype]
    for extent in shape:
        num_bytes *= extent
        if num_bytes > MAX_TENSOR_BYTES:
            raise _malformed(path, name, f"its shape {shown(list(shape))} takes more than 2^63 - 1 bytes")
    return num_bytes


def _check_layout(path: Path, entries: list[TensorEntry], data_start: int, data_bytes: int) -> None:
    """Refuses overlaps, holes, and bytes past the last tensor."""
    covered_end = data_start
    for entry in sorted(entries, key=lambda entry: (entry.offset_bytes, entry.num_bytes)):
        if entry.offset_bytes < covered_end:
            raise _malformed(path, entry.name, "its bytes overlap with those of another tensor")
        if entry.offset_bytes > covered_end:
            raise _malformed(path, entry.name, f"{entry.offset_bytes - covered_end:,} unused bytes lie before it")
        covered_end = entry.offset_bytes + entry.num_bytes
    excess_bytes = data_start + data_bytes - covered_end
    if excess_bytes:
        why = f"{excess_bytes:,} bytes follow the last tensor that the header lists"
        raise BadInputError(f"{shown(path)} is longer than its header says", why=why, remedy=DOWNLOAD_AGAIN)


def _are_naturals(values: object) -> TypeGuard[list[int]]:
    # bool is a subclass of int, and JSON's 2.0 is a float: both are refused.
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _malformed(path: Path, name: str, why: str) -> BadInputError:
    return BadInputError(f"{shown(path)}: tensor {shown(name)} is malformed", why=why, remedy=DOWNLOAD_AGAIN)


def _too_many_tensors(path: Path) -> BadInputError:
    why = f"its header lists more than {MAX_TENSORS:,}, and no model's file needs so many"
    return BadInputError(f"{shown(path)} has too many tensors", why=why, remedy=DOWNLOAD_AGAIN)
