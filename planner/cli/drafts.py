"""`planner drafts`: the models on this machine that can draft for a target, best first, and why others cannot."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.contracts.errors import BadInputError, DraftstreamError
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import DTYPE_BYTES, Workload

if TYPE_CHECKING:
    from planner.cli.sources import Asked
    from planner.drafts import Candidate, DraftFound, DraftList, Pricing
    from runtime.find_drafts import LocalModel

_PROMPT_TOKENS, _NEW_TOKENS = 512, 256
_COLUMNS_IN_A_FILE = 200


def drafts(
    target: Annotated[str, typer.Argument(help="The big model, on this machine: a folder or a downloaded hub id.")],
    within: Annotated[
        list[Path] | None,
        typer.Option("--in", help="Search this folder too, three levels deep; may be given several times."),
    ] = None,
    machine: Annotated[
        str | None, typer.Option(help="Predict for a machine of the catalogue, such as rtx-4090.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="The kind of text: code, prose, chat, math.")] = None,
    device_memory: Annotated[str | None, typer.Option(help="For target and draft together, such as 12GiB.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
) -> None:
    """Find drafts for a target beside it, in the hub's cache and where you say; nothing is downloaded."""
    from rich.console import Console

    from planner.drafts import list_drafts, without_twins
    from runtime.find_drafts import local_folder

    folder = local_folder(target)
    shape = _target_shape(target, folder)
    with Console(stderr=True).status("looking for drafts"):
        candidates = without_twins(_candidates(folder, shape, [path.expanduser() for path in within or ()]))
        asked = _asked(folder, shape, machine, text, device_memory)
        if device_memory is not None and machine is None:
            candidates = [_fitting(shape, candidate, asked) for candidate in candidates]
        pricings, notes = _pricings(shape, candidates, asked)
        found = list_drafts(shape, candidates, pricings, notes)
    if as_json:
        sys.stdout.write(found.to_json())
    else:
        _show(found, machine, text)


# --- candidates ---


def _target_shape(name: str, folder: Path) -> ModelShape:
    """Raises: BadInputError, where it is no model, or none that can speculate."""
    from runtime.engine import cannot_roll_back

    shape = ModelShape.from_config(folder).model_copy(update={"name": name})
    if any(layer.kind == "recurrent" for layer in shape.layers):
        raise cannot_roll_back("target", shape.model_type)
    return shape


def _candidates(folder: Path, target: ModelShape, within: Sequence[Path]) -> "list[Candidate]":
    from profiles import demo_folder
    from runtime.find_drafts import check_can_draft, find_models
    from runtime.tokenizer import load_tokenizer

    check = partial(check_can_draft, target=load_tokenizer(folder))
    is_demo = target.fingerprint == ModelShape.from_config(demo_folder("target")).fingerprint
    places = [*within, demo_folder("draft")] if is_demo else within
    return [_candidate(model, target, check) for model in find_models(folder, places)]


def _candidate(model: "LocalModel", target: ModelShape, check: "Callable[[LocalModel], None]") -> "Candidate":
    """What a folder holds, with the first reason why it cannot draft; `check` takes longest and comes last."""
    from planner.drafts import Candidate, why_unfit
    from runtime.find_drafts import read_shape, reason

    shape = None
    try:
        shape = read_shape(model)
        why_refused = why_unfit(target, shape)
        if why_refused is None:
            check(model)
    except DraftstreamError as error:
        why_refused = reason(model, error)
    return Candidate(name=model.name, shape=shape, why_refused=why_refused)


def _fitting(target: ModelShape, candidate: "Candidate", asked: "Asked") -> "Candidate":
    """The candidate, refused where the device memory given does not hold it beside the target."""
    from planner.budget import Budget, Wishes
    from planner.contracts.quantities import parse_bytes
    from planner.drafts import why_too_big
    from runtime.link.choice import choose_link

    if candidate.shape is None or candidate.why_refused is not None:
        return candidate
    link = choose_link(None, target.weights_bytes(target.stored_dtype))
    budget = Budget(device_bytes=parse_bytes(asked.memory["device"] or ""), host_bytes=_NO_BOUND_BYTES)
    wishes = Wishes(
        dtype=target.stored_dtype,
        context_tokens=asked.workload.prompt_tokens + asked.workload.new_tokens,
        link=link,
        device="cuda:0" if link.kind == "cuda" else "cpu",
    )
    return replace(candidate, why_refused=why_too_big(target, candidate.shape, budget, wishes))


_NO_BOUND_BYTES = 2**63  # only the device's memory was given


# --- speeds ---


def _asked(
    folder: Path, target: ModelShape, machine: str | None, text: str | None, device_memory: str | None
) -> "Asked":
    """The question as `planner recommend` would be asked it, for a workload within the target's context."""
    from planner.cli.sources import Asked

    prompt_tokens = min(_PROMPT_TOKENS, max(1, target.max_context_tokens // 2))
    new_tokens = max(1, min(_NEW_TOKENS, target.max_context_tokens - prompt_tokens))
    return Asked(
        machines=() if machine is None else (machine,),
        target=str(folder),
        memory={"device": device_memory},
        workload=Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens, domain=text),
    )


def _pricings(
    target: ModelShape, candidates: "Sequence[Candidate]", asked: "Asked"
) -> "tuple[dict[str, Pricing], list[str]]":
    """By a draft's fingerprint what its speed is predicted from, and what is to be said of it."""
    from planner.cli.curves import curves_for
    from planner.cli.sources import situations
    from planner.drafts import Pricing
    from planner.estimate import estimated_profile

    usable = [entry.shape for entry in candidates if entry.shape is not None and entry.why_refused is None]
    if not asked.machines:
        return _measured_pricings(usable, asked)
    if DTYPE_BYTES[target.stored_dtype] != 2:
        return {}, [f"no speed is estimated in {target.stored_dtype}, only that of 16 bits is known of any machine"]
    (situation,) = situations(asked, one_per_draft=False)
    curves = curves_for(target, usable, asked.workload.domain)
    machine = situation.profile.machine
    profile = estimated_profile(machine, target, usable, curves, dtype=target.stored_dtype, link=None)
    pricing = Pricing(profile=profile, request=situation.request)
    assumed = [f"acceptance of {curve.draft}: {curve.source}" for curve in curves if not curve.is_same_pair]
    return {shape.fingerprint: pricing for shape in usable}, [f"estimated for {machine.name}, not measured", *assumed]


def _measured_pricings(usable: "Sequence[ModelShape]", asked: "Asked") -> "tuple[dict[str, Pricing], list[str]]":
    """What was measured here of each pair; a pair without a profile is left out."""
    from planner.cli.sources import situations
    from planner.drafts import Pricing

    found, missing = {}, []
    for shape in usable:
        try:
            (situation,) = situations(replace(asked, drafts=(shape.name,)), one_per_draft=False)
        except BadInputError:
            missing.append(shape.name)
        else:
            found[shape.fingerprint] = Pricing(profile=situation.profile, request=situation.request)
    unknown = f"no speed is known of {', '.join(missing)}: name a --machine, or measure the pair with planner profile"
    return found, [unknown] if missing else []


# --- what is shown ---


def _show(found: "DraftList", machine: str | None, text: str | None) -> None:
    """Print the drafts as a table, the rule of their order, and what to paste for the best of them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from planner.contracts.quantities import format_bytes

    console = Console(
        highlight=False, soft_wrap=True, markup=False, width=None if sys.stdout.isatty() else _COLUMNS_IN_A_FILE
    )
    if found.drafts:
        table = Table(box=None, padding=(0, 2), pad_edge=False)
        table.add_column("draft", overflow="fold")
        for name in ("parameters", "size", "predicted tok/s"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("why refused", overflow="fold")
        for draft in found.drafts:
            size = "" if draft.weights_bytes is None else format_bytes(draft.weights_bytes)
            table.add_row(Text(draft.name), _params(draft), size, _speed(draft), Text(draft.why_refused or ""))
        console.print(table, soft_wrap=False)
    else:
        console.print(f"no model was found beside {found.target}, in the hub's cache or in a folder named by --in")
    best = found.best
    if best is not None:
        if best.plain_tokens_per_s is not None:
            is_slower = (best.tokens_per_s or 0.0) <= best.plain_tokens_per_s
            verdict = ", and no draft makes it faster" if is_slower else ""
            console.print(f"\nwithout a draft: {best.plain_tokens_per_s:.2f} tok/s{verdict}")
        console.print(f"\nranked {found.ranked}")
    for note in found.notes if best is not None else ():
        console.print(f"note: {note}", style="yellow")
    if best is not None:
        console.print()
        for line in _lines_to_paste(found.target, best.name, machine, text):
            console.print(line, style="bold")


def _params(draft: "DraftFound") -> str:
    count = draft.num_params
    if count is None:
        return ""
    return f"{count / 1e9:.2f} B" if count >= 10**8 else f"{count / 1e6:.2f} M"


def _speed(draft: "DraftFound") -> str:
    if draft.why_refused is not None:
        return ""
    if draft.tokens_per_s is None:
        return "unknown"
    return f"{draft.tokens_per_s:.2f} ({draft.basis}, {draft.drafting})"


def _lines_to_paste(target: str, draft: str, machine: str | None, text: str | None) -> list[str]:
    target, draft = shlex.quote(target), shlex.quote(draft)
    kind = "" if text is None else f" --text {shlex.quote(text)}"
    where = "" if machine is None else f" --machine {shlex.quote(machine)}"
    recommend = f"planner recommend{where} --target {target} --draft {draft}{kind}"
    return [recommend] if machine is not None else [f"planner profile {target} --draft {draft}", recommend]
