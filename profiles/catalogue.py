"""Published machines, models and acceptance by name, for planning what nobody measured yet; each number has its source.

Names are taken as people type them ("RTX 4090", "meta-llama/Llama-3.1-70B-Instruct"), and never guessed: what is not
known by name is an error that offers the nearest. Importing this loads neither torch nor transformers.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

from pydantic import TypeAdapter

from planner.contracts.errors import BadInputError
from planner.contracts.machine import Machine
from planner.contracts.model_shape import ModelShape
from planner.contracts.profile import AcceptanceCurve
from planner.contracts.untrusted_files import shown

NO_MODEL = ("ngram", "eagle")  # drafts that are no model of their own

_UNSAID = re.compile(r"\b(nvidia|geforce|gpu|amd|intel|meta|instruct|it|base|chat|hf)\b")
_MEMORY = re.compile(r"-[0-9]+gb$")
_CURVES = TypeAdapter(tuple[AcceptanceCurve, ...])
_CODE = ("code", "edit")
_TABLES = ("configs", "families")  # beside the shapes


def machine_names() -> tuple[str, ...]:
    """The names of all machines."""
    return _stems("machines")


def model_names() -> tuple[str, ...]:
    """The names of all models."""
    return tuple(name for name in _stems("models") if name not in _TABLES)


def machine(name: str) -> Machine:
    """The machine of that name; the memory in a name may be left out where it is not needed to tell machines apart.

    Raises: BadInputError, offering the nearest names.
    """
    names = machine_names()
    found = _find(name, names, _key) or _find(name, names, lambda known: _key(_MEMORY.sub("", known)))
    return Machine.read(_root() / "machines" / f"{found or _refuse('machine', name, names)}.json")


def model(name: str) -> ModelShape:
    """The shape of the model of that name or hub id; instruct and base models have one shape.

    Raises: BadInputError, offering the nearest names.
    """
    return ModelShape.read(_root() / "models" / f"{_model_name(name)}.json")


def shares_tokenizer(target: str, draft: str) -> bool:
    """Whether both models number the same tokens alike, so that one can draft for the other."""
    return _family(_model_name(target)) == _family(_model_name(draft))


def acceptance(target: str, draft: str, domain: str) -> AcceptanceCurve:
    """The published acceptance of a pair on a kind of text, or else of the nearest pair, which its source then names.

    Nearest is first the kind of text (code, or all else), then the family, then the ratio of sizes; another domain
    counts as much as a ratio twice as large. `draft` is a model, "ngram" or "eagle".

    Raises: BadInputError, where a name is unknown or the models' tokenizers differ.
    """
    target = _model_name(target)
    draft = draft if draft in NO_MODEL else _model_name(draft)
    if draft not in NO_MODEL and not shares_tokenizer(target, draft):
        raise BadInputError(
            f"{draft} cannot draft for {target}",
            why=f"its tokenizer is that of {_family(draft)}, and the target's that of {_family(target)}",
            remedy=f"name a smaller model of the family {_family(target)}, or draft with n-grams",
        )
    published = read_curves()
    for curve in published:
        if (curve.target, curve.draft, curve.domain) == (target, draft, domain):
            return curve
    nearest = _nearest(published, target, draft, domain)
    return nearest.model_copy(
        update={
            "target": target,
            "draft": draft,
            "domain": domain,
            "is_same_pair": False,
            "source": f"nothing published for this pair on this text; of {nearest.target} with {nearest.draft} on"
            f" {nearest.domain}: {nearest.source}",
        }
    )


def read_curves() -> Sequence[AcceptanceCurve]:
    """All published acceptance curves, none longer than what was drafted: its length says how far it holds."""
    return _CURVES.validate_json((_root() / "acceptance.json").read_bytes())


def _nearest(curves: Sequence[AcceptanceCurve], target: str, draft: str, domain: str) -> AcceptanceCurve:
    if draft in NO_MODEL:  # what repeats in one kind of text says little of another: the average of many, then
        alike = [curve for curve in curves if curve.draft == draft]
        return min(alike, key=lambda curve: (curve.domain != domain, curve.domain != "general"))
    family = _family(target)

    def strangeness(curve: AcceptanceCurve) -> tuple[bool, bool]:
        return (curve.domain in _CODE) != (domain in _CODE), _family(curve.target) != family

    def octaves(curve: AcceptanceCurve) -> float:
        ratio = _size_ratio(curve.target, curve.draft) / _size_ratio(target, draft)
        return abs(math.log2(ratio)) + (curve.domain != domain)

    pairs = [curve for curve in curves if curve.draft not in NO_MODEL]
    least = min(map(strangeness, pairs))
    return min((curve for curve in pairs if strangeness(curve) == least), key=octaves)


def _size_ratio(target: str, draft: str) -> float:
    return model(target).weights_bytes("bf16") / model(draft).weights_bytes("bf16")


def _family(name: str) -> str:
    families: dict[str, list[str]] = json.loads((_root() / "models" / "families.json").read_bytes())
    return next(family for family, members in families.items() if name in members)


def _model_name(name: str) -> str:
    names = model_names()
    found = _find(name, names, _key)
    if found is None:
        configs: dict[str, dict[str, str]] = json.loads((_root() / "models" / "configs.json").read_bytes())
        hub_ids = {entry["hub_id"]: known for known, entry in configs.items()}
        found = hub_ids.get(_find(name, tuple(hub_ids), _key) or "")
    return found or _refuse("model", name, names)


def _find(name: str, names: Sequence[str], key: Callable[[str], str]) -> str | None:
    """The name whose key is what was typed, if it is just one."""
    same = [known for known in names if key(known) == _key(name)]
    return same[0] if len(same) == 1 else None


def _key(name: str) -> str:
    """A name without what people leave out: owner, revision, vendor, tuning, case and separators."""
    last = name.lower().partition("@")[0].rpartition("/")[2].replace("_", "-")
    return re.sub(r"[^a-z0-9.]", "", _UNSAID.sub("", last))


def _refuse(kind: str, name: str, names: Sequence[str]) -> NoReturn:
    by_key = {_key(known): known for known in names}
    nearest = [by_key[key] for key in difflib.get_close_matches(_key(name), by_key, n=3, cutoff=0.4)]
    offer = f"did you mean {' or '.join(nearest)}" if nearest else f"known are {', '.join(names)}"
    raise BadInputError(
        f"the catalogue has no {kind} {shown(name)}",
        why=f"it is none of its {len(names)} {kind}s, and nothing is guessed; {offer}?",
        remedy=f"name one of: {', '.join(names)}",
    )


def _stems(folder: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (_root() / folder).glob("*.json")))


def _root() -> Path:
    return Path(str(files("profiles")))
