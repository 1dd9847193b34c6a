"""The public interface: load a model by budget or by plan, or stream it as an ordinary transformers model.

With the command line, the one module of the runtime that may ask the planner, where the user gives no plan.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from planner.contracts.errors import NoFeasiblePlanError, PlanMismatchError, UsageError
from planner.contracts.model_folder import ModelFolder, fingerprint, open_model_folder
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import (
    CudaLink,
    DiskLink,
    Dtype,
    EmulatedLink,
    LinkChoice,
    ModelDraft,
    Plan,
    SelfDraft,
    Workload,
)
from planner.contracts.profile import Profile
from planner.contracts.quantities import format_bytes, parse_bytes, parse_headroom
from runtime.checkpoint import Checkpoint
from runtime.draft.corpus import Corpus, num_corpus_tokens, read_texts, with_corpus
from runtime.engine import Engine, Generation, Token, cannot_roll_back
from runtime.host import MemoryGauge, free_device_bytes, free_host_bytes
from runtime.hub import model_folder
from runtime.link.choice import choose_link
from runtime.model import StreamedModel, all_resident, check_implemented
from runtime.skeleton import DTYPES, ReplaceModules, build_skeleton
from runtime.tokenizer import check_same_tokens, encode_prompt, load_tokenizer
from runtime.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.budget import Budget
    from planner.drafting import Drafting

__all__ = [
    "Engine",
    "Generation",
    "Limits",
    "Token",
    "context_for",
    "corpus_texts",
    "load",
    "make_plan",
    "plan_by_profile",
    "prompt_tokens",
    "stream",
]

_CPU_DEVICE, _CUDA_DEVICE = re.compile("cpu"), re.compile(r"cuda:\d{1,3}")
DEFAULT_CONTEXT_TOKENS = 4096
DEFAULT_DRAFT_LEN = 4
_DEFAULT_HEADROOM_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Memory that may be taken, in bytes or as text such as `12GiB`; None leaves it to the machine.

    `device` holds for target and draft together. `headroom` stays free on the device for other users: 1 GiB unless
    `device` is given. A cap of one model binds in addition to `device`; `host` is for weights kept in host memory.
    """

    device: str | int | None = None
    target: str | int | None = None
    draft: str | int | None = None
    host: str | int | None = None
    headroom: str | int | None = None


def prompt_tokens(
    target: str | Path, prompt: str, *, is_chat: bool | None = None, system: str | None = None
) -> list[int]:
    """The tokens of a prompt, before the model is loaded; see `encode_prompt`."""
    folder = model_folder(str(target))
    ModelShape.from_config(folder)  # what is no model is refused as such, not for its tokenizer
    return encode_prompt(load_tokenizer(folder), prompt, is_chat=is_chat, system=system)


def corpus_texts(target: str | Path, paths: Sequence[Path]) -> list[Sequence[int]]:
    """The tokens of text files that n-grams copy from, the oldest first; of too much text the oldest is left out.

    Raises: BadInputError.
    """
    if not paths:
        return []
    encode = partial(load_tokenizer(model_folder(str(target))).encode, add_special_tokens=False, verbose=False)
    return read_texts(paths, encode)


def context_for(target: str | Path, num_prompt_tokens: int, max_tokens: int) -> int:
    """Tokens of a context that holds the prompt and what may follow, as far as the model's own context goes."""
    return min(num_prompt_tokens + max_tokens, _shape(target).max_context_tokens)


def make_plan(
    target: str | Path,
    *,
    draft: str | Path | None = None,
    limits: Limits | None = None,
    context_tokens: int | None = None,
    draft_len: int = DEFAULT_DRAFT_LEN,
    drafting: Drafting | None = None,
    num_slots: int = 2,
    dtype: Dtype | None = None,
    link: LinkChoice | str | None = None,
    draft_on_host: bool = False,
    corpus_tokens: int = 0,
) -> Plan:
    """A plan that fits this machine and the limits; nothing is loaded. `drafting` is another kind than a chain.

    Raises: BadInputError, NoFeasiblePlanError, UsageError.
    """
    from planner.budget import Wishes, plan_for_budget
    from planner.drafting import NO_DRAFTING, chain

    drafting = drafting or (NO_DRAFTING if draft is None else chain(draft_len))
    if drafting.has_model and draft is None:
        raise UsageError(
            f"a {drafting.kind} without a draft model",
            why="its tokens are a model's",
            remedy="--draft MODEL, or --draft-kind ngram, which needs none",
        )
    if drafting.is_static and not drafting.paths:
        raise UsageError(
            "a tree of one shape without a profile",
            why="its shape is the best by what a profile recorded",
            remedy="leave out --profile none, or --draft-static: trees then grow by confidence",
        )
    target_shape = _shape(target)
    draft_shape = None if draft is None or not drafting.has_model else _shape(draft)
    if drafting != NO_DRAFTING:
        for role, shape in (("target", target_shape), ("draft", draft_shape)):
            if shape is not None and any(layer.kind == "recurrent" for layer in shape.layers):
                raise cannot_roll_back(role, shape.model_type)
    dtype = dtype or target_shape.stored_dtype
    if not isinstance(link, DiskLink | EmulatedLink | CudaLink):
        link = choose_link(link, target_shape.weights_bytes(dtype))
    device = torch.device("cuda:0" if isinstance(link, CudaLink) else "cpu")
    _check_device(device)
    wishes = Wishes(
        dtype=dtype,
        context_tokens=context_tokens or min(DEFAULT_CONTEXT_TOKENS, target_shape.max_context_tokens),
        drafting=drafting,
        link=link,
        device=str(device),
        num_slots=num_slots,
        draft_on_host=draft_on_host and isinstance(link, CudaLink),
        corpus_tokens=corpus_tokens,
    )
    return plan_for_budget(target_shape, draft_shape, budget_for(limits or Limits(), device), wishes)


def plan_by_profile(
    profile: Profile,
    workload: Workload,
    *,
    limits: Limits | None = None,
    context_tokens: int | None = None,
    draftings: Sequence[Drafting] | None = None,
    num_slots: int | None = None,
    link: LinkChoice | str | None = None,
    never_speculate: bool = False,
    is_sampled: bool = False,
    draft_on_host: bool = False,
    corpus_tokens: int = 0,
) -> Plan:
    """The best plan by what was measured, with predictions; what is None is the planner's to choose.

    Raises: NoFeasiblePlanError, UsageError; BadInputError, where the profile lacks a measurement.
    """
    from planner.search import plan_of, rank, request_for

    if not isinstance(link, DiskLink | EmulatedLink | CudaLink):
        link = choose_link(link, profile.target.weights_bytes(profile.dtype))
    device = torch.device("cuda:0" if isinstance(link, CudaLink) else "cpu")
    _check_device(device)
    request = request_for(
        profile,
        budget_for(limits or Limits(), device),
        link,
        str(device),
        workload,
        context_tokens=context_tokens,
        draftings=draftings,
        num_slots=num_slots,
        draft_on_host=draft_on_host,
        corpus_tokens=corpus_tokens,
    )
    request = replace(request, never_speculate=never_speculate, is_sampled=is_sampled)
    ranking = rank(profile, request)
    insisted = set() if draftings is None or never_speculate else set(draftings)
    score = next((score for score in ranking.scores if not insisted or score.candidate.drafting in insisted), None)
    if score is None:
        raise NoFeasiblePlanError(
            "the draft cannot take part",
            why="; ".join(f"{name}: {why}" for name, why in ranking.refused),
            remedy="leave out the options that insist on it, or add --no-spec",
        )
    return plan_of(profile, request, score)[0]


def load(
    target: str | Path | None = None,
    *,
    plan: Plan | str | Path | None = None,
    draft: str | Path | None = None,
    limits: Limits | None = None,
    device_memory: str | int | None = None,
    context_tokens: int | None = None,
    draft_len: int = DEFAULT_DRAFT_LEN,
    replace_modules: ReplaceModules | None = None,
    trace: Trace | None = None,
    ngram_corpus: Sequence[Path] = (),
    draft_may_fail: bool = False,
) -> Engine:
    """An engine that runs the target: by a plan (object or file), or by what fits `device_memory` or `limits`.

    With a plan the draft, its size and the context are the plan's. n-gram drafts also copy from the files of
    `ngram_corpus`. A draft that fails ends a run, unless it may. Raises: any DraftstreamError.
    """
    from planner.budget import check_memory

    if plan is None:
        if target is None:
            raise TypeError("load() needs a target or a plan")
        limits = limits or Limits(device=device_memory)
        plan = make_plan(target, draft=draft, limits=limits, context_tokens=context_tokens, draft_len=draft_len)
    elif not isinstance(plan, Plan):
        plan = Plan.read(Path(plan))
    _check_draft_kind(plan)
    check_implemented(plan)
    device = _device_of(plan)
    _check_fits_machine(plan, device)
    folder = _folder_of_plan(str(target or plan.target.name), plan.target.fingerprint, "target")
    texts = corpus_texts(folder.path, ngram_corpus)
    if texts:
        plan = with_corpus(plan, num_corpus_tokens(texts))
        _check_fits_machine(plan, device)
    draft_folder = None
    if isinstance(plan.draft, ModelDraft):
        draft_folder = _folder_of_plan(str(draft or plan.draft.model), plan.draft.fingerprint, "draft")
    draft_shape = None if draft_folder is None else ModelShape.from_config(draft_folder.path)
    check_memory(plan, ModelShape.from_config(folder.path), draft_shape)
    tokenizer = load_tokenizer(folder.path)
    if draft_folder is not None:
        check_same_tokens(tokenizer, load_tokenizer(draft_folder.path))
    gauge = MemoryGauge(device, DTYPES[plan.dtype])
    with contextlib.ExitStack() as opened:
        streamed = opened.enter_context(_open(folder, plan, replace_modules, trace))
        drafting = None if draft_folder is None else opened.enter_context(_open_draft(draft_folder, plan))
        engine = Engine(
            plan,
            streamed,
            drafting,
            tokenizer,
            gauge,
            trace,
            corpus=Corpus(texts) if texts else None,
            draft_may_fail=draft_may_fail,
        )
        opened.pop_all()  # the engine closes them
        return engine


def stream(
    target: str | Path, plan: Plan | str | Path | None = None, *, replace_modules: ReplaceModules | None = None
) -> PreTrainedModel:
    """An ordinary transformers model whose layers are streamed as the plan says; use it as any other.

    Without a plan, what fits the machine. Its `streamed.close()` ends the stream; so does dropping the model.
    """
    from planner.budget import check_memory

    if plan is None:
        plan = make_plan(target)
    elif not isinstance(plan, Plan):
        plan = Plan.read(Path(plan))
    check_implemented(plan)
    _check_fits_machine(plan, _device_of(plan))
    folder = _folder_of_plan(str(target), plan.target.fingerprint, "target")
    check_memory(plan, ModelShape.from_config(folder.path), None)
    streamed = _open(folder, plan, replace_modules, None)
    streamed.model.streamed = streamed
    return streamed.model


def _open(
    folder: ModelFolder, plan: Plan, replace_modules: ReplaceModules | None, trace: Trace | None
) -> StreamedModel:
    skeleton = build_skeleton(folder, plan.dtype, replace_modules)
    drops_pages = isinstance(plan.link, DiskLink) and plan.link.mode == "direct"
    with contextlib.ExitStack() as opened:
        checkpoint = opened.enter_context(Checkpoint(folder, skeleton.model, drops_pages=drops_pages))
        streamed = StreamedModel(skeleton, checkpoint, plan, trace)
        opened.pop_all()  # the streamed model closes it
        return streamed


def _open_draft(folder: ModelFolder, plan: Plan) -> StreamedModel:
    draft = plan.draft
    assert isinstance(draft, ModelDraft)
    if draft.device != 0:
        plan = plan.model_copy(update={"devices": plan.devices[draft.device :], "link": DiskLink()})
    skeleton = build_skeleton(folder, draft.dtype)
    with contextlib.ExitStack() as opened:
        checkpoint = opened.enter_context(Checkpoint(folder, skeleton.model))
        streamed = StreamedModel(skeleton, checkpoint, all_resident(plan, skeleton))
        opened.pop_all()
        return streamed


def _shape(name: str | Path) -> ModelShape:
    return ModelShape.from_config(model_folder(str(name))).model_copy(update={"name": str(name)})


def budget_for(limits: Limits, device: torch.device) -> Budget:
    """What may be taken on this machine now. Raises: NoFeasiblePlanError, where the device has less to give."""
    from planner.budget import Budget

    free_bytes = free_device_bytes(device)
    asked_bytes = _bytes(limits.device)
    headroom_bytes = _headroom_bytes(limits)
    if headroom_bytes is None:
        headroom_bytes = 0 if asked_bytes is not None else _DEFAULT_HEADROOM_BYTES
    usable_bytes = free_bytes - headroom_bytes
    if usable_bytes <= 0 or (asked_bytes is not None and asked_bytes > usable_bytes):
        raise NoFeasiblePlanError(
            f"the device {device} does not have {format_bytes(asked_bytes or headroom_bytes)} to give",
            why=f"{format_bytes(free_bytes)} are free, of which {format_bytes(headroom_bytes)} shall stay free",
            remedy="a smaller --device-memory or --headroom, or end other programs that use the device",
        )
    device_bytes = usable_bytes if asked_bytes is None else asked_bytes
    host_bytes = _bytes(limits.host)
    if host_bytes is None:
        shared_bytes = device_bytes if device.type == "cpu" else 0
        host_bytes = max(0, free_host_bytes() - shared_bytes)
    return Budget(
        device_bytes=device_bytes,
        host_bytes=host_bytes,
        target_bytes=_bytes(limits.target),
        draft_bytes=_bytes(limits.draft),
        free_bytes=free_bytes,
        headroom_bytes=_headroom_bytes(limits) or 0,
    )


def _bytes(size: str | int | None) -> int | None:
    return parse_bytes(size) if isinstance(size, str) else size


def _headroom_bytes(limits: Limits) -> int | None:
    return parse_headroom(limits.headroom) if isinstance(limits.headroom, str) else limits.headroom


def _check_draft_kind(plan: Plan) -> None:
    if isinstance(plan.draft, SelfDraft):
        raise PlanMismatchError(
            f"the plan drafts with kind {plan.draft.kind}",
            why="this version does not implement it",
            remedy="plan again with another kind of draft, or without one",
        )
    if isinstance(plan.draft, ModelDraft) and plan.draft.device != 0:
        names = [device.name for device in plan.devices]
        if names[plan.draft.device :] != ["cpu"]:
            raise PlanMismatchError(
                f"the plan drafts on device {plan.draft.device} of {', '.join(names)}",
                why="this version drafts where the target computes, or on the CPU beside it",
                remedy="plan again on this machine",
            )


def _device_of(plan: Plan) -> torch.device:
    """The device that the plan computes on. Raises: PlanMismatchError, where its link does not lead there."""
    name = plan.devices[0].name
    expected = _CUDA_DEVICE if isinstance(plan.link, CudaLink) else _CPU_DEVICE
    if not expected.fullmatch(name):
        raise PlanMismatchError(
            f"the plan computes on {name} over the link {plan.link.kind}",
            why="the link cuda leads to a device such as cuda:0, and every other link to cpu",
            remedy="plan again on this machine",
        )
    return torch.device(name)


def _check_device(device: torch.device) -> None:
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PlanMismatchError(
            f"there is no device {device} here",
            why=f"torch sees {torch.cuda.device_count()} CUDA devices",
            remedy="use --link disk, or --link emulated:RATE to see how a device would behave",
        )


def _check_fits_machine(plan: Plan, device: torch.device) -> None:
    _check_device(device)
    memory = plan.memory
    taken = {str(device): memory.device_bytes, "the host": memory.host_bytes}
    free = {str(device): free_device_bytes(device), "the host": free_host_bytes()}
    if device.type == "cpu":
        taken["the host"] += memory.device_bytes
    for place, num_bytes in taken.items():
        if num_bytes > free[place]:
            raise PlanMismatchError(
                f"the plan takes {format_bytes(num_bytes)} on {place}",
                why=f"only {format_bytes(free[place])} are free there now",
                remedy="end other programs, or plan again with a smaller --device-memory or --host-memory",
            )


def _folder_of_plan(name: str, planned: str, role: str) -> ModelFolder:
    folder = open_model_folder(model_folder(name))
    actual = fingerprint(folder)
    if actual != planned:
        raise PlanMismatchError(
            f"the plan was made for another {role} than {name}",
            why=f"its {role} has the fingerprint {planned}, this one {actual}",
            remedy=f"plan again for this {role}",
        )
    return folder
