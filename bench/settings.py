"""Settings to plan and run: a pair, a link, a budget, a draft length; and the synthetic acceptance of the random pair.

The demo pair drafts for itself on held-out texts that the profile did not record. The random pair's acceptance is
synthetic: its draft runs and costs its time, but what it proposes is overridden to match with a stated probability.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bench.models import DECISIVE, DECISIVE_DRAFT, make_checkpoint, successor
from planner.contracts.link_text import parse_link
from planner.contracts.plan import ChainDraft, Dtype, Plan, Workload
from planner.contracts.profile import AcceptanceRecording, Profile
from planner.contracts.report import Report
from planner.drafting import chain
from planner.search import Request, request_for
from profiles import HeldoutPart, demo_folder, heldout_texts
from runtime.api import Limits, budget_for, load, make_plan
from runtime.draft import ChainDrafter
from runtime.engine import Engine

Pair = Literal["demo", "random"]
DTYPES: dict[Pair, Dtype] = {"demo": "fp32", "random": "bf16"}  # fp32 writes the same text in passes of any width

_NUM_RECORDED, _NUM_RECORDED_TOKENS = 64, 1024  # prompts of synthetic acceptance
_NUM_SCRIPTED_DRAWS = 4  # of prompts whose text the target has to write before it can be scripted
PROMPT_TOKENS = 64
DEMO_WINDOW_TOKENS = 224  # of prompt and text: the demo pair is good for 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is planned for and run. `probability` is that of a scripted match, `domain` that of the texts."""

    pair: Pair
    link: str
    device_memory: str
    draft_len: int
    domain: str
    probability: float | None = None
    prompt_tokens: int = PROMPT_TOKENS
    new_tokens: int = 256
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

    def __init__(
        self,
        *args: object,
        probability: float,
        seed: int,
        vocab_size: int,
        right_token: Callable[[int, int], int],
        **named: object,
    ) -> None:
        super().__init__(*args, vocab_size=vocab_size, **named)  # type: ignore[arg-type]
        self._probability = probability
        self._seed = seed
        self._num_tokens = vocab_size
        self._right_token = right_token  # by position, and the token before it

    def greedy_pick(self, logits_V: Tensor, last_token: int) -> int:
        """The scripted token; the draft's own pick is made and dropped."""
        super().greedy_pick(logits_V, last_token)
        position = len(self._fed)
        right = self._right_token(position, last_token) % self._num_tokens
        is_match = random.Random(f"{self._seed} {position}").random() < self._probability
        return right if is_match else (right + 1) % self._num_tokens


def folders(pair: Pair, models: Path) -> tuple[Path, Path]:
    """Target and draft of a pair."""
    if pair == "demo":
        return demo_folder("target"), demo_folder("draft")
    return make_checkpoint(DECISIVE, models), make_checkpoint(DECISIVE_DRAFT, models)


def with_scripts(profile: Profile, probabilities: Sequence[float]) -> Profile:
    """The profile with recordings of synthetic acceptance, one domain for each probability."""
    drawn = random.Random(0)
    recordings = [
        AcceptanceRecording(
            domain=script(probability),
            prompt_tokens=1,
            fingerprint=profile.drafts[0].fingerprint,
            ranks=tuple(int(drawn.random() >= probability) for _ in range(_NUM_RECORDED_TOKENS)),
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
        draftings=(chain(setting.draft_len),),
    )
    return replace(request, never_speculate=setting.draft_len == 0)


def run(setting: Setting, plan: Plan, seed: int) -> list[Report]:
    """Reports of the setting's requests, run by the plan one after the other."""
    reports = []
    with load(plan=plan) as engine:
        engine.end_tokens = frozenset()
        for index, tokens in enumerate(_prompts(setting, engine, seed)):
            if setting.probability is not None and isinstance(plan.draft, ChainDraft):
                engine.drafters.make_chain = partial(
                    ScriptedDrafter,
                    probability=setting.probability,
                    seed=seed * 1000 + index,
                    right_token=_writer(setting, tokens),
                )
            reports.append(generate(engine, tokens, setting.new_tokens))
    return reports


def generate(engine: Engine, tokens: Sequence[int], new_tokens: int) -> Report:
    """The report of one greedy run."""
    generation = engine.generate(tokens, max_tokens=new_tokens)
    for _ in generation:
        pass
    return generation.report()


def tokens_per_s(reports: Sequence[Report]) -> float:
    """Decoded tokens per second over all requests."""
    return sum(report.generated_tokens - 1 for report in reports) / sum(report.generated_s for report in reports)


def _writer(setting: Setting, prompt: Sequence[int]) -> Callable[[int, int], int]:
    """What the target writes at a position after a token: known of the random pair, written before by the demo's."""
    if setting.pair == "random":
        return lambda _, last_token: successor(last_token, DECISIVE.vocab_size)
    written = _written(tuple(prompt), setting.new_tokens)
    return lambda position, _: written[position] if position < len(written) else 0


@cache
def _written(prompt: tuple[int, ...], new_tokens: int) -> tuple[int, ...]:
    """Prompt and greedy text of the demo target."""
    tokens = list(prompt)
    plan = make_plan(demo_folder("target"), dtype=DTYPES["demo"], context_tokens=len(prompt) + new_tokens)
    with load(plan=plan) as engine:
        engine.end_tokens = frozenset()
        tokens += [
            token.token_id for token in engine.generate(prompt, max_tokens=new_tokens) if token.token_id is not None
        ]
    return tuple(tokens)


def _prompts(setting: Setting, engine: Engine, seed: int) -> list[list[int]]:
    if setting.pair == "random":
        vocab_size = engine.target.streamed.vocab_size
        starts = range(seed, seed + setting.num_requests)
        return [[(start + place) % vocab_size for place in range(setting.prompt_tokens)] for start in starts]
    is_any = setting.probability is not None or not setting.domain
    windows = [
        tokens
        for domain, tokens in demo_windows("evaluation", engine.tokenizer.encode)
        if is_any or setting.domain == domain
    ]
    drawn = random.Random(seed % _NUM_SCRIPTED_DRAWS if setting.probability is not None else seed)
    return [tokens[: setting.prompt_tokens] for tokens in drawn.sample(windows, setting.num_requests)]


def demo_windows(part: HeldoutPart, encode: Callable[[str], list[int]]) -> list[tuple[str, list[int]]]:
    """The held-out texts cut into windows that the demo pair is good for, each with its domain."""
    size = DEMO_WINDOW_TOKENS
    encoded = [(entry.domain, encode(entry.text)) for entry in heldout_texts(part)]
    return [
        (domain, tokens[start : start + size])
        for domain, tokens in encoded
        for start in range(0, len(tokens) - size + 1, size)
    ]
