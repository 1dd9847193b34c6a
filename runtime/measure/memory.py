"""Bytes that process and device take beside what a plan counts exactly: a small real plan, run in a process of its own.

`python -m runtime.measure.memory PLAN THREADS` runs a plan and prints the peaks; it is this module's own other half.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from planner.contracts.errors import NoFeasiblePlanError, ResourceFailureError
from planner.contracts.plan import Dtype, LinkChoice, Plan
from planner.contracts.profile import MemoryMeasurement
from runtime.api import Limits, load, make_plan
from runtime.cached import CachedModel
from runtime.host import process_bytes

_NEW_TOKENS = 24
_CONTEXT_TOKENS = 256
_LEAST_BUDGET_BYTES = 4 * 2**20
_DRAFT_LEN = 4
_MOST_WIDTH = 10  # of the passes whose kernels are counted


def measure_memory(
    target: str, draft: str | None, dtype: Dtype, link: LinkChoice, max_context_tokens: int
) -> list[MemoryMeasurement]:
    """The overheads of the host and of the device, with a draft what that adds, and of each width on a CPU.

    On a CPU, where host and device cannot be told apart, all of it is the host's. The processes run at once.

    Raises: ResourceFailureError.
    """
    context_tokens = min(_CONTEXT_TOKENS, max_context_tokens)
    drafts = [None] if draft is None else [None, draft]
    plans = [_smallest_plan(target, name, dtype, link, context_tokens) for name in drafts]
    peaks = _run_at_once(plans)
    over = [_overheads(plan, peak) for plan, peak in zip(plans, peaks, strict=True)]
    found = [MemoryMeasurement(part="host_overhead", num_bytes=over[0]["host"])]
    if link.kind == "cuda":
        found.append(MemoryMeasurement(part="device_overhead", num_bytes=over[0]["device"]))
    else:
        found.append(MemoryMeasurement(part="width", num_bytes=peaks[0]["width"]))
    if draft is not None:
        added = max(0, over[1]["host"] - over[0]["host"])
        found.append(MemoryMeasurement(part="draft_host_overhead", num_bytes=added))
    if draft is not None and link.kind != "cuda":
        found.append(MemoryMeasurement(part="draft_width", num_bytes=peaks[1]["width"]))
    return found


def _smallest_plan(target: str, draft: str | None, dtype: Dtype, link: LinkChoice, context_tokens: int) -> Plan:
    """A plan in nearly as little memory as the target runs in, so that a large one is soon read."""
    budget_bytes = _LEAST_BUDGET_BYTES
    while True:
        try:
            return make_plan(
                target,
                draft=draft,
                limits=Limits(device=budget_bytes),
                context_tokens=context_tokens,
                draft_len=_DRAFT_LEN,
                dtype=dtype,
                link=link,
            )
        except NoFeasiblePlanError:
            budget_bytes *= 2
            if budget_bytes > 2**50:
                raise


def _run_at_once(plans: Sequence[Plan]) -> list[dict[str, int]]:
    with TemporaryDirectory() as folder:
        processes = []
        for index, plan in enumerate(plans):
            path = Path(folder) / f"plan-{index}.json"
            plan.write(path)
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", __spec__.name, str(path), str(torch.get_num_threads())],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        try:
            return [_peaks(process) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _peaks(process: subprocess.Popen[str]) -> dict[str, int]:
    output, complaints = process.communicate()
    if process.returncode != 0:
        raise ResourceFailureError(
            "the run that measures memory failed",
            why=(complaints.strip().splitlines() or [f"it ended with {process.returncode}"])[-1],
            remedy="free memory, or leave it out: planner profile --only links --only compute --only rounds",
        )
    peaks: dict[str, int] = json.loads(output.splitlines()[-1])
    return peaks


def _overheads(plan: Plan, peaks: dict[str, int]) -> dict[str, int]:
    """What the peaks are above what the plan counts exactly: all but its overheads and its margin."""
    memory = plan.memory
    device_bytes = memory.device_bytes - memory.overhead_bytes - memory.margin_bytes
    host_bytes = memory.host_bytes - memory.host_overhead_bytes
    if "total" in peaks:
        return {"host": max(0, peaks["total"] - device_bytes - host_bytes)}
    return {"host": max(0, peaks["host"] - host_bytes), "device": max(0, peaks["device"] - device_bytes)}


def _run(plan: Plan, num_threads: int) -> dict[str, int]:
    """Peaks of a run over the widest prefill pass of the plan and some rounds after it, on so many compute threads.

    On a CPU also what a width takes: of the draft's passes where there is one, else of the target's.
    """
    torch.set_num_threads(num_threads)
    with load(plan=plan) as engine:
        engine.end_tokens = frozenset()
        vocab_size = engine.target.streamed.vocab_size
        num_tokens = plan.context_tokens - _NEW_TOKENS - 1
        prompt = [index * 7 % min(vocab_size, 256) for index in range(num_tokens)]
        generation = engine.generate(prompt, max_tokens=_NEW_TOKENS)
        for _ in generation:
            pass
        measured = generation.report().measured
        peaks = {} if plan.link.kind == "cuda" else {"width": _width_bytes(engine.draft or engine.target)}
    if measured.total_bytes is not None:
        return {**peaks, "total": measured.total_bytes}
    return {**peaks, "host": measured.host_bytes or 0, "device": measured.device_bytes or 0}


def _width_bytes(model: CachedModel) -> int:
    """Bytes that the process keeps for each further width of a model's passes, of which the widest has run before.

    0 for a model that cannot forget tokens: it verifies one at a time.
    """
    if not model.can_roll_back:
        return 0
    widest = min(_MOST_WIDTH, model.context_tokens - 1)
    model.reset()
    model.forward([0], 1)

    def run(width: int) -> None:
        model.forward([0] * width, width)
        model.drop(width)

    run(widest)
    before_bytes = process_bytes("VmRSS")
    for width in range(2, widest):
        run(width)
    return max(0, process_bytes("VmRSS") - before_bytes) // max(1, widest - 2)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_run(Plan.read(Path(sys.argv[1])), int(sys.argv[2]))) + os.linesep)
