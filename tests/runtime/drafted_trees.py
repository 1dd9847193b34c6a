"""Models, drafters of trees and runs with them, for tests."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tiny_models import FAST_LINK, VOCAB_SIZE, placed

from planner.contracts.model_folder import open_model_folder
from planner.contracts.plan import RankPath
from runtime.cached import CachedModel
from runtime.checkpoint import Checkpoint
from runtime.clock import RoundClock
from runtime.decode import Sampling, decode_rounds, prefill
from runtime.draft.base import Drafter
from runtime.draft.costs import Costs
from runtime.draft.ngram import NgramDrafter
from runtime.draft.tree import TreeDrafter
from runtime.model import StreamedModel, all_resident
from runtime.sampling import SamplingSettings, Uniforms
from runtime.skeleton import build_skeleton

GREEDY = SamplingSettings()
CONTEXT_TOKENS = 96
FOREVER = 10**6


@contextmanager
def cached(folder: Path, most_nodes: int = 256, context_tokens: int = CONTEXT_TOKENS) -> Iterator[CachedModel]:
    """A resident float64 model."""
    opened = open_model_folder(folder)
    skeleton = build_skeleton(opened, "fp64")
    plan = all_resident(placed(folder, link=FAST_LINK), skeleton)
    with StreamedModel(skeleton, Checkpoint(opened, skeleton.model), plan) as streamed:
        yield CachedModel(streamed, context_tokens, most_nodes)


def tree_drafter(
    model: CachedModel,
    settings: SamplingSettings = GREEDY,
    *,
    num_nodes: int = 12,
    max_depth: int = 6,
    pass_nodes: int = 3,
    most_children: int | None = None,
    vocab_size: int = VOCAB_SIZE,
    costs: Costs | None = None,
    ngram: NgramDrafter | None = None,
    paths: Sequence[RankPath] = (),
) -> TreeDrafter:
    return TreeDrafter(
        model,
        settings,
        Uniforms(settings.seed),
        vocab_size=vocab_size,
        chunk_tokens=6,
        num_nodes=num_nodes,
        max_depth=max_depth,
        pass_nodes=pass_nodes,
        most_children=most_children,
        costs=costs,
        ngram=ngram,
        paths=paths,
    )


def ngram_drafter(num_nodes: int = 12, max_depth: int = 6) -> NgramDrafter:
    return NgramDrafter(
        num_nodes=num_nodes,
        max_depth=max_depth,
        min_match_tokens=1,
        costs=Costs.free(),
        corpus=None,
        vocab_size=VOCAB_SIZE,
    )


def written(
    target: CachedModel, drafter: Drafter | None, prompt: Sequence[int], num_tokens: int, settings: SamplingSettings
) -> tuple[list[int], int, int]:
    """The tokens of one run, and how many were drafted and accepted."""
    target.reset()
    sampling = Sampling(settings)
    context = [*prompt, prefill(target, prompt, sampling, 16)]
    rounds = list(decode_rounds(target, drafter, context, sampling, max_tokens=num_tokens - 1, clock=RoundClock()))
    drafted, accepted = (
        sum(getattr(entry, f"num_{kind}_tokens") for entry in rounds) for kind in ("draft", "accepted")
    )
    return context[len(prompt) :], drafted, accepted
