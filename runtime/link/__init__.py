"""The path that weights travel, behind one interface: from a source of bytes to a slot on the device."""

from runtime.link.base import Link, PinningError, open_link
from runtime.link.source import FileRange, HostRange, OpenFile, Source, page_aligned

__all__ = ["FileRange", "HostRange", "Link", "OpenFile", "PinningError", "Source", "open_link", "page_aligned"]
