"""The what-if notebook runs from a clean kernel, and its figures follow the sliders with the planner's numbers."""

from pathlib import Path

import pytest
from notebook_run import outputs_in_git, run_notebook

# What a hand would do, and what must then be seen; each is a cell after the notebook's own.
MOVES = (
    """
from planner.contracts.quantities import time_unit

def curve():
    return list(next(each for each in page.figures["lengths"].widget.data if each.name == "median (P50)").y)

before, title = curve(), page.figures["lengths"].widget.layout.title.text
page.controls.device_bytes.value = "32.00 GiB"
case = page.session.what_if.case(Change(device_bytes=32 * 2**30))
assert curve() == [point.tokens_per_s.p50 for point in case.curve.points]
assert all(after > was for after, was in zip(curve(), before, strict=True))
assert page.figures["lengths"].widget.layout.title.text != title
assert f"{case.best.tokens_per_s:.2f} tok/s" in page.message.value
""",
    """
page.controls.link_bytes_per_s.value = "48.00 GB/s"
faster = page.session.what_if.case(Change(device_bytes=32 * 2**30, link_bytes_per_s=48e9))
rounds = next(each for each in page.figures["round"].widget.data if each.name == "copy over the link")
_, size_s = time_unit(max(part.round_s for part in faster.parts()))
assert list(rounds.x) == [part.link_s / size_s for part in faster.parts()]
""",
    """
page.controls.kind.value = "chain"
page.controls.num_nodes.value = "4"
assert "chain of 4" in page.message.value
ring = next(each for each in page.figures["lengths"].widget.data if each.name == "chosen: 4")
assert list(ring.x) == [4]
assert curve() == [point.tokens_per_s.p50 for point in faster.curve.points]  # of every length, still
""",
    """
page.sections.selected_index = 0
heat, here = page.figures["map"].widget.data[0], page.figures["map"].widget.data[-1]
assert heat.type == "heatmap" and any(value is not None for row in heat.z for value in row)
assert (list(here.x), list(here.y)) == ([32.0], [48.0])
page.sections.selected_index = 1
assert len(page.figures["prices"].widget.data[0].x) == len(page.session.case(page.controls.change()).prices)
""",
    """
page.machines.value = ("rtx-3060-12gb", "rtx-4090")
page.sections.selected_index = 2
assert list(page.figures["machines"].widget.layout.yaxis.ticktext) == ["rtx-4090", "rtx-3060-12gb"]
""",
)


@pytest.mark.slow
def test_notebook_runs_and_its_figures_follow_the_sliders(tmp_path: Path) -> None:
    run_notebook("what_if", tmp_path, *MOVES)


def test_notebook_is_kept_without_outputs() -> None:
    assert outputs_in_git("what_if") == []
