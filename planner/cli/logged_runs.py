"""Reports of runs that a plan learns from: those that are named, and of a folder those that fit."""

from collections.abc import Sequence
from pathlib import Path

from planner.contracts.errors import BadInputError
from planner.contracts.plan import LinkChoice
from planner.contracts.profile import Profile
from planner.contracts.report import Report

_NAMED = 3  # reasons of a folder's reports that are given
_REMEDY = "name reports of this target whose plans planner recommend wrote, or give --link as their runs had it"


def logged_runs(paths: Sequence[Path], profile: Profile, link: LinkChoice) -> list[Report]:
    """The reports to calibrate by: every file that is named, and of each folder the files that fit.

    Raises: BadInputError, where a file that is named does not fit, or none of a folder does.
    """
    found: dict[Path, Report] = {}  # each file once, whether it is named, in a folder, or both
    for path in paths:
        found |= _fitting(path, profile, link) if _is_folder(path) else {path: _logged_run(path, profile, link)}
    return list({path.resolve(): report for path, report in found.items()}.values())


def _fitting(folder: Path, profile: Profile, link: LinkChoice) -> dict[Path, Report]:
    """Those of a folder that fit. Raises: BadInputError, where none does."""
    found, reasons = {}, []
    for path in sorted(folder.glob("*.json")):
        try:
            found[path] = _logged_run(path, profile, link)
        except BadInputError as error:
            reasons.append(f"{path.name}: {error.why}")
    if not found:
        more = [f"and {len(reasons) - _NAMED} more"] if len(reasons) > _NAMED else []
        raise BadInputError(
            f"no report in {folder} can calibrate this plan",
            why="; ".join([*reasons[:_NAMED], *more]) or "there is no JSON file in it",
            remedy=_REMEDY,
        )
    return found


def _logged_run(path: Path, profile: Profile, link: LinkChoice) -> Report:
    """A report to calibrate by. Raises: BadInputError, where it says nothing of this target over this kind of link."""
    report = Report.read(path)
    reasons = {
        "it is of another target": report.target.fingerprint != profile.target.fingerprint,
        f"it ran over the link {report.plan.link.kind}, not {link.kind}": report.plan.link.kind != link.kind,
        "its plan predicted no speed": report.predicted.generated_tokens_per_s is None,
    }
    found = [reason for reason, is_so in reasons.items() if is_so]
    if found:
        raise BadInputError(f"{path} cannot calibrate this plan", why="; ".join(found), remedy=_REMEDY)
    return report


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long, a folder closed to us: reading it says so
        return False
