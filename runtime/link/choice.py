"""Which link a run takes: what the user wrote, or what suits this machine."""

import torch

from planner.contracts.link_text import parse_link
from planner.contracts.plan import LinkChoice
from runtime.host import free_host_bytes


def choose_link(text: str | None, weights_bytes: int) -> LinkChoice:
    """The link as written (see `parse_link`); without a word, `cuda` where there is a device, else `disk`.

    Raises: UsageError.
    """
    word = text or ("cuda" if torch.cuda.is_available() else "disk")
    return parse_link(word, weights_bytes=weights_bytes, free_host_bytes=free_host_bytes())
