"""This machine: what it is called, what tells it apart, and what was measured of it."""

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from planner.contracts.machine import Machine, MachineDevice, MachineLink, Quantity
from planner.contracts.profile import LinkMeasurement, LinkName

_CPUINFO = Path("/proc/cpuinfo")
_PACKAGES = ("torch", "transformers", "draftstream")
_PATHS: tuple[tuple[LinkName, str], ...] = (
    ("cuda", "host_to_device"),
    ("cuda:device_to_host", "device_to_host"),
    ("disk:direct", "disk_to_host"),
)


def machine_fingerprint() -> str:
    """16 hex digits that change with the CPU's model, the cores and memory this process may use, and the GPUs."""
    memory_gib = round(_host_memory_bytes() / 2**30)
    identity = [_cpu_name(), _num_cores(), memory_gib, [properties.name for properties in _gpus()]]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what times depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def this_machine(links: Sequence[LinkMeasurement]) -> Machine:
    """The machine that this process runs on; rates only where they were measured."""
    host_memory = _told(_host_memory_bytes(), "the operating system")
    memory_rate = _rate(links, "host_memory")
    cpu = MachineDevice(name="cpu", memory_bytes=host_memory, memory_bytes_per_s=memory_rate)
    gpus = tuple(
        MachineDevice(name=properties.name, memory_bytes=_told(properties.total_memory, "the driver"))
        for properties in _gpus()
    )
    return Machine(
        name=f"{_cpu_name()}, {_num_cores()} cores",
        devices=gpus or (cpu,),
        host_memory_bytes=host_memory,
        host_memory_bytes_per_s=memory_rate,
        links=_links(links),
    )


def _links(links: Sequence[LinkMeasurement]) -> tuple[MachineLink, ...]:
    found = []
    for name, kind in _PATHS:
        rate = _rate(links, name)
        if rate is not None:
            found.append(MachineLink.model_validate({"kind": kind, "bytes_per_s": rate}))
    return tuple(found)


def _rate(links: Sequence[LinkMeasurement], name: LinkName) -> Quantity | None:
    """Bytes per second of the largest copy that was measured alone."""
    alone = [entry for entry in links if entry.link == name and not entry.loaded]
    if not alone:
        return None
    largest = max(alone, key=lambda entry: entry.num_bytes)
    rate = largest.num_bytes / largest.duration_s.median
    return Quantity(value=rate, kind="measured", source=f"planner profile, {largest.num_bytes} bytes at once")


def _told(value: float, by: str) -> Quantity:
    return Quantity(value=value, kind="measured", source=f"as {by} counts it")


def _gpus() -> list[torch.cuda._CudaDeviceProperties]:
    return [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]


def _cpu_name() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
