"""What every file that crosses a boundary has in common: frozen, no unknown fields, a schema version, atomic writes."""

import os
import secrets
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from planner.contracts.errors import BadInputError, ResourceFailureError

MAX_FILE_BYTES = 10 * 2**20
SCHEMA_VERSION = 1


class Contract(BaseModel):
    """A frozen record; an unknown field, a value of another type or a number that is not finite is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class ContractFile(Contract):
    """A record that is stored as a JSON file of its own."""

    schema_version: Literal[1] = 1

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in the file.

        Raises: BadInputError, naming each field that is missing, unknown or out of bounds.
        """
        return cls.parse(read_bounded(path, f"{cls.__name__} file"), str(path))

    @classmethod
    def parse(cls, content: bytes, name: str) -> Self:
        """The record in the content of the file of that name. Raises: BadInputError, as `read` does."""
        kind = cls.__name__
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            found = error.errors()
            versions = [
                item["input"]
                for item in found
                if item["loc"][-1:] == ("schema_version",) and item["type"] != "extra_forbidden"
            ]
            if versions:
                raise other_version(name, kind, versions[0]) from error
            reasons = "; ".join(
                f"{'.'.join(str(part) for part in item['loc']) or 'file'}: {item['msg']}" for item in found[:5]
            )
            raise BadInputError(
                f"{name} is no valid {kind} file", why=reasons, remedy="write it again with this version of draftstream"
            ) from error

    def to_json(self) -> str:
        """The record as indented JSON that a person can read."""
        return self.model_dump_json(indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write the file so that a crash at any time leaves the old content or the new, never a part."""
        write_atomically(path, self.to_json())


def read_bounded(path: Path, kind: str) -> bytes:
    """The content of a file that this program wrote. Raises: BadInputError, where it is unreadable or too large."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise BadInputError(f"cannot read {path}", why=str(error), remedy=f"name an existing {kind}") from error
    if len(content) > MAX_FILE_BYTES:
        raise BadInputError(
            f"{path} is no {kind}",
            why=f"it is larger than {MAX_FILE_BYTES} bytes",
            remedy=f"name a {kind} that this program wrote",
        )
    return content


def other_version(name: str, kind: str, version: object) -> BadInputError:
    """The error for a file whose schema this version does not read."""
    return BadInputError(
        f"{name} is no valid {kind} file: its schema version is {str(version)[:20]}",
        why=f"schema_version: this version of draftstream reads {SCHEMA_VERSION}",
        remedy="write it again with this version of draftstream, or read it with the one that wrote it",
    )


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the file's content in one step; a link keeps leading to its file, pipes and devices are written to.

    Raises: ResourceFailureError, where the folder is missing, not writable or full.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        place = path.resolve()
        temporary = place.with_name(f".tmp-{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise ResourceFailureError(
            f"cannot write {path}", why=str(error), remedy="name a folder that exists, is writable and has room"
        ) from error
