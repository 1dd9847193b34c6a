"""How long planning takes: an 80-layer model of the catalogue from the shell, and 100,000 candidates scored."""

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench.models import print_header, print_json
from planner.budget import Budget
from planner.contracts.plan import CudaLink, Workload
from planner.drafting import chain
from planner.estimate import estimated_profile
from planner.scoring import Candidate
from planner.search import candidates_of, request_for, scorer_for
from profiles import catalogue

NUM_CANDIDATES = 100_000
SHELL_GOAL_S, SCORE_GOAL_S = 1.0, 10.0
SHELL = ("--machine", "rtx-4090", "--target", "llama-3.1-70b", "--draft", "llama-3.2-1b", "--text", "code")


def main() -> None:
    """Measure both and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    print_header("planning")
    shell = [_shell_s() for _ in range(options.runs)]
    shell_s = statistics.median(shell)
    print(f"planner recommend {' '.join(SHELL)}:")
    print(f"  {shell_s:.2f} s of {SHELL_GOAL_S} s ({min(shell):.2f}-{max(shell):.2f})")
    score_s = _score_s()
    print(f"{NUM_CANDIDATES} candidates of llama-3.1-70b scored: {score_s:.1f} s of {SCORE_GOAL_S} s")
    print_json({"shell_s": shell_s, "score_s": score_s})


def _shell_s() -> float:
    start_s = time.perf_counter()
    command = [str(Path(sys.executable).parent / "planner"), "recommend", *SHELL]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start_s


def _score_s() -> float:
    """Seconds of scoring candidates that differ in budget, draft, length, slots and prefill chunk."""
    names = ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b")
    target, drafts = catalogue.model("llama-3.1-70b"), [catalogue.model(name) for name in names]
    curves = [catalogue.acceptance(target.name, name, "code") for name in names]
    profile = estimated_profile(catalogue.machine("rtx-4090"), target, drafts, curves, dtype="bf16", link="cuda")
    workload = Workload(prompt_tokens=512, new_tokens=256, domain="code")
    candidates: list[Candidate] = []
    host_bytes = 200 * 2**30
    request = request_for(profile, Budget(device_bytes=2**30, host_bytes=host_bytes), CudaLink(), "cuda:0", workload)
    device_bytes = 12 * 2**30
    while len(candidates) < NUM_CANDIDATES:
        budget = Budget(device_bytes=device_bytes, host_bytes=host_bytes)
        asked = replace(request, budget=budget, draftings=tuple(chain(length) for length in range(65)))
        for draft in (None, *drafts):
            candidates += candidates_of(target, draft, asked)
        device_bytes += 2**28
    start_s = time.perf_counter()
    scorer_for(profile, request).score(candidates[:NUM_CANDIDATES])
    return time.perf_counter() - start_s


if __name__ == "__main__":
    main()
