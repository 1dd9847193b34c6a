"""Every kind of draft, live over a slow link: tokens per round, tok/s, and what of drafting the stream does not hide.

The demo pair on held-out code and prose, which it writes greedily; on programs after their descriptions and on edits of
a program in the prompt, which its logits are bent to write ("as if the target had written them", labelled "given"): the
passes, the drafts and their times are real. Plans are the planner's best of each kind by a profile of the pair, chains
of other lengths, and the planner's own choice among all kinds, and run in turn on the same prompts.
"""

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bench.models import print_header, print_json
from bench.prediction import profile_for
from bench.settings import Setting, generate, request_of, tokens_per_s
from bench.texts import Recording, edited_texts, humaneval
from planner.contracts.plan import Plan, Workload
from planner.contracts.profile import Profile
from planner.contracts.report import Report
from planner.drafting import EVERY_DRAFTING
from planner.search import Request, plan_of, rank
from profiles import heldout_texts
from runtime.api import load
from runtime.cached import CachedModel
from runtime.model import StreamedModel
from runtime.proposal import ROOT

AUTO = "auto"
OTHER_CHAINS = (2, 4, 10)  # lengths that are run too, in case that the planner's is not the best one
TASKS = {"code": "code", "prose": "prose", "HumanEval": "code", "editing": "code"}  # and the domain of the profile
_PROMPT_TOKENS, _NEW_TOKENS = 96, 112
_EDIT_TOKENS = 100  # of the program, in the prompt and again in the output


class WritingModel(CachedModel):
    """A target whose logits are bent to write a given text, at every position whatever stands before it."""

    def __init__(self, streamed: StreamedModel, context_tokens: int, most_nodes: int, text: Sequence[int]) -> None:
        super().__init__(streamed, context_tokens, most_nodes)
        self._text = text  # prompt and output

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], num_rows: int) -> Tensor:
        """One pass, bent."""
        first = self.num_seen + len(tokens) - num_rows
        return self._bent(super().forward(tokens, num_rows), range(first, first + num_rows))

    @torch.inference_mode()
    def forward_tree(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """One pass over a tree, bent."""
        places: list[int] = []
        for parent in parents:
            places.append(self.num_seen if parent == ROOT else places[parent] + 1)
        return self._bent(super().forward_tree(tokens, parents), places)

    def _bent(self, logits_TV: Tensor, places: Sequence[int]) -> Tensor:
        """The rows with the text's next token on top; beyond its end as they are."""
        known = [(row, self._text[place + 1]) for row, place in enumerate(places) if place + 1 < len(self._text)]
        if known:
            rows, tokens = zip(*known, strict=True)
            logits_TV[list(rows), list(tokens)] = logits_TV.amax() + 1
        return logits_TV


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One plan on one task: reports in the order of the turns."""

    kind: str
    plan: Plan
    turns: tuple[tuple[Report, ...], ...]

    @property
    def tokens_per_round(self) -> float:
        """Over all runs."""
        reports = [report for turn in self.turns for report in turn]
        return sum(report.generated_tokens - 1 for report in reports) / sum(report.num_rounds for report in reports)

    @property
    def speeds(self) -> list[float]:
        """Tokens per second of each turn."""
        return [tokens_per_s(turn) for turn in self.turns]

    def mean_s(self, of: str) -> float:
        """Mean seconds per round of a part: of the compute lane, or of the link."""
        rounds = [entry for turn in self.turns for report in turn for entry in report.rounds]
        parts = [(entry.compute if hasattr(entry.compute, of) else entry.link) for entry in rounds]
        return statistics.fmean(float(getattr(part, of)) for part in parts if part is not None)


def main() -> None:
    """Measure all kinds on all tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("/tmp/draftstream-bench"))
    parser.add_argument("--link", default="emulated:800MB/s")
    parser.add_argument("--device-memory", default="24MiB")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--requests", type=int, default=3, help="prompts of each turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_header("kinds of draft, live")
    profile = profile_for("demo", options.models)
    rows = []
    for task in options.tasks:
        outcomes = measured(task, profile, options)
        rows += show(task, outcomes)
    print_json({"rows": rows})


def measured(task: str, profile: Profile, options: argparse.Namespace) -> list[Outcome]:
    """Every kind's plan on the task, in turn."""
    setting = Setting(pair="demo", link=options.link, device_memory=options.device_memory, draft_len=1, domain="")
    workload = Workload(
        num_requests=options.requests, prompt_tokens=_PROMPT_TOKENS, new_tokens=_NEW_TOKENS, domain=TASKS[task]
    )
    context = _PROMPT_TOKENS + _NEW_TOKENS + (_EDIT_TOKENS if task == "editing" else 0)
    base = request_of(setting, profile)
    request = replace(base, workload=workload, wishes=replace(base.wishes, context_tokens=context))
    plans = best_plans(profile, request)
    turns: dict[str, list[tuple[Report, ...]]] = {name: [] for name in plans}
    for turn in range(options.turns):
        order = list(plans)
        random.Random(turn).shuffle(order)
        for name in order:
            turns[name].append(tuple(run(task, plans[name], options.requests, turn)))
    return [Outcome(kind=name, plan=plans[name], turns=tuple(turns[name])) for name in plans]


def best_plans(profile: Profile, request: Request) -> dict[str, Plan]:
    """The best plan of each kind that can take part, those of other chains, and the planner's choice among all."""
    ranking = rank(profile, replace(request, draftings=EVERY_DRAFTING))
    scores = {score.candidate.drafting.kind: score for score in ranking.best_of_kinds()}
    others = {
        f"chain {score.candidate.drafting.num_nodes}": score
        for draft in profile.drafts
        for score in ranking.fastest_chains(draft.fingerprint)
        if score.candidate.drafting.num_nodes in OTHER_CHAINS
    }
    chosen = {**scores, **others, AUTO: ranking.best}
    return {name: plan_of(profile, request, score)[0] for name, score in chosen.items()}


def run(task: str, plan: Plan, num_requests: int, seed: int) -> list[Report]:
    """Reports of a plan on some of the task's prompts."""
    with load(plan=plan) as engine:
        engine.end_tokens = frozenset()
        reports = []
        for one in random.Random(seed).sample(recordings(task, engine.tokenizer), num_requests):
            if one.output:
                text = (*one.prompt, *one.output)
                streamed = engine.target.streamed
                engine.target = WritingModel(streamed, plan.context_tokens, plan.tree_nodes, text)
            reports.append(generate(engine, one.prompt, len(one.output) or _NEW_TOKENS))
    return reports


def recordings(task: str, tokenizer: PreTrainedTokenizerBase) -> list[Recording]:
    """The task's prompts; with an output where the text is given."""
    if task in ("code", "prose"):
        texts = [entry.text for entry in heldout_texts("evaluation") if entry.domain == task]
        encoded = [list(tokenizer.encode(text)) for text in texts]
        return [
            Recording(kind=task, prompt=tuple(tokens[start : start + _PROMPT_TOKENS]), output=())
            for tokens in encoded
            for start in range(0, len(tokens) - _PROMPT_TOKENS, 2 * _PROMPT_TOKENS)
        ]
    if task == "HumanEval":
        pairs = [(tokenizer.encode(prompt), tokenizer.encode(solution)) for prompt, solution in humaneval()]
        return [
            Recording(kind=task, prompt=tuple(prompt[-_PROMPT_TOKENS:]), output=tuple(solution[:_NEW_TOKENS]))
            for prompt, solution in pairs
            if len(solution) >= _NEW_TOKENS // 2
        ]
    edits = edited_texts(lambda text: list(tokenizer.encode(text)))
    return [
        replace(one, prompt=one.prompt[:_EDIT_TOKENS], output=one.output[: _EDIT_TOKENS - 8])
        for one in edits
        if len(one.prompt) >= _EDIT_TOKENS
    ]


def show(task: str, outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """Print a table of one task: medians over the turns of the paired ratios to no draft."""
    plain = next(one for one in outcomes if one.kind == "none")
    print(f"\n{task} ({'given' if task in ('HumanEval', 'editing') else 'greedy'})")
    print("kind     size       tokens/round (predicted)   tok/s   times none   round  draft  exposed")
    rows = []
    for one in outcomes:
        gain = statistics.median(a / b for a, b in zip(one.speeds, plain.speeds, strict=True))
        round_s, draft_s = one.mean_s("round_s"), one.mean_s("draft_s")
        waiting_s = one.mean_s("waiting_for_slot_s") - plain.mean_s("waiting_for_slot_s")
        exposed = max(0.0, waiting_s) / round_s
        draft = one.plan.draft
        size = f"{getattr(draft, 'num_nodes', getattr(draft, 'draft_len', 0))}/{getattr(draft, 'max_depth', '-')}"
        predicted = one.plan.predicted.tokens_per_round or 1.0
        name = one.kind if one.kind != AUTO else f"auto={draft.kind}"
        print(
            f"{name:12} {size:8} {one.tokens_per_round:8.2f} ({predicted:5.2f})  {statistics.median(one.speeds):10.2f} "
            f"{gain:10.2f} {round_s * 1e3:9.1f}ms {draft_s * 1e3:5.1f}ms {exposed:6.1%}",
            flush=True,
        )
        rows.append(
            {
                "task": task,
                "kind": name,
                "size": size,
                "tokens_per_round": one.tokens_per_round,
                "predicted_tokens_per_round": predicted,
                "tokens_per_s": statistics.median(one.speeds),
                "times_none": gain,
                "draft_s": draft_s,
                "exposed_frac": exposed,
            }
        )
    return rows


if __name__ == "__main__":
    main()
