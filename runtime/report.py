"""The measured half of a Report: rounds added up, predicted beside measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from planner.contracts.performance import LinkSplit, Performance, RoundSplit
from planner.contracts.plan import Plan
from planner.contracts.report import FinishReason, LlamaCppTimings, Report, RoundRecord, VerifyResult
from runtime.decode import Round
from runtime.host import MemoryPeaks


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """What is noted while a run goes on."""

    prompt_tokens: int
    seed: int | None
    prompt_s: float = 0.0
    generated_tokens: int = 0
    generated_s: float = 0.0
    text: str = ""
    finish_reason: FinishReason = "interrupted"
    rounds: list[Round] = field(default_factory=list)
    verify: VerifyResult | None = None
    warnings: list[str] = field(default_factory=list)
    memory: MemoryPeaks | None = None


def build_report(plan: Plan, link_label: str, record: RunRecord) -> Report:
    """The report of a run, finished or not."""
    num_draft = sum(entry.num_draft_tokens for entry in record.rounds)
    num_accepted = sum(entry.num_accepted_tokens for entry in record.rounds)
    speed = _rate(record.generated_tokens - 1, record.generated_s)  # the first token is the prompt's
    return Report(
        text=record.text,
        finish_reason=record.finish_reason,
        target=plan.target,
        link_label=link_label,
        seed=record.seed,
        prompt_tokens=record.prompt_tokens,
        prompt_s=record.prompt_s,
        generated_tokens=record.generated_tokens,
        generated_s=record.generated_s,
        generated_tokens_per_s=speed,
        num_rounds=len(record.rounds),
        num_draft_tokens=num_draft,
        num_accepted_tokens=num_accepted,
        predicted=plan.predicted,
        measured=_measured(plan, record, speed),
        rounds=tuple(_as_record(entry) for entry in record.rounds),
        verify=record.verify,
        warnings=tuple(record.warnings),
        timings=LlamaCppTimings(
            prompt_n=record.prompt_tokens,
            prompt_ms=record.prompt_s * 1e3,
            predicted_n=record.generated_tokens,
            predicted_ms=record.generated_s * 1e3,
            predicted_per_second=speed,
            draft_n=num_draft,
            draft_n_accepted=num_accepted,
        ),
        plan=plan,
    )


def survival(rounds: Sequence[Round]) -> tuple[float, ...]:
    """S_i, the share of rounds in which at least i drafted tokens were accepted, for i from 1.

    Position i is judged over the rounds that drafted so many: the last rounds of a run are clipped.
    """
    longest = max((entry.draft_depth for entry in rounds), default=0)
    shares = []
    for position in range(1, longest + 1):
        judged = [entry for entry in rounds if entry.draft_depth >= position]
        shares.append(sum(entry.num_accepted_tokens >= position for entry in judged) / len(judged))
    return tuple(shares)


def _measured(plan: Plan, record: RunRecord, speed: float | None) -> Performance:
    rounds = record.rounds
    num_tokens = sum(len(entry.tokens) for entry in rounds)
    return Performance(
        generated_tokens_per_s=speed,
        prompt_tokens_per_s=_rate(record.prompt_tokens, record.prompt_s),
        ttft_s=record.prompt_s,
        tpot_s=None if speed is None else 1 / speed,
        tokens_per_round=num_tokens / len(rounds) if rounds else None,
        survival=survival(rounds) or None,
        round=_mean_round([entry.compute for entry in rounds]),
        link=_mean_link([entry.link for entry in rounds if entry.link is not None], plan.streamed_bytes),
        streamed_bytes_per_pass=plan.streamed_bytes,
        device_bytes=None if record.memory is None else record.memory.device_bytes,
        host_bytes=None if record.memory is None else record.memory.host_bytes,
        total_bytes=None if record.memory is None else record.memory.total_bytes,
    )


def _as_record(entry: Round) -> RoundRecord:
    return RoundRecord(
        num_draft_tokens=entry.num_draft_tokens,
        draft_depth=entry.draft_depth,
        num_ngram_tokens=entry.num_ngram_tokens,
        num_accepted_tokens=entry.num_accepted_tokens,
        num_accepted_ngram_tokens=entry.num_accepted_ngram_tokens,
        num_emitted_tokens=len(entry.tokens),
        compute=entry.compute,
        link=entry.link,
    )


def _rate(count: int, duration_s: float) -> float | None:
    return count / duration_s if count > 0 and duration_s > 0 else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_round(splits: Sequence[RoundSplit]) -> RoundSplit | None:
    if not splits:
        return None
    return RoundSplit(**{name: _mean([getattr(split, name) for split in splits]) for name in RoundSplit.model_fields})


def _mean_link(splits: Sequence[LinkSplit], streamed_bytes: int) -> LinkSplit | None:
    if not splits:
        return None
    busy_s = _mean([split.busy_s for split in splits])
    return LinkSplit(
        busy_s=busy_s,
        waiting_for_slot_s=_mean([split.waiting_for_slot_s for split in splits]),
        waiting_for_disk_s=_mean([split.waiting_for_disk_s for split in splits]),
        bytes_per_s=streamed_bytes / busy_s if busy_s > 0 else None,
    )
