"""How far a prediction may be off: statistical spread and model error per component, drawn through the recurrence.

Components are independent and lognormal. Model errors start from stated priors; logged runs replace them
(`calibrated`): the median ratio corrects a component, their spread widens or narrows it.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.contracts.performance import LinkSplit, Performance, RoundSplit
from planner.contracts.plan import LinkChoice, Workload
from planner.contracts.profile import Profile
from planner.contracts.report import Report
from planner.schedule import SAME_STEP_FRAC
from planner.scoring import num_rounds
from planner.terms import RoundTerms, TermFactors, drawn_rounds_of
from planner.timing import link_name, spread_frac

FloatArray = NDArray[np.float64]

Component = Literal["link", "compute", "draft", "host", "tokens", "ttft"]
COMPONENTS: tuple[Component, ...] = ("link", "compute", "draft", "host", "tokens", "ttft")

NUM_DRAWS = 256
_SEED = 20261120
_P10, _P90 = 10, 90
_PRIOR_RUNS = 5  # logged runs that the prior's spread counts as

# Relative standard deviations of the model itself before any run was logged. Measured: from docs/LOG.md, "predicted
# beside measured". Estimated: what rooflines and datasheets leave out, beside the spread that each entry states for
# itself; 15 % on text that nobody replayed.
_PRIORS: dict[str, dict[Component, float]] = {
    "measured": {"link": 0.03, "compute": 0.04, "draft": 0.06, "host": 0.15, "tokens": 0.02, "ttft": 0.06},
    "estimated": {"link": 0.05, "compute": 0.10, "draft": 0.10, "host": 0.50, "tokens": 0.15, "ttft": 0.15},
}
_EMULATED_LINK_FRAC = 0.003  # its pace is kept by the clock


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelError:
    """Relative standard deviation of each component's prediction, and the factor that logged runs correct it by."""

    frac: dict[Component, float]
    factor: dict[Component, float] = field(default_factory=lambda: dict.fromkeys(COMPONENTS, 1.0))
    num_runs: int = 0

    @property
    def corrections(self) -> dict[str, float]:
        """The factors that differ from 1."""
        return {name: factor for name, factor in self.factor.items() if factor != 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A draw of a plan's performance: one value per draw, and per component."""

    round_s: FloatArray
    link_s: FloatArray
    compute_s: FloatArray
    draft_s: FloatArray
    host_s: FloatArray
    tokens_per_round: FloatArray
    tokens_per_s: FloatArray
    ttft_s: FloatArray


def prior(profile: Profile, link: LinkChoice) -> ModelError:
    """The model error to start from, by how the profile came about, and the spread that its own entries state."""
    frac = dict(_PRIORS[profile.kind])
    stated: dict[Component, float] = {
        "link": spread_frac([entry for entry in profile.links if entry.link == link_name(link)]),
        "compute": spread_frac(
            [entry for entry in profile.compute if (entry.unit, entry.processor) == ("layer", "device")]
        ),
        "draft": spread_frac([entry for entry in profile.draft_passes if entry.processor == "device"]),
    }
    frac.update({name: math.hypot(frac[name], spread) for name, spread in stated.items()})
    if link.kind == "emulated":
        frac["link"] = _EMULATED_LINK_FRAC
    return ModelError(frac=frac)


def calibrated(start: ModelError, reports: Iterable[Report]) -> ModelError:
    """The model error after logged runs: each component corrected by the median ratio of measured to predicted.

    A run counts as much for the correction as the prior of none; the prior's spread counts as that of a few runs. The
    tokens per round of single runs scatter by themselves, so that their spread says nothing of the prediction's.
    """
    ratios: dict[Component, list[float]] = {name: [] for name in COMPONENTS}
    num_runs = 0
    for report in reports:
        num_runs += 1
        for name in COMPONENTS:
            ratio = logged_ratio(report, name)
            if ratio is not None:
                ratios[name].append(math.log(ratio))
    error = replace(start, num_runs=num_runs, frac=dict(start.frac), factor=dict(start.factor))
    for name, logged in ratios.items():
        if not logged:
            continue
        count, middle = len(logged), statistics.median(logged)
        error.factor[name] = math.exp(middle * count / (count + 1))
        if name != "tokens":
            squares = _PRIOR_RUNS * start.frac[name] ** 2 + sum((ratio - middle) ** 2 for ratio in logged)
            error.frac[name] = math.sqrt(squares / (_PRIOR_RUNS + count - 1))
    return error


def logged_ratio(report: Report, name: Component) -> float | None:
    """Measured over what the model predicted before any correction; None where either is missing or 0."""
    predicted, measured = component_of(report.predicted, name), component_of(report.measured, name)
    return measured / predicted * report.plan.calibration.get(name, 1.0) if predicted and measured else None


def component_of(performance: Performance, name: Component) -> float | None:
    """A component's value: seconds per round, tokens per round, or seconds to the first token."""
    split, link = performance.round, performance.link
    match name:
        case "tokens":
            return performance.tokens_per_round
        case "ttft":
            return performance.ttft_s
        case "link":
            return None if link is None else link.busy_s
        case "compute":
            return None if split is None else split.compute_s
        case "draft":
            return None if split is None else split.draft_s
        case "host":
            return None if split is None else split.host_s + split.unexplained_s
    raise AssertionError(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A plan in the median, and what its tokens per round scatter by without any error of the model."""

    terms: RoundTerms
    run_frac: float  # of the mean over the run
    round_frac: float  # of single rounds
    first_draft_s: float
    ttft_s: float


def outlook(expected: Expected, workload: Workload, error: ModelError, num_draws: int = NUM_DRAWS) -> Outlook:
    """Draws of a plan's performance; draw 0 has every component at its median. The same seed for every plan."""
    (drawn,) = outlooks([expected], workload, error, num_draws)
    return drawn


def outlooks(
    plans: Sequence[Expected], workload: Workload, error: ModelError, num_draws: int = NUM_DRAWS
) -> list[Outlook]:
    """Draws of each plan's performance, their rounds through the recurrence together."""
    normal = np.random.default_rng(_SEED).standard_normal((len(COMPONENTS), num_draws))
    normal[:, 0] = 0.0
    rows = dict(zip(COMPONENTS, normal, strict=True))
    scale = {name: np.exp(error.frac[name] * row) for name, row in rows.items()}
    factors = TermFactors(
        compute_D=scale["compute"], link_D=scale["link"], draft_D=scale["draft"], host_D=scale["host"]
    )
    rounds_s = drawn_rounds_of([plan.terms for plan in plans], factors)
    return [
        _outlook(
            plan,
            workload,
            {**scale, "tokens": np.exp(math.hypot(error.frac["tokens"], plan.run_frac) * rows["tokens"])},
            round_s,
        )
        for plan, round_s in zip(plans, rounds_s, strict=True)
    ]


def _outlook(plan: Expected, workload: Workload, scale: dict[Component, FloatArray], round_s: FloatArray) -> Outlook:
    terms, num_decoded = plan.terms, max(workload.new_tokens - 1, 1)
    tokens_per_round = np.clip(terms.tokens_per_round * scale["tokens"], 1.0, terms.max_depth + 1)
    rounds = num_rounds(workload, tokens_per_round, plan.round_frac)
    first_s = plan.first_draft_s * scale["draft"]
    return Outlook(
        round_s=round_s + first_s / rounds,
        link_s=float(terms.copy_s_U.sum()) * scale["link"],
        compute_s=float(terms.compute_s_U.sum()) * scale["compute"],
        draft_s=terms.draft_s * scale["draft"] + first_s / rounds,
        host_s=terms.host_s * scale["host"],
        tokens_per_round=num_decoded / rounds,
        tokens_per_s=num_decoded / (rounds * round_s + first_s),
        ttft_s=plan.ttft_s * scale["ttft"],
    )


def performances(
    drawn: Outlook, workload: Workload, memory: Performance, survival: tuple[float, ...]
) -> tuple[Performance, Performance, Performance]:
    """P50, P10 and P90, each field by itself; bytes are planned, not drawn."""
    values = _values(drawn, workload, memory)
    return (
        _performance({name: float(draws[0]) for name, draws in values.items()}, memory, survival),
        _performance({name: float(np.percentile(draws, _P10)) for name, draws in values.items()}, memory, None),
        _performance({name: float(np.percentile(draws, _P90)) for name, draws in values.items()}, memory, None),
    )


def _values(drawn: Outlook, workload: Workload, memory: Performance) -> dict[str, FloatArray]:
    """Draws of every field of a performance."""
    busy_s = np.maximum(drawn.link_s, np.finfo(np.float64).tiny)
    lanes_s = drawn.compute_s + drawn.draft_s + drawn.host_s
    return {
        "generated_tokens_per_s": drawn.tokens_per_s,
        "prompt_tokens_per_s": workload.prompt_tokens / drawn.ttft_s,
        "ttft_s": drawn.ttft_s,
        "tpot_s": 1 / drawn.tokens_per_s,
        "tokens_per_round": drawn.tokens_per_round,
        "round_s": drawn.round_s,
        "compute_s": drawn.compute_s,
        "waiting_for_weights_s": _left_s(drawn.round_s, lanes_s),
        "draft_s": drawn.draft_s,
        "host_s": drawn.host_s,
        "unexplained_s": np.zeros(1),
        "busy_s": drawn.link_s,
        "waiting_for_slot_s": _left_s(drawn.round_s, drawn.link_s),
        "waiting_for_disk_s": np.zeros(1),
        "bytes_per_s": (memory.streamed_bytes_per_pass or 0) / busy_s,
    }


def _left_s(whole_s: FloatArray, part_s: FloatArray) -> FloatArray:
    """What a part leaves of a whole; nothing where only rounding tells them apart."""
    left_s = whole_s - part_s
    return np.where(left_s > SAME_STEP_FRAC * whole_s, left_s, 0.0)


def _performance(of: dict[str, float], memory: Performance, survival: tuple[float, ...] | None) -> Performance:
    link = None if of["busy_s"] == 0 else LinkSplit(**{name: of[name] for name in LinkSplit.model_fields})
    return memory.model_copy(
        update={
            **{name: of[name] for name in Performance.model_fields if name in of},
            "survival": survival or None,
            "round": RoundSplit(**{name: of[name] for name in RoundSplit.model_fields}),
            "link": link,
        }
    )
