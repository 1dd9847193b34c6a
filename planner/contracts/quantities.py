"""Sizes, rates and times between the text a user reads and the base SI numbers everything else computes with.

The only module that converts: memory in binary units (GiB), rates in decimal ones (GB/s), times in ms, speeds in tok/s.
"""

import math
import re
from typing import Literal

from planner.contracts.errors import UsageError

_PREFIX_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MOST = 2.0**63
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b", re.IGNORECASE)
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b/s", re.IGNORECASE)


def finite(number: float | None) -> float | None:
    """The number of an option. Raises: UsageError, where it is nan or inf, which pass for numbers within bounds."""
    if number is not None and not math.isfinite(number):
        raise UsageError(f"{number} is no number to go by", why="a finite one is needed", remedy="write it in digits")
    return number


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``12GiB`` or ``500MB`` (``i`` is binary, without it decimal).

    Raises: UsageError, where the unit is missing or the size is below one byte or out of all bounds.
    """
    return int(_parse(_BYTES, text, "a memory size", "12GiB, 400MiB or 8GB"))


def parse_headroom(text: str) -> int:
    """Bytes of a size as `parse_bytes` reads it, or none of them. Raises: as `parse_bytes` does."""
    match = _BYTES.fullmatch(text.strip())
    return 0 if match is not None and float(match[1]) == 0 else parse_bytes(text)


def parse_bytes_per_s(text: str) -> float:
    """Bytes per second of a rate such as ``25GB/s``.

    Raises: UsageError, where the unit is missing or the rate is below one byte a second or out of all bounds.
    """
    return _parse(_RATE, text, "a rate", "25GB/s, 500MB/s or 1GiB/s")


def _parse(pattern: re.Pattern[str], text: str, kind: str, examples: str) -> float:
    match = pattern.fullmatch(text.strip())
    what, remedy = f"{text[:40]!r} is not {kind}", f"write {examples}"
    if match is None:
        raise UsageError(what, why="a number and its unit are needed", remedy=remedy)
    number, prefix, binary = match.groups()
    value = float(number) * float(1024 if binary else 1000) ** _PREFIX_POWERS[prefix.lower()]
    if not 1 <= value <= _MOST:
        raise UsageError(what, why="it must lie between one byte and 2^63", remedy=remedy)
    return value


def format_bytes(num_bytes: float) -> str:
    """A size for display, in the largest binary unit that leaves a number of at least one: ``1.50 GiB``."""
    unit, size = bytes_unit(num_bytes)
    return f"{num_bytes / size:.2f} {unit}" if size > 1 else f"{num_bytes:.0f} B"


def bytes_unit(num_bytes: float) -> tuple[str, int]:
    """The largest binary unit that leaves a number of at least one, and its bytes: for an axis up to so much."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(num_bytes) >= size:
            return unit, size
    return "B", 1


def time_unit(duration_s: float) -> tuple[str, float]:
    """The unit that `format_s` would take, and its seconds: for an axis up to so much."""
    return ("ms", 1e-3) if abs(duration_s) < 1 else ("s", 1.0)


def format_bytes_per_s(rate_bytes_per_s: float) -> str:
    """A rate for display: ``25.60 GB/s``."""
    return f"{rate_bytes_per_s / 1e9:.2f} GB/s"


def format_s(duration_s: float) -> str:
    """A time for display: milliseconds below a second (``12.3 ms``), seconds above (``12.35 s``)."""
    return f"{duration_s * 1e3:.1f} ms" if abs(duration_s) < 1 else f"{duration_s:.2f} s"


def format_latency(duration_s: float) -> str:
    """A short time for display, in microseconds below a millisecond: ``12 us``."""
    return f"{duration_s * 1e6:.0f} us" if duration_s < 1e-3 else format_s(duration_s)


def format_ms(duration_s: float) -> str:
    """Milliseconds without their unit, to three significant digits, for columns that name it: ``0.0123``, ``1234``."""
    time_ms = duration_s * 1e3
    return f"{time_ms:.0f}" if time_ms >= 100 else f"{time_ms:#.3g}"


def format_flops_per_s(rate_flops_per_s: float) -> str:
    """A speed of matrix products for display: ``165.2 TFLOP/s``."""
    return f"{rate_flops_per_s / 1e12:.4g} TFLOP/s"


def format_tokens_per_s(rate_tokens_per_s: float) -> str:
    """A speed for display: ``12.34 tok/s``; below 0.1 with two significant digits (``0.0049 tok/s``)."""
    return f"{tokens_per_s_digits(rate_tokens_per_s)} tok/s"


def tokens_per_s_digits(rate_tokens_per_s: float, sign: Literal["", "+"] = "") -> str:
    """A speed without its unit: ``12.34``; below 0.1 with two significant digits; with ``+`` before a gain."""
    digits = ".2f" if abs(rate_tokens_per_s) >= 0.1 or rate_tokens_per_s == 0 else ".2g"
    return f"{rate_tokens_per_s:{sign}{digits}}"
