"""Where profiles are kept between commands, found by what they hold for; one process at a time measures."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from planner.contracts.cache_folder import cache_folder
from planner.contracts.errors import BadInputError, PlanMismatchError, ResourceFailureError
from planner.contracts.plan import Dtype
from planner.contracts.profile import Profile

_LOCK = "measuring.lock"
_MOST_DIGITS = 20  # of a process's number

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


def profile_path(key: ProfileKey, variant: Variant = "full") -> Path:
    """The file of a key's profile."""
    suffix = "" if variant == "full" else f"-{variant}"
    return cache_folder() / f"profile-{key.target[:12]}-{key.digest}{suffix}.json"


def find_profile(key: ProfileKey) -> Profile | None:
    """The cached profile that serves a key: one of just its drafts, or one of these and others; a full one first.

    One that a deadline cut short serves where there is no other. A file that cannot be read as a profile of this
    version counts as absent.
    """
    exact = [profile_path(key), profile_path(key, "quick")]
    others = sorted(cache_folder().glob(f"profile-{key.target[:12]}-*.json"))
    others = [path for path in others if path not in exact and not path.stem.endswith("-partial")]
    cut_short = []
    for path in [*exact, *sorted(others, key=lambda path: path.stem.endswith("-quick"))]:
        profile = read_cached(path)
        if profile is not None and serves(profile, key):
            if not profile.num_steps_missing:
                return profile
            cut_short.append(profile)
    return min(cut_short, key=lambda profile: profile.num_steps_missing, default=None)


def read_cached(path: Path) -> Profile | None:
    """The profile in a file of the cache; None where there is none that this version reads."""
    try:
        return Profile.read(path)
    except BadInputError:
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


def check_measured_here(profile: Profile, machine: str, here: Mapping[str, str], remedy: str) -> None:
    """Raises: PlanMismatchError, where a profile is of another machine, of other versions, or estimated."""
    differing = [
        f"{name} {measured} there and {number} here"
        for name, number in here.items()
        if (measured := profile.versions.get(name, "unknown")) != number
    ]
    if profile.machine_fingerprint != machine:
        differing.insert(0, f"it is of {profile.machine.name}, which is not this machine")
    if differing:
        raise PlanMismatchError("the profile was not measured here and now", why="; ".join(differing), remedy=remedy)


@contextlib.contextmanager
def measuring_alone() -> Iterator[None]:
    """Hold the cache for this process alone; another one could measure any models, and would disturb this one.

    Raises: ResourceFailureError, naming the process that holds it.
    """
    path = cache_folder() / _LOCK
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, _MOST_DIGITS, 0).decode("ascii", "replace").strip()
            raise ResourceFailureError(
                "another profiler is at work on this cache",
                why=f"{f'process {holder}' if holder else 'a process'} holds {path}, and two at once would measure "
                "each other",
                remedy="wait for it to end, or stop it; what it has measured by then is kept",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
