"""The loop: draft, verify in one pass of the target, accept. Without a drafter a round is one plain pass.

Greedy output is the target's greedy output, and sampled output has the target's distribution, whatever is drafted. The
target's cache holds every token of the context but the last, which the next pass feeds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from planner.contracts.performance import LinkSplit, RoundSplit
from runtime.cached import CachedModel
from runtime.clock import RoundClock
from runtime.draft import Drafter, Proposal
from runtime.sampling import SamplingSettings, Uniforms, draw_token, probability_rows
from runtime.verify import Verdict, verify_greedy, verify_sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The tokens that one round emitted, how many of its drafted tokens were accepted, and its time."""

    tokens: tuple[int, ...]
    num_draft_tokens: int
    num_accepted_tokens: int
    compute: RoundSplit
    link: LinkSplit | None


class Sampling:
    """The settings and the source of uniforms that target and draft share in one run."""

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        self.uniforms = Uniforms(settings.seed)

    @property
    def seed(self) -> int | None:
        """The seed that repeats the run; None where nothing is drawn."""
        return None if self.settings.is_greedy else self.uniforms.seed


def prefill(target: CachedModel, prompt: Sequence[int], sampling: Sampling, chunk_tokens: int) -> int:
    """Feed the prompt in chunks and return the first token; each chunk is one pass."""
    for start in range(0, len(prompt), chunk_tokens):
        logits_RV = target.forward(prompt[start : start + chunk_tokens], num_rows=1)
    return _judge(logits_RV, Proposal((), None), sampling).next_token


def decode_rounds(
    target: CachedModel,
    drafter: Drafter | None,
    context: list[int],
    sampling: Sampling,
    *,
    draft_len: int,
    max_tokens: int,
    clock: RoundClock,
) -> Iterator[Round]:
    """Rounds until `max_tokens` are emitted or the context is full; the emitted tokens are appended to `context`.

    The time that the caller spends between rounds counts as the host's.
    """
    clock.start_round(target.streamed.times())
    num_left = min(max_tokens, target.context_tokens - len(context))
    while num_left > 0:
        with clock.timing("draft"):
            proposal = _draft(drafter, context, min(draft_len, num_left - 1))
        with clock.timing("pass"):
            logits_TV = target.forward([context[-1], *proposal.tokens], num_rows=len(proposal.tokens) + 1)
        with clock.timing("host"):
            verdict = _judge(logits_TV, proposal, sampling)
            target.drop(len(proposal.tokens) - verdict.num_accepted)
            tokens = (*proposal.tokens[: verdict.num_accepted], verdict.next_token)
            context.extend(tokens)
            num_left -= len(tokens)
        compute, link = clock.end_round(target.streamed.times())
        with clock.timing("host"):
            yield Round(
                tokens=tokens,
                num_draft_tokens=len(proposal.tokens),
                num_accepted_tokens=verdict.num_accepted,
                compute=compute,
                link=link,
            )


def _draft(drafter: Drafter | None, context: Sequence[int], max_tokens: int) -> Proposal:
    return Proposal((), None) if drafter is None else drafter.propose(context, max_tokens)


def _judge(logits_TV: Tensor, proposal: Proposal, sampling: Sampling) -> Verdict:
    """What the target's rows say of the proposal."""
    if sampling.settings.is_greedy:
        return verify_greedy(logits_TV, proposal.tokens)
    target_probs_TV = probability_rows(logits_TV, sampling.settings)
    uniforms = [sampling.uniforms.next() for _ in range(len(proposal.tokens) + 1)]
    if proposal.probs_KV is None:
        assert not proposal.tokens, "sampled verification needs the rows that the draft drew from"
        return Verdict(0, draw_token(target_probs_TV[0], uniforms[0]))
    return verify_sampled(target_probs_TV, proposal.probs_KV, proposal.tokens, uniforms)
