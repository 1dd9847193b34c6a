"""What memory this machine has left, and what this process takes of it, as the operating system counts."""

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


def free_host_bytes() -> int:
    """Bytes that this process can still take without swapping, within its container's limit if it has one."""
    free = _field_bytes(Path("/proc/meminfo"), "MemAvailable")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    if limit.isdigit() and _CGROUP_USED.exists():
        free = min(free, int(limit) - int(_CGROUP_USED.read_text()))
    return max(free, 0)


def free_device_bytes(device: torch.device) -> int:
    """Bytes that are free on the device; for the CPU, those of the host."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPeaks:
    """Peak bytes; on a CPU the system counts device and host memory together."""

    device_bytes: int | None
    host_bytes: int | None
    total_bytes: int | None


class MemoryGauge:
    """Peak bytes that this process takes above what it took when the gauge was made.

    A one-layer model runs first, so that what the libraries themselves take is not counted as the model's.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        _run_one_layer(device, dtype)
        _give_back_free_memory()
        _reset_peak()
        self._host_before = process_bytes("VmRSS")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def peaks(self) -> "MemoryPeaks":
        """Peaks above the start."""
        taken = max(0, process_bytes("VmHWM") - self._host_before)
        if self._device.type == "cpu":
            return MemoryPeaks(device_bytes=None, host_bytes=None, total_bytes=taken)
        return MemoryPeaks(
            device_bytes=int(torch.cuda.max_memory_reserved(self._device)), host_bytes=taken, total_bytes=None
        )


def process_bytes(field: str) -> int:
    """Bytes of this process by the kernel's name for them: VmRSS resident now, VmHWM at the peak."""
    return _field_bytes(Path("/proc/self/status"), field)


@torch.inference_mode()
def _run_one_layer(device: torch.device, dtype: torch.dtype) -> None:
    config = LlamaConfig(
        num_hidden_layers=1,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
        dtype=dtype,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device)
    for num_tokens in (8, 1):
        model(torch.zeros(1, num_tokens, dtype=torch.long, device=device))


def _give_back_free_memory() -> None:
    """Let the allocator return what planning has freed, which the model would else be measured to take for nothing."""
    with contextlib.suppress(OSError, AttributeError):  # a C library without it keeps what it has
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> None:
    """Let the kernel's high-water mark start from now; kernels that do not allow it keep the old mark."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _field_bytes(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{os.fspath(path)} has no field {field}")
