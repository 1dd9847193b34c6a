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
from runtime.draft import Drafter
from runtime.proposal import NOTHING, ROOT, Proposal, Verdict
from runtime.sampling import SamplingSettings, Uniforms, probability_rows
from runtime.verify import verify_greedy, verify_sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The tokens that one round emitted, how many of its drafted tokens were accepted, and its time."""

    tokens: tuple[int, ...]
    num_draft_tokens: int  # nodes, where a tree was drafted
    draft_depth: int  # of the longest path
    num_ngram_tokens: int  # of the drafted ones, those that came from earlier text
    num_accepted_tokens: int
    num_accepted_ngram_tokens: int
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
    return _judge(logits_RV, NOTHING, sampling).next_token


def decode_rounds(
    target: CachedModel,
    drafter: Drafter | None,
    context: list[int],
    sampling: Sampling,
    *,
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
            proposal = NOTHING if drafter is None else drafter.propose(context, num_left - 1)
        with clock.timing("pass"):
            logits_TV = _verify_pass(target, context[-1], proposal)
        with clock.timing("host"):
            verdict = _judge(logits_TV, proposal, sampling)
            _keep(target, proposal, verdict)
            tokens = (*(proposal.tokens[node] for node in verdict.path), verdict.next_token)
            context.extend(tokens)
            num_left -= len(tokens)
            if drafter is not None:
                drafter.observe(proposal, verdict)
        compute, link = clock.end_round(target.streamed.times())
        with clock.timing("host"):
            yield _round(tokens, proposal, verdict, compute, link)


def _verify_pass(target: CachedModel, last_token: int, proposal: Proposal) -> Tensor:
    """The target's logits (T, V) after the context's last token and after each drafted node."""
    tokens = [last_token, *proposal.tokens]
    if proposal.is_chain:
        return target.forward(tokens, num_rows=len(tokens))
    return target.forward_tree(tokens, [ROOT, *(parent + 1 for parent in proposal.parents)])


def _keep(target: CachedModel, proposal: Proposal, verdict: Verdict) -> None:
    """Let the target's cache forget the nodes that were not accepted."""
    if proposal.is_chain:
        target.drop(len(proposal.tokens) - verdict.num_accepted)
    else:
        target.keep_path([0, *(node + 1 for node in verdict.path)])


def _judge(logits_TV: Tensor, proposal: Proposal, sampling: Sampling) -> Verdict:
    """What the target's rows say of the proposal."""
    if sampling.settings.is_greedy:
        return verify_greedy(logits_TV, proposal)
    uniforms = [sampling.uniforms.next() for _ in range(len(proposal.tokens) + 1)]
    return verify_sampled(probability_rows(logits_TV, sampling.settings), proposal, uniforms)


def _round(
    tokens: tuple[int, ...], proposal: Proposal, verdict: Verdict, compute: RoundSplit, link: LinkSplit | None
) -> Round:
    return Round(
        tokens=tokens,
        num_draft_tokens=len(proposal.tokens),
        draft_depth=max(proposal.depths, default=0),
        num_ngram_tokens=proposal.sources.count("ngram"),
        num_accepted_tokens=verdict.num_accepted,
        num_accepted_ngram_tokens=sum(proposal.sources[node] == "ngram" for node in verdict.path),
        compute=compute,
        link=link,
    )
