"""What the notebook's menus and sliders offer and mean, without any widget: choices in, situations and changes out."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from planner.api import from_catalogue, from_profile
from planner.changes import CODEC_BYTES_FRAC, Change, Situation, link_bytes_per_s
from planner.contracts.errors import BadInputError, DraftstreamError
from planner.contracts.plan import Codec
from planner.contracts.quantities import (
    format_bytes,
    format_bytes_per_s,
    format_s,
    format_tokens_per_s,
)
from planner.drafting import DRAFT_KINDS, EVERY_DRAFTING, DraftKind
from planner.extras import need_report_extra, without_widgets
from planner.grid import map_around
from planner.recommend import basis_of
from planner.render import interval
from planner.what_if import Advice, Case, LengthCurve, StrategyMap, WhatIf, compared

if TYPE_CHECKING:
    from planner.figures.still import StillPage
    from planner.figures.widgets import WhatIfPage

T = TypeVar("T")
N = TypeVar("N", int, float)
Menu = tuple[tuple[str, T], ...]  # what is shown, each text once, and what it stands for

COMPARED_MACHINES = ("rtx-3060-12gb", "rtx-4060-ti-16gb", "rtx-4070", "rtx-3090", "rtx-4090", "rtx-5090")
_MOST_FACTOR = 8  # by which memory and bandwidth go below and above what is now
_CODEC_NAMES: dict[Codec, str] = {"raw": "as stored", "bf12": "bf12 (lossless)", "q8": "8 bits", "nf4": "4 bits"}
_KIND_NAMES: dict[DraftKind, str] = {"ngram": "n-grams"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FromCatalogue:
    """A machine and models that are known by name."""

    machine: str = "rtx-4090"
    target: str = "qwen2.5-32b"
    draft: str | None = "qwen2.5-0.5b"
    text: str = "chat"

    def situation(self) -> Situation:
        """Raises: BadInputError, where a number is missing."""
        return from_catalogue(self.machine, self.target, () if self.draft is None else (self.draft,), text=self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class FromProfile:
    """What was measured, and runs to learn from."""

    path: str
    reports: tuple[str, ...] = ()  # files, which must fit, or folders, of which those count that do
    link: str | None = None  # this and memory as on the command line; None is this machine's
    device_memory: str | None = None

    @classmethod
    def typed(cls, path: str, reports: str = "", link: str = "", device_memory: str = "") -> "FromProfile":
        """From what a user types: reports with commas between them."""
        return cls(
            path=path.strip(),
            reports=tuple(filter(None, (part.strip() for part in reports.split(",")))),
            link=link.strip() or None,
            device_memory=device_memory.strip() or None,
        )

    def situation(self) -> Situation:
        """Raises: UsageError or BadInputError, as `from_profile` does."""
        return from_profile(self.path, reports=self.reports, link=self.link, device_memory=self.device_memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Menus:
    """What can be changed of a situation; what stays as it is stands for None, and is the first or the marked entry."""

    device_bytes: Menu[int | None]
    link_bytes_per_s: Menu[float | None]
    context_tokens: Menu[int | None]
    codec: Menu[Codec]
    domain: Menu[str | None]
    draft: Menu[str | None]
    kind: Menu[DraftKind | None]


def menus_for(situation: Situation) -> Menus:
    """Round sizes and rates around those of the situation, the texts and drafts that its profile knows."""
    profile, request = situation.profile, situation.request
    device_bytes, context_tokens = request.budget.device_bytes, request.wishes.context_tokens
    kinds = {entry.kind for entry in request.draftings}
    return Menus(
        device_bytes=_around(device_bytes, [int(size) for size in _ladder(device_bytes, 2**20)], format_bytes),
        link_bytes_per_s=_rates(situation),
        context_tokens=_around(
            context_tokens,
            [
                count
                for count in (2**power for power in range(6, 18))
                if request.workload.new_tokens < count <= profile.target.max_context_tokens
            ],
            lambda count: f"{count} tokens",
        ),
        codec=tuple(
            (f"{_CODEC_NAMES[codec]}, {share:.0%} of the bytes", codec) for codec, share in CODEC_BYTES_FRAC.items()
        ),
        domain=_named(
            request.workload.domain or "all texts",
            ()
            if profile.curves
            else sorted({entry.domain for entry in profile.acceptance} - {request.workload.domain}),
        ),
        draft=_named("the best", [draft.name for draft in profile.drafts] if len(profile.drafts) > 1 else ()),
        kind=(("the best", None), *((_KIND_NAMES.get(kind, kind), kind) for kind in DRAFT_KINDS if kind in kinds)),
    )


def sizes_of(kind: DraftKind | None) -> Menu[int | None]:
    """The lengths of chains, or the nodes of another kind of draft."""
    sizes = sorted({entry.num_nodes for entry in EVERY_DRAFTING if entry.kind == kind and entry.num_nodes})
    return (("the best", None), *((str(size), size) for size in sizes))


def answer(case: Case, codec: Codec = "raw") -> str:
    """What is best, and how fast it is; of what is streamed, the bytes that travel under a codec."""
    plan, best = case.plan, case.best
    wire_bytes = plan.streamed_bytes * CODEC_BYTES_FRAC[codec]
    coded = "" if codec == "raw" else f" as {codec}"
    drafted = best.candidate.drafting.label
    by = "" if best.candidate.draft is None else f" by {best.candidate.draft.name}"
    travelling = f"{format_bytes(wire_bytes)} travel in every pass{coded}"
    streamed = travelling if plan.streamed else "everything resident"
    return (
        f"{format_tokens_per_s(best.tokens_per_s)} ({interval(plan)}): {drafted}{by}; {streamed}; "
        f"{best.terms.tokens_per_round:.2f} tokens per round of {format_s(best.round_s)}; "
        f"first token after {format_s(best.ttft_s)}"
    )


def open_page(subject: FromCatalogue | None = None) -> "WhatIfPage | StillPage":
    """The what-if page; where what moves it is not installed, one that says so and shows what it starts with.

    Raises: UsageError, where not even pictures can be drawn; DraftstreamError, as the page does.
    """
    need_report_extra("the what-if notebook")
    notice = without_widgets()
    if notice is not None:
        from planner.figures.still import StillPage

        return StillPage(subject or FromCatalogue(), notice)
    from planner.figures.widgets import WhatIfPage

    return WhatIfPage(subject or FromCatalogue())


def grounds(case: Case, change: Change) -> str:
    """What the answer rests on, and what it leaves out."""
    said = basis_of(case.situation.profile, case.situation.request)
    if change.codec != "raw":
        said += (
            f"; {change.codec} counts as fewer bytes: decoding is not priced, and the runtime reads no such weights yet"
        )
    return said


class Session:
    """One subject and the answers for its changes; what was asked before is remembered."""

    def __init__(self, subject: FromCatalogue | FromProfile) -> None:
        """Raises: as the subject's situation does, and NoFeasiblePlanError."""
        self.subject = subject
        self.what_if = WhatIf(subject.situation())
        self.menus = menus_for(self.what_if.situation)
        self._maps: dict[Change, StrategyMap] = {}
        self.what_if.case()
        for _, text in self.menus.domain:  # a text's first replays take longer than a menu's choice may
            with suppress(DraftstreamError):
                self.what_if.case(Change(domain=text))

    def case(self, change: Change) -> Case:
        """What is best after a change. Raises: as `WhatIf.case` does."""
        return self.what_if.case(change)

    def curve(self, change: Change) -> LengthCurve | None:
        """Every chain's speed after a change, whatever kind and length were chosen. Raises: as `WhatIf.case` does."""
        return self.what_if.case(replace(change, kind=None, num_nodes=None)).curve

    def here(self, change: Change) -> tuple[int, float]:
        """Device memory in bytes and the link's bytes per second after a change; a codec makes no link faster.

        Raises: BadInputError, where the link was not measured.
        """
        now = self.what_if.situation
        rate = change.link_bytes_per_s or link_bytes_per_s(now.profile, now.request.wishes.link)
        return change.device_bytes or now.request.budget.device_bytes, rate

    def map(self, change: Change) -> StrategyMap:
        """The best around what is now, after all of a change but memory and link. Raises: as `map_around` does."""
        elsewhere = replace(change, device_bytes=None, link_bytes_per_s=None)
        if elsewhere not in self._maps:
            self._maps[elsewhere] = map_around(self.what_if, elsewhere)
        return self._maps[elsewhere]

    def machines(self, names: Sequence[str]) -> list[Advice]:
        """The same models and text on machines of the catalogue, the fastest first, and why the others cannot."""
        request, profile = self.what_if.situation.request, self.what_if.situation.profile
        workload = request.workload
        what_ifs: dict[str, WhatIf] = {}
        refused: list[Advice] = []
        for name in names:
            try:
                situation = from_catalogue(
                    name,
                    profile.target.name,
                    [draft.name for draft in profile.drafts],
                    text=workload.domain,
                    prompt_tokens=workload.prompt_tokens,
                    new_tokens=workload.new_tokens,
                )
            except BadInputError as error:
                refused.append(Advice.refused(name, error))
            else:
                what_ifs[name] = WhatIf(situation)
        return [*compared(what_ifs), *refused]


def _rates(situation: Situation) -> Menu[float | None]:
    """Round rates around the link's; only what it is, where it was not measured."""
    try:
        rate = link_bytes_per_s(situation.profile, situation.request.wishes.link)
    except BadInputError:
        return (("not measured", None),)
    return _around(rate, _ladder(rate, 1e9), format_bytes_per_s)


def _ladder(now: float, unit: float) -> list[float]:
    """1, 1.5, 2, 3, 4, 6, 8, ... units, from an eighth to eight times of what is now."""
    low, high = now / _MOST_FACTOR, now * _MOST_FACTOR
    powers = range(math.floor(math.log2(low / unit)), math.ceil(math.log2(high / unit)) + 1)
    return [value for power in powers for value in (unit * 2.0**power, unit * 1.5 * 2.0**power) if low <= value <= high]


def _around(now: N, values: Sequence[N], shown: Callable[[N], str]) -> Menu[N | None]:
    """The values in their order with what is now among them; of those that look alike the first."""
    menu: dict[str, N | None] = {}
    for value in sorted(set(values) | {now}):
        if value == now:
            menu[f"{shown(value)} now"] = None
        elif shown(value) != shown(now):
            menu.setdefault(shown(value), value)
    return tuple(menu.items())


def _named(now: str, others: Sequence[str]) -> Menu[str | None]:
    return ((now, None), *((name, name) for name in others))
