"""Where profiles are kept between commands, found by what they hold for; one process writes an entry at a time."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from planner.contracts.errors import BadInputError, ResourceFailureError
from planner.contracts.plan import Dtype
from planner.contracts.profile import Profile

_OWN_VARIABLE, _SHARED_VARIABLE = "DRAFTSTREAM_CACHE", "XDG_CACHE_HOME"

Variant = Literal["full", "quick", "partial"]  # all groups, all of them coarsely, or some of them


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileKey:
    """What a profile holds for: fingerprints of target, drafts and machine, dtype, versions, and compute threads."""

    target: str
    drafts: tuple[str, ...]
    dtype: Dtype
    machine: str
    versions: Mapping[str, str]
    num_threads: int

    @property
    def digest(self) -> str:
        """16 hex digits that change with any of it; the order of the drafts does not matter."""
        parts = (self.target, *sorted(self.drafts), self.dtype, self.machine, str(self.num_threads))
        text = "\n".join((*parts, *(f"{name} {number}" for name, number in sorted(self.versions.items()))))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def profile_path(key: ProfileKey, variant: Variant = "full") -> Path:
    """The file of a key's profile."""
    suffix = "" if variant == "full" else f"-{variant}"
    return cache_folder() / f"profile-{key.target[:12]}-{key.digest}{suffix}.json"


def find_profile(key: ProfileKey) -> Profile | None:
    """The cached profile that serves a key: one of just its drafts, or one of these and others; a full one first.

    A file that cannot be read as a profile of this version counts as absent.
    """
    exact = [profile_path(key), profile_path(key, "quick")]
    others = sorted(cache_folder().glob(f"profile-{key.target[:12]}-*.json"))
    others = [path for path in others if path not in exact and not path.stem.endswith("-partial")]
    for path in [*exact, *sorted(others, key=lambda path: path.stem.endswith("-quick"))]:
        if not path.exists():
            continue
        with contextlib.suppress(BadInputError):
            profile = Profile.read(path)
            if serves(profile, key):
                return profile
    return None


def serves(profile: Profile, key: ProfileKey) -> bool:
    """Whether a profile holds for a key, with its drafts and perhaps more."""
    drafts = {draft.fingerprint for draft in profile.drafts}
    return (
        profile.target.fingerprint == key.target
        and drafts >= set(key.drafts)
        and profile.dtype == key.dtype
        and profile.machine_fingerprint == key.machine
        and profile.versions == dict(key.versions)
        and profile.num_threads == key.num_threads
    )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a cache entry for this process alone. Raises: ResourceFailureError, where another one holds it."""
    descriptor = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResourceFailureError(
                "another profiler is at work on the same models",
                why=f"it holds {path.with_suffix('.lock')}, and two at once would measure each other",
                remedy="wait for it to end, or stop it; what it has measured by then is kept",
            ) from error
        yield
    finally:
        os.close(descriptor)
