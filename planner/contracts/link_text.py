"""Links as people write them: `disk`, `disk:cached`, `disk:direct`, `cuda`, `emulated:2GB/s`, `emulated:2GB/s,10us`."""

import re

from planner.contracts.errors import UsageError
from planner.contracts.plan import CudaLink, DiskLink, EmulatedLink, LinkChoice
from planner.contracts.quantities import parse_bytes_per_s

_CACHED_FRAC = 0.8  # of free memory that the page cache may be counted on to keep
_LATENCY = re.compile(r"(\d{1,6}(?:\.\d{1,9})?)(us|ms)")


def parse_link(text: str, *, weights_bytes: int, free_host_bytes: int) -> LinkChoice:
    """The link that was written; a disk without a mode is `cached` only where free memory can keep the weights.

    Raises: UsageError.
    """
    match text.split(":", maxsplit=1):
        case ["cuda"]:
            return CudaLink()
        case ["disk"]:
            return DiskLink(mode="cached" if weights_bytes <= _CACHED_FRAC * free_host_bytes else "direct")
        case ["disk", ("cached" | "direct") as mode]:
            return DiskLink(mode=mode)
        case ["emulated", pace]:
            rate, _, latency = pace.partition(",")
            return EmulatedLink(bytes_per_s=parse_bytes_per_s(rate), latency_s=_latency_s(latency) if latency else 0.0)
    raise UsageError(
        f"there is no link {text!r}",
        why="a link is disk, cuda, or emulated with a rate",
        remedy="write disk, disk:cached, disk:direct, cuda, emulated:2GB/s or emulated:2GB/s,10us",
    )


def link_text(link: LinkChoice) -> str:
    """The link as `parse_link` reads it."""
    match link:
        case DiskLink():
            return f"disk:{link.mode}"
        case EmulatedLink():
            latency = f",{link.latency_s * 1e6:.9g}us" if link.latency_s else ""
            return f"emulated:{link.bytes_per_s / 1e9:.9g}GB/s{latency}"
    return link.kind


def _latency_s(text: str) -> float:
    match = _LATENCY.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a latency", why="a number and its unit are needed", remedy="write 10us or 1ms"
        )
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3}[match[2]]
