"""How fast what-if answers: candidates scored for maps, a slider's move to the drawn figures, the notebook's start.

Of the catalogue, of which no copies of earlier text are published, and of a measured profile, with every kind of draft.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from bench.models import print_header, print_json
from planner.changes import Change
from planner.drafting import DRAFT_KINDS
from planner.notebook import FromCatalogue, FromProfile, Session
from planner.scoring import Candidate
from planner.search import candidates_of, scorer_for

NUM_EVALUATIONS = 10_000
EVALUATIONS_GOAL_S, MOVE_GOAL_S, START_GOAL_S = 2.0, 0.2, 5.0
MIB, GIB = 2**20, 2**30
EXAMPLE = Path(__file__).parents[1] / "notebooks" / "examples" / "profile.json"
START = "from planner.notebook import open_page; open_page().root"
CODECS = [Change(codec="bf12"), Change(codec="q8"), Change(codec="nf4")]
KINDS = [Change(kind=kind) for kind in DRAFT_KINDS]
CATALOGUE_MOVES: dict[str, list[Change]] = {
    "memory": [Change(device_bytes=gib * GIB) for gib in (16, 18, 20, 22, 26, 28, 32)],
    "bandwidth": [Change(link_bytes_per_s=rate * 1e9) for rate in (8, 12, 16, 32, 48, 64)],
    "context": [Change(context_tokens=count) for count in (1024, 1536, 2048, 3072, 4096)],
    "length": [Change(kind="chain", num_nodes=count) for count in (1, 2, 4, 8, 12, 16)],
    "codec": CODECS,
}
PROFILE_MOVES: dict[str, list[Change]] = {
    "memory": [Change(device_bytes=mib * MIB) for mib in (8, 10, 12, 14, 16, 18, 24)],
    "bandwidth": [Change(link_bytes_per_s=rate * 1e6) for rate in (100, 150, 200, 400, 600, 800)],
    "context": [Change(context_tokens=count) for count in (160, 256, 320, 384, 512)],
    "text": [Change(domain=domain) for domain in ("code", "prose")],
    "kind": KINDS,
    "length": [Change(kind="chain", num_nodes=count) for count in (1, 2, 4, 8, 12, 16)],
    "codec": CODECS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What is asked about, what is moved, and by how much memory grows from one round of plans to the next."""

    subject: FromCatalogue | FromProfile
    moves: dict[str, list[Change]]
    step_bytes: int = GIB // 4


SUBJECTS = {
    "llama-3.1-70b, 80 layers": Moved(
        subject=FromCatalogue(target="llama-3.1-70b", draft="llama-3.2-1b", text="code"), moves=CATALOGUE_MOVES
    ),
    "qwen2.5-32b, 64 layers": Moved(subject=FromCatalogue(), moves=CATALOGUE_MOVES),
    "the notebooks' profile": Moved(
        subject=FromProfile(path=str(EXAMPLE), link="emulated:300MB/s", device_memory="13MiB"),
        moves=PROFILE_MOVES,
        step_bytes=MIB // 4,
    ),
}


def main() -> None:
    """Measure all three and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print_header("what if")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    results: dict[str, float] = {}
    for name, moved in SUBJECTS.items():
        what = f"{name}: {NUM_EVALUATIONS} plans placed and scored"
        results[what] = _said(what, [_placed_and_scored_s(moved) for _ in range(options.runs)], EVALUATIONS_GOAL_S)
    for name, moved in SUBJECTS.items():
        print(f"a slider's move, {name}:")
        for control, changes in moved.moves.items():
            for what, taken in _moves_s(moved.subject, changes).items():
                goal_s = MOVE_GOAL_S if what == "curve drawn" else None
                results[f"{name}, {control}, {what}"] = _said(f"  {control}: {what}", taken, goal_s)
    start = [_start_s() for _ in range(options.runs)]
    results["start_s"] = _said("notebook's first cell in a new process, figures included", start, START_GOAL_S)
    print_json(results)


def _placed_and_scored_s(moved: Moved) -> float:
    """Seconds for so many plans of one machine, of each kind and size that is known, by memory, scored at once."""
    situation = moved.subject.situation()
    profile, request = situation.profile, situation.request
    has_copies = any(entry.match_hits for entry in profile.acceptance)
    priced = tuple(entry for entry in request.draftings if has_copies or not entry.has_copies)
    start_s = time.perf_counter()
    scorer = scorer_for(profile, request)
    candidates: list[Candidate] = []
    size_bytes = profile.target.weights_bytes(profile.dtype) // 16
    while len(candidates) < NUM_EVALUATIONS:
        size_bytes += moved.step_bytes
        budget = replace(request.budget, device_bytes=size_bytes)
        for draft in (None, *profile.drafts):
            candidates += candidates_of(profile.target, draft, replace(request, budget=budget, draftings=priced))
    scorer.score(candidates[:NUM_EVALUATIONS])
    return time.perf_counter() - start_s


def _moves_s(subject: FromCatalogue | FromProfile, changes: list[Change]) -> dict[str, list[float]]:
    """Seconds of each step of a move that was not made before: until the curve is drawn, all four figures, the map."""
    from planner.figures.live import LiveFigure
    from planner.figures.view import here_figure, plan_figures
    from planner.figures.what_if import lengths_figure

    session = Session(subject)
    figures = {key: LiveFigure() for key in ("lengths", "round", "memory", "timeline", "map")}
    taken: dict[str, list[float]] = {}
    for change in (Change(), *changes):
        start_s = time.perf_counter()

        def step(what: str, since_s: float) -> float:
            taken.setdefault(what, []).append(time.perf_counter() - since_s)
            return time.perf_counter()

        curve = session.curve(change)
        at_s = step("ranked, with the curve's intervals", start_s)
        assert curve is not None
        figures["lengths"].show(lengths_figure(curve, change.num_nodes), "light")
        at_s = step("curve's figure", at_s)
        step("curve drawn", start_s)
        case = session.case(change)
        for key, figure in plan_figures(case).items():
            figures[key].show(figure, "light")
        at_s = step("the other three", at_s)
        step("all drawn", start_s)
        figures["map"].show(here_figure(session.map(change), *session.here(change)), "light")
        step("the map, where it is open", at_s)
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
