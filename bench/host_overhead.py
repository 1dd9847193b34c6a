"""What streaming and the round cost beside transfer and compute: 32 tiny layers, so that nothing else takes time.

Per unit edge: a streamed pass less its resident twin, over the number of streamed layers (so small that reading one
takes a few microseconds, which are counted in). Per round: what a plain round takes outside the pass through the layers
(verify, cache, text, reports). Per tree round: what a round of 256 nodes takes outside the forwards of its models; the
draft is the target itself, so that paths are accepted.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from bench.models import TINY_LAYERS, every_layer_streamed, make_checkpoint, print_header, print_json, quartiles
from bench.streaming_efficiency import open_model, passer, steady_passes
from planner.contracts.plan import DiskLink
from runtime.api import Limits, load, make_plan
from runtime.cached import CachedModel
from runtime.draft.tree import TreeDrafter
from runtime.model import StreamedModel
from runtime.proposal import ROOT
from runtime.sampling import SamplingSettings, Uniforms
from runtime.verify import verify_greedy

TREE_NODES = 256
TREE_DEPTH = 8
PASS_NODES = 32
CONTEXT_TOKENS = 1024
NUM_WARM_UP_ROUNDS = 3

P = ParamSpec("P")
R = TypeVar("R")


def main() -> None:
    """Measure and print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("/tmp/draftstream-bench"))
    parser.add_argument("--passes", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = make_checkpoint(TINY_LAYERS, options.models)
    print_header("host overhead", folder)
    plan = every_layer_streamed(make_plan(folder, limits=Limits(device="1MiB"), context_tokens=64, link=DiskLink()))
    streamed, resident = open_model(folder, plan), open_model(folder, plan, is_resident=True)
    runs = {"streamed": passer(streamed.model, 1), "resident": passer(resident.model, 1)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(5):
        for name, run in runs.items():
            times[name] += steady_passes(run, options.passes // 5)
    streamed_s, resident_s = quartiles(times["streamed"])[1], quartiles(times["resident"])[1]
    edge_s = (streamed_s - resident_s) / len(plan.streamed)
    print(f"streamed pass {streamed_s * 1e3:.2f} ms, resident {resident_s * 1e3:.2f} ms")
    print(f"per streamed unit edge: {edge_s * 1e6:.1f} us over {len(plan.streamed)} units")
    streamed.close()
    tree_ms = tree_round_ms(resident, options.passes // 2)
    resident.close()
    round_s = outside_layers_s(folder)
    print(f"per round outside the pass: {round_s * 1e3:.3f} ms")
    print(f"per round of {TREE_NODES} nodes outside the passes:")
    print("\n".join(f"  {name:30} {spent_ms:6.3f} ms" for name, spent_ms in tree_ms.items()))
    print_json({"edge_us": edge_s * 1e6, "round_outside_ms": round_s * 1e3, "tree_round_outside_ms": tree_ms})


def outside_layers_s(folder: Path) -> float:
    """Median seconds of a plain round that its pass does not explain."""
    with load(folder, limits=Limits(device="1400KiB"), context_tokens=210) as engine:
        engine.end_tokens = frozenset()
        generation = engine.generate("import os", max_tokens=200)
        for _ in generation:
            pass
        rounds = [entry.compute for entry in generation.report().rounds]
    return quartiles([split.host_s + split.unexplained_s for split in rounds])[1]


class Stopwatch:
    """Seconds by name."""

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = defaultdict(float)

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """A block whose time counts for the name."""
        start_s = time.perf_counter()
        yield
        self.spent_s[name] += time.perf_counter() - start_s

    def timed(self, call: Callable[P, R], name: str) -> Callable[P, R]:
        """The same function, whose time counts for the name."""

        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.timing(name):
                return call(*args, **kwargs)

        return run


def tree_round_ms(streamed: StreamedModel, num_rounds: int) -> dict[str, float]:
    """Median milliseconds of each part of a tree round that is no forward of a model, and of their sums."""
    target, draft = (CachedModel(streamed, CONTEXT_TOKENS, TREE_NODES + 1) for _ in range(2))
    drafter = TreeDrafter(
        draft,
        SamplingSettings(),
        Uniforms(None),
        vocab_size=streamed.vocab_size,
        chunk_tokens=CONTEXT_TOKENS,
        num_nodes=TREE_NODES,
        max_depth=TREE_DEPTH,
        pass_nodes=PASS_NODES,
    )
    watch = Stopwatch()
    for owner, method, name in (
        (target._masks, "rows", "masks"),
        (target, "keep_path", "keep_path"),
        (draft, "forward", "draft passes"),
        (draft, "forward_tree", "draft passes"),
        (streamed.model, "forward", "forward"),
    ):
        setattr(owner, method, watch.timed(getattr(owner, method), name))
    context = list(range(1, 65))
    target.forward(context[:-1], 1)
    rounds = [tree_round_s(target, drafter, context, watch) for _ in range(NUM_WARM_UP_ROUNDS + num_rounds)]
    del streamed.model.forward  # of the instance: the class has its own
    return {name: quartiles([entry[name] for entry in rounds[NUM_WARM_UP_ROUNDS:]])[1] * 1e3 for name in rounds[0]}


def tree_round_s(target: CachedModel, drafter: TreeDrafter, context: list[int], watch: Stopwatch) -> dict[str, float]:
    """Seconds of each part of one round, which goes on with the context."""
    watch.spent_s.clear()
    with watch.timing("draft"):
        proposal = drafter.propose(context, TREE_DEPTH)
    assert len(proposal.tokens) == TREE_NODES
    draft_forward_s = watch.spent_s.pop("forward")
    with watch.timing("pass"):
        tokens = [context[-1], *proposal.tokens]
        logits_TV = target.forward_tree(tokens, [ROOT, *(parent + 1 for parent in proposal.parents)])
    with watch.timing("verification"):
        verdict = verify_greedy(logits_TV, proposal)
    target.keep_path([0, *(node + 1 for node in verdict.path)])
    with watch.timing("draft"):
        drafter.observe(proposal, verdict)
    context += [*(proposal.tokens[node] for node in verdict.path), verdict.next_token]
    spent_s = watch.spent_s
    parts_s = {
        "masks": spent_s["masks"],
        "ancestors, positions, check": spent_s["pass"] - spent_s["masks"] - spent_s["forward"],
        "verification": spent_s["verification"],
        "keep_path": spent_s["keep_path"],
    }
    drafting_s = {
        "growth of the drafted tree": spent_s["draft"] - spent_s["draft passes"],
        "the draft's masks and caches": spent_s["draft passes"] - draft_forward_s,
    }
    without_s = sum(parts_s.values())
    return {
        **parts_s,
        "without drafting": without_s,
        **drafting_s,
        "with drafting": without_s + sum(drafting_s.values()),
    }


if __name__ == "__main__":
    main()
