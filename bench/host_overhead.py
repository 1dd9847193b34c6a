"""What streaming and the round cost beside transfer and compute: 32 tiny layers, so that nothing else takes time.

Per unit edge: a streamed pass less its resident twin, over the number of streamed layers (so small that reading one
takes a few microseconds, which are counted in). Per round: what a plain round
takes outside the pass through the layers (verify, cache, text, reports).
"""

import argparse
from pathlib import Path

import torch

from bench.models import TINY_LAYERS, every_layer_streamed, make_checkpoint, print_header, print_json, quartiles
from bench.streaming_efficiency import open_model, passer, steady_passes
from planner.contracts.plan import DiskLink
from runtime.api import Limits, load, make_plan


def main() -> None:
    """Measure and print both figures."""
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
    resident.close()
    round_s = outside_layers_s(folder)
    print(f"per round outside the pass: {round_s * 1e3:.3f} ms")
    print_json({"edge_us": edge_s * 1e6, "round_outside_ms": round_s * 1e3})


def outside_layers_s(folder: Path) -> float:
    """Median seconds of a plain round that its pass does not explain."""
    with load(folder, limits=Limits(device="1400KiB"), context_tokens=210) as engine:
        engine.end_tokens = frozenset()
        generation = engine.generate("import os", max_tokens=200)
        for _ in generation:
            pass
        rounds = [entry.compute for entry in generation.report().rounds]
    return quartiles([split.host_s + split.unexplained_s for split in rounds])[1]


if __name__ == "__main__":
    main()
