"""Performance: the one shape of predicted and of measured, so that an error is a subtraction."""

from pydantic import Field

from planner.contracts.base import Contract


class RoundSplit(Contract):
    """Seconds of an average round on the compute lane; the parts and the unexplained rest add up to the round."""

    round_s: float
    compute_s: float
    waiting_for_weights_s: float
    draft_s: float
    host_s: float
    unexplained_s: float


class LinkSplit(Contract):
    """Seconds of an average round on the link: moving bytes, or waiting for a free slot, or for the disk before it."""

    busy_s: float
    waiting_for_slot_s: float
    waiting_for_disk_s: float
    bytes_per_s: float | None = None  # while busy


class Performance(Contract):
    """What a run takes and yields; None is what nobody predicted or measured."""

    generated_tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    tokens_per_round: float | None = None
    survival: tuple[float, ...] | None = None  # S_i: share of rounds in which at least i drafted tokens were accepted
    round: RoundSplit | None = None
    link: LinkSplit | None = None
    streamed_bytes_per_pass: int | None = Field(default=None, ge=0)
    device_bytes: int | None = Field(default=None, ge=0)
    host_bytes: int | None = Field(default=None, ge=0)
    total_bytes: int | None = Field(
        default=None, ge=0
    )  # both, where the device is the CPU and they cannot be told apart
