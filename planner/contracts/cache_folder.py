"""Where profiles and plans are kept between runs, unless the user names a file."""

import os
from pathlib import Path

from planner.contracts.errors import ResourceFailureError

_OWN_VARIABLE, _SHARED_VARIABLE = "DRAFTSTREAM_CACHE", "XDG_CACHE_HOME"


def cache_folder() -> Path:
    """$DRAFTSTREAM_CACHE, else draftstream in $XDG_CACHE_HOME or ~/.cache; made where it is missing.

    Raises: ResourceFailureError, where it cannot be made.
    """
    own, shared = os.environ.get(_OWN_VARIABLE), os.environ.get(_SHARED_VARIABLE)
    folder = Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "draftstream"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceFailureError(
            f"cannot make the cache folder {folder}", why=str(error), remedy=f"set {_OWN_VARIABLE} to a folder of yours"
        ) from error
    return folder
