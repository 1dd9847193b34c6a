"""Predicted beside measured tok/s over many short runs that no fit has seen: links, budgets, draft lengths, two pairs.

The demo pair drafts for itself on held-out prompts that the profile did not record, several to a run; both pairs run
with synthetic acceptance. The profiles are measured first; settings run in a shuffled order, so that a drift of the
machine meets all alike, and every run counts. With `--paced` the processor is paced (bench.paced).
"""

import argparse
import contextlib
import math
import os
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import AutoTokenizer

from bench.models import print_header, print_json
from bench.paced import paced_processor
from bench.settings import (
    DEMO_WINDOW_TOKENS,
    DTYPES,
    PROMPT_TOKENS,
    Pair,
    Setting,
    demo_windows,
    folders,
    request_of,
    run,
    script,
    tokens_per_s,
    with_scripts,
)
from planner.contracts.performance import Performance
from planner.contracts.plan import Plan
from planner.contracts.profile import Profile
from planner.contracts.report import Report
from planner.search import plan_of, rank
from planner.uncertainty import calibrated, prior
from runtime.measure.profile import ProfileOptions, measure_profile
from runtime.measure.prompts import Prompt
from runtime.measure.session import GROUPS

PLACES: dict[Pair, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "demo": (("disk:cached", "emulated:800MB/s", "emulated:1600MB/s", "emulated:4GB/s"), ("13MiB", "25MiB")),
    "random": (("disk:cached", "emulated:1.5GB/s", "emulated:3GB/s", "emulated:6GB/s"), ("200MiB", "400MiB")),
}
PACED_PLACES: dict[Pair, tuple[tuple[str, ...], tuple[str, ...]]] = {  # as much slower as the processor is
    "demo": (("disk:cached", "emulated:300MB/s", "emulated:600MB/s", "emulated:1500MB/s"), ("13MiB", "25MiB")),
    "random": (("disk:cached", "emulated:0.75GB/s", "emulated:1.5GB/s", "emulated:3GB/s"), ("200MiB", "400MiB")),
}
PROFILE_S: dict[Pair, float] = {"demo": 900.0, "random": 330.0}
PROBABILITIES = (0.6, 0.8)
SCRIPTS: dict[Pair, tuple[tuple[int, float], ...]] = {  # draft length, probability of a match
    "demo": tuple(product((2, 4, 8), PROBABILITIES)),
    "random": ((2, 0.6), (4, 0.6), (4, 0.8)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run was predicted to do, and what it did."""

    setting: Setting
    plan: Plan
    reports: tuple[Report, ...]

    @property
    def kind(self) -> str:
        """What its acceptance is."""
        setting = self.setting
        drafting = "no draft" if not setting.draft_len else "synthetic" if setting.probability else "its own draft"
        return f"{setting.pair}, {drafting}"

    @property
    def log_error(self) -> float:
        """Logarithm of predicted over measured tok/s."""
        return math.log(_speed(self.plan.predicted) / tokens_per_s(self.reports))

    @property
    def is_inside(self) -> bool:
        """Whether the measured tok/s lie between P10 and P90."""
        return _speed(self.plan.predicted_p10) <= tokens_per_s(self.reports) <= _speed(self.plan.predicted_p90)

    @property
    def width_frac(self) -> float:
        """P90 less P10, over P50."""
        ends = _speed(self.plan.predicted_p90) - _speed(self.plan.predicted_p10)
        return ends / _speed(self.plan.predicted)


def main() -> None:
    """Plan, run and compare every setting, and summarise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("/tmp/draftstream-bench"))
    parser.add_argument("--pairs", nargs="+", choices=("demo", "random"), default=["demo", "random"])
    parser.add_argument("--most", type=int, help="run only so many settings, drawn at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write each report as one line of JSON")
    parser.add_argument("--calibrate", type=Path, help="correct predictions by an earlier run's --out")
    parser.add_argument("--paced", action="store_true", help="on a paced processor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_header("predicted beside measured" + ", paced processor" * options.paced)
    with paced_processor() if options.paced else contextlib.nullcontext():
        outcomes = measured(options)
    kinds = sorted({outcome.kind for outcome in outcomes})
    for kind in kinds:
        summary(kind, [outcome for outcome in outcomes if outcome.kind == kind])
    print_json(summary("all", outcomes))


def measured(options: argparse.Namespace) -> list[Outcome]:
    """The outcomes of all settings, each printed as it comes."""
    pairs: dict[Pair, Profile] = {
        pair: profile_for(pair, options.models, is_paced=options.paced) for pair in options.pairs
    }
    settings = [setting for pair in pairs for setting in grid(pair, is_paced=options.paced)]
    random.Random(options.seed).shuffle(settings)
    logged = [] if options.calibrate is None else _read_reports(options.calibrate)
    outcomes = []
    for index, setting in enumerate(settings[: options.most]):
        outcome = outcome_of(setting, pairs[setting.pair], logged, options.seed * 1000 + index)
        outcomes.append(outcome)
        print(_line(outcome), flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as stream:
                stream.writelines(report.model_dump_json() + "\n" for report in outcome.reports)
    return outcomes


def profile_for(pair: Pair, models: Path, *, is_paced: bool = False) -> Profile:
    """The pair's profile as this process runs it, with synthetic acceptance beside what it recorded.

    Measured once and kept beside the bench's models, where no command finds it. The demo pair's texts are windows of
    the held-out texts, as those that runs continue are, but of other files.
    """
    kept = models / f"{'paced-' * is_paced}profile-{pair}.json"
    if not kept.exists():
        target, draft = folders(pair, models)
        models.mkdir(parents=True, exist_ok=True)
        is_demo = pair == "demo"
        options = ProfileOptions(
            dtype=DTYPES[pair],
            links=(PACED_PLACES if is_paced else PLACES)[pair][0][1:],
            num_threads=1,
            context_tokens=512,
            prompt_tokens=PROMPT_TOKENS,
            new_tokens=DEMO_WINDOW_TOKENS - PROMPT_TOKENS,
            only=GROUPS if is_demo else ("links", "compute", "rounds", "memory"),
            max_seconds=PROFILE_S[pair],
            is_forced=True,
            is_fresh=True,
            out=kept,
        )
        with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, DRAFTSTREAM_CACHE=cache):
            measure_profile(target, [draft], options, _prompts(target) if is_demo else [])
    return with_scripts(Profile.read(kept), PROBABILITIES)


def _prompts(target: Path) -> list[Prompt]:
    tokenizer = AutoTokenizer.from_pretrained(target)
    windows = demo_windows("profile", tokenizer.encode)
    return [Prompt(domain=domain, text=tokenizer.decode(tokens[:PROMPT_TOKENS])) for domain, tokens in windows]


def grid(pair: Pair, *, is_paced: bool) -> list[Setting]:
    """Every setting of a pair: without a draft, with scripted acceptance, and of the demo pair with its own."""
    first = Setting(pair=pair, link="", device_memory="", draft_len=0, domain="")
    settings = []
    for link, budget in product(*(PACED_PLACES if is_paced else PLACES)[pair]):
        here = replace(first, link=link, device_memory=budget)
        if pair == "demo":
            here = replace(here, num_requests=4, new_tokens=144)
            own = replace(here, draft_len=4, num_requests=8)
            settings += [replace(own, domain=domain) for domain in ("code", "prose")]
        settings.append(replace(here, num_requests=1, new_tokens=24 if pair == "random" else 144))
        settings += [
            replace(here, draft_len=draft_len, domain=script(share), probability=share)
            for draft_len, share in SCRIPTS[pair]
        ]
    return settings


def outcome_of(setting: Setting, profile: Profile, logged: Sequence[Report], seed: int) -> Outcome:
    """Plan the setting by the profile and by logged runs, and run it."""
    request = replace(request_of(setting, profile), grains=("layers",))  # paced parts would wait within their time
    link = request.wishes.link
    alike = [
        report
        for report in logged
        if report.target.fingerprint == profile.target.fingerprint and report.plan.link.kind == link.kind
    ]
    if alike:  # as `planner recommend --calibrate` does
        request = replace(request, error=calibrated(prior(profile, link), alike))
    score = rank(profile, request).best_of(profile.drafts[0].fingerprint if setting.draft_len else None)
    assert score is not None, f"{setting.label} does not fit"
    plan, _ = plan_of(profile, request, score)
    return Outcome(setting=setting, plan=plan, reports=tuple(run(setting, plan, seed)))


def _read_reports(path: Path) -> list[Report]:
    return [Report.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(name: str, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Print and return the errors and the coverage of some runs."""
    errors = sorted(abs(math.expm1(outcome.log_error)) for outcome in outcomes)
    found = {
        "runs": float(len(outcomes)),
        "median_error_frac": statistics.median(errors),
        "p90_error_frac": errors[math.ceil(0.9 * len(errors)) - 1],
        "bias_frac": math.expm1(statistics.median(outcome.log_error for outcome in outcomes)),
        "coverage_frac": statistics.fmean(outcome.is_inside for outcome in outcomes),
        "median_width_frac": statistics.median(outcome.width_frac for outcome in outcomes),
    }
    print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()))
    return found


def _speed(performance: Performance | None) -> float:
    assert performance is not None
    assert performance.generated_tokens_per_s is not None
    return performance.generated_tokens_per_s


def _line(outcome: Outcome) -> str:
    plan, reports = outcome.plan, outcome.reports
    low, middle, high = (_speed(entry) for entry in (plan.predicted_p10, plan.predicted, plan.predicted_p90))
    parts = {
        "E": (plan.predicted.tokens_per_round, _mean([report.measured.tokens_per_round for report in reports])),
        **{
            name: (_ms(plan.predicted, name), _mean([_ms(report.measured, name) for report in reports]))
            for name in ("round", "compute", "draft", "host")
        },
        "link": (_link_ms(plan.predicted), _mean([_link_ms(report.measured) for report in reports])),
    }
    shown = " ".join(f"{name} {_number(a)}/{_number(b)}" for name, (a, b) in parts.items())
    mark = " " if outcome.is_inside else "*"
    return (
        f"{outcome.setting.label:52} {low:7.2f} {middle:7.2f} {high:7.2f} | {tokens_per_s(reports):7.2f} "
        f"{math.expm1(outcome.log_error):+6.1%}{mark} {shown}"
    )


def _ms(performance: Performance, name: str) -> float | None:
    split = performance.round
    if split is None:
        return None
    seconds: float = getattr(split, f"{name}_s") + (split.unexplained_s if name == "host" else 0.0)
    return seconds * 1e3


def _link_ms(performance: Performance) -> float | None:
    return None if performance.link is None else performance.link.busy_s * 1e3


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()
