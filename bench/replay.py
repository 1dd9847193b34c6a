"""Draft policies replayed over recorded texts, without any model: greedy verification accepts exactly what matches.

Scores are tokens per unit of cost: a pass takes 1, each drafted token verified in it v, each pass of a draft model c.
The n-gram drafter is the runtime's own. Against it: the best static length over a fine grid, the best one of each phase
(an oracle), and an oracle that knows in each round how many tokens will be accepted.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from bench.models import print_header, print_json
from bench.texts import Recording, edited_texts, natural_texts, phased_texts, read_recordings
from planner.contracts.plan import RoundCosts
from profiles import demo_folder
from runtime.draft.costs import Costs
from runtime.draft.ngram import NgramDrafter
from runtime.proposal import ROOT, Proposal, Verdict

VERIFY_COSTS = (0.002, 0.01, 0.04, 0.1)
STATIC_LENS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 24, 32, 40, 48, 64)
MOST_NODES = 64


@dataclass(slots=True)
class Tally:
    """Tokens written, and what they cost."""

    tokens: int = 0
    cost: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per unit of cost."""
        return self.tokens / self.cost if self.cost else math.nan


@dataclass(frozen=True, slots=True)
class Chances:
    """What a free n-gram drafter proposes at each position of an output as one chain: its length, and what is right."""

    lengths: tuple[int, ...]
    hits: tuple[int, ...]


def main() -> None:
    """Replay every policy at every cost, and say how much of what an oracle gains the runtime's policy gets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=Path, nargs="*", default=[], help="JSON lines of recordings")
    parser.add_argument("--every", type=int, default=1, help="replay every n-th text only")
    options = parser.parse_args()
    print_header("replay")
    tokenizer = AutoTokenizer.from_pretrained(demo_folder("target"))
    vocab_size = len(tokenizer)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text))

    sets = {
        "natural": natural_texts(encode)[:: options.every],
        "three phases": phased_texts(encode)[:: options.every],
        "editing": edited_texts(encode)[:: options.every],
    }
    for path in options.recordings:
        sets[path.stem] = read_recordings(path)
    rows = []
    for name, recordings in sets.items():
        print(f"\n{name}: {len(recordings)} texts, {sum(len(one.output) for one in recordings)} tokens")
        print("     v  best K  static  adaptive   gain | per phase  per round  share of the round's oracle")
        chances = [chances_of(one, vocab_size) for one in recordings]
        for verify_cost in VERIFY_COSTS:
            row = score(name, recordings, chances, verify_cost, vocab_size)
            rows.append(row)
    print_json({"rows": rows})


def score(
    name: str, recordings: Sequence[Recording], chances: Sequence[Chances], verify_cost: float, vocab_size: int
) -> dict[str, object]:
    """One line: the best static length, the adaptive drafter, the oracles."""
    statics = {length: sum_up(static(chances, recordings, length, verify_cost)) for length in STATIC_LENS}
    best = max(statics, key=lambda length: statics[length].rate)
    static_rate = statics[best].rate
    adaptive = sum_up(adaptively(one, verify_cost, vocab_size) for one in recordings)
    by_phase = per_phase_oracle(recordings, chances, verify_cost)
    by_round = sum_up(per_round_oracle(recordings, chances, verify_cost))
    gain = adaptive.rate / static_rate - 1
    headroom = by_round.rate / static_rate - 1
    share = gain / headroom if headroom > 0 else math.nan
    print(
        f"{verify_cost:6.3f}  {best:6}  {static_rate:6.3f}  {adaptive.rate:8.3f}  {gain:+5.1%} | "
        f"{by_phase / static_rate - 1:+9.1%}  {headroom:+9.1%}  {share:6.0%}",
        flush=True,
    )
    return {
        "set": name,
        "verify_cost": verify_cost,
        "best_static": best,
        "static": static_rate,
        "adaptive": adaptive.rate,
        "gain_frac": gain,
        "per_phase_frac": by_phase / static_rate - 1,
        "per_round_frac": headroom,
    }


# --- policies ---


def adaptively(recording: Recording, verify_cost: float, vocab_size: int) -> Tally:
    """The runtime's n-gram drafter, with the costs of the table."""
    drafter = ngram_drafter(linear_costs(verify_cost), vocab_size)
    return replayed(drafter, recording, lambda proposal: 1 + verify_cost * len(proposal.tokens))


def static(
    chances: Iterable[Chances], recordings: Iterable[Recording], length: int, verify_cost: float
) -> Iterator[Tally]:
    """Always as many as there are, up to a length."""
    for one, recording in zip(chances, recordings, strict=True):
        yield walked(one, len(recording.output), verify_cost, lambda _, length=length: length)


def per_phase_oracle(recordings: Sequence[Recording], chances: Sequence[Chances], verify_cost: float) -> float:
    """Tokens per cost with the best static length of each phase; of texts without phases, the best of each kind."""
    by_phase: dict[str, dict[int, Tally]] = defaultdict(lambda: {length: Tally() for length in STATIC_LENS})
    for recording, one in zip(recordings, chances, strict=True):
        phases = recording.phases or ((0, recording.kind),)
        ends = [*(start for start, _ in phases[1:]), len(recording.output)]
        for (start, name), end in zip(phases, ends, strict=True):
            part = Chances(one.lengths[start:end], one.hits[start:end])
            for length, tally in by_phase[name].items():
                add(tally, walked(part, end - start, verify_cost, lambda _, length=length: length))
    best = [max(tallies.values(), key=lambda tally: tally.rate) for tallies in by_phase.values()]
    return sum_up(best).rate


def per_round_oracle(
    recordings: Sequence[Recording], chances: Sequence[Chances], verify_cost: float
) -> Iterator[Tally]:
    """Each round drafts just what will be accepted, as long as a token is worth its cost."""
    for recording, one in zip(recordings, chances, strict=True):
        yield walked(one, len(recording.output), verify_cost, lambda place, one=one: one.hits[place])


# --- replaying ---


def ngram_drafter(costs: Costs, vocab_size: int) -> NgramDrafter:
    """The runtime's drafter as a plan would make it."""
    return NgramDrafter(
        num_nodes=MOST_NODES,
        max_depth=MOST_NODES,
        min_match_tokens=1,
        costs=costs,
        corpus=None,
        vocab_size=vocab_size,
    )


def linear_costs(verify_cost: float) -> Costs:
    """A pass takes 1, and each drafted token more."""
    counts = (1, MOST_NODES + 1)
    return Costs(
        RoundCosts(
            num_verified=counts,
            round_s=tuple(1 + verify_cost * (count - 1) for count in counts),
            hidden_s=(0.0, 0.0),
        )
    )


def replayed(drafter: NgramDrafter, recording: Recording, cost: Callable[[Proposal], float]) -> Tally:
    """Rounds of the drafter until the output is written; its first token comes with the prompt."""
    output = recording.output
    context = [*recording.prompt, *output[:1]]
    tally, place = Tally(), 1
    while place < len(output):
        proposal = drafter.propose(context, len(output) - place - 1)
        path = accepted_path(proposal, output[place:])
        emitted = output[place : place + len(path) + 1]
        drafter.observe(proposal, Verdict(path, emitted[-1]))
        tally.tokens += len(emitted)
        tally.cost += cost(proposal)
        context += emitted
        place += len(emitted)
    return tally


def accepted_path(proposal: Proposal, text: Sequence[int]) -> tuple[int, ...]:
    """The nodes that a target which writes this text accepts."""
    path: list[int] = []
    node = ROOT
    for token in text:
        following = [child for child in proposal.children.get(node, ()) if proposal.tokens[child] == token]
        if not following or len(path) == len(text) - 1:
            break
        node = following[0]
        path.append(node)
    return tuple(path)


def chances_of(recording: Recording, vocab_size: int) -> Chances:
    """The likeliest chain at every position of the output, and how much of it the output follows."""
    drafter = ngram_drafter(Costs.free(), vocab_size)
    output = recording.output
    context = list(recording.prompt)
    lengths, hits = [0], [0]
    for place in range(1, len(output)):
        context.append(output[place - 1])
        chain = likeliest_chain(drafter.propose(context, MOST_NODES))
        drafter.observe(Proposal.chain((), source="ngram"), Verdict((), output[place]))
        hit = next((i for i, (a, b) in enumerate(zip(chain, output[place:], strict=False)) if a != b), None)
        hits.append(min(len(chain), len(output) - place - 1) if hit is None else min(hit, len(output) - place - 1))
        lengths.append(min(len(chain), len(output) - place - 1))
    return Chances(tuple(lengths), tuple(hits))


def likeliest_chain(proposal: Proposal) -> list[int]:
    """The first child of each node, from the root on."""
    chain: list[int] = []
    node = ROOT
    while node in proposal.children:
        node = proposal.children[node][0]
        chain.append(proposal.tokens[node])
    return chain


def walked(chances: Chances, num_tokens: int, verify_cost: float, length_at: Callable[[int], int]) -> Tally:
    """Rounds of chains of chosen lengths over one output, from its second token on."""
    tally, place = Tally(), min(1, num_tokens)
    while place < num_tokens:
        drafted = min(chances.lengths[place], length_at(place), num_tokens - place - 1)
        accepted = min(chances.hits[place], drafted)
        tally.tokens += accepted + 1
        tally.cost += 1 + verify_cost * drafted
        place += accepted + 1
    return tally


def sum_up(tallies: Iterable[Tally]) -> Tally:
    """All of them together."""
    total = Tally()
    for tally in tallies:
        add(total, tally)
    return total


def add(total: Tally, tally: Tally) -> None:
    """Count a tally too."""
    total.tokens += tally.tokens
    total.cost += tally.cost


if __name__ == "__main__":
    main()
