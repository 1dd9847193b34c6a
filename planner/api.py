"""Situations for notebooks and scripts: a machine of the catalogue, or a profile that was measured here."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from planner.changes import Situation
from planner.contracts.errors import BadInputError
from planner.contracts.plan import Workload

if TYPE_CHECKING:
    from planner.cli.sources import Asked


def from_catalogue(
    machine: str,
    target: str,
    drafts: Sequence[str] = (),
    *,
    text: str | None = None,
    prompt_tokens: int = 512,
    new_tokens: int = 256,
) -> Situation:
    """A machine of the catalogue with all its memory but a gibibyte, a target and drafts by name or folder.

    Raises: BadInputError, offering the nearest names.
    """
    from planner.cli.sources import Asked

    workload = Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens, domain=text)
    return _situation(Asked(machines=(machine,), target=target, drafts=tuple(drafts), workload=workload))


def from_profile(
    path: Path | str,
    *,
    link: str | None = None,
    device_memory: str | None = None,
    text: str | None = None,
    prompt_tokens: int = 64,
    new_tokens: int = 128,
    reports: Sequence[Path | str] = (),
) -> Situation:
    """What `planner profile` measured, here or elsewhere, corrected by what runs reported.

    `link` and `device_memory` are as on the command line; without a link it is the one of this machine. A report that
    is named must fit target and kind of link; a folder stands for those in it that do.

    Raises: BadInputError, where a file is none of ours or of another schema version, or no report of a folder fits;
    UsageError, for no link.
    """
    from planner.cli.sources import Asked

    return _situation(
        Asked(
            profile=_expanded(path),
            workload=Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens, domain=text),
            link=link,
            memory={"device": device_memory},
            calibrate=tuple(map(_expanded, reports)),
            force=True,
        )
    )


def _expanded(path: Path | str) -> Path:
    """The path with a `~` at its start spelled out. Raises: BadInputError, where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BadInputError(f"cannot read {path}", why=str(error), remedy="write the whole path") from error


def _situation(asked: "Asked") -> Situation:
    from planner.cli.sources import situations

    (found,) = situations(asked, one_per_draft=False)
    return Situation(profile=found.profile, request=found.request)
