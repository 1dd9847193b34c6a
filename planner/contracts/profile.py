"""Profile: what was measured on one machine with one target and draft, before anything is planned."""

from pydantic import Field

from planner.contracts.base import Contract, ContractFile
from planner.contracts.machine import Machine
from planner.contracts.plan import UnitKind


class Spread(Contract):
    """Median and quartiles of repeated measurements, in the unit that the field's name states."""

    p25: float
    median: float
    p75: float
    num_samples: int = Field(ge=1)


class LinkMeasurement(Contract):
    """Seconds of one copy of `num_bytes`; `loaded` means that the device or the CPU computed at the same time."""

    link: str
    num_bytes: int = Field(gt=0)
    loaded: bool
    duration_s: Spread


class ComputeMeasurement(Contract):
    """Seconds that one unit computes for `num_tokens` at `context_tokens`, weights cold in cache."""

    unit: UnitKind
    num_tokens: int = Field(gt=0)
    context_tokens: int = Field(ge=0)
    duration_s: Spread


class AcceptanceRecording(Contract):
    """Teacher-forced replay of one prompt: per position, the rank of the target's token in the draft's list."""

    domain: str
    ranks: tuple[int, ...]
    draft_probs: tuple[float, ...]


class Profile(ContractFile):
    """Measured tables that the planner interpolates; the fingerprints say for what they hold."""

    machine: Machine
    target_fingerprint: str
    draft_fingerprint: str | None = None
    versions: dict[str, str]
    links: tuple[LinkMeasurement, ...] = ()
    compute: tuple[ComputeMeasurement, ...] = ()
    acceptance: tuple[AcceptanceRecording, ...] = ()
