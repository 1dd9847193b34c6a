import json
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

import planner
from planner.contracts.errors import BadInputError
from planner.contracts.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS, read_header

REPOSITORY = Path(planner.__file__).parent.parent
DATA = bytes(range(24))
A = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]}
INTACT: dict[str, object] = {"__metadata__": {"format": "pt"}, "a": A, "b": B}


def packed(header: object, data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def with_b(**changes: object) -> bytes:
    return packed({**INTACT, "b": {**B, **changes}})


def without_b(key: str) -> bytes:
    return packed({**INTACT, "b": {k: v for k, v in B.items() if k != key}})


# Name of the fault: the bytes of the file, and what the message must say.
FAULTS: dict[str, tuple[bytes, str]] = {
    "git_lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "html_page": (b"\n <!DOCTYPE html><html><body>404</body></html>", "web page"),
    "html_page_without_doctype": (b"<HTML><body>sign in</body></html>", "web page"),
    "xml_error_page": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "web page"),
    "empty": (b"", "fewer than the 8"),
    "seven_bytes": (b"\x00" * 7, "fewer than the 8"),
    "header_longer_than_file": (struct.pack("<Q", 1000) + b"{}", "truncated inside its header"),
    "header_past_cap": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "header is too large"),
    "header_of_2_to_63_bytes": (struct.pack("<Q", 2**63) + b"{}", "claims 9,223,372,036,854,775,808 bytes"),
    "not_utf8": (packed(b'{"\xff":1}'), "not UTF-8"),
    "utf16": (packed(json.dumps(INTACT).encode("utf-16")), "not UTF-8"),
    "not_json": (packed(b"{not json}"), "is not JSON"),
    "nul_padding": (packed(json.dumps(INTACT).encode() + b"\0"), "is not JSON"),
    "list_not_object": (packed([]), "not a JSON object"),
    "null_not_object": (packed(None), "not a JSON object"),
    "huge_integer": (packed(b'{"a":' + b"9" * 5000 + b"}"), "is not JSON"),
    "deep_nesting": (packed(b"[" * 200_000), "nested too deeply"),
    "duplicate_tensor": (packed(b'{"a":{},"a":{}}'), "the key 'a' twice"),
    "duplicate_field": (packed(b'{"a":{"dtype":"F32","dtype":"F16"}}'), "the key 'dtype' twice"),
    "metadata_not_object": (packed({**INTACT, "__metadata__": ["pt"]}), "metadata is malformed"),
    "metadata_null": (packed({**INTACT, "__metadata__": None}), "metadata is malformed"),
    "metadata_nested": (packed({**INTACT, "__metadata__": {"format": {}}}), "metadata is malformed"),
    "entry_not_object": (packed({**INTACT, "b": 7}), "tensor 'b' is malformed"),
    "entry_without_dtype": (without_b("dtype"), "tensor 'b' is malformed"),
    "entry_without_shape": (without_b("shape"), "tensor 'b' is malformed"),
    "entry_without_offsets": (without_b("data_offsets"), "tensor 'b' is malformed"),
    "entry_with_unknown_key": (with_b(codec="zip"), "tensor 'b' is malformed"),
    "unknown_dtype": (with_b(dtype="F4"), "'b' has the unknown dtype 'F4'"),
    "dtype_not_text": (with_b(dtype=["BF16"]), "'b' has the unknown dtype"),
    "shape_not_list": (with_b(shape=4), "its shape must list integers"),
    "shape_negative": (with_b(shape=[-4]), "its shape must list integers"),
    "shape_float": (with_b(shape=[4.0]), "its shape must list integers"),
    "shape_bool": (with_b(shape=[4, True]), "its shape must list integers"),
    "shape_nan": (packed(json.dumps({"b": {**B, "shape": [float("nan")]}}).encode()), "its shape must list integers"),
    "shape_overflows": (with_b(shape=[2**62, 2**62, 0]), r"more than 2\^63 - 1 bytes"),
    "shape_of_thousand_digits": (with_b(shape=[10**1000]), r"more than 2\^63 - 1 bytes"),
    "offsets_not_list": (with_b(data_offsets="16,24"), "must be two integers"),
    "offsets_three": (with_b(data_offsets=[16, 20, 24]), "must be two integers"),
    "offsets_float": (with_b(data_offsets=[16.0, 24.0]), "must be two integers"),
    "offsets_negative": (with_b(data_offsets=[-8, 0]), "must be two integers"),
    "offsets_reversed": (with_b(data_offsets=[24, 16]), "are reversed"),
    "offsets_outside": (with_b(data_offsets=[2**70, 2**70 + 8]), "'b' lies outside the file"),
    "bytes_not_of_shape": (with_b(shape=[3]), r"takes 6 bytes, and its data_offsets span 8"),
    "overlap": (with_b(data_offsets=[12, 20]), "overlap"),
    "overlap_by_empty_tensor": (packed({**INTACT, "z": {**B, "shape": [0], "data_offsets": [4, 4]}}), "overlap"),
    "hole_at_start": (packed({"b": B}), "16 unused bytes lie before it"),
    "hole_between": (packed({"a": A, "b": {**B, "data_offsets": [18, 26]}}, DATA + b"\0\0"), "2 unused bytes"),
    "data_truncated_by_one": (packed(INTACT, DATA[:-1]), "truncated: tensor 'b' lies outside the file"),
    "data_missing": (packed(INTACT, b""), "truncated: tensor 'a' lies outside the file"),
    "data_longer_by_one": (packed(INTACT, DATA + b"\0"), "longer than its header says"),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_entries_point_at_the_bytes_of_their_tensors(file: Path) -> None:
    file.write_bytes(packed(INTACT))
    entries = read_header(file)
    assert list(entries) == ["a", "b"]
    b = entries["b"]
    assert (b.name, b.dtype, b.shape, b.file, b.num_bytes) == ("b", "BF16", (4,), file, 8)
    assert file.read_bytes()[b.offset_bytes : b.offset_bytes + b.num_bytes] == DATA[16:]


def test_a_padded_header_an_empty_tensor_and_a_scalar_are_read(file: Path) -> None:
    empty = {"dtype": "F16", "shape": [0, 2**62, 2**62], "data_offsets": [24, 24]}
    scalar = {"dtype": "I64", "shape": [], "data_offsets": [24, 32]}
    header = json.dumps({**INTACT, "empty": empty, "scalar": scalar}).encode() + b"   "
    file.write_bytes(packed(header, DATA + bytes(8)))
    entries = read_header(file)
    assert (entries["empty"].num_bytes, entries["scalar"].num_bytes) == (0, 8)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_by_the_name_of_its_file(fault: str, file: Path) -> None:
    content, message = FAULTS[fault]
    file.write_bytes(content)
    with pytest.raises(BadInputError, match=message) as caught:
        read_header(file)
    assert caught.value.what.startswith(str(file))
    assert caught.value.remedy


def test_a_fault_is_refused_under_optimised_python_too(tmp_path: Path) -> None:
    files = []
    for fault, (content, _) in FAULTS.items():
        files.append(tmp_path / f"{fault}.safetensors")
        files[-1].write_bytes(content)
    script = """
import sys
from pathlib import Path
from planner.contracts.errors import BadInputError
from planner.contracts.safetensors_header import read_header
for name in sys.argv[1:]:
    try:
        read_header(Path(name))
    except BadInputError:
        continue
    print(name)
"""
    run = subprocess.run(
        [sys.executable, "-O", "-c", script, *map(str, files)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_file_cut_at_any_byte_is_refused(file: Path) -> None:
    content = packed(INTACT)
    for num_bytes in range(len(content)):
        file.write_bytes(content[:num_bytes])
        with pytest.raises(BadInputError, match=str(file)):
            read_header(file)


def test_random_bytes_in_the_header_are_refused_or_leave_every_byte_range_as_it_was(file: Path) -> None:
    content = packed(INTACT)
    file.write_bytes(content)
    intact = [(entry.offset_bytes, entry.num_bytes, entry.shape) for entry in read_header(file).values()]
    rng = random.Random(0)
    num_refused = 0
    descriptor = os.open(file, os.O_WRONLY)
    try:
        for _ in range(10_000):
            position = rng.randrange(len(content) - len(DATA))
            os.pwrite(descriptor, bytes([rng.randrange(256)]), position)
            try:
                entries = read_header(file)
            except BadInputError:
                num_refused += 1
            else:  # a letter of a tensor's name, or the same byte again
                assert [(entry.offset_bytes, entry.num_bytes, entry.shape) for entry in entries.values()] == intact
            os.pwrite(descriptor, content[position : position + 1], position)
    finally:
        os.close(descriptor)
    assert 7_000 < num_refused < 10_000


@pytest.mark.parametrize("claimed_bytes", [MAX_HEADER_BYTES + 1, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_past_the_cap_is_refused_before_it_is_read(claimed_bytes: int, file: Path) -> None:
    file.write_bytes(struct.pack("<Q", claimed_bytes) + b'{"a":')
    os.truncate(file, 8 + min(claimed_bytes, 2**30))  # sparse: the bytes are there, but take no disk
    assert_refused_cheaply(file, "header is too large")


@pytest.mark.parametrize("header_bytes", [MAX_HEADER_BYTES - 1, MAX_HEADER_BYTES])
def test_a_header_up_to_the_cap_is_read(header_bytes: int, file: Path) -> None:
    file.write_bytes(packed(json.dumps(INTACT).encode().ljust(header_bytes)))
    assert list(read_header(file)) == ["a", "b"]


def entry_list(num_tensors: int, key: bytes = b'"data_offsets"') -> bytes:
    entries = (b'"%x":{"dtype":"U8","shape":[0],%b:[0,0]}' % (idx, key) for idx in range(num_tensors))
    return b"{" + b",".join(entries) + b"}"


@pytest.mark.parametrize("key", [b'"data_offsets"', b'"data_offset\\u0073"'])
def test_a_header_bomb_within_the_cap_is_refused_before_it_is_parsed(key: bytes, file: Path) -> None:
    file.write_bytes(packed(entry_list(MAX_TENSORS + 3, key), b""))
    assert_refused_cheaply(file, "more than 100,000")


def test_a_bomb_of_values_without_tensors_is_refused_before_it_is_parsed(file: Path) -> None:
    file.write_bytes(packed(b'{"a":[' + b"[]," * 5_000_000 + b"[]]}", b""))
    assert_refused_cheaply(file, "more than 2,000,000 values")


def test_one_tensor_past_the_limit_is_refused_and_the_limit_itself_is_read(file: Path) -> None:
    file.write_bytes(packed(entry_list(MAX_TENSORS + 1), b""))
    with pytest.raises(BadInputError, match="more than 100,000"):
        read_header(file)
    file.write_bytes(packed(entry_list(MAX_TENSORS), b""))
    assert len(read_header(file)) == MAX_TENSORS


def assert_refused_cheaply(file: Path, message: str) -> None:
    tracemalloc.start()
    try:
        start_s = time.perf_counter()
        with pytest.raises(BadInputError, match=message):
            read_header(file)
        duration_s = time.perf_counter() - start_s
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20e6
    assert duration_s < 1  # 50 ms on an idle machine; loose, as tests share theirs


def test_a_missing_file_a_folder_and_a_loop_of_links_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="No such file"):
        read_header(tmp_path / "absent.safetensors")
    with pytest.raises(BadInputError, match="not a regular file"):
        read_header(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BadInputError, match="cannot be opened"):
        read_header(tmp_path / "loop")


def test_names_that_no_file_can_have_are_refused() -> None:
    for name in ("nul\0.safetensors", "surrogate\ud800.safetensors", "x" * 5000):
        with pytest.raises(BadInputError, match="cannot be opened"):
            read_header(Path(name))


def test_a_pipe_and_a_device_are_refused_without_blocking(tmp_path: Path) -> None:
    pipe = tmp_path / "model.safetensors"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(BadInputError, match="not a regular file"):
            read_header(path)


def test_a_refused_file_leaves_no_descriptor_open(file: Path) -> None:
    file.write_bytes(b"\0" * 7)
    num_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(10):
        with pytest.raises(BadInputError):
            read_header(file)
    assert len(os.listdir("/proc/self/fd")) == num_before  # noqa: PTH208


def test_a_file_that_shrinks_while_it_is_read_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(packed(INTACT))
    pread = os.pread

    def shrinking(descriptor: int, num_bytes: int, offset_bytes: int) -> bytes:
        return pread(descriptor, num_bytes, offset_bytes) if offset_bytes == 0 else b""

    monkeypatch.setattr(os, "pread", shrinking)
    with pytest.raises(BadInputError, match="became shorter while it was read"):
        read_header(file)


def test_reads_that_return_less_than_asked_are_continued(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(packed(INTACT))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, num_bytes, offset: pread(descriptor, min(3, num_bytes), offset))
    assert list(read_header(file)) == ["a", "b"]


def test_control_characters_of_a_hostile_name_do_not_reach_the_message(file: Path) -> None:
    file.write_bytes(packed({"\x1b]52;c;AAAA\x07" + "x" * 10_000: {**B, "dtype": "\x1b[2J"}}))
    with pytest.raises(BadInputError) as caught:
        read_header(file)
    message = str(caught.value)
    assert message.replace("\n", "").isprintable()
    assert len(message) < 2_000
