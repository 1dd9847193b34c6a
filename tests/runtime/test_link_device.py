"""The link to a true CUDA device, where there is one: every unit arrives whole, and memory is pinned as asked."""

from pathlib import Path

import pytest
import torch

from runtime.link import FileRange, HostRange, OpenFile, PinningError, Source
from runtime.link.cuda import CudaCopy
from runtime.link.source import FileRun, Piece
from runtime.weight_stream import Stream, StreamedUnit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(60),
]


@pytest.mark.parametrize("is_staged", [False, True], ids=["pinned", "staged from disk"])
@pytest.mark.parametrize("num_slots", [2, 3])
def test_a_device_reads_every_unit_in_fifty_passes(num_slots: int, is_staged: bool, tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    link = CudaCopy(device)
    contents = [torch.randint(256, (2**20 + 4096 * unit,), dtype=torch.uint8) for unit in range(7)]
    expected = [link.load(HostRange(content), len(content)) for content in contents]
    files, units = [], []
    for unit, content in enumerate(contents):
        path = tmp_path / f"unit-{unit}"
        path.write_bytes(content.numpy().tobytes())
        files.append(OpenFile(path))
        source: Source = FileRange((FileRun(files[-1], 0, (Piece(0, len(content)),)),))
        if not is_staged:
            region = link.allocate_host(len(content))
            source.read_into(region)
            source = HostRange(region)
        units.append(StreamedUnit(label=path.name, num_bytes=len(content), source=source, is_staged=is_staged))
    stream = Stream(link, units, num_slots=num_slots, num_staging_buffers=2, trace=None)
    num_wrong = torch.zeros((), dtype=torch.int64, device=device)
    busy = torch.eye(1024, device=device)
    for _ in range(50):
        for unit in range(7):
            slot = stream.slots[stream.enter(unit)][: len(contents[unit])]
            num_wrong += (slot != expected[unit]).sum()
            for _ in range(unit):
                busy = busy @ busy  # so that the host runs ahead of the device, by more in some units than in others
            num_wrong += (slot != expected[unit]).sum()
            stream.leave()
    torch.cuda.synchronize(device)
    times, device_times = stream.times(), link.device_times()
    stream.close()
    link.close()
    for file in files:
        file.close()
    assert num_wrong.item() == 0
    assert device_times.copying_s > 0
    assert device_times.waiting_s > 0
    assert times.copied_bytes >= 50 * sum(map(len, contents))


def test_a_device_pins_memory_in_exact_size() -> None:
    link = CudaCopy(torch.device("cuda", 0))
    before = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
    region = link.allocate_host(3 * 2**20 + 1)
    assert region.is_pinned()
    assert len(region) == 3 * 2**20 + 1
    assert torch.cuda.host_memory_stats().get("allocated_bytes.current", 0) == before  # not the framework's allocator
    link.close()


def test_a_device_that_refuses_to_pin_goes_on_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    link = CudaCopy(device)
    region = link.allocate_host(8192)
    monkeypatch.setattr("runtime.link.cuda.page_aligned", lambda _: region)  # pinned already, which is refused
    with pytest.raises(PinningError, match="cudaHostRegister refused 8192 bytes"):
        link.allocate_host(8192)
    assert (torch.zeros(4, device=device) + 1).sum().item() == 4
    link.close()
