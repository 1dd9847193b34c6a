"""The pictures of the README, made by the project itself: `make pictures`."""

import sys
from pathlib import Path

from planner.api import from_catalogue
from planner.changes import link_bytes_per_s
from planner.figures.static import write_static
from planner.figures.what_if import Here, lengths_figure, map_figure
from planner.what_if import WhatIf

_MACHINE, _TARGET, _DRAFT, _TEXT = "rtx-3060-12gb", "qwen2.5-coder-14b", "qwen2.5-coder-1.5b", "code"
_MEMORIES_GIB = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48)
_RATES_GBYTES_PER_S = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def write_pictures(folder: Path) -> None:
    """Write `lengths.svg` and `map.svg`: a 14B model in 16 bits, 29 GB, on a card of 12 GB."""
    what_if = WhatIf(from_catalogue(_MACHINE, _TARGET, [_DRAFT], text=_TEXT))
    case = what_if.case()
    curve = case.curve
    assert curve is not None, "the pair's acceptance is published"
    request = case.situation.request
    here = Here(
        device_bytes=request.budget.device_bytes,
        link_bytes_per_s=link_bytes_per_s(case.situation.profile, request.wishes.link),
        label=_MACHINE,
    )
    strategies = what_if.map([gib * 2**30 for gib in _MEMORIES_GIB], [rate * 1e9 for rate in _RATES_GBYTES_PER_S])
    folder.mkdir(parents=True, exist_ok=True)
    write_static(lengths_figure(curve), folder / "lengths.svg")
    write_static(map_figure(strategies, here), folder / "map.svg")


if __name__ == "__main__":
    write_pictures(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures"))
