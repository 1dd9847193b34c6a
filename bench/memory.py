"""Planned against measured memory: a model of 1.9 GB in a budget of 400 MiB over the disk link, over 1,000 tokens.

Each run is a process of its own. What counts is the peak of its resident set above that of a process with the same
imports that runs a one-layer model; the rule is measured <= planned <= 1.08 x measured.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from bench.models import LARGE, make_checkpoint, print_header, print_json
from planner.contracts.plan import Plan
from runtime.api import Limits, load, make_plan
from runtime.host import process_bytes

NUM_TOKENS = 1000
PROMPT_TOKENS = 600  # longer than the widest prefill chunk, so that the widest pass is run


def main() -> None:
    """Run both processes and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("/tmp/draftstream-bench"))
    parser.add_argument("--device-memory", default="400MiB")
    parser.add_argument("--tokens", type=int, default=NUM_TOKENS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan is not None:
        print_json(generate(Plan.read(options.plan), options.tokens))
        return
    folder = make_checkpoint(LARGE, options.models)
    print_header("memory", folder)
    context_tokens = options.tokens + PROMPT_TOKENS + 8
    plan = make_plan(
        folder, limits=Limits(device=options.device_memory), context_tokens=context_tokens, link="disk:cached"
    )
    least_bytes = one_layer_bytes(options.models)
    measured = in_process(plan, options.tokens, options.models)
    taken = measured["peak_bytes"] - least_bytes
    planned = plan.memory.device_bytes + plan.memory.host_bytes
    mib = 2**20
    print(f"planned {planned / mib:.1f} MiB: {', '.join(f'{n} {b / mib:.1f}' for n, b in plan.memory if b)}")
    print(f"measured {taken / mib:.1f} MiB above a one-layer process ({least_bytes / mib:.1f} MiB)")
    print(f"planned / measured = {planned / taken:.3f}")
    growth = measured["after_bytes"] - measured["early_bytes"]
    print(f"resident set from token 32 to token {options.tokens}: {growth / mib:+.2f} MiB")
    print_json({"planned_over_measured": planned / taken, "growth_bytes": growth})


def one_layer_bytes(models: Path) -> int:
    """Peak of a process with the same imports that runs a one-layer model."""
    tiny = make_checkpoint(
        replace(
            LARGE,
            name="llama-1-layer",
            num_layers=1,
            hidden_size=64,
            intermediate_size=128,
            num_heads=2,
            num_kv_heads=1,
            vocab_size=4096,
        ),
        models,
    )
    return in_process(make_plan(tiny, context_tokens=64, link="disk:cached"), 8, models)["peak_bytes"]


def in_process(plan: Plan, num_tokens: int, folder: Path) -> dict[str, int]:
    """What `generate` returns in a process of its own."""
    path = folder / "plan.json"
    plan.write(path)
    command = [sys.executable, "-m", "bench.memory", "--plan", str(path), "--tokens", str(num_tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def generate(plan: Plan, num_tokens: int) -> dict[str, int]:
    """Bytes of this process: at its peak, after 32 tokens and at the end; and those that its report tells."""
    torch.set_num_threads(1)
    early_bytes = 0
    with load(plan=plan) as engine:
        engine.end_tokens = frozenset()
        prompt = [index % 1000 for index in range(min(PROMPT_TOKENS, plan.context_tokens - num_tokens - 1))]
        generation = engine.generate(prompt, max_tokens=num_tokens)
        for index, _ in enumerate(generation):
            if index == 32:
                early_bytes = process_bytes("VmRSS")
        after_bytes = process_bytes("VmRSS")
        reported_bytes = generation.report().measured.total_bytes or 0
    return {
        "peak_bytes": process_bytes("VmHWM"),
        "early_bytes": early_bytes,
        "after_bytes": after_bytes,
        "reported_bytes": reported_bytes,
    }


if __name__ == "__main__":
    main()
