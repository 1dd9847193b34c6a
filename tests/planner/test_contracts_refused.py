"""Damaged files are refused by field when they are read, whatever stands in whichever place."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_files import EACH_FILE, EXAMPLES, plan, refused
from pydantic import ValidationError

from planner.contracts.base import MAX_FILE_BYTES, ContractFile
from planner.contracts.errors import BadInputError
from planner.contracts.plan import EmulatedLink, Plan, Staging

QUICK = settings(deadline=None)  # the machine may be busy


@EACH_FILE
def test_unknown_field_is_refused_by_name(example: ContractFile, tmp_path: Path) -> None:
    content = {**json.loads(example.to_json()), "future": 1}
    refused(type(example), tmp_path / "file.json", content, "future: Extra inputs are not permitted")


@EACH_FILE
def test_each_missing_field_is_refused_by_name(example: ContractFile, tmp_path: Path) -> None:
    kind = type(example)
    for name, field in kind.model_fields.items():
        if field.is_required():
            content = json.loads(example.to_json())
            del content[name]
            refused(kind, tmp_path / "file.json", content, f"{name}: Field required")


@EACH_FILE
def test_newer_schema_is_refused_by_name(example: ContractFile, tmp_path: Path) -> None:
    for version in (2, 0, "1", None):
        content = {**json.loads(example.to_json()), "schema_version": version}
        refused(type(example), tmp_path / "file.json", content, "schema_version: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("context_tokens", "64"),
        ("context_tokens", 64.5),
        ("context_tokens", True),
        ("context_tokens", 0),
        ("context_tokens", -1),
        ("prefill_chunk_tokens", None),
        ("slots", 17),
        ("slots", -1),
        ("batch", 0),
        ("dtype", "int8"),
        ("devices", []),
        ("devices", {}),
        ("units", []),
        ("units", "layer"),
        ("link", {"kind": "usb"}),
        ("link", {"kind": "emulated", "bytes_per_s": 0}),
        ("link", {"kind": "emulated", "bytes_per_s": "2e9"}),
        ("draft", {"kind": "oracle"}),
        ("draft", {"kind": "chain", "model": "m", "fingerprint": "f", "draft_len": 65, "dtype": "bf16"}),
        ("target", {"name": 3, "fingerprint": "f"}),
        ("memory", None),
    ],
)
def test_wrong_value_is_refused_by_field(field: str, value: object, tmp_path: Path) -> None:
    refused(Plan, tmp_path / "plan.json", {**json.loads(plan().to_json()), field: value}, f"{field}[.:]")


def test_fault_deep_inside_is_named_by_its_path(tmp_path: Path) -> None:
    content = json.loads(plan().to_json())
    content["units"][2]["wire_bytes"] = -1
    refused(Plan, tmp_path / "plan.json", content, r"units\.2\.wire_bytes: Input should be greater than or equal to 0")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_number_that_is_not_finite_is_refused_by_field(number: str, tmp_path: Path) -> None:
    text = plan(link=EmulatedLink(bytes_per_s=2.5e9), staging=Staging(num_buffers=1, buffer_bytes=9)).to_json()
    assert "2500000000.0" in text
    message = "bytes_per_s: Input should be|not valid JSON|Invalid JSON"
    refused(Plan, tmp_path / "plan.json", text.replace("2500000000.0", number), message)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_number_that_is_not_finite_is_refused_in_the_program_too(number: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        EmulatedLink(bytes_per_s=number)


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", "plan", "{}{}", "\ufeff{}", '{"a": \ud800}'.encode("utf-8", "replace").decode()],
)
def test_file_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    refused(Plan, tmp_path / "plan.json", text, "is no valid Plan file")


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for content in (b"\xff\xfe", b"\x80\x04.", bytes(100), os.urandom(1000)):
        (tmp_path / "plan.json").write_bytes(content)
        with pytest.raises(BadInputError, match="is no valid Plan file"):
            Plan.read(tmp_path / "plan.json")


def test_deeply_nested_file_is_refused(tmp_path: Path) -> None:
    refused(Plan, tmp_path / "plan.json", "[" * 200_000, "is no valid Plan file")


def test_file_above_the_size_limit_is_refused_without_being_parsed(tmp_path: Path) -> None:
    text = plan().to_json()
    padded = text + " " * (MAX_FILE_BYTES - len(text.encode()))
    (tmp_path / "plan.json").write_text(padded)
    assert Plan.read(tmp_path / "plan.json") == plan()
    refused(Plan, tmp_path / "plan.json", padded + " ", f"larger than {MAX_FILE_BYTES} bytes")


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(BadInputError, match="cannot read") as caught:
            Plan.read(path)
        assert str(path) in caught.value.what


def leaves(content: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(content, dict):
        return [leaf for key, value in content.items() for leaf in leaves(value, (*path, key))]
    if isinstance(content, list):
        return [leaf for index, value in enumerate(content) for leaf in leaves(value, (*path, index))]
    return [path]


def replaced(content: object, path: tuple[str | int, ...], value: object) -> object:
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(content, dict):
        return {**content, first: replaced(content[first], rest, value)}
    assert isinstance(content, list)
    return [replaced(each, rest, value) if index == first else each for index, each in enumerate(content)]


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=-(2**80), max_value=2**80),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
)


@QUICK
@given(st.sampled_from(sorted(EXAMPLES)), st.data(), HOSTILE)
def test_any_value_in_any_place_is_read_or_refused_in_order(name: str, data: st.DataObject, value: object) -> None:
    example = EXAMPLES[name]
    content = json.loads(example.to_json())
    path = data.draw(st.sampled_from(leaves(content)))
    text = json.dumps(replaced(content, path, value))
    try:
        read = type(example).model_validate_json(text)
    except ValidationError:
        return
    assert type(example).model_validate_json(read.to_json()) == read
