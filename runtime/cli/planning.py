"""The plan of a run that was given none: by a profile named, cached, or measured quickly; or by memory alone."""

import contextlib
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from planner.contracts.errors import DraftstreamError, NoFeasiblePlanError, PlanMismatchError, ResourceFailureError
from planner.contracts.model_folder import fingerprint, open_model_folder
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import Dtype, Plan, Workload
from planner.contracts.profile import Profile
from runtime.api import Limits, context_for, make_plan, plan_by_profile
from runtime.hub import model_folder
from runtime.measure.cache import check_measured_here, find_profile
from runtime.measure.machine import machine_fingerprint, versions
from runtime.measure.profile import QUICK_SECONDS, ProfileOptions, measure_profile, profile_key
from runtime.measure.prompts import Prompt

if TYPE_CHECKING:
    from planner.drafting import Drafting, DraftKind

MEMORY_ALONE = "none"
_DEFAULT_PROFILE = "DRAFTSTREAM_PROFILE"  # the environment's word for what --profile would say
_DEFAULT_SLOTS = 2
_USUAL_NODES: "dict[DraftKind, int]" = {"none": 0, "chain": 4, "ngram": 16, "tree": 32, "hybrid": 32}
_USUAL_DEPTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command line says of the plan; None is left to the planner."""

    target: str
    draft: str | None
    no_spec: bool
    draftings: "tuple[Drafting, ...] | None"  # what to choose among, where sizes or a kind were stated
    profile: str | None  # a file, or `none`
    context_tokens: int | None
    prompt_tokens: int
    max_tokens: int
    dtype: Dtype | None
    link: str | None
    num_slots: int | None
    limits: Limits
    is_sampled: bool
    is_quiet: bool
    draft_on_host: bool = False
    corpus_tokens: int = 0


def choose_plan(wanted: Wanted) -> Plan:
    """The plan to run.

    What no plan could fit is refused before anything is measured. Raises: any DraftstreamError.
    """
    wanted = replace(wanted, profile=wanted.profile or os.environ.get(_DEFAULT_PROFILE))
    by_memory = _plan_by_memory(wanted)
    if wanted.draft_on_host and by_memory.link.kind != "cuda":
        _say(wanted, "--draft-on-host changes nothing: the device that verifies is the host already")
    if wanted.profile == MEMORY_ALONE:
        return by_memory
    try:
        profile = _profile(wanted)
        return _plan_by(profile, wanted)
    except DraftstreamError as error:
        is_static = any(entry.is_static for entry in wanted.draftings or ())  # which memory alone cannot plan
        if wanted.profile is not None or is_static or isinstance(error, PlanMismatchError):
            raise
        _say(wanted, f"planned by memory alone, without predictions: {error.what} ({error.why})")
        return by_memory


def _profile(wanted: Wanted) -> Profile:
    """The profile named, or the cached one, or a quick one that is measured now."""
    if wanted.profile is not None:
        profile = Profile.read(Path(wanted.profile))
        _check_is_of(profile, wanted)
        return profile
    drafts = [] if wanted.draft is None else [wanted.draft]
    cached = find_profile(profile_key(wanted.target, drafts, dtype=wanted.dtype))
    if cached is not None:
        _say(wanted, f"planned by the profile of {cached.created[:16].replace('T', ' ')} UTC")
        return cached
    _say(
        wanted,
        f"no profile of this model here yet: measuring a quick one, within {QUICK_SECONDS:.0f} s (planner profile "
        f"measures a better one; --profile {MEMORY_ALONE} plans by memory alone)",
    )
    from profiles import demo_folder, domain_prompts, heldout_texts

    is_demo = wanted.target == str(demo_folder("target"))
    texts = heldout_texts("profile") if is_demo else domain_prompts()
    prompts = [Prompt(domain=entry.domain, text=entry.text) for entry in texts]
    return _measured_apart(wanted, drafts, prompts)


def _measured_apart(wanted: Wanted, drafts: list[str], prompts: list[Prompt]) -> Profile:
    """A quick profile, measured in a process of its own: what measuring leaves in memory would count as the run's."""
    import torch

    options = ProfileOptions(
        dtype=wanted.dtype,
        num_threads=torch.get_num_threads(),
        is_quick=True,
        is_forced=True,
        prompt_tokens=96,
        new_tokens=96,
    )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure_profile, wanted.target, drafts, options, prompts).result()
        except BrokenProcessPool as error:
            raise ResourceFailureError(
                "measuring was cut off", why=str(error), remedy="free some memory, or plan with --profile none"
            ) from error


def _plan_by(profile: Profile, wanted: Wanted) -> Plan:
    """The best plan with just the draft that was named."""
    drafts: tuple[ModelShape, ...] = ()
    if wanted.draft is not None:
        named = fingerprint(open_model_folder(model_folder(wanted.draft)))
        drafts = tuple(shape for shape in profile.drafts if shape.fingerprint == named)
        if not drafts:
            raise PlanMismatchError(
                f"the profile was not measured with the draft {wanted.draft}",
                why=f"it knows {', '.join(shape.name for shape in profile.drafts) or 'no draft'}",
                remedy=f"planner profile {wanted.target} --draft {wanted.draft}",
            )
    here = profile.model_copy(
        update={
            "target": profile.target.model_copy(update={"name": wanted.target}),
            "drafts": tuple(shape.model_copy(update={"name": wanted.draft or shape.name}) for shape in drafts),
        }
    )
    return plan_by_profile(
        here,
        Workload(prompt_tokens=wanted.prompt_tokens, new_tokens=_new_tokens(wanted)),
        limits=wanted.limits,
        context_tokens=_context_tokens(wanted),
        draftings=wanted.draftings,
        num_slots=wanted.num_slots,
        link=wanted.link,
        never_speculate=wanted.no_spec,
        is_sampled=wanted.is_sampled,
        draft_on_host=wanted.draft_on_host,
        corpus_tokens=wanted.corpus_tokens,
    )


def _plan_by_memory(wanted: Wanted) -> Plan:
    """A plan without predictions; with a single slot where two do not fit and none were asked for."""

    def planned(num_slots: int) -> Plan:
        return make_plan(
            wanted.target,
            draft=wanted.draft,
            limits=wanted.limits,
            context_tokens=_context_tokens(wanted),
            drafting=_drafting(wanted),
            num_slots=num_slots,
            dtype=wanted.dtype,
            link=wanted.link,
            draft_on_host=wanted.draft_on_host,
            corpus_tokens=wanted.corpus_tokens,
        )

    try:
        return planned(wanted.num_slots or _DEFAULT_SLOTS)
    except NoFeasiblePlanError as error:
        if wanted.num_slots is None:
            with contextlib.suppress(NoFeasiblePlanError):
                return planned(1)
        raise error


def _drafting(wanted: Wanted) -> "Drafting":
    """The usual size of what was asked for, as far as the context holds it; where nothing was, a short chain."""
    from planner.drafting import NO_DRAFTING, chain

    if wanted.draftings is None:
        return NO_DRAFTING if wanted.draft is None else chain(_USUAL_NODES["chain"])
    context_tokens = _context_tokens(wanted)
    fitting = [entry for entry in wanted.draftings if entry.tree_nodes <= context_tokens]
    usual = min(
        fitting or wanted.draftings,
        key=lambda entry: (abs(entry.num_nodes - _USUAL_NODES[entry.kind]), abs(entry.max_depth - _USUAL_DEPTH)),
    )
    return usual if wanted.profile == MEMORY_ALONE else replace(usual, is_static=False)  # of the same memory


def _context_tokens(wanted: Wanted) -> int:
    return wanted.context_tokens or context_for(wanted.target, wanted.prompt_tokens, wanted.max_tokens)


def _new_tokens(wanted: Wanted) -> int:
    return max(1, min(wanted.max_tokens, _context_tokens(wanted) - wanted.prompt_tokens))


def _check_is_of(profile: Profile, wanted: Wanted) -> None:
    """Raises: PlanMismatchError, where the profile is of another target, machine, versions or precision."""
    actual = fingerprint(open_model_folder(model_folder(wanted.target)))
    if profile.target.fingerprint != actual:
        raise PlanMismatchError(
            f"the profile is not of {wanted.target}",
            why=f"it was measured with {profile.target.name}",
            remedy=f"planner profile {wanted.target}",
        )
    if wanted.dtype is not None and wanted.dtype != profile.dtype:
        raise PlanMismatchError(
            f"the profile was measured in {profile.dtype}, not in {wanted.dtype}",
            why="compute and copies take other times in another precision",
            remedy=f"planner profile {wanted.target} --dtype {wanted.dtype}",
        )
    remedy = (
        f"planner profile {wanted.target}, or --profile {MEMORY_ALONE}; or planner recommend {wanted.profile} --force, "
        "which plans by its numbers all the same, however far off they are here"
    )
    check_measured_here(profile, machine_fingerprint(), versions(), remedy)


def _say(wanted: Wanted, line: str) -> None:
    if not wanted.is_quiet:
        sys.stderr.write(f"{line}\n")
