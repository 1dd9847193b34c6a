"""Measures a profile: which steps there are for a target, its drafts and this machine, and what they add up to."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from planner.contracts.errors import ResourceFailureError, UsageError
from planner.contracts.model_folder import ModelFolder, open_model_folder
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import Dtype
from planner.contracts.profile import Profile
from runtime.engine import cannot_roll_back
from runtime.hub import model_folder
from runtime.measure.bench import Bench, Subject
from runtime.measure.cache import ProfileKey, Variant, measuring_alone, profile_path, read_cached
from runtime.measure.journal import Journal
from runtime.measure.machine import machine_fingerprint, this_machine, versions
from runtime.measure.prompts import Prompt
from runtime.measure.session import GROUPS, Group, Outcome, Progress, Session
from runtime.measure.steps import all_steps
from runtime.tokenizer import check_same_tokens, load_tokenizer

QUICK_SECONDS = 48.0
FULL_SECONDS = 540.0
_DEFAULT_CONTEXT_TOKENS = 2048
_LEAST_CONTEXT_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """How a profile is measured; None leaves it to the model or the machine."""

    dtype: Dtype | None = None
    links: tuple[str, ...] = ()  # measured beside the machine's own, such as emulated:2GB/s
    num_threads: int | None = None
    context_tokens: int | None = None
    prompt_tokens: int = 256  # taken of each prompt
    new_tokens: int = 128  # written after it; half as many in a quick profile
    only: tuple[Group, ...] = GROUPS
    max_seconds: float | None = None
    is_quick: bool = False
    keeps_text: bool = False
    is_forced: bool = False
    is_fresh: bool = False
    out: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A model folder and what is known of it."""

    name: str
    folder: ModelFolder
    shape: ModelShape = field(repr=False)


def profile_key(
    target: str | Path, drafts: Sequence[str | Path] = (), *, dtype: Dtype | None = None, num_threads: int | None = None
) -> ProfileKey:
    """The key under which this machine keeps the profile of a target with its drafts; nothing is loaded."""
    return _key(_model(target), [_model(draft) for draft in drafts], dtype, num_threads)


def measure_profile(
    target: str | Path,
    drafts: Sequence[str | Path],
    options: ProfileOptions,
    prompts: Sequence[Prompt],
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Profile:
    """Measure, and write the profile into the cache (and to `options.out`); a killed run is taken up again.

    In the cache a more complete profile of the same is kept, and a note says so.

    Raises: any DraftstreamError; ResourceFailureError, where another profiler is at work or the machine is unsteady.
    """
    started_s = time.monotonic()
    if options.out is not None:
        _check_can_be_written(options.out)
    target_model, draft_models = _model(target), [_model(draft) for draft in drafts]
    _check_drafts(target_model, draft_models)
    with _threads(options.num_threads):
        key = _key(target_model, draft_models, options.dtype, options.num_threads)
        subject = _subject(target_model, draft_models, options, prompts, started_s)
        path = profile_path(key, _variant(options))
        with (
            measuring_alone(),
            _journal(path, key, options, prompts) as journal,
            Bench(subject, journal.found) as bench,
        ):
            session = Session(
                journal,
                bench.sentinel,
                only=options.only,
                stop_at_s=subject.stop_at_s,
                is_quick=options.is_quick,
                on_progress=on_progress,
            )
            outcome = session.run(all_steps(bench), is_forced=options.is_forced)
            profile = _kept(_assemble(key, target_model, draft_models, outcome, options), path)
            if options.out is not None:
                profile.write(options.out)
            if not outcome.num_missing:
                journal.path.unlink(missing_ok=True)
    return profile


def _kept(profile: Profile, path: Path) -> Profile:
    """The profile, written into the cache; with a note instead where that holds one that lacks less."""
    cached = read_cached(path)
    if cached is None or profile.num_steps_missing <= cached.num_steps_missing:
        profile.write(path)
        return profile
    note = (
        f"the cache keeps the profile of {cached.created[:16].replace('T', ' ')} UTC, which lacks "
        f"{cached.num_steps_missing or 'none'} of the steps, while this run lacks {profile.num_steps_missing}; the "
        "next run takes it up"
    )
    return profile.model_copy(update={"notes": (*profile.notes, note)})


def _check_can_be_written(out: Path) -> None:
    """Raises: ResourceFailureError; what takes minutes to measure is not found to have no place at the end."""
    folder = out.resolve().parent
    is_device = out.exists() and not out.is_file()
    if out.is_dir() or not (is_device or os.access(folder, os.W_OK)):
        raise ResourceFailureError(
            f"cannot write {out}",
            why="it is a folder" if out.is_dir() else f"there is no folder {folder} to write to",
            remedy="name a file in a folder that exists and is writable",
        )


def stored_path(profile: Profile, options: ProfileOptions) -> Path:
    """Where the cache keeps a profile that was measured with these options."""
    key = ProfileKey(
        target=profile.target.fingerprint,
        drafts=tuple(draft.fingerprint for draft in profile.drafts),
        dtype=profile.dtype,
        machine=profile.machine_fingerprint,
        versions=profile.versions,
        num_threads=profile.num_threads,
    )
    return profile_path(key, _variant(options))


def _variant(options: ProfileOptions) -> Variant:
    if set(options.only) != set(GROUPS):
        return "partial"
    return "quick" if options.is_quick else "full"


def _model(name: str | Path) -> _Model:
    folder = open_model_folder(model_folder(str(name)))
    shape = ModelShape.from_config(folder.path).model_copy(update={"name": str(name)})
    return _Model(name=str(name), folder=folder, shape=shape)


def _key(target: _Model, drafts: Sequence[_Model], dtype: Dtype | None, num_threads: int | None) -> ProfileKey:
    return ProfileKey(
        target=target.shape.fingerprint,
        drafts=tuple(draft.shape.fingerprint for draft in drafts),
        dtype=dtype or target.shape.stored_dtype,
        machine=machine_fingerprint(),
        versions=versions(),
        num_threads=num_threads or torch.get_num_threads(),
    )


def _check_drafts(target: _Model, drafts: Sequence[_Model]) -> None:
    """Raises: BadInputError, where target and draft cannot speculate together."""
    for role, model in (("target", target), *(("draft", draft) for draft in drafts)) if drafts else ():
        if any(layer.kind == "recurrent" for layer in model.shape.layers):
            raise cannot_roll_back(role, model.shape.model_type)
    tokenizer = load_tokenizer(target.folder.path)
    for draft in drafts:
        check_same_tokens(tokenizer, load_tokenizer(draft.folder.path))


def _subject(
    target: _Model, drafts: Sequence[_Model], options: ProfileOptions, prompts: Sequence[Prompt], started_s: float
) -> Subject:
    most_tokens = target.shape.max_context_tokens
    context_tokens = options.context_tokens or min(_DEFAULT_CONTEXT_TOKENS, most_tokens)
    if not _LEAST_CONTEXT_TOKENS <= context_tokens <= most_tokens:
        raise UsageError(
            f"a context of {context_tokens} tokens cannot be profiled",
            why=f"{target.name} was made for at most {most_tokens}, and fewer than {_LEAST_CONTEXT_TOKENS} say nothing",
            remedy="give a --ctx-size between the two",
        )
    max_seconds = options.max_seconds or (QUICK_SECONDS if options.is_quick else FULL_SECONDS)
    return Subject(
        target_name=target.name,
        target=target.folder,
        target_shape=target.shape,
        draft_names=tuple(draft.name for draft in drafts),
        drafts=tuple(draft.folder for draft in drafts),
        draft_shapes=tuple(draft.shape for draft in drafts),
        dtype=options.dtype or target.shape.stored_dtype,
        device=torch.device("cuda:0" if torch.cuda.is_available() else "cpu"),
        links=options.links,
        context_tokens=context_tokens,
        prompts=tuple(prompts),
        prompt_tokens=min(options.prompt_tokens, most_tokens // 2),
        new_tokens=min(options.new_tokens // (2 if options.is_quick else 1), most_tokens // 4),
        keeps_text=options.keeps_text,
        is_quick=options.is_quick,
        stop_at_s=started_s + max_seconds,
    )


@contextlib.contextmanager
def _threads(num_threads: int | None) -> Iterator[None]:
    """Within it so many CPU threads compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _journal(path: Path, key: ProfileKey, options: ProfileOptions, prompts: Sequence[Prompt]) -> Iterator[Journal]:
    """The journal beside a profile; what it holds counts only for the same key, options and prompts."""
    identity = [
        key.digest,
        options.links,
        options.context_tokens,
        options.prompt_tokens,
        options.new_tokens,
        options.is_quick,
        options.keeps_text,
        [asdict(prompt) for prompt in prompts],
    ]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    journal = Journal.open(path.with_suffix(".journal"), digest, is_fresh=options.is_fresh)
    try:
        yield journal
    finally:
        journal.close()


def _assemble(
    key: ProfileKey, target: _Model, drafts: Sequence[_Model], outcome: Outcome, options: ProfileOptions
) -> Profile:
    found = outcome.findings
    links = tuple(row for entry in found for row in entry.links)
    quick = ("quick: fewer points and repetitions than a full profile",) if options.is_quick else ()
    return Profile(
        kind="measured",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(links),
        machine_fingerprint=key.machine,
        versions=dict(key.versions),
        num_threads=key.num_threads,
        target=target.shape,
        drafts=tuple(draft.shape for draft in drafts),
        dtype=key.dtype,
        links=links,
        compute=tuple(row for entry in found for row in entry.compute),
        draft_passes=tuple(row for entry in found for row in entry.draft_passes),
        memory=tuple(row for entry in found for row in entry.memory),
        acceptance=tuple(row for entry in found for row in entry.acceptance),
        drift_frac=outcome.drift_frac,
        num_steps_missing=outcome.num_missing,
        notes=(*quick, *outcome.notes),
    )
