"""What the planner would choose from replays of other texts of a kind, and what that choice costs on these.

For each kind of text and each cost of verification: the planner prices every way to draft by its own yields, from
recordings that share no text with those on which the runtime's drafters then are replayed. Each kind is replayed at the
size of its best plan, and where it draws by its own rule also with room for 64 nodes; `auto` is the kind that the
planner would choose. Shown of each kind: size, the rate expected, that replayed, that with room. Costs are those of
bench.replay: a pass takes 1, each drafted token verified in it v, and a pass of the draft c, and c / 64 more for each
of its nodes.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import AutoTokenizer

from bench.models import print_header, print_json
from bench.policies import (
    FULL_TREE,
    MOST_NODES,
    Round,
    Tally,
    always,
    hybrid_drafter,
    linear_costs,
    model_chances,
    ngram_drafter,
    pass_cost,
    replayed,
    replayed_with_model,
    total,
    tree_drafter,
    walked,
)
from bench.profiled import FINGERPRINT, PROFILED, by_kind, of_draft, of_text
from bench.recorded_draft import RecordedModel
from bench.replay import DRAFT_COST, VERIFY_COSTS
from bench.texts import DATA, Recording, read_recordings
from planner.contracts.model_shape import ModelShape
from planner.contracts.profile import AcceptanceCurve, AcceptanceRecording
from planner.drafting import DRAFT_KINDS, EVERY_DRAFTING, NO_DRAFTING, Drafting, DraftKind, ngram
from planner.yields import Yields
from profiles import demo_folder

GOAL_FRAC = 0.01  # that the choice may lose against the best kind
TASKS = {  # kind of text, and those whose recordings the planner may have had
    "greedy code": ("greedy code",),
    "greedy prose": ("greedy prose",),
    "HumanEval": ("HumanEval", "greedy code"),
    "editing": ("editing", "greedy code"),
    "GSM8K": ("GSM8K",),
    "Shakespeare": ("Shakespeare",),
}
ROOMY = (ngram(MOST_NODES), FULL_TREE, replace(FULL_TREE, kind="hybrid"))
_SIZES = tuple(entry for entry in EVERY_DRAFTING if entry.num_nodes <= MOST_NODES)
_NOISE_FRAC = 0.005  # as the planner has it: what is closer to the best than this is as good, and the simplest is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """As much of a profile as yields are replayed from."""

    acceptance: tuple[AcceptanceRecording, ...]
    curves: tuple[AcceptanceCurve, ...] = ()
    drafts: tuple[ModelShape, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A way to draft, and the tokens per unit of cost that the planner expects of it."""

    drafting: Drafting
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was chosen, and the tokens per unit of cost of each kind of draft at its planned size and at ROOMY."""

    auto: DraftKind
    best: Mapping[DraftKind, Priced]
    planned: Mapping[DraftKind, float]
    roomy: Mapping[DraftKind, float]

    @property
    def lost_frac(self) -> float:
        """What another kind would have brought more, every kind with room for all that its rule finds worth it."""
        return 1 - self.roomy[self.auto] / max(self.roomy.values())

    @property
    def size_lost_frac(self) -> float:
        """What the planned size of the chosen kind loses against that room, or gains."""
        return 1 - self.planned[self.auto] / self.roomy[self.auto]

    @property
    def as_json(self) -> dict[str, object]:
        """For the last line of the output."""
        return {
            "auto": self.auto,
            "lost_frac": self.lost_frac,
            "size_lost_frac": self.size_lost_frac,
            "expected": {kind: priced.rate for kind, priced in self.best.items()},
            "planned": dict(self.planned),
            "roomy": dict(self.roomy),
        }


def main() -> None:
    """Price, choose, replay; one row per task, profile and cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profiled", type=Path, default=PROFILED)
    parser.add_argument("--replayed", type=Path, default=DATA / "recordings.jsonl")
    parser.add_argument("--verify-costs", type=float, nargs="+", default=VERIFY_COSTS)
    options = parser.parse_args()
    print_header("the planner's choice among kinds of draft")
    vocab_size = len(AutoTokenizer.from_pretrained(demo_folder("target")))
    profiled, given = by_kind(read_recordings(options.profiled)), by_kind(read_recordings(options.replayed))
    rows: list[dict[str, object]] = []
    num_missed = 0
    for task, sources in TASKS.items():
        for source in sources:
            yields = yields_of(profiled[source])
            print(f"\n{task}, {len(given[task])} texts; planned by {len(profiled[source])} of {source}")
            print("     v  " + "".join(f"{kind:>28}" for kind in DRAFT_KINDS[1:]) + "   auto    to best to room")
            for verify_cost in options.verify_costs:
                row = row_of(yields, given[task], verify_cost, vocab_size)
                rows.append({"task": task, "profile": source, "verify_cost": verify_cost, **row.as_json})
                num_missed += row.lost_frac > GOAL_FRAC
    print(f"\nmore than {GOAL_FRAC:.0%} lost in {num_missed} of {len(rows)}")
    print_json({"rows": rows})


def row_of(yields: Yields, recordings: Sequence[Recording], verify_cost: float, vocab_size: int) -> Row:
    """One line: of each kind the best plan, what was expected of it, and what it reached; and the choice."""
    best = best_of_kinds(yields, verify_cost)
    planned = {
        kind: replayed_plan(priced.drafting, yields, recordings, verify_cost, vocab_size).rate
        for kind, priced in best.items()
    }
    roomy = {size.kind: replayed_plan(size, yields, recordings, verify_cost, vocab_size).rate for size in ROOMY}
    row = Row(auto=choice(best), best=best, planned=planned, roomy=planned | roomy)
    shown = "".join(f"{_shown(best[kind], planned[kind], row.roomy[kind]):>28}" for kind in DRAFT_KINDS[1:])
    missed = "  missed" if row.lost_frac > GOAL_FRAC else ""
    print(
        f"{verify_cost:6.3f}  {shown}   {row.auto:7} {-row.lost_frac:+7.1%} {-row.size_lost_frac:+7.1%}{missed}",
        flush=True,
    )
    return row


def _shown(priced: Priced, planned: float, roomy: float) -> str:
    size = priced.drafting
    return f"{size.num_nodes}/{size.max_depth}: {priced.rate:.3f} {planned:.3f} {roomy:.3f}"


# --- the planner's part ---


def yields_of(recordings: Sequence[Recording]) -> Yields:
    """Replays of these texts, as of a profile."""
    entries = tuple(entry for one in recordings for entry in (of_text(one), of_draft(one)))
    return Yields(Texts(acceptance=entries), None, is_sampled=False)


def best_of_kinds(yields: Yields, verify_cost: float) -> Mapping[DraftKind, Priced]:
    """The best size of each kind by the planner's yields."""
    best: dict[DraftKind, Priced] = {}
    for drafting in _SIZES:
        cost = partial(round_cost, drafting, verify_cost)
        tokens = yields.best(FINGERPRINT if drafting.has_model else None, drafting, cost)
        rate = tokens.mean / cost(tokens.mean_nodes, tokens.mean_passes)
        if drafting.kind not in best or rate > best[drafting.kind].rate:
            best[drafting.kind] = Priced(drafting=drafting, rate=rate)
    return best


def round_cost(drafting: Drafting, verify_cost: float, num_nodes: float, num_passes: float) -> float:
    """What a round costs that verifies so many nodes after so many passes of the draft; the first is over one."""
    further = max(0.0, num_passes - 1)
    drafted = min(1.0, num_passes) * pass_cost(DRAFT_COST) + further * pass_cost(DRAFT_COST, drafting.pass_nodes)
    return 1 + verify_cost * num_nodes + drafted


def choice(best: Mapping[DraftKind, Priced]) -> DraftKind:
    """The simplest kind of those that are as good as the best."""
    limit = max(priced.rate for priced in best.values()) / (1 + _NOISE_FRAC)
    return next(kind for kind in DRAFT_KINDS if kind in best and best[kind].rate >= limit)


# --- the runtime's part ---


def replayed_plan(
    drafting: Drafting, yields: Yields, recordings: Sequence[Recording], verify_cost: float, vocab_size: int
) -> Tally:
    """The runtime's drafter of that kind and size over the texts."""
    return total(entry for one in recordings for entry in _rounds(drafting, yields, one, verify_cost, vocab_size))


def _rounds(
    drafting: Drafting, yields: Yields, recording: Recording, verify_cost: float, vocab_size: int
) -> Iterator[Round]:
    if drafting == NO_DRAFTING or drafting.kind == "chain":
        token_cost = verify_cost + pass_cost(DRAFT_COST)
        return walked(model_chances(recording), token_cost, always(drafting.num_nodes))
    costs = linear_costs(verify_cost, DRAFT_COST)
    if drafting.kind == "ngram":
        drafter = ngram_drafter(costs, vocab_size, drafting.num_nodes)
        return replayed(drafter, recording, lambda proposal: 1 + verify_cost * len(proposal.tokens))
    model, curve = RecordedModel(recording, vocab_size), yields.calibration(FINGERPRINT)
    of_model = (
        tree_drafter(model, costs, curve, size=drafting)
        if drafting.kind == "tree"
        else hybrid_drafter(model, costs, curve, vocab_size, drafting)
    )
    return replayed_with_model(of_model, model, recording, verify_cost, DRAFT_COST)


if __name__ == "__main__":
    main()
