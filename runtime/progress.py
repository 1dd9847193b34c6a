"""Where a run is, as another thread may read it at any time: nothing is locked, counted or timed for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from planner.contracts.plan import Plan
from runtime.cached import CachedModel
from runtime.decode import Round
from runtime.model import StreamProgress
from runtime.report import RunRecord

Phase = Literal["prompt", "text", "check"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A run under way; `rounds` grows while it is read. Passes of the target are counted from 1, the prompt's first."""

    phase: Phase
    pass_number: int
    num_prompt_passes: int
    num_layers: int
    stream: StreamProgress | None  # None: nothing streams
    rounds: Sequence[Round]
    has_draft: bool


def progress_of(plan: Plan, target: CachedModel, record: RunRecord) -> Progress:
    """Where a run is, by what it has noted so far; exact only while nothing moves."""
    chunk_tokens = plan.prefill_chunk_tokens
    num_prompt_passes = -(-record.prompt_tokens // chunk_tokens)
    pass_number = num_prompt_passes + len(record.rounds) + 1
    phase: Phase = "text" if record.finish_reason == "interrupted" else "check"
    stream = target.streamed.progress()
    if record.prompt_s == 0:
        num_seen = target.num_seen if target.can_roll_back else 0
        waits_for_first = stream is not None and stream.unit.index == 0 and stream.unit.kind in ("layer", "attention")
        num_begun = num_seen // chunk_tokens + 1 if waits_for_first else -(-num_seen // chunk_tokens)
        pass_number, phase = min(max(1, num_begun), num_prompt_passes), "prompt"
    return Progress(
        phase=phase,
        pass_number=pass_number,
        num_prompt_passes=num_prompt_passes,
        num_layers=sum(unit.kind in ("layer", "mlp") for unit in plan.units),
        stream=stream,
        rounds=record.rounds,
        has_draft=plan.draft.kind != "none",
    )
