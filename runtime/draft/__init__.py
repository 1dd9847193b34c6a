"""What proposes tokens for the target to verify."""

from runtime.draft.base import Drafter
from runtime.draft.model import ChainDrafter

__all__ = ["ChainDrafter", "Drafter"]
