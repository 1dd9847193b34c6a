"""Which link a run takes: what the user wrote, or what suits this machine."""

import re

import torch

from planner.contracts.errors import UsageError
from planner.contracts.plan import CudaLink, DiskLink, EmulatedLink, LinkChoice
from planner.contracts.quantities import parse_bytes_per_s
from runtime.host import free_host_bytes

_CACHED_FRAC = 0.8  # of free memory that the page cache may be counted on to keep
_LATENCY = re.compile(r"(\d{1,6}(?:\.\d{1,9})?)(us|ms)")


def choose_link(text: str | None, weights_bytes: int) -> LinkChoice:
    """The link written as `disk`, `disk:cached`, `disk:direct`, `cuda` or `emulated:2GB/s` (`emulated:2GB/s,10us`).

    Without a word, `cuda` where there is a device, else `disk`; the disk's mode is `cached` only where free memory can
    keep the weights in the page cache. Raises: UsageError.
    """
    match (text or ("cuda" if torch.cuda.is_available() else "disk")).split(":", maxsplit=1):
        case ["cuda"]:
            return CudaLink()
        case ["disk"]:
            return DiskLink(mode="cached" if weights_bytes <= _CACHED_FRAC * free_host_bytes() else "direct")
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


def _latency_s(text: str) -> float:
    match = _LATENCY.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a latency", why="a number and its unit are needed", remedy="write 10us or 1ms"
        )
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3}[match[2]]
