"""What each more drafted token costs a plan, for the runtime to decide by in every round."""

from dataclasses import replace

from planner.contracts.plan import RoundCosts
from planner.drafting import Drafting
from planner.schedule import Schedule, round_time_s
from planner.scoring import Candidate, Scorer
from planner.terms import schedule_of

_SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_LONG_DRAFT_ROUNDS = 100.0  # drafting for so many rounds hides everything else


def round_costs(scorer: Scorer, candidate: Candidate) -> RoundCosts | None:
    """The table of a plan whose rounds differ in what they draft; None where all draft the same."""
    drafting = candidate.drafting
    if drafting.kind == "none" or drafting.is_static or (drafting.kind == "chain" and not drafting.tiers):
        return None
    counts = sorted({min(size, drafting.num_verified) for size in _SIZES})
    rounds = [_round(scorer, candidate, num_verified) for num_verified in counts]
    levels = sorted({min(size, drafting.pass_nodes) for size in _SIZES}) if candidate.draft is not None else []
    return RoundCosts(
        num_verified=tuple(counts),
        round_s=tuple(round_s for round_s, _ in rounds),
        hidden_s=tuple(hidden_s for _, hidden_s in rounds),
        pass_nodes=tuple(levels),
        draft_pass_s=tuple(scorer.draft_level_s(candidate, num_nodes) for num_nodes in levels),
    )


def _round(scorer: Scorer, candidate: Candidate, num_verified: int) -> tuple[float, float]:
    """Seconds of a round that verifies so many tokens and drafts for nothing, and of drafting that it hides."""
    undrafted = replace(candidate, draft=None, drafting=Drafting(num_nodes=num_verified - 1))
    schedule = schedule_of(scorer.terms(undrafted))
    round_s = round_time_s(schedule)
    long_draft_s = _LONG_DRAFT_ROUNDS * round_s
    return round_s, max(0.0, round_s + long_draft_s - round_time_s(_later(schedule, long_draft_s)))


def _later(schedule: Schedule, draft_s: float) -> Schedule:
    return replace(schedule, boundary_s=schedule.boundary_s + draft_s)
