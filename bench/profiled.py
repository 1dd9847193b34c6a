"""What a profile would hold of recorded texts, for the planner to replay."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from bench.texts import DATA, Recording, read_recordings
from planner.contracts.profile import AcceptanceRecording
from runtime.measure.matches import longest_matches

FINGERPRINT = "draft"  # of the draft that was recorded
PROFILED = DATA / "recordings_profile.jsonl.gz"  # shares no text with those that are replayed


def by_kind(recordings: Sequence[Recording]) -> Mapping[str, list[Recording]]:
    """Texts of each kind."""
    found: dict[str, list[Recording]] = defaultdict(list)
    for one in recordings:
        found[one.kind].append(one)
    return found


def of_draft(recording: Recording) -> AcceptanceRecording:
    """What the draft made of each position of the output."""
    return AcceptanceRecording(
        domain=recording.kind,
        prompt_tokens=len(recording.prompt),
        fingerprint=FINGERPRINT,
        ranks=recording.ranks,
        draft_probs=recording.draft_probs,
        top_probs=recording.top_probs,
    )


def of_text(recording: Recording) -> AcceptanceRecording:
    """The earlier matches of each position of the output."""
    matches = longest_matches([*recording.prompt, *recording.output], first=len(recording.prompt))
    return AcceptanceRecording(
        domain=recording.kind,
        prompt_tokens=len(recording.prompt),
        match_lengths=tuple(match.num_tokens for match in matches),
        match_hits=tuple(int(match.is_hit) for match in matches),
        match_shares=tuple(match.share for match in matches),
    )


def known_before(recordings: Sequence[Recording]) -> list[tuple[AcceptanceRecording, ...]]:
    """For each text what is known of the draft from others: of its kind where such are profiled, else every second."""
    profiled = {kind: tuple(map(of_draft, ones)) for kind, ones in by_kind(read_recordings(PROFILED)).items()}
    entries = [of_draft(one) for one in recordings]
    halves = (tuple(entries[1::2]), tuple(entries[::2]))
    return [profiled.get(one.kind, halves[index % 2]) for index, one in enumerate(recordings)]
