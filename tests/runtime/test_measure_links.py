"""Copies are measured through the runtime's own links, at the sizes that plans copy."""

import random
import subprocess
import threading
from pathlib import Path
from typing import cast

import pytest
import torch
from tiny_models import TinyModel

from planner.contracts.errors import SelfCheckError
from planner.contracts.model_folder import open_model_folder
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import DiskLink
from runtime.cached import CachedModel
from runtime.measure.links import CopyEffort, measure_disk, measure_host_memory, region_sizes
from runtime.measure.machine import machine_fingerprint, this_machine, versions
from runtime.measure.memory import _width_bytes, measure_memory
from runtime.measure.twin import Truncation, open_twin, truncate

pytestmark = pytest.mark.usefixtures("one_thread")

EFFORT = CopyEffort(seconds_per_size=0.0, least=3, most=3, direct_bytes=2**22)


def truncated(folder: Path) -> Truncation:
    shape = ModelShape.from_config(folder)
    return truncate(open_model_folder(folder), shape, shape.stored_dtype, 2**40)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_region_of_every_shape_of_layer_is_among_the_sizes(family: str, tiny_model: TinyModel) -> None:
    truncation = truncated(tiny_model(family))
    regions = {layer.region_bytes(truncation.dtype) for layer in truncation.shape.layers}
    rows = measure_disk(truncation, "cached", EFFORT, None)
    assert {row.num_bytes for row in rows} >= regions
    assert set(region_sizes(truncation)) == {row.num_bytes for row in rows}
    assert all(row.duration_s.median > 0 and not row.loaded and row.link == "disk:cached" for row in rows)


def test_layers_stored_in_another_dtype_are_read_as_they_will_run(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama", "fp32")
    truncation = truncate(open_model_folder(folder), ModelShape.from_config(folder), "bf16", 2**40)
    regions = {layer.region_bytes("bf16") for layer in truncation.shape.layers}
    assert {row.num_bytes for row in measure_disk(truncation, "cached", EFFORT, None)} >= regions


def test_copies_beside_compute_end_with_the_compute(tiny_model: TinyModel) -> None:
    truncation = truncated(tiny_model("llama"))
    with open_twin(truncation, None, 64, torch.device("cpu")) as twin:
        for rows in (measure_disk(truncation, "direct", EFFORT, twin), measure_host_memory(EFFORT, twin)):
            assert all(row.loaded for row in rows)
    assert "computing" not in {thread.name for thread in threading.enumerate()}


def test_failure_of_the_compute_is_not_swallowed(tiny_model: TinyModel) -> None:
    truncation = truncated(tiny_model("llama"))

    def fail(*_: object) -> None:
        raise SelfCheckError("what", why="why", remedy="remedy")

    with open_twin(truncation, None, 64, torch.device("cpu")) as twin:
        twin.streamed.model.register_forward_pre_hook(fail)
        with pytest.raises(SelfCheckError):
            measure_host_memory(EFFORT, twin)


def test_machine_is_told_by_what_was_measured_and_nothing_else(tiny_model: TinyModel) -> None:
    rows = measure_disk(truncated(tiny_model("llama")), "direct", EFFORT, None)
    machine = this_machine(rows)
    (link,) = machine.links
    assert link.kind == "disk_to_host"
    assert link.bytes_per_s.kind == "measured"
    assert machine.host_memory_bytes_per_s is None
    assert machine_fingerprint() == machine_fingerprint()
    assert set(versions()) == {"python", "torch", "transformers", "draftstream"}


@pytest.mark.slow
def test_overheads_of_real_runs_are_some_megabytes(tiny_model: TinyModel) -> None:
    folder = str(tiny_model("llama"))
    found = {entry.part: entry.num_bytes for entry in measure_memory(folder, folder, "fp32", DiskLink(), 512)}
    assert set(found) == {"host_overhead", "draft_host_overhead", "width", "draft_width"}
    assert 2**20 < found["host_overhead"] < 2**28
    assert found["width"] < 2**20  # kernels of 32 bits are one for all widths


def test_what_each_further_width_of_a_pass_keeps_is_counted() -> None:
    kept: dict[int, bytes] = {}

    class Model:
        can_roll_back, context_tokens = True, 64

        def reset(self) -> None: ...

        def drop(self, num_tokens: int) -> None: ...

        def forward(self, tokens: list[int], num_rows: int) -> None:
            kept.setdefault(len(tokens), random.randbytes(2**20))

    assert _width_bytes(cast(CachedModel, Model())) == pytest.approx(2**20, rel=0.3)  # the process itself scatters
    assert _width_bytes(cast(CachedModel, Model())) < 2**18  # all of them are there


def test_overheads_are_those_of_as_many_threads_as_the_profile_computes_on(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    class Process:
        returncode = 0

        def __init__(self, command: list[str], **_: object) -> None:
            started.append(command)

        def communicate(self) -> tuple[str, str]:
            return '{"total": 0, "width": 0}', ""

        def kill(self) -> None: ...

        def wait(self) -> None: ...

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    measure_memory(str(tiny_model("llama")), None, "fp32", DiskLink(), 512)
    assert [command[-1] for command in started] == ["5"]
