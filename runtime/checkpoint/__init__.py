"""From a folder of safetensors to the bytes of each unit, without ever mapping a file into memory."""

from runtime.checkpoint.layout import Layout
from runtime.checkpoint.reader import Checkpoint, RowTable

__all__ = ["Checkpoint", "Layout", "RowTable"]
