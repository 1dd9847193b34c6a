"""Sizes, rates and times: read in their units, refused without, and shown as people read them."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.contracts.errors import UsageError
from planner.contracts.quantities import (
    format_bytes,
    format_bytes_per_s,
    format_s,
    format_tokens_per_s,
    parse_bytes,
    parse_bytes_per_s,
    tokens_per_s_digits,
)

QUICK = settings(deadline=None)  # the machine may be busy


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("12GiB", 12 * 2**30),
        ("8GB", 8 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("400 MiB", 400 * 2**20),
        (" 1kb ", 1000),
        ("1KiB", 1024),
        ("2tib", 2 * 2**40),
        ("7B", 7),
        ("0.001KB", 1),
    ],
)
def test_size_is_read_in_its_unit(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(("text", "rate"), [("25GB/s", 25e9), ("1GiB/s", 2.0**30), ("500 MB/s", 5e8), ("1b/s", 1.0)])
def test_rate_is_read_in_its_unit(text: str, rate: float) -> None:
    assert parse_bytes_per_s(text) == rate


BAD_SIZES = [
    "",
    "12",
    "12.5",
    "GiB",
    "12G",
    "12Gi",
    "-1GiB",
    "0GiB",
    "0.5B",
    "1e3GB",
    "12GiB/s",
    "12 Gi B",
    "1,5GB",
    "infGB",
]


@pytest.mark.parametrize("text", [*BAD_SIZES, "nanB", "0x10B", "9" * 30 + "GB", "9" * 400 + "GB", "12GiB\n12GiB"])
def test_size_without_a_number_and_a_unit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a memory size") as caught:
        parse_bytes(text)
    assert "GiB" in caught.value.remedy
    assert len(caught.value.what) < 100


@pytest.mark.parametrize("text", ["", "25", "25GB", "25GBps", "25Gb ps", "0GB/s", "-1GB/s", "9" * 400 + "GB/s"])
def test_rate_without_a_number_and_a_unit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a rate"):
        parse_bytes_per_s(text)


@QUICK
@given(st.integers(min_value=1, max_value=2**50), st.sampled_from(["", "Ki", "Mi", "Gi", "K", "M", "G"]))
def test_whole_number_of_units_is_read_exactly(number: int, prefix: str) -> None:
    base = 1024 if prefix.endswith("i") else 1000
    num_bytes = number * base ** " KMG".index(prefix[:1] or " ")
    if num_bytes <= 2**53:
        assert parse_bytes(f"{number}{prefix}B") == num_bytes
        assert parse_bytes(f"{number} {prefix.lower()}b") == num_bytes


@QUICK
@given(st.integers(min_value=1, max_value=2**60))
def test_shown_size_reads_back_within_its_two_decimals(num_bytes: int) -> None:
    # Two decimals of a number of at least one are half a hundredth off at most, and a part of a byte is dropped.
    assert abs(parse_bytes(format_bytes(num_bytes)) - num_bytes) <= 0.0051 * num_bytes + 1


@QUICK
@given(st.floats(min_value=1e7, max_value=1e15))
def test_shown_rate_reads_back_within_its_two_decimals(rate: float) -> None:
    assert parse_bytes_per_s(format_bytes_per_s(rate)) == pytest.approx(rate, abs=0.0051e9)


@QUICK
@given(st.text(max_size=20))
def test_any_text_is_a_size_of_at_least_a_byte_or_refused(text: str) -> None:
    for parse in (parse_bytes, parse_bytes_per_s):
        parse_or_refuse(parse, text)


def parse_or_refuse(parse: Callable[[str], float], text: str) -> None:
    with suppress(UsageError):
        assert parse(text) >= 1


def test_numbers_are_shown_in_the_units_that_people_read() -> None:
    assert [format_bytes(size) for size in (0, 1023, 1536, 2**20, 3 * 2**29, 2**40)] == [
        "0 B",
        "1023 B",
        "1.50 KiB",
        "1.00 MiB",
        "1.50 GiB",
        "1.00 TiB",
    ]
    assert format_bytes(-(2**31)) == "-2.00 GiB"
    assert format_bytes_per_s(25.6e9) == "25.60 GB/s"
    assert [format_s(duration) for duration in (0.0123, 0.9999, 12.344)] == ["12.3 ms", "999.9 ms", "12.34 s"]
    assert [format_tokens_per_s(rate) for rate in (12.345, 0.00864, 0.0)] == [
        "12.35 tok/s",
        "0.0086 tok/s",
        "0.00 tok/s",
    ]
    assert [tokens_per_s_digits(gain, "+") for gain in (0.25, 0.00034, -0.002)] == ["+0.25", "+0.00034", "-0.002"]
