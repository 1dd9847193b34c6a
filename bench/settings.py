"""Settings to plan and run: a pair, a link, a budget, a draft length; and the synthetic acceptance of the random pair.

The demo pair drafts for itself on held-out texts that the profile did not record. The random pair's acceptance is
synthetic: its draft runs and costs its time, but what it proposes is overridden to match with a stated probability.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bench.models import DECISIVE, DECISIVE_DRAFT, make_checkpoint, successor
from planner.contracts.link_text import parse_link
from planner.contracts.plan import ChainDraft, Plan, Workload
from planner.contracts.profile import AcceptanceRecording, Profile
from planner.contracts.report import Report
from planner.search import Request, request_for
from profiles import demo_folder, heldout_texts
from runtime.api import Limits, budget_for, load
from runtime.draft import ChainDrafter
from runtime.engine import Engine

Pair = Literal["demo", "random"]

_NUM_RECORDED = 64  # prompts of synthetic acceptance


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is planned for and run. `probability` is that of a scripted match, `domain` that of the texts."""

    pair: Pair
    link: str
    device_memory: str
    draft_len: int
    domain: str
    probability: float | None = None
    prompt_tokens: int = 64
    new_tokens: int = 96
    num_requests: int = 1

    @property
    def workload(self) -> Workload:
        """What is asked of the plan."""
        return Workload(
            num_requests=self.num_requests,
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            domain=self.domain if self.draft_len else None,
        )

    @property
    def label(self) -> str:
        """One line of a table."""
        return f"{self.pair:6} {self.link:16} {self.device_memory:>7} K={self.draft_len} {self.domain}"


class ScriptedDrafter(ChainDrafter):
    """Drafts as always, then proposes with a stated probability what the target will write, else something else.

    Which positions match is drawn once for a seed, so that plans of different draft lengths meet the same text.
    """

    def __init__(self, *args: object, probability: float, seed: int, vocab_size: int, **named: object) -> None:
        super().__init__(*args, vocab_size=vocab_size, **named)  # type: ignore[arg-type]
        self._probability = probability
        self._seed = seed
        self._num_tokens = vocab_size

    def greedy_pick(self, logits_V: Tensor, last_token: int) -> int:
        """The scripted token; the draft's own pick is made and dropped."""
        super().greedy_pick(logits_V, last_token)
        right = successor(last_token, self._num_tokens)
        is_match = random.Random(f"{self._seed} {len(self._fed)}").random() < self._probability
        return right if is_match else (right + 1) % self._num_tokens


def folders(pair: Pair, models: Path) -> tuple[Path, Path]:
    """Target and draft of a pair."""
    if pair == "demo":
        return demo_folder("target"), demo_folder("draft")
    return make_checkpoint(DECISIVE, models), make_checkpoint(DECISIVE_DRAFT, models)


def with_scripts(profile: Profile, probabilities: Sequence[float], num_tokens: int) -> Profile:
    """The profile with recordings of synthetic acceptance, one domain for each probability."""
    drawn = random.Random(0)
    recordings = [
        AcceptanceRecording(
            domain=script(probability),
            prompt_tokens=1,
            fingerprint=profile.drafts[0].fingerprint,
            ranks=tuple(int(drawn.random() >= probability) for _ in range(num_tokens)),
        )
        for probability in probabilities
        for _ in range(_NUM_RECORDED)
    ]
    return profile.model_copy(update={"acceptance": (*profile.acceptance, *recordings)})


def script(probability: float) -> str:
    """The domain of synthetic acceptance."""
    return f"synthetic {probability}"


def request_of(setting: Setting, profile: Profile) -> Request:
    """What is asked of the planner."""
    link = parse_link(setting.link, weights_bytes=0, free_host_bytes=2**60)
    request = request_for(
        profile,
        budget_for(Limits(device=setting.device_memory), torch.device("cpu")),
        link,
        "cpu",
        setting.workload,
        draft_len=setting.draft_len or None,
    )
    return replace(request, never_speculate=setting.draft_len == 0)


def run(setting: Setting, plan: Plan, seed: int) -> list[Report]:
    """Reports of the setting's requests, run by the plan one after the other."""
    with load(plan=plan) as engine:
        engine.end_tokens = frozenset()
        if setting.probability is not None and isinstance(plan.draft, ChainDraft):
            engine.make_chain_drafter = partial(ScriptedDrafter, probability=setting.probability, seed=seed)
        return [generate(engine, tokens, setting.new_tokens) for tokens in _prompts(setting, engine, seed)]


def generate(engine: Engine, tokens: Sequence[int], new_tokens: int) -> Report:
    """The report of one greedy run."""
    generation = engine.generate(tokens, max_tokens=new_tokens)
    for _ in generation:
        pass
    return generation.report()


def tokens_per_s(reports: Sequence[Report]) -> float:
    """Decoded tokens per second over all requests."""
    return sum(report.generated_tokens - 1 for report in reports) / sum(report.generated_s for report in reports)


def _prompts(setting: Setting, engine: Engine, seed: int) -> Iterator[list[int]]:
    if setting.pair == "random":
        vocab_size = engine.target.streamed.vocab_size
        for index in range(setting.num_requests):
            yield [(seed + index + place) % vocab_size for place in range(setting.prompt_tokens)]
        return
    texts = [entry.text for entry in heldout_texts("evaluation") if setting.domain in ("", entry.domain)]
    encoded = [engine.tokenizer.encode(text) for text in texts]
    long_enough = [tokens for tokens in encoded if len(tokens) >= setting.prompt_tokens]
    chosen = random.Random(seed).sample(long_enough, setting.num_requests)
    for tokens in chosen:
        yield tokens[: setting.prompt_tokens]
