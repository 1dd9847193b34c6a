"""What it takes to look for earlier text to propose, and to learn from the verdict: without any model."""

import itertools
import random
import time
from collections.abc import Iterator

from planner.contracts.profile import ComputeMeasurement
from runtime.draft.costs import Costs
from runtime.draft.ngram import NgramDrafter
from runtime.measure.spread import spread
from runtime.proposal import Verdict

NODE_COUNTS = (4, 16, 64)
_PHRASE_TOKENS, _NUM_PHRASES = 12, 24  # of a text that repeats itself, and now and then does not
_CONTEXT_TOKENS = 512


def measure_ngrams(vocab_size: int, num_rounds: int) -> list[ComputeMeasurement]:
    """Seconds of a round with n-grams beside everything else, by the nodes that are looked for."""
    return [
        ComputeMeasurement(
            unit="ngram",
            processor="host",
            num_tokens=num_nodes,
            context_tokens=_CONTEXT_TOKENS,
            duration_s=spread(list(_rounds_s(vocab_size, num_nodes, num_rounds))),
        )
        for num_nodes in NODE_COUNTS
    ]


def _rounds_s(vocab_size: int, num_nodes: int, num_rounds: int) -> Iterator[float]:
    drafter = NgramDrafter(
        num_nodes=num_nodes,
        max_depth=num_nodes,
        min_match_tokens=1,
        costs=Costs.free(),
        corpus=None,
        vocab_size=vocab_size,
    )
    text = _text(vocab_size)
    context = list(itertools.islice(text, _CONTEXT_TOKENS))
    drafter.propose(context, num_nodes)
    for _ in range(num_rounds):
        context.append(next(text))
        started_s = time.perf_counter()
        proposal = drafter.propose(context, num_nodes)
        drafter.observe(proposal, Verdict((), context[0]))
        yield time.perf_counter() - started_s


def _text(vocab_size: int) -> Iterator[int]:
    """Phrases in a random order, one token in ten another."""
    drawn = random.Random(0)
    phrases = [[drawn.randrange(vocab_size) for _ in range(_PHRASE_TOKENS)] for _ in range(_NUM_PHRASES)]
    while True:
        for token in drawn.choice(phrases):
            yield token if drawn.random() < 0.9 else drawn.randrange(vocab_size)
