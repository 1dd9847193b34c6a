"""Where a recommendation's numbers come from: a profile of this machine, or the catalogue; and what may be taken."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from planner.contracts.errors import BadInputError, PlanMismatchError, UsageError
from planner.contracts.machine import Machine
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import CudaLink, Dtype, LinkChoice, Plan, Workload
from planner.contracts.profile import Profile
from planner.contracts.quantities import format_bytes, parse_bytes, parse_headroom
from planner.contracts.recognise import kind_of
from planner.contracts.report import Report

if TYPE_CHECKING:
    from planner.budget import Budget
    from planner.drafting import Drafting
    from planner.search import Request

_HEADROOM_BYTES = 2**30
_REMEASURE = (
    "planner profile again; or --force, which plans by its numbers all the same, and they may be off by as much as the "
    "machines or versions differ"
)
_HOST_HEADROOM_FRAC = 0.85  # of the host's memory that weights may take on a machine nobody looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The command line of `planner recommend`."""

    workload: Workload
    profile: Path | None = None
    machines: tuple[str, ...] = ()
    target: str | None = None
    drafts: tuple[str, ...] = ()
    dtype: Dtype | None = None
    link: str | None = None
    num_threads: int | None = None
    memory: dict[str, str | None] = field(default_factory=dict)  # by the fields of Limits
    context_tokens: int | None = None
    draftings: "tuple[Drafting, ...] | None" = None
    slots: int | None = None
    no_spec: bool = False
    resident_only: bool = False
    draft_on_host: bool = False
    is_sampled: bool = False
    quality_floor: str = "stored"
    calibrate: tuple[Path, ...] = ()
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One profile and request to plan for."""

    label: str
    profile: Profile
    request: "Request"
    is_here: bool  # this machine, so that the plan can be run

    def keep(self, plan: Plan, out: Path | None) -> Path:
        """Write the plan to the file, or into the cache under its content's name; returns where it lies."""
        if out is None:
            from planner.contracts.cache_folder import cache_folder

            folder = cache_folder() / "plans"
            folder.mkdir(exist_ok=True)
            out = folder / f"{hashlib.sha256(plan.to_json().encode()).hexdigest()[:12]}.json"
        plan.write(out)
        return out


def profile_and_reports(files: Sequence[Path], calibrate: Sequence[Path]) -> tuple[Path | None, tuple[Path, ...]]:
    """The profile among files that stand alone, and all reports: of `--calibrate a b` the last stands alone.

    Raises: UsageError, where more than one profile is left; BadInputError, where a file is none of ours.
    """
    further = [path for path in files if calibrate and kind_of(path) is Report]
    profiles = [path for path in files if path not in further]
    if len(profiles) > 1:
        raise UsageError(
            f"{len(profiles)} profiles: {', '.join(map(str, profiles))}",
            why="plans are made by one of them",
            remedy="name one; reports of runs follow --calibrate",
        )
    return profiles[0] if profiles else None, (*calibrate, *further)


def situations(asked: Asked, *, one_per_draft: bool) -> list[Situation]:
    """What the command line asks about: one situation, or one per machine or draft to compare.

    Raises: UsageError, BadInputError, PlanMismatchError.
    """
    if asked.machines:
        if asked.profile is not None:
            raise UsageError(
                "a profile and a machine", why="each says what the machine can do", remedy="give one of them"
            )
        found = [_estimated(asked, name) for name in asked.machines]
    else:
        found = [_measured(asked)]
    if one_per_draft and len(found) == 1:
        (whole,) = found
        alone = [whole.profile.model_copy(update={"drafts": (draft,)}) for draft in whole.profile.drafts]
        without = replace(whole, label="no draft", profile=whole.profile.model_copy(update={"drafts": ()}))
        return [without, *(replace(whole, label=entry.drafts[0].name, profile=entry) for entry in alone)]
    return found


def _estimated(asked: Asked, machine_name: str) -> Situation:
    """A machine of the catalogue; models come from the catalogue too, or from local folders."""
    from planner.cli.curves import curves_for
    from planner.estimate import estimated_profile
    from profiles import catalogue

    if asked.target is None:
        raise UsageError("no target", why="--machine needs a model to plan for", remedy="add --target llama-3.1-70b")
    machine = catalogue.machine(machine_name)
    target, drafts = _model(asked.target), [_model(name) for name in asked.drafts]
    curves = curves_for(target, drafts, asked.workload.domain)
    dtype = _dtype(asked, target)
    link = _estimated_link(asked, machine, target, dtype)
    profile = estimated_profile(machine, target, drafts, curves, dtype=dtype, link=None)
    budget = _catalogue_budget(asked, machine, link)
    return Situation(
        label=machine.name,
        profile=profile,
        request=_request(asked, profile, link, budget, "cuda:0" if link.kind == "cuda" else "cpu"),
        is_here=False,
    )


def _measured(asked: Asked) -> Situation:
    """This machine, by the profile named or cached."""
    import torch

    from runtime.api import Limits, budget_for
    from runtime.link.choice import choose_link

    profile = _profile_here(asked)
    profile = _with_drafts(profile, asked)
    if asked.dtype is not None and asked.dtype != profile.dtype:
        raise PlanMismatchError(
            f"the profile was measured in {profile.dtype}, not in {asked.dtype}",
            why="compute and copies take other times in another precision",
            remedy=f"planner profile --dtype {asked.dtype}",
        )
    link = choose_link(asked.link, profile.target.weights_bytes(profile.dtype))
    device = torch.device("cuda:0" if link.kind == "cuda" else "cpu")
    return Situation(
        label=profile.machine.name,
        profile=profile,
        request=_request(asked, profile, link, budget_for(Limits(**asked.memory), device), str(device)),
        is_here=True,
    )


def _profile_here(asked: Asked) -> Profile:
    """The profile to plan by.

    Raises: PlanMismatchError, where it was measured elsewhere; BadInputError, where there is none.
    """
    from profiles import demo_folder
    from runtime.measure.cache import check_measured_here, find_profile
    from runtime.measure.machine import machine_fingerprint, versions
    from runtime.measure.profile import profile_key

    if asked.profile is not None:
        profile = _read_profile(asked.profile)
        if not asked.force:
            check_measured_here(profile, machine_fingerprint(), versions(), _REMEASURE)
        _check_target(profile, asked.target)
        return profile
    target = asked.target or str(demo_folder("target"))
    cached = find_profile(profile_key(target, asked.drafts, dtype=asked.dtype, num_threads=asked.num_threads))
    if cached is None:
        drafts = "".join(f" --draft {name}" for name in asked.drafts)
        raise BadInputError(
            "there is no profile to plan by",
            why=f"none of {asked.target or 'the demo pair'}{drafts and ' with these drafts'} is cached for this "
            "machine, these versions and so many threads",
            remedy=f"planner profile{f' {asked.target}' if asked.target else ''}{drafts}; --threads, if it was "
            "measured with others; or --machine, to plan from the catalogue",
        )
    return cached


def _read_profile(path: Path) -> Profile:
    """The profile in the file. Raises: BadInputError, saying where a report of a run belongs."""
    try:
        return Profile.read(path)
    except BadInputError as error:
        is_report = False
        with contextlib.suppress(BadInputError):
            is_report = kind_of(path) is Report
        if not is_report:
            raise
        raise BadInputError(
            f"{path} is a report of a run",
            why="plans are made by what planner profile measured, and reports correct it",
            remedy=f"planner recommend --calibrate {path}",
        ) from error


def _check_target(profile: Profile, target: str | None) -> None:
    if target is None or target == profile.target.name:
        return
    shape = _model(target)
    if shape.fingerprint != profile.target.fingerprint:
        raise PlanMismatchError(
            f"the profile is not of {target}",
            why=f"it was measured with {profile.target.name}",
            remedy=f"planner profile {target}",
        )


def _with_drafts(profile: Profile, asked: Asked) -> Profile:
    """Only the drafts named, all of them where none is."""
    if not asked.drafts:
        return profile
    known = {name: draft for draft in profile.drafts for name in (draft.name, Path(draft.name).name, draft.fingerprint)}
    asked_names = [_model(name).fingerprint if _is_folder(name) else name for name in asked.drafts]
    unknown = [given for given, name in zip(asked.drafts, asked_names, strict=True) if name not in known]
    if unknown:
        raise BadInputError(
            f"the profile has no draft {unknown[0]}",
            why=f"it was measured with {', '.join(draft.name for draft in profile.drafts) or 'none'}",
            remedy=f"planner profile {profile.target.name} --draft {unknown[0]}",
        )
    return profile.model_copy(update={"drafts": tuple(known[name] for name in asked_names)})


def _request(asked: Asked, profile: Profile, link: LinkChoice, budget: "Budget", device: str) -> "Request":
    from planner.cli.logged_runs import logged_runs
    from planner.search import request_for
    from planner.uncertainty import calibrated, prior

    _check_quality(asked.quality_floor, profile)
    error = prior(profile, link)
    if asked.calibrate:
        error = calibrated(error, logged_runs(asked.calibrate, profile, link))
    request = request_for(
        profile,
        budget,
        link,
        device,
        asked.workload,
        context_tokens=asked.context_tokens,
        draftings=asked.draftings,
        num_slots=asked.slots,
        draft_on_host=asked.draft_on_host,
    )
    return replace(
        request,
        resident_only=asked.resident_only,
        never_speculate=asked.no_spec,
        is_sampled=asked.is_sampled,
        error=error,
    )


def _check_quality(floor: str, profile: Profile) -> None:
    """Raises: PlanMismatchError, where the profile computes below the floor."""
    wide = {"fp32": 4, "fp64": 8, "bf16": 2, "fp16": 2}
    stored, used = profile.target.stored_dtype, profile.dtype
    is_below = wide[used] < wide[stored] or (wide[used] == wide[stored] and used != stored)
    if floor == "stored" and is_below:
        raise PlanMismatchError(
            f"the profile runs {profile.target.name} in {used}, below the quality floor",
            why=f"the weights are stored in {stored}, and rounding them makes another model",
            remedy=f"planner profile --dtype {stored}, or --quality-floor 16bit",
        )


def _dtype(asked: Asked, target: ModelShape) -> Dtype:
    if asked.dtype is not None:
        return asked.dtype
    is_wide = target.stored_dtype in ("fp32", "fp64")
    return "bf16" if is_wide and asked.quality_floor == "16bit" else target.stored_dtype


def _model(name: str) -> ModelShape:
    """A local folder's shape, or the catalogue's."""
    from profiles import catalogue

    if _is_folder(name):
        return ModelShape.from_config(Path(name)).model_copy(update={"name": name})
    return catalogue.model(name)


def _is_folder(name: str) -> bool:
    return Path(name).is_dir()


def _catalogue_budget(asked: Asked, machine: Machine, link: LinkChoice) -> "Budget":
    """What may be taken on a machine that nobody looked at: all but the headroom. Raises: UsageError."""
    from planner.budget import Budget

    memory = {
        name: (parse_headroom if name == "headroom" else parse_bytes)(size)
        for name, size in asked.memory.items()
        if size is not None
    }
    is_host = link.kind != "cuda"
    owned_bytes = int(machine.devices[0].memory_bytes.value)
    usable_host_bytes = int(machine.host_memory_bytes.value * _HOST_HEADROOM_FRAC)
    headroom_bytes = memory.get("headroom", 0 if "device" in memory else _HEADROOM_BYTES)
    free_bytes = min(owned_bytes, usable_host_bytes) if is_host else owned_bytes
    most_bytes = free_bytes - headroom_bytes
    device_bytes = memory.get("device", most_bytes)
    if not 0 < device_bytes <= most_bytes:
        raise UsageError(
            f"{machine.name} cannot give {format_bytes(device_bytes)} on its device",
            why=f"of its {format_bytes(owned_bytes)}, {format_bytes(owned_bytes - most_bytes)} shall stay free",
            remedy=f"--device-memory up to {most_bytes // 2**20}MiB",
        )
    host_bytes = memory.get("host", usable_host_bytes - (device_bytes if is_host else 0))
    return Budget(
        device_bytes=device_bytes,
        host_bytes=host_bytes,
        target_bytes=memory.get("target"),
        draft_bytes=memory.get("draft"),
        free_bytes=free_bytes,
        headroom_bytes=memory.get("headroom", 0),
    )


def _estimated_link(asked: Asked, machine: Machine, target: ModelShape, dtype: Dtype) -> LinkChoice:
    """The link written, or the one the machine has: to its accelerator, or from its disk."""
    from planner.contracts.link_text import parse_link

    has_accelerator = any(link.kind == "host_to_device" for link in machine.links)
    word = asked.link or ("cuda" if has_accelerator else "disk")
    free_bytes = int(machine.host_memory_bytes.value * _HOST_HEADROOM_FRAC)
    link = parse_link(word, weights_bytes=target.weights_bytes(dtype), free_host_bytes=free_bytes)
    if has_accelerator and link.kind == "disk":
        raise UsageError(
            f"{machine.name} does not compute over the link disk",
            why="weights reach its device over cuda, and come from disk before that where host memory is short",
            remedy="leave --link out, or cap --host-memory",
        )
    if isinstance(link, CudaLink) and not has_accelerator:
        raise UsageError(f"{machine.name} has no link cuda", why="its device is the CPU", remedy="--link disk")
    return link
