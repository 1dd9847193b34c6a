"""How close a streamed pass comes to the larger of its transfer and its compute time, on the emulated link.

Transfers are m (latency + bytes / stated bandwidth) by definition of the link; compute is the resident twin's pass,
measured in turn with the streamed one. The ratio of the two is set by the number of tokens in a pass. All layers are
streamed and alike: a resident layer among them, or a smaller unit, costs up to 4 % near ratio 1 with two slots by the
schedule's own recurrence, which would be the plan's doing and not the runtime's.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from transformers import PreTrainedModel

from bench.models import SMALL, every_layer_streamed, make_checkpoint, print_header, print_json, quartiles
from planner.contracts.model_folder import open_model_folder
from planner.contracts.plan import EmulatedLink, Plan
from runtime.api import Limits, make_plan
from runtime.checkpoint import Checkpoint
from runtime.model import StreamedModel, all_resident
from runtime.skeleton import build_skeleton

RATIOS = (0.5, 1.0, 2.0, 4.0)
NUM_BLOCKS = 3


def main() -> None:
    """Measure and print one row per ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("/tmp/draftstream-bench"))
    parser.add_argument("--gbytes-per-s", type=float, default=2.0)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--passes", type=int, default=24, help="of each kind and ratio")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = make_checkpoint(SMALL, options.models)
    print_header("streaming efficiency", folder)
    link = EmulatedLink(bytes_per_s=options.gbytes_per_s * 1e9, latency_s=20e-6)
    plan = every_layer_streamed(
        make_plan(folder, limits=Limits(device="160MiB"), context_tokens=1024, num_slots=options.slots, link=link)
    )
    streamed, resident = open_model(folder, plan), open_model(folder, plan, is_resident=True)
    transfer_s = sum(link.latency_s + unit.dense_bytes / link.bytes_per_s for unit in plan.streamed)
    print(f"{plan.streamed_bytes / 1e6:.0f} MB per pass, {streamed.link.label}: {transfer_s * 1e3:.0f} ms")
    tokens_of = tokens_by_ratio(resident.model, transfer_s)
    rows = []
    print("ratio  tokens  compute ms  pass ms (quartiles)          pass / larger of the two")
    for ratio, num_tokens in tokens_of.items():
        alone, streaming = passer(resident.model, num_tokens), passer(streamed.model, num_tokens)
        compute, passes = [], []
        for _ in range(NUM_BLOCKS):  # in turn, so that a drift of the machine meets both alike
            compute += steady_passes(alone, options.passes // NUM_BLOCKS)
            passes += steady_passes(streaming, options.passes // NUM_BLOCKS)
        compute_s = quartiles(compute)[1]
        low, median, high = quartiles(passes)
        efficiency = median / max(transfer_s, compute_s)
        print(
            f"{transfer_s / compute_s:5.2f}  {num_tokens:6d}  {compute_s * 1e3:10.1f}  "
            f"{low * 1e3:8.1f} {median * 1e3:8.1f} {high * 1e3:8.1f}   {efficiency:8.4f}"
        )
        rows.append({"ratio_wanted": ratio, "ratio": transfer_s / compute_s, "pass_over_larger": efficiency})
    print_json({"slots": options.slots, "rows": rows})
    streamed.close()
    resident.close()


def open_model(folder: Path, plan: Plan, *, is_resident: bool = False) -> StreamedModel:
    """The model by the plan, or its twin in which nothing streams."""
    opened = open_model_folder(folder)
    skeleton = build_skeleton(opened, plan.dtype)
    checkpoint = Checkpoint(opened, skeleton.model)
    return StreamedModel(skeleton, checkpoint, all_resident(plan, skeleton) if is_resident else plan)


def passer(model: PreTrainedModel, num_tokens: int) -> Callable[[], float]:
    """A function that runs one pass over so many tokens and returns its seconds."""
    tokens = torch.arange(num_tokens)[None] % 1000

    @torch.inference_mode()
    def run() -> float:
        start_s = time.perf_counter()
        model(tokens, use_cache=False, logits_to_keep=1)
        return time.perf_counter() - start_s

    return run


def steady_passes(run: Callable[[], float], num_passes: int) -> list[float]:
    """Times of passes back to back, after two that fill the pipeline."""
    for _ in range(2):
        run()
    return [run() for _ in range(num_passes)]


def tokens_by_ratio(resident: PreTrainedModel, transfer_s: float) -> dict[float, int]:
    """For each transfer/compute ratio, the number of tokens whose pass computes so long, read off a coarse curve."""
    grid = (1, 4, 16, 48, 96, 192, 384)
    curve_s = []
    for num_tokens in grid:
        run = passer(resident, num_tokens)
        run()
        curve_s.append(min(run() for _ in range(3)))
    wanted_s = [transfer_s / ratio for ratio in RATIOS]
    tokens = numpy.interp(wanted_s, numpy.maximum.accumulate(curve_s), grid)
    return {ratio: max(1, round(float(count))) for ratio, count in zip(RATIOS, tokens, strict=True)}


if __name__ == "__main__":
    main()
