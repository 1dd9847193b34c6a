"""Copies between host and device, measured on the simulated device: each path, both directions, beside compute."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from simulated_cuda import Driver, SimulatedCopy, simulated

from runtime.measure.links import CUDA_PATHS, CopyEffort, CudaPath, measure_cuda
from runtime.measure.twin import Twin

CPU = torch.device("cpu")
SIZES = (64, 4096)
EFFORT = CopyEffort(seconds_per_size=0.0, least=3, most=3, direct_bytes=2**20)


@pytest.fixture(autouse=True)
def simulated_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.measure.links.open_link", lambda _link, device: SimulatedCopy(device))


@pytest.mark.parametrize(
    ("path", "operations", "is_pinned"),
    [  # of the device between the two events of a copy, and the second event itself
        ("cuda", 3, True),  # tears what was there, writes
        ("cuda:pageable", 3, False),
        ("cuda:device_to_host", 2, True),  # reads
        ("cuda:pageable_device_to_host", 2, False),
    ],
)
def test_each_path_is_timed_by_the_device_and_pinned_as_it_says(
    path: CudaPath,
    operations: int,
    is_pinned: bool,
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pinned: list[int] = []
    register = driver.cudaHostRegister

    def noted(address: int, num_bytes: int, flags: int) -> int:
        pinned.append(num_bytes)
        return register(address, num_bytes, flags)

    monkeypatch.setattr(driver, "cudaHostRegister", noted)
    with simulated("copy first"):
        rows = measure_cuda(CPU, path, SIZES, EFFORT, None)
    assert [(row.link, row.num_bytes, row.loaded) for row in rows] == [(path, size, False) for size in SIZES]
    for row in rows:
        assert row.duration_s.num_samples == 3
        assert {row.duration_s.p25, row.duration_s.median, row.duration_s.p75} == {operations}
    assert pinned == [max(SIZES)] * is_pinned
    assert driver.registered == {}, "pinned memory is given back"


@pytest.mark.usefixtures("driver")
def test_every_path_is_measured_beside_passes_of_the_cpu() -> None:
    passes: list[int] = []
    cached = SimpleNamespace(reset=lambda: None, forward=lambda tokens, _: passes.append(len(tokens)))
    twin = cast(Twin, SimpleNamespace(cached=cached))
    for path in CUDA_PATHS:
        passes.clear()
        with simulated("copy first"):
            assert all(row.loaded for row in measure_cuda(CPU, path, SIZES, EFFORT, twin))
        assert passes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("path", CUDA_PATHS)
def test_a_device_copies_on_every_path(path: CudaPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows = measure_cuda(torch.device("cuda", 0), path, (2**20, 2**24), EFFORT, None)
    assert rows[1].duration_s.median > rows[0].duration_s.median > 0
