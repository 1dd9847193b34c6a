"""Machine: the memories and links of one computer, each number with its source."""

from typing import Literal

from pydantic import Field

from planner.contracts.base import Contract, ContractFile


class Quantity(Contract):
    """One number in base SI units, where it comes from, and how far to trust it."""

    value: float = Field(gt=0)
    kind: Literal["datasheet", "measured", "estimated"]
    source: str = Field(min_length=1)


class MachineDevice(Contract):
    """An accelerator, or the CPU where it is the device that computes."""

    name: str
    memory_bytes: Quantity
    memory_bytes_per_s: Quantity | None = None
    matmul_flops_per_s: Quantity | None = None


class MachineLink(Contract):
    """A path that weights travel: host to device, or disk to host."""

    kind: Literal["host_to_device", "device_to_host", "disk_to_host"]
    bytes_per_s: Quantity
    latency_s: Quantity | None = None


class Machine(ContractFile):
    """One computer as the planner sees it."""

    name: str
    devices: tuple[MachineDevice, ...] = Field(min_length=1)
    host_memory_bytes: Quantity
    host_memory_bytes_per_s: Quantity | None = None
    host_matmul_flops_per_s: Quantity | None = None  # of the CPU, in 16 bits
    links: tuple[MachineLink, ...] = ()
