"""Planned against measured memory of the plans that `planner recommend` makes: every kind of draft, links, budgets.

Each run is a process of its own; its report tells the peak above what the process took after a one-layer transformers
model had run in it. The rule is measured <= planned <= 1.08 x measured. Last on each line: the host overhead that was
planned, and what was taken beyond all that plans count exactly.
"""

import argparse
import statistics
from dataclasses import replace
from itertools import product
from pathlib import Path

from bench.memory import in_process
from bench.models import print_header, print_json
from bench.prediction import PLACES, PROBABILITIES, profile_for
from bench.settings import Pair, Setting, request_of, script
from planner.contracts.errors import NoFeasiblePlanError
from planner.contracts.plan import Plan
from planner.contracts.profile import Profile
from planner.drafting import EVERY_HYBRID, EVERY_TREE, NO_DRAFTING, Drafting, chain, ngram
from planner.search import plan_of, rank

GOAL = (1.0, 1.08)
NEW_TOKENS = 64
KINDS: dict[Pair, tuple[Drafting, ...]] = {
    "demo": (
        NO_DRAFTING,
        chain(4),
        ngram(16),
        *(entry for entry in (*EVERY_TREE, *EVERY_HYBRID) if (entry.num_nodes, entry.max_depth) in ((32, 8), (64, 8))),
    ),
    "random": (NO_DRAFTING, chain(4), ngram(16)),
}


def main() -> None:
    """Plan, run in a process and compare; one row per plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("/tmp/draftstream-bench"))
    parser.add_argument("--pairs", nargs="+", choices=("demo", "random"), default=["demo", "random"])
    options = parser.parse_args()
    print_header("planned against measured memory")
    ratios: list[float] = []
    for pair in options.pairs:
        profile = profile_for(pair, options.models)
        links, budgets = PLACES[pair]
        for link, budget, drafting in product(("disk:direct", *links[:2]), budgets, KINDS[pair]):
            plan = planned(profile, pair, link, budget, drafting)
            name = f"{pair:6} {link:16} {budget:>7} {drafting.label}"
            if plan is None:
                print(f"{name}: cannot be planned", flush=True)
                continue
            ratios.append(planned_over_measured(name, plan, options.models))
    least, most = GOAL
    num_missed = sum(not least <= ratio <= most for ratio in ratios)
    print(f"outside {least} to {most}: {num_missed} of {len(ratios)}; median {statistics.median(ratios):.3f}")
    print_json({"ratios": ratios, "missed": num_missed})


def planned(profile: Profile, pair: Pair, link: str, budget: str, drafting: Drafting) -> Plan | None:
    """The best plan with that draft; None where it does not fit, or nothing predicts it."""
    is_random = pair == "random"
    setting = Setting(
        pair=pair,
        link=link,
        device_memory=budget,
        draft_len=drafting.num_nodes,
        domain=script(PROBABILITIES[0]) if is_random else "code",
        new_tokens=NEW_TOKENS,
    )
    request = replace(request_of(setting, profile), draftings=(drafting,))
    try:
        ranking = rank(profile, request)
    except NoFeasiblePlanError:
        return None
    score = ranking.best_of(profile.drafts[0].fingerprint if drafting.has_model else None, drafting.kind)
    return None if score is None else plan_of(profile, request, score)[0]


def planned_over_measured(name: str, plan: Plan, models: Path) -> float:
    """Bytes planned over bytes that a run of the plan takes at its peak."""
    measured = in_process(plan, NEW_TOKENS, models)["reported_bytes"]
    memory = plan.memory
    bytes_planned = memory.device_bytes + memory.host_bytes
    overhead = measured - (bytes_planned - memory.host_overhead_bytes - memory.margin_bytes)
    ratio = bytes_planned / measured
    mark = " " if GOAL[0] <= ratio <= GOAL[1] else "*"
    shown = f"{bytes_planned / 2**20:7.1f} {measured / 2**20:7.1f} MiB {ratio:.3f}{mark}"
    print(f"{name:52} {shown} overhead {memory.host_overhead_bytes / 2**20:.1f} {overhead / 2**20:.1f} MiB", flush=True)
    return ratio


if __name__ == "__main__":
    main()
