"""What only pages and pictures need, looked for before anything is computed."""

from importlib.util import find_spec
from pathlib import Path

from planner.contracts.errors import ResourceFailureError, UsageError

_NEEDED = ("plotly", "matplotlib")
_WIDGETS = ("ipywidgets", "anywidget")


def need_report_extra(flag: str) -> None:
    """Raises: UsageError, where what draws pictures is not installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{flag} needs {' and '.join(missing)}",
            why="the pictures' packages come with the extra report, which is not installed",
            remedy="pip install 'draftstream[report]'",
        )


def without_widgets() -> str | None:
    """What to install so that a notebook's page can be moved; None where it can."""
    missing = [name for name in _WIDGETS if find_spec(name) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)} missing, so nothing here can be moved: pip install 'draftstream[notebook]'"


def check_page(path: Path) -> None:
    """Raises: UsageError, without what draws; ResourceFailureError, where no file can be of that name."""
    need_report_extra("--html")
    folder = path.absolute().parent
    reasons = {f"there is no folder {folder}": not folder.is_dir(), "it is a folder": path.is_dir()}
    for reason, is_so in reasons.items():
        if is_so:
            raise ResourceFailureError(
                f"cannot write {path}", why=reason, remedy="name a file in a folder that exists and is writable"
            )
