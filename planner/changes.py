"""What may be changed of a situation: memory, link, context, text, draft; and the profile and request after that.

A faster link has each measured copy shortened in proportion, latency included. A codec shortens copies by its ratio of
bytes; what decoding costs the compute lane is not priced, nor does the runtime read such weights yet.
"""

from dataclasses import dataclass, replace

from planner.contracts.errors import BadInputError, UsageError
from planner.contracts.plan import Codec, EmulatedLink, LinkChoice
from planner.contracts.profile import LinkMeasurement, Profile, Spread
from planner.drafting import EVERY_DRAFTING, NO_DRAFTING, Drafting, DraftKind
from planner.search import Request
from planner.timing import link_name

CODEC_BYTES_FRAC: dict[Codec, float] = {"raw": 1.0, "bf12": 0.76, "q8": 17 / 32, "nf4": 9 / 32}  # of 16-bit weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What differs from the situation; None leaves it as it is. `draft` is a name, of those that the profile knows."""

    device_bytes: int | None = None
    host_bytes: int | None = None
    link_bytes_per_s: float | None = None
    context_tokens: int | None = None  # of prompt and text; the text keeps its length
    domain: str | None = None
    draft: str | None = None
    kind: DraftKind | None = None
    num_nodes: int | None = None  # of a chain, its length
    codec: Codec = "raw"
    hazard_gain: float = 0.0  # added to each drafted token's chance of acceptance


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A profile, and what is asked of it."""

    profile: Profile
    request: Request


def changed(situation: Situation, change: Change) -> Situation:
    """The situation with that change.

    Raises: UsageError, for what cannot be; BadInputError, where the profile does not know the draft.
    """
    profile, request = situation.profile, situation.request
    link = request.wishes.link
    gain = 1 / CODEC_BYTES_FRAC[change.codec]
    if change.link_bytes_per_s is not None:
        gain *= change.link_bytes_per_s / link_bytes_per_s(profile, link)
    if gain != 1:
        profile, link = with_faster_link(profile, link, gain)
    if change.draft is not None:
        profile = _with_draft(profile, change.draft)
    workload, wishes = request.workload, replace(request.wishes, link=link)
    if change.context_tokens is not None:
        prompt_tokens = change.context_tokens - workload.new_tokens
        if prompt_tokens < 1:
            raise UsageError(
                f"a context of {change.context_tokens} tokens has no room for a prompt",
                why=f"{workload.new_tokens} tokens of text are planned for",
                remedy=f"a context above {workload.new_tokens}",
            )
        workload = workload.model_copy(update={"prompt_tokens": prompt_tokens})
        wishes = replace(wishes, context_tokens=change.context_tokens)
    if change.domain is not None:
        if profile.curves:
            raise UsageError(
                f"the text cannot become {change.domain}",
                why=f"published acceptance was taken for {workload.domain or 'chat'}",
                remedy="ask the catalogue anew, with that text",
            )
        workload = workload.model_copy(update={"domain": change.domain})
    budget = request.budget
    if change.device_bytes is not None:
        budget = replace(budget, device_bytes=change.device_bytes, target_bytes=None)
    if change.host_bytes is not None:
        budget = replace(budget, host_bytes=change.host_bytes)
    return Situation(
        profile=profile,
        request=replace(
            request,
            budget=budget,
            wishes=wishes,
            workload=workload,
            draftings=_draftings(request, change),
            never_speculate=request.never_speculate or change.kind == "none",
            hazard_gain=request.hazard_gain + change.hazard_gain,
        ),
    )


def link_bytes_per_s(profile: Profile, link: LinkChoice) -> float:
    """Bytes per second that the link moves in its largest measured copy, or as stated.

    Raises: BadInputError, where it was not measured.
    """
    if isinstance(link, EmulatedLink):
        return link.bytes_per_s
    measured = [entry for entry in profile.links if entry.link == link_name(link) and not entry.loaded]
    if not measured:
        raise BadInputError(
            f"the profile does not know the link {link_name(link)}",
            why="no copy over it was measured",
            remedy="planner profile again, its links not left out by --only",
        )
    largest = max(measured, key=lambda entry: entry.num_bytes)
    return largest.num_bytes / largest.duration_s.median


def with_faster_link(profile: Profile, link: LinkChoice, gain: float) -> tuple[Profile, LinkChoice]:
    """The same with the link so many times as fast: stated anew, or each measured copy shortened."""
    if isinstance(link, EmulatedLink):
        return profile, link.model_copy(update={"bytes_per_s": link.bytes_per_s * gain})
    name = link_name(link)
    links = tuple(_faster(entry, gain) if entry.link == name else entry for entry in profile.links)
    return profile.model_copy(update={"links": links}), link


def _faster(entry: LinkMeasurement, gain: float) -> LinkMeasurement:
    taken = entry.duration_s
    spread = Spread(
        p25=taken.p25 / gain, median=taken.median / gain, p75=taken.p75 / gain, num_samples=taken.num_samples
    )
    return entry.model_copy(update={"duration_s": spread})


def _with_draft(profile: Profile, name: str) -> Profile:
    chosen = tuple(draft for draft in profile.drafts if draft.name == name)
    if not chosen:
        raise BadInputError(
            f"the profile knows no draft {name}",
            why=f"it knows {', '.join(draft.name for draft in profile.drafts) or 'none'}",
            remedy="name one of them, or profile with it",
        )
    return profile.model_copy(update={"drafts": chosen})


def _draftings(request: Request, change: Change) -> tuple[Drafting, ...]:
    """Those of the kind and size. Raises: UsageError, where there are none."""
    if change.kind is None and change.num_nodes is None:
        return request.draftings
    pool = dict.fromkeys((*request.draftings, *EVERY_DRAFTING))
    chosen = tuple(
        entry
        for entry in pool
        if change.kind in (None, entry.kind) and change.num_nodes in (None, entry.num_nodes) and entry != NO_DRAFTING
    )
    if not chosen and change.kind != "none":
        raise UsageError(
            f"no draft of {change.num_nodes} nodes is considered" + (f" of kind {change.kind}" if change.kind else ""),
            why=f"sizes are {', '.join(map(str, sorted({entry.num_nodes for entry in pool if entry.num_nodes})))}",
            remedy="take one of them",
        )
    return (NO_DRAFTING, *chosen)
