"""What-if as one JSON document: the numbers of its tables under names that carry their units."""

import json
from dataclasses import asdict

from planner.what_if_view import View


def document_of(view: View) -> str:
    """The view as indented JSON; null is what nobody knows, and where nothing runs."""
    curve, strategies = view.curve, view.strategies
    document = {
        "machine": view.name,
        "recommendation": view.recommendation.model_dump(mode="json"),
        "lengths": None
        if curve is None
        else {
            "draft": curve.draft,
            "best_draft_len": curve.best.draft_len,
            "no_draft_tokens_per_s": asdict(curve.plain),
            "points": [asdict(point) for point in curve.points],
        },
        "rounds": [
            {**asdict(part), "waiting_s": part.waiting_s, "link_idle_s": part.link_idle_s} for part in view.case.parts()
        ],
        "map": None if strategies is None else asdict(strategies),
        "machines": [
            {
                "name": entry.name,
                "recommendation": None
                if entry.recommendation is None
                else entry.recommendation.model_dump(mode="json"),
                "why_not": entry.why_not,
            }
            for entry in view.advice
        ],
    }
    return json.dumps(document, indent=2) + "\n"
