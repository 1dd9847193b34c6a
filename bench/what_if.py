"""How fast what-if answers: candidates scored for maps, a slider's move to the drawn figures, the notebook's start."""

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace

from bench.models import print_header, print_json
from planner.api import from_catalogue
from planner.changes import Change, Situation
from planner.notebook import FromCatalogue, Session
from planner.scoring import Candidate
from planner.search import candidates_of, scorer_for

NUM_EVALUATIONS = 10_000
EVALUATIONS_GOAL_S, MOVE_GOAL_S, START_GOAL_S = 2.0, 0.2, 5.0
GIB = 2**30
PAIRS = {"80 layers": ("llama-3.1-70b", "llama-3.2-1b", "code"), "64 layers": ("qwen2.5-32b", "qwen2.5-0.5b", "chat")}
MOVES: dict[str, list[Change]] = {
    "memory": [Change(device_bytes=gib * GIB) for gib in (16, 18, 20, 22, 26, 28, 32)],
    "bandwidth": [Change(link_bytes_per_s=rate * 1e9) for rate in (8, 12, 16, 32, 48, 64)],
    "context": [Change(context_tokens=count) for count in (1024, 1536, 2048, 3072, 4096)],
    "length": [Change(kind="chain", num_nodes=count) for count in (1, 2, 4, 8, 12, 16)],
}
START = "from planner.notebook import open_page; open_page().root"


def main() -> None:
    """Measure all three and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print_header("what if")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    results: dict[str, float] = {}
    situation, what = _situation("80 layers"), "placed and scored"
    scored = [_placed_and_scored_s(situation) for _ in range(options.runs)]
    results[what] = _said(f"{NUM_EVALUATIONS} plans of llama-3.1-70b {what}", scored, EVALUATIONS_GOAL_S)
    for name in PAIRS:
        print(f"a slider's move, {name}:")
        for control, changes in MOVES.items():
            for what, taken in _moves_s(name, changes).items():
                goal_s = MOVE_GOAL_S if what == "curve drawn" else None
                results[f"{name}, {control}, {what}"] = _said(f"  {control}: {what}", taken, goal_s)
    start = [_start_s() for _ in range(options.runs)]
    results["start_s"] = _said("notebook's first cell in a new process, figures included", start, START_GOAL_S)
    print_json(results)


def _situation(name: str) -> Situation:
    target, draft, text = PAIRS[name]
    return from_catalogue("rtx-4090", target, [draft], text=text)


def _placed_and_scored_s(situation: Situation) -> float:
    """Seconds for so many plans of one machine: every kind and size of draft, by memory, placed and scored at once."""
    profile, request = situation.profile, situation.request
    priced = tuple(entry for entry in request.draftings if not entry.has_copies)  # no copies are published
    start_s = time.perf_counter()
    scorer = scorer_for(profile, request)
    candidates: list[Candidate] = []
    size_bytes = 8 * GIB
    while len(candidates) < NUM_EVALUATIONS:
        size_bytes += GIB // 4
        budget = replace(request.budget, device_bytes=size_bytes)
        for draft in (None, *profile.drafts):
            candidates += candidates_of(profile.target, draft, replace(request, budget=budget, draftings=priced))
    scorer.score(candidates[:NUM_EVALUATIONS])
    return time.perf_counter() - start_s


def _moves_s(name: str, changes: list[Change]) -> dict[str, list[float]]:
    """Seconds of each step of a move that was not made before, until the curve is drawn, and all four figures."""
    from planner.figures.live import LiveFigure
    from planner.figures.what_if import lengths_figure, memory_figure, round_figure, timeline_figure

    target, draft, text = PAIRS[name]
    session = Session(FromCatalogue(machine="rtx-4090", target=target, draft=draft, text=text))
    figures = {key: LiveFigure() for key in ("lengths", "round", "memory", "timeline")}
    taken: dict[str, list[float]] = {}
    for change in (Change(), *changes):
        start_s = time.perf_counter()

        def step(what: str, since_s: float) -> float:
            taken.setdefault(what, []).append(time.perf_counter() - since_s)
            return time.perf_counter()

        case = session.case(change)
        at_s = step("ranked", start_s)
        curve = session.curve(change)
        assert curve is not None
        at_s = step("intervals of the curve", at_s)
        figures["lengths"].show(lengths_figure(curve, change.num_nodes), "light")
        at_s = step("curve's figure", at_s)
        step("curve drawn", start_s)
        figures["round"].show(round_figure(case.parts()), "light")
        figures["memory"].show(memory_figure(case.plan), "light")
        figures["timeline"].show(timeline_figure(case.spans(1)), "light")
        step("the other three", at_s)
        step("all drawn", start_s)
    return {what: times[1:] for what, times in taken.items()}


def _start_s() -> float:
    start_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", START], check=True, capture_output=True)
    return time.perf_counter() - start_s


def _said(what: str, taken_s: list[float], goal_s: float | None) -> float:
    """Print the median, and return it."""
    median_s = statistics.median(taken_s)
    goal = "" if goal_s is None else f" of {goal_s} s"
    print(f"{what}: {median_s:.3f} s{goal} ({min(taken_s):.3f}-{max(taken_s):.3f})")
    return median_s


if __name__ == "__main__":
    main()
