"""The chosen plan against its neighbours: draft length +-2, slots +-1, residents -2 and +2 where they fit.

All plans of a setting run in turn on the same prompts and scripts, several times over; each neighbour is compared with
the chosen plan within a turn. The apparent best is then measured again on fresh runs against the chosen plan: its gain
there is the regret, which counts where its interval lies above 3 %. With `--paced` the processor is (bench.paced).

Scripts of synthetic acceptance are 192 tokens long: over one of 48 the tokens per round of chains of 8 and 10 differ by
7 % (one standard deviation) from what they do over many.
"""

import argparse
import contextlib
import random
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.models import print_header, print_json
from bench.paced import paced_processor
from bench.prediction import PACED_PLACES, PLACES, profile_for
from bench.settings import Pair, Setting, request_of, run, script, tokens_per_s
from planner.contracts.errors import DraftstreamError
from planner.contracts.plan import ChainDraft, Plan
from planner.contracts.profile import Profile
from planner.drafting import EVERY_CHAIN, chain
from planner.search import Request, plan_of, rank

GOAL_FRAC = 0.03
_NUM_BOOTSTRAPS = 2000
_DEMO = Setting(pair="demo", link="", device_memory="", draft_len=1, domain="", num_requests=2, new_tokens=64)
_RANDOM = Setting(pair="random", link="", device_memory="", draft_len=1, domain="", new_tokens=192)
_DEMO_PLACES = (  # place of the link in PLACES, budget, text
    (1, "14MiB", "prose"),
    (2, "14MiB", "code"),
    (3, "20MiB", "prose"),
    (0, "14MiB", "code"),
)
_RANDOM_PLACES = ((1, "300MiB", 0.8), (2, "300MiB", 0.6), (3, "300MiB", 0.8), (2, "500MiB", 0.8), (0, "300MiB", 0.6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """What the best neighbour gains over the chosen plan on fresh runs, with the interval of its median."""

    setting: Setting
    chosen: str
    best: str
    gain_frac: float
    low_frac: float
    high_frac: float


def main() -> None:
    """Measure and print one row per setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("/tmp/draftstream-bench"))
    parser.add_argument("--turns", type=int, default=2, help="of all plans of a setting")
    parser.add_argument("--fresh-turns", type=int, default=5, help="of the apparent best and the chosen plan")
    parser.add_argument("--only", type=int, nargs="+", help="only these settings, counted from 0")
    parser.add_argument("--paced", action="store_true", help="on a paced processor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_header("the chosen plan against its neighbours" + ", paced processor" * options.paced)
    with paced_processor() if options.paced else contextlib.nullcontext():
        rows = regrets(options)
    num_bad = sum(row.low_frac > GOAL_FRAC for row in rows)
    print(f"regret beyond {GOAL_FRAC:.0%} in {num_bad} of {len(rows)} settings")
    print_json({"settings": len(rows), "beyond_goal": num_bad, "gains": [row.gain_frac for row in rows]})


def settings(*, is_paced: bool) -> list[Setting]:
    """Settings of both pairs, over links on either side of what binds."""
    places = PACED_PLACES if is_paced else PLACES
    return [
        *(
            replace(_DEMO, link=places["demo"][0][link], device_memory=budget, domain=domain)
            for link, budget, domain in _DEMO_PLACES
        ),
        *(
            replace(
                _RANDOM, link=places["random"][0][link], device_memory=budget, domain=script(share), probability=share
            )
            for link, budget, share in _RANDOM_PLACES
        ),
    ]


def regrets(options: argparse.Namespace) -> list[Regret]:
    """The regret of each setting, printed as it comes."""
    profiles: dict[Pair, Profile] = {pair: profile_for(pair, options.models, is_paced=options.paced) for pair in PLACES}
    rows = []
    every = settings(is_paced=options.paced)
    for setting in every if options.only is None else [every[place] for place in options.only]:
        regret = measured(setting, profiles[setting.pair], options.turns, options.fresh_turns)
        rows.append(regret)
        print(
            f"{setting.label:52} chosen {regret.chosen:16} best {regret.best:16} gain {regret.gain_frac:+.1%} "
            f"({regret.low_frac:+.1%} to {regret.high_frac:+.1%})",
            flush=True,
        )
    return rows


def measured(setting: Setting, profile: Profile, turns: int, fresh_turns: int) -> Regret:
    """The regret of one setting."""
    request = replace(request_of(setting, profile), draftings=EVERY_CHAIN, grains=("layers",))  # residents are counted
    plans = neighbours(profile, request)
    chosen = next(iter(plans))
    gains: dict[str, list[float]] = {name: [] for name in plans}
    for turn in range(turns):
        for name, gain in _turn(setting, plans, chosen, seed=turn).items():
            gains[name].append(gain)
    best = max(plans, key=lambda name: statistics.median(gains[name]))
    if best == chosen:
        return Regret(setting=setting, chosen=chosen, best=best, gain_frac=0.0, low_frac=0.0, high_frac=0.0)
    pair = {name: plans[name] for name in (chosen, best)}
    fresh = [_turn(setting, pair, chosen, seed=100 + turn)[best] for turn in range(fresh_turns)]
    low, high = _interval(fresh)
    return Regret(
        setting=setting,
        chosen=chosen,
        best=best,
        gain_frac=statistics.median(fresh) - 1,
        low_frac=low - 1,
        high_frac=high - 1,
    )


def neighbours(profile: Profile, request: Request) -> dict[str, Plan]:
    """The chosen plan, first, and the plans around it that fit, by name."""
    best = rank(profile, request).best
    candidate = best.candidate
    length, slots = candidate.drafting.num_nodes, candidate.placement.num_slots
    residents = len(candidate.placement.residents)
    chunk = replace(request.wishes, prefill_chunk_tokens=candidate.prefill_chunk_tokens)
    plans = {_name(length, slots, residents): plan_of(profile, request, best)[0]}
    around = [(length + step, slots, residents) for step in (-2, 2)]
    around += [(length, slots + step, residents) for step in (-1, 1)]
    around += [(length, slots, residents + step) for step in (-2, 2)]
    for new_length, new_slots, new_residents in around:
        if new_length < 0 or new_slots < 1 or new_residents < 0:
            continue
        asked = replace(
            request,
            draftings=(chain(new_length),),
            slot_counts=(new_slots,),
            wishes=replace(chunk, most_residents=new_residents if new_residents != residents else None),
            never_speculate=new_length == 0,
        )
        try:
            ranking = rank(profile, asked)
        except DraftstreamError:
            continue
        score = ranking.best_of(profile.drafts[0].fingerprint if new_length else None)
        if score is not None:
            placement = score.candidate.placement
            plans.setdefault(
                _name(new_length, placement.num_slots, len(placement.residents)), plan_of(profile, asked, score)[0]
            )
    return plans


def _name(draft_len: int, num_slots: int, num_residents: int) -> str:
    return f"K={draft_len} N={num_slots} R={num_residents}"


def _turn(setting: Setting, plans: dict[str, Plan], chosen: str, *, seed: int) -> dict[str, float]:
    """Speed of each plan over the chosen one, on the same prompts and scripts, in a shuffled order."""
    order = list(plans)
    random.Random(seed).shuffle(order)
    speeds = {}
    for name in order:
        draft = plans[name].draft
        draft_len = draft.draft_len if isinstance(draft, ChainDraft) else 0
        speeds[name] = tokens_per_s(run(replace(setting, draft_len=draft_len), plans[name], seed))
    return {name: speed / speeds[chosen] for name, speed in speeds.items()}


def _interval(gains: list[float]) -> tuple[float, float]:
    """The middle 80 % of bootstrapped medians."""
    drawn = random.Random(0)
    medians = sorted(statistics.median(drawn.choices(gains, k=len(gains))) for _ in range(_NUM_BOOTSTRAPS))
    return medians[_NUM_BOOTSTRAPS // 10], medians[-_NUM_BOOTSTRAPS // 10]


if __name__ == "__main__":
    main()
