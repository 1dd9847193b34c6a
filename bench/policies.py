"""What a replayed policy writes and what that costs: the runtime's drafters, static lengths, and oracles.

A pass of the target takes 1, each drafted token verified in it v, and a pass of a draft model over W nodes
c (1 + W / 64).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.recorded_draft import RecordedModel
from bench.texts import Recording
from planner.contracts.plan import ProbabilityCurve, RoundCosts
from planner.drafting import Drafting
from runtime.draft.base import Drafter
from runtime.draft.costs import Costs
from runtime.draft.model import ChainDrafter
from runtime.draft.ngram import NgramDrafter
from runtime.draft.tree import TreeDrafter
from runtime.proposal import ROOT, Proposal, Verdict
from runtime.sampling import SamplingSettings, Uniforms

STATIC_LENS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 24, 32, 40, 48, 64)
TIERS = (1, 3, 7, 15)
MOST_NODES = 64
FULL_TREE = Drafting(kind="tree", num_nodes=MOST_NODES, max_depth=12, pass_nodes=8)
_CHUNK_TOKENS = 512
_NODES_THAT_DOUBLE_A_PASS = 64


@dataclass(frozen=True, slots=True)
class Round:
    """Where in the output it began, the tokens that it wrote, and what it cost."""

    place: int
    tokens: int
    cost: float


@dataclass(slots=True)
class Tally:
    """Tokens written, and what they cost."""

    tokens: int = 0
    cost: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per unit of cost."""
        return self.tokens / self.cost if self.cost else math.nan

    def add(self, part: "Round | Tally") -> None:
        """Count this too."""
        self.tokens += part.tokens
        self.cost += part.cost


@dataclass(frozen=True, slots=True)
class Chances:
    """The chain that is proposed at each position of an output if length is free: how long it is, how much is right."""

    lengths: tuple[int, ...]
    hits: tuple[int, ...]


def total(parts: Iterable[Round | Tally]) -> Tally:
    """All of them together."""
    tally = Tally()
    for part in parts:
        tally.add(part)
    return tally


# --- costs ---


def pass_cost(draft_cost: float, num_nodes: int = 1) -> float:
    """A pass of the draft over so many nodes."""
    return draft_cost * (1 + num_nodes / _NODES_THAT_DOUBLE_A_PASS)


def linear_costs(verify_cost: float, draft_cost: float | None = None) -> Costs:
    """The table of a plan with these costs; no draft model if `draft_cost` is None."""
    counts, nodes = (1, MOST_NODES + 1), (1, MOST_NODES)
    return Costs(
        RoundCosts(
            num_verified=counts,
            round_s=tuple(1 + verify_cost * (count - 1) for count in counts),
            hidden_s=(0.0, 0.0),
            pass_nodes=() if draft_cost is None else nodes,
            draft_pass_s=() if draft_cost is None else tuple(pass_cost(draft_cost, count) for count in nodes),
        )
    )


# --- the runtime's drafters ---


def ngram_drafter(costs: Costs, vocab_size: int, num_nodes: int = MOST_NODES) -> NgramDrafter:
    """The n-gram drafter as a plan would make it."""
    return NgramDrafter(
        num_nodes=num_nodes, max_depth=num_nodes, min_match_tokens=1, costs=costs, corpus=None, vocab_size=vocab_size
    )


def chain_drafter(model: RecordedModel, costs: Costs, curve: ProbabilityCurve | None) -> ChainDrafter:
    """The adaptive chain."""
    settings = SamplingSettings()
    return ChainDrafter(
        model.as_cached(),
        settings,
        Uniforms(settings.seed),
        vocab_size=model.streamed.vocab_size,
        chunk_tokens=_CHUNK_TOKENS,
        draft_len=TIERS[-1],
        tiers=TIERS,
        costs=costs,
        calibration=curve,
    )


def tree_drafter(
    model: RecordedModel,
    costs: Costs,
    curve: ProbabilityCurve | None,
    ngram: NgramDrafter | None = None,
    size: Drafting = FULL_TREE,
) -> TreeDrafter:
    """The adaptive tree; with an n-gram drafter the hybrid."""
    settings = SamplingSettings()
    return TreeDrafter(
        model.as_cached(),
        settings,
        Uniforms(settings.seed),
        vocab_size=model.streamed.vocab_size,
        chunk_tokens=_CHUNK_TOKENS,
        num_nodes=size.num_nodes,
        max_depth=size.max_depth,
        pass_nodes=size.pass_nodes,
        calibration=curve,
        costs=costs,
        ngram=ngram,
    )


def hybrid_drafter(
    model: RecordedModel,
    costs: Costs,
    curve: ProbabilityCurve | None,
    vocab_size: int,
    size: Drafting = FULL_TREE,
) -> TreeDrafter:
    """The adaptive tree with copies of earlier text in it."""
    return tree_drafter(model, costs, curve, ngram_drafter(costs, vocab_size, size.num_nodes), size)


def replayed(drafter: Drafter, recording: Recording, cost: Callable[[Proposal], float]) -> Iterator[Round]:
    """Rounds of the drafter until the output is written; its first token comes with the prompt."""
    output = recording.output
    context = [*recording.prompt, *output[:1]]
    place = 1
    while place < len(output):
        proposal = drafter.propose(context, len(output) - place - 1)
        path = accepted_path(proposal, output[place:])
        emitted = output[place : place + len(path) + 1]
        drafter.observe(proposal, Verdict(path, emitted[-1]))
        yield Round(place, len(emitted), cost(proposal))
        context += emitted
        place += len(emitted)


def replayed_with_model(
    drafter: Drafter, model: RecordedModel, recording: Recording, verify_cost: float, draft_cost: float
) -> Iterator[Round]:
    """Rounds of a drafter over a model, whose passes are counted as it makes them."""

    def cost(proposal: Proposal) -> float:
        drafted = sum(pass_cost(draft_cost, num_nodes) for num_nodes in model.passes)
        model.passes.clear()
        return 1 + verify_cost * len(proposal.tokens) + drafted

    return replayed(drafter, recording, cost)


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


# --- chains of chosen lengths ---


def ngram_chances(recording: Recording, vocab_size: int) -> Chances:
    """The likeliest chain of copies at every position of the output, and how much of it the output follows."""
    drafter = ngram_drafter(Costs.free(), vocab_size)
    output = recording.output
    context = list(recording.prompt)
    lengths, hits = [0], [0]
    for place in range(1, len(output)):
        context.append(output[place - 1])
        chain = _likeliest_chain(drafter.propose(context, MOST_NODES))
        drafter.observe(Proposal.chain((), source="ngram"), Verdict((), output[place]))
        hit = next((i for i, (a, b) in enumerate(zip(chain, output[place:], strict=False)) if a != b), None)
        hits.append(min(len(chain), len(output) - place - 1) if hit is None else min(hit, len(output) - place - 1))
        lengths.append(min(len(chain), len(output) - place - 1))
    return Chances(tuple(lengths), tuple(hits))


def model_chances(recording: Recording, num_choices: int = 1) -> Chances:
    """The draft's own chain at every position: it goes on for ever, and is right while the text is its first choice.

    With more choices, the path that always takes the right one of them.
    """
    num_tokens = len(recording.output)
    hits = [0] * (num_tokens + 1)
    for place in range(num_tokens - 1, -1, -1):
        hits[place] = hits[place + 1] + 1 if recording.ranks[place] < num_choices else 0
    return Chances((num_tokens,) * num_tokens, tuple(hits[:num_tokens]))


def _likeliest_chain(proposal: Proposal) -> list[int]:
    """The first child of each node, from the root on."""
    chain: list[int] = []
    node = ROOT
    while node in proposal.children:
        node = proposal.children[node][0]
        chain.append(proposal.tokens[node])
    return chain


def walked(chances: Chances, token_cost: float, length_at: Callable[[int], int]) -> Iterator[Round]:
    """Rounds of chains of chosen lengths over one output, from its second token on; a drafted token costs so much."""
    place = min(1, len(chances.hits))
    while place < len(chances.hits):
        entry = round_at(chances, place, length_at(place), token_cost)
        yield entry
        place += entry.tokens


def round_at(chances: Chances, place: int, length: int, token_cost: float) -> Round:
    """The round that begins there with a chain of at most so many tokens."""
    drafted = min(chances.lengths[place], length, len(chances.hits) - place - 1)
    accepted = min(chances.hits[place], drafted)
    return Round(place, accepted + 1, 1 + token_cost * drafted)


def always(length: int) -> Callable[[int], int]:
    """The same length wherever a round begins."""
    return lambda _: length


def static(chances: Iterable[Chances], length: int, token_cost: float) -> Tally:
    """Always as many as there are, up to a length."""
    return total(entry for one in chances for entry in walked(one, token_cost, always(length)))


def best_static(chances: Sequence[Chances], token_cost: float) -> tuple[int, Tally]:
    """The length that is best over all of them, known afterwards."""
    tallies = {length: static(chances, length, token_cost) for length in STATIC_LENS}
    best = max(tallies, key=lambda length: tallies[length].rate)
    return best, tallies[best]


Source = tuple[Sequence[Chances], float]  # the chances of each recording, and what a token of such a chain costs


def per_phase_oracle(recordings: Sequence[Recording], sources: Sequence[Source]) -> Tally:
    """With the source and static length that are best in each phase; of texts without phases, in each kind."""
    by_phase: dict[str, list[tuple[int, slice]]] = defaultdict(list)
    for index, recording in enumerate(recordings):
        phases = recording.phases or ((0, recording.kind),)
        ends = [*(start for start, _ in phases[1:]), len(recording.output)]
        for (start, name), end in zip(phases, ends, strict=True):
            by_phase[name].append((index, slice(start, end)))

    def best(places: Sequence[tuple[int, slice]]) -> Tally:
        tallies = [
            best_static([Chances(chances[i].lengths[at], chances[i].hits[at]) for i, at in places], token_cost)[1]
            for chances, token_cost in sources
        ]
        return max(tallies, key=lambda tally: tally.rate)

    return total(map(best, by_phase.values()))


def per_round_oracle(sources: Sequence[Source]) -> Tally:
    """Each round drafts just what will be accepted, from the source that writes most for its cost."""
    tally = Tally()
    for index in range(len(sources[0][0])):
        num_tokens = len(sources[0][0][index].hits)
        place = min(1, num_tokens)
        while place < num_tokens:
            rounds = [round_at(chances[index], place, chances[index].hits[place], cost) for chances, cost in sources]
            best = max(rounds, key=lambda entry: entry.tokens / entry.cost)
            tally.add(best)
            place += best.tokens
    return tally
