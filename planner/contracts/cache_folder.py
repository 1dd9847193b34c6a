"""Where profiles and plans are kept between runs, unless the user names a file."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$DRAFTSTREAM_CACHE, else draftstream below the user's cache folder; it need not exist yet."""
    if own := os.environ.get("DRAFTSTREAM_CACHE"):
        return Path(own)
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "draftstream"
