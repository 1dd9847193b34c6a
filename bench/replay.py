"""Draft policies replayed over recorded texts, without any model: greedy verification accepts exactly what matches.

Scores are tokens per unit of cost: a pass takes 1, each drafted token verified in it v, and a pass of a draft model c,
and c / 64 more for each of its nodes. The drafters are the runtime's own. Against the one of n-grams: the best static
length over a fine grid, the best one of each phase (an oracle), and an oracle that knows in each round how many tokens
will be accepted. Those with a draft model run over what the demo draft was recorded to say (`--record` makes the
recordings), with probabilities calibrated on other texts; against them: the best static length of either drafter and
the best static tree, sizes known afterwards, and oracles of the same kinds.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from transformers import AutoTokenizer

from bench.models import print_header, print_json
from bench.policies import (
    TIERS,
    Chances,
    Round,
    Source,
    Tally,
    always,
    best_static,
    chain_drafter,
    hybrid_drafter,
    linear_costs,
    model_chances,
    ngram_chances,
    ngram_drafter,
    pass_cost,
    per_phase_oracle,
    per_round_oracle,
    replayed,
    replayed_with_model,
    total,
    tree_drafter,
    walked,
)
from bench.profiled import known_before
from bench.recorded_draft import RecordedModel
from bench.static_trees import StaticTrees
from bench.texts import (
    DATA,
    Recording,
    edited_texts,
    natural_texts,
    phased_texts,
    read_recordings,
    write_recordings,
    written_texts,
)
from planner.calibration import calibration
from planner.contracts.profile import NUM_TOP_PROBS
from profiles import demo_folder
from runtime.api import load
from runtime.draft.base import Drafter

VERIFY_COSTS = (0.002, 0.01, 0.04, 0.1)
DRAFT_COST = 0.02
GOAL_FRAC = 0.08  # by which the hybrid should beat the best static length
ADAPTIVE = ("ngram", "chain", "tree", "hybrid")
_CONTEXT_TOKENS = 256


def main() -> None:
    """Replay every policy at every cost, and say how much better than static lengths the runtime's are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=Path, nargs="*", default=[], help="more recordings, as JSON lines")
    parser.add_argument("--every", type=int, default=1, help="replay every n-th text only")
    parser.add_argument("--verify-costs", type=float, nargs="+", default=VERIFY_COSTS)
    parser.add_argument("--only", choices=("ngrams", "drafts"))
    parser.add_argument("--record", type=Path, help="write recordings with the demo pair to this file, and stop")
    parser.add_argument(
        "--part", choices=("profile", "evaluation"), default="evaluation", help="of the texts to record"
    )
    options = parser.parse_args()
    if options.record is not None:
        folders = {role: demo_folder(role) for role in ("target", "draft")}
        with load(folders["target"], draft=folders["draft"], context_tokens=_CONTEXT_TOKENS) as engine:
            write_recordings(options.record, written_texts(engine, options.part))
        return
    print_header("replay")
    tokenizer = AutoTokenizer.from_pretrained(demo_folder("target"))
    vocab_size = len(tokenizer)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text))

    given = {path.stem: read_recordings(path) for path in options.recordings}
    rows = []
    if options.only != "drafts":
        sets = {
            "natural": natural_texts(encode)[:: options.every],
            "three phases": phased_texts(encode)[:: options.every],
            "editing": edited_texts(encode)[:: options.every],
        } | given
        rows += [
            row for name, texts in sets.items() for row in ngram_rows(name, texts, options.verify_costs, vocab_size)
        ]
    if options.only != "ngrams":
        drafted = read_recordings(DATA / "recordings.jsonl")[:: options.every]
        for stem, texts in given.items():
            usable = [one for one in texts if one.top_probs]
            drafted += usable
            if len(usable) < len(texts):
                print(f"{stem}: {len(texts) - len(usable)} recordings hold no top_probs of a draft: n-grams only")
        rows += draft_rows(drafted, options.verify_costs, vocab_size)
    print_json({"rows": rows})


# --- n-grams alone ---


def ngram_rows(
    name: str, recordings: Sequence[Recording], verify_costs: Sequence[float], vocab_size: int
) -> list[dict[str, object]]:
    """A table of one set of texts."""
    print(f"\n{name}: {len(recordings)} texts, {sum(len(one.output) for one in recordings)} tokens")
    print("     v  best K  static  adaptive   gain | per phase  per round  share of the round's oracle")
    chances = [ngram_chances(one, vocab_size) for one in recordings]
    return [ngram_row(name, recordings, chances, verify_cost, vocab_size) for verify_cost in verify_costs]


def ngram_row(
    name: str, recordings: Sequence[Recording], chances: Sequence[Chances], verify_cost: float, vocab_size: int
) -> dict[str, object]:
    """One line: the best static length, the adaptive drafter, the oracles."""
    best, at_best = best_static(chances, verify_cost)
    adaptive = total(entry for one in recordings for entry in ngram_rounds(one, verify_cost, vocab_size))
    by_phase = per_phase_oracle(recordings, [(chances, verify_cost)]).rate / at_best.rate - 1
    headroom = per_round_oracle([(chances, verify_cost)]).rate / at_best.rate - 1
    gain = adaptive.rate / at_best.rate - 1
    share = gain / headroom if headroom > 0 else math.nan
    print(
        f"{verify_cost:6.3f}  {best:6}  {at_best.rate:6.3f}  {adaptive.rate:8.3f}  {gain:+5.1%} | "
        f"{by_phase:+9.1%}  {headroom:+9.1%}  {share:6.0%}",
        flush=True,
    )
    return {
        "set": name,
        "verify_cost": verify_cost,
        "best_static": best,
        "static": at_best.rate,
        "adaptive": adaptive.rate,
        "gain_frac": gain,
        "per_phase_frac": by_phase,
        "per_round_frac": headroom,
    }


def ngram_rounds(recording: Recording, verify_cost: float, vocab_size: int) -> Iterable[Round]:
    """The runtime's n-gram drafter, with the costs of the table."""
    drafter = ngram_drafter(linear_costs(verify_cost), vocab_size)
    return replayed(drafter, recording, lambda proposal: 1 + verify_cost * len(proposal.tokens))


# --- with a draft model ---


def draft_rows(
    recordings: Sequence[Recording], verify_costs: Sequence[float], vocab_size: int
) -> list[dict[str, object]]:
    """A table of each kind of text, one of all, and one of the phases."""
    rounds = adaptive_rounds(recordings, verify_costs, vocab_size)
    kinds: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(recordings):
        kinds[one.kind].append(index)
    chances = {
        "ngram": [ngram_chances(one, vocab_size) for one in recordings],
        "chain": [model_chances(one) for one in recordings],
        "tree": [model_chances(one, NUM_TOP_PROBS) for one in recordings],
    }
    trees = StaticTrees(recordings)
    rows = []
    for name, chosen in {**kinds, "all": range(len(recordings))}.items():
        of_kind = {source: [of_text[index] for index in chosen] for source, of_text in chances.items()}
        num_tokens = sum(len(recordings[index].output) for index in chosen)
        print(f"\n{name}: {len(chosen)} texts, {num_tokens} tokens; draft pass {DRAFT_COST}")
        print("        best static:                                |  adaptive:                     | hybrid over")
        print("     v       n-grams          chain           tree  |  n-gram   chain    tree  hybrid | static    tree")
        of_name = []
        for verify_cost in verify_costs:
            tallies = {
                policy: total(entry for index in chosen for entry in rounds[policy, verify_cost][index])
                for policy in ADAPTIVE
            }
            (num_nodes, depth), static_tree = trees.best(chosen, verify_cost, DRAFT_COST)
            statics = best_statics(of_kind["ngram"], of_kind["chain"], verify_cost)
            statics["tree"] = (f"{num_nodes}/{depth}", static_tree)
            of_name.append(draft_row(name, statics, tallies, verify_cost))
        print("     v  over the best static, each round's oracle: headroom, share taken | hybrid, each phase's")
        for row in of_name:
            row |= oracle_row(row, [recordings[index] for index in chosen], of_kind)
        rows += of_name
    with_phases = [index for index, one in enumerate(recordings) if one.phases]
    if with_phases:
        rows += phase_rows(
            [recordings[index] for index in with_phases],
            {cost: [rounds["chain", cost][index] for index in with_phases] for cost in verify_costs},
        )
    return rows


def adaptive_rounds(
    recordings: Sequence[Recording], verify_costs: Sequence[float], vocab_size: int
) -> dict[tuple[str, float], list[list[Round]]]:
    """The rounds of every adaptive policy at every cost of verification, of each recording."""
    curve_of = lru_cache(maxsize=None)(calibration)
    known = known_before(recordings)
    rounds: dict[tuple[str, float], list[list[Round]]] = defaultdict(list)
    for index, one in enumerate(recordings):
        model, curve = RecordedModel(one, vocab_size), curve_of(known[index])
        for verify_cost in verify_costs:
            costs = linear_costs(verify_cost, DRAFT_COST)
            drafters: dict[str, Drafter] = {
                "chain": chain_drafter(model, costs, curve),
                "tree": tree_drafter(model, costs, curve),
                "hybrid": hybrid_drafter(model, costs, curve, vocab_size),
            }
            rounds["ngram", verify_cost].append(list(ngram_rounds(one, verify_cost, vocab_size)))
            for name, drafter in drafters.items():
                model.reset()
                rounds[name, verify_cost].append(
                    list(replayed_with_model(drafter, model, one, verify_cost, DRAFT_COST))
                )
    return rounds


def best_statics(
    copies: Sequence[Chances], chains: Sequence[Chances], verify_cost: float
) -> dict[str, tuple[str, Tally]]:
    """The best static length of copies and of the draft's chain, with what each writes and costs."""
    copied_len, copied = best_static(copies, verify_cost)
    chain_len, chain = best_static(chains, verify_cost + pass_cost(DRAFT_COST))
    return {"ngram": (str(copied_len), copied), "chain": (str(chain_len), chain)}


def oracle_row(
    row: Mapping[str, object], recordings: Sequence[Recording], chances: Mapping[str, Sequence[Chances]]
) -> dict[str, object]:
    """One line: how much more rounds bring that draft just what will be accepted, and how much of that is taken.

    The tree's oracle knows which of the draft's choices is right; the hybrid's takes the best of all three in each
    round, and of the best static drafter in each phase.
    """
    verify_cost = float(str(row["verify_cost"]))
    drafted_cost = verify_cost + pass_cost(DRAFT_COST)
    costs = {"ngram": verify_cost, "chain": drafted_cost, "tree": drafted_cost}
    sources: dict[str, list[Source]] = {name: [(chances[name], cost)] for name, cost in costs.items()}
    sources["hybrid"] = [of_kind for name in costs for of_kind in sources[name]]
    static = {name: float(str(row[f"static_{name}"])) for name in costs}
    static["hybrid"] = max(static.values())
    found: dict[str, object] = {}
    texts = []
    for name in ADAPTIVE:
        headroom = per_round_oracle(sources[name]).rate / static[name] - 1
        share = (float(str(row[name])) / static[name] - 1) / headroom if headroom > 0 else math.nan
        found |= {f"{name}_oracle_frac": headroom, f"{name}_share_frac": share}
        texts.append(f"{name} {headroom:+6.0%} {share:5.0%}")
    in_phases = per_phase_oracle(recordings, [*sources["ngram"], *sources["chain"]]).rate
    by_phase = max(in_phases, static["hybrid"]) / static["hybrid"] - 1  # or the static tree, in all of them
    print(f"{verify_cost:6.3f}  " + "   ".join(texts) + f" | {by_phase:+7.1%}", flush=True)
    return found | {"hybrid_phase_oracle_frac": by_phase}


def draft_row(
    name: str, statics: Mapping[str, tuple[str, Tally]], tallies: Mapping[str, Tally], verify_cost: float
) -> dict[str, object]:
    """One line: the best static drafters with their sizes, the adaptive ones."""
    rates = {policy: tallies[policy].rate for policy in ADAPTIVE}
    gain = rates["hybrid"] / max(tally.rate for _, tally in statics.values()) - 1
    over_tree = rates["hybrid"] / rates["tree"] - 1
    missed = "" if gain >= GOAL_FRAC else "  below the goal"
    print(
        f"{verify_cost:6.3f}  "
        + "  ".join(f"{size:>5}: {tally.rate:6.3f}" for size, tally in statics.values())
        + " |  "
        + "  ".join(f"{rate:6.3f}" for rate in rates.values())
        + f" | {gain:+7.1%}  {over_tree:+7.1%}{missed}",
        flush=True,
    )
    return {
        "set": f"drafted {name}",
        "verify_cost": verify_cost,
        **{f"best_static_{kind}": size for kind, (size, _) in statics.items()},
        **{f"static_{kind}": tally.rate for kind, (_, tally) in statics.items()},
        **rates,
        "hybrid_gain_frac": gain,
        "hybrid_over_tree_frac": over_tree,
    }


def phase_rows(
    recordings: Sequence[Recording], adaptive: Mapping[float, Sequence[Sequence[Round]]]
) -> list[dict[str, object]]:
    """Chains of the tiers' lengths against the adaptive one, in each phase by where a round begins."""
    print(f"\nphases: {len(recordings)} texts; draft pass {DRAFT_COST}")
    print("phase            v  " + "".join(f"  K = {length:<3}" for length in TIERS) + "  adaptive   over the best")
    rows: list[dict[str, object]] = []
    chances = [model_chances(one) for one in recordings]
    for verify_cost, rounds in adaptive.items():
        token_cost = verify_cost + pass_cost(DRAFT_COST)
        by_policy = {
            length: by_phase(recordings, [list(walked(one, token_cost, always(length))) for one in chances])
            for length in TIERS
        }
        of_adaptive = by_phase(recordings, rounds)
        for phase, tally in of_adaptive.items():
            rates = {length: by_policy[length][phase].rate for length in TIERS}
            gain = tally.rate / max(rates.values()) - 1
            shown = "".join(f"  {rate:7.3f}" for rate in rates.values())
            print(f"{phase:12} {verify_cost:6.3f} {shown}   {tally.rate:7.3f}   {gain:+7.1%}", flush=True)
            rows.append(
                {
                    "set": f"phase {phase}",
                    "verify_cost": verify_cost,
                    **{f"static_{length}": rate for length, rate in rates.items()},
                    "adaptive": tally.rate,
                    "gain_frac": gain,
                }
            )
    return rows


def by_phase(recordings: Sequence[Recording], rounds: Sequence[Sequence[Round]]) -> dict[str, Tally]:
    """Tallies of the phases, and of all of them together."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for recording, own in zip(recordings, rounds, strict=True):
        for entry in own:
            phase = next(name for start, name in reversed(recording.phases) if start <= entry.place)
            tallies[phase].add(entry)
    return {**tallies, "all phases": total(tallies.values())}


if __name__ == "__main__":
    main()
