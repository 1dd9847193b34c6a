"""Files of ours told apart by what they hold, whatever they are named."""

from pathlib import Path

from pydantic_core import from_json

from planner.contracts.base import SCHEMA_VERSION, ContractFile, other_version, read_bounded
from planner.contracts.errors import BadInputError
from planner.contracts.machine import Machine
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import Plan
from planner.contracts.profile import Profile
from planner.contracts.recommendation import Recommendation
from planner.contracts.report import Report

Shown = Plan | Profile | Report | Recommendation

_KINDS: tuple[type[ContractFile], ...] = (Plan, Profile, Report, Recommendation, Machine, ModelShape)
_LEAST_FRAC = 0.5  # of a kind's required fields, for a file to count as a damaged one of it
_STDIN, _STDIN_PATH = "-", Path("/dev/stdin")
_OURS = "a plan, a profile, a report or a recommendation"


def read_shown(path: Path) -> Shown:
    """The plan, profile, report or recommendation in the file; `-` is stdin.

    Raises: BadInputError, where it is none of them, is damaged, or has another schema version.
    """
    is_stdin = str(path) == _STDIN
    name = "stdin" if is_stdin else str(path)
    content = read_bounded(_STDIN_PATH if is_stdin else path, "plan, profile, report or recommendation")
    kind = _kind_of(content, name)
    record = kind.parse(content, name)
    if not isinstance(record, Shown):
        raise BadInputError(
            f"{name} is a {kind.__name__} file", why=f"what is shown is {_OURS}", remedy="planner recommend plans by it"
        )
    return record


def kind_of(path: Path) -> type[ContractFile]:
    """What a file of ours holds, though it may be damaged. Raises: BadInputError, where it is none of ours."""
    return _kind_of(read_bounded(path, "file of draftstream"), str(path))


def _kind_of(content: bytes, name: str) -> type[ContractFile]:
    """The kind of which the file has most of the required fields."""
    try:
        document = from_json(content)
    except ValueError as error:
        why = "it is empty" if not content.strip() else f"it is not JSON: {error}"
        raise _none_of_ours(name, why) from error
    if isinstance(document, list) and document:
        raise _none_of_ours(name, f"it is a list of {len(document)}")
    if not isinstance(document, dict):
        raise _none_of_ours(name, "it holds no JSON object")
    kind = max(_KINDS, key=lambda kind: _overlap(kind, document))
    if _overlap(kind, document) < _LEAST_FRAC:
        version = document.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise other_version(name, "draftstream", version)
        if not document:
            raise _none_of_ours(name, "it holds no field")
        fields = ", ".join(list(document)[:4])
        raise _none_of_ours(name, f"its fields are another program's: {fields[:80]}")
    return kind


def _overlap(kind: type[ContractFile], document: dict[str, object]) -> float:
    """The share of the kind's required fields that the document has."""
    required = {name for name, field in kind.model_fields.items() if field.is_required()}
    return len(required & document.keys()) / len(required)


def _none_of_ours(name: str, why: str) -> BadInputError:
    return BadInputError(
        f"{name} is neither {_OURS.replace(' or ', ' nor ')}",
        why=why,
        remedy="name what planner recommend or planner plan, planner profile, or runtime generate --json wrote",
    )
