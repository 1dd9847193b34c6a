"""The drafter that a plan asks for, made anew for each request."""

from collections.abc import Callable
from dataclasses import dataclass, field

from planner.contracts.plan import MAX_DRAFT_LEN, ChainDraft, HybridDraft, NgramDraft, Plan, TreeDraft
from runtime.cached import CachedModel
from runtime.decode import Sampling
from runtime.draft.base import Drafter
from runtime.draft.corpus import Corpus
from runtime.draft.costs import Costs
from runtime.draft.guard import GuardedDrafter
from runtime.draft.model import ChainDrafter
from runtime.draft.ngram import NgramDrafter
from runtime.draft.tree import TreeDrafter


@dataclass(slots=True, kw_only=True)
class Drafters:
    """What the drafters of all requests share. `vocab_size` is the target's: nothing beyond it is proposed."""

    plan: Plan
    draft: CachedModel | None
    vocab_size: int
    corpus: Corpus | None = None
    may_fail: bool = False
    make_chain: Callable[..., ChainDrafter] = field(default=ChainDrafter)

    def drafter(self, sampling: Sampling, warn: Callable[[str], object]) -> Drafter | None:
        """The drafter of one request, guarded; None where the plan drafts nothing."""
        drafter = self._drafter(sampling)
        if drafter is None:
            return None
        return GuardedDrafter(
            drafter,
            vocab_size=self.vocab_size,
            is_sampled=not sampling.settings.is_greedy,
            may_fail=self.may_fail,
            warn=warn,
        )

    def _drafter(self, sampling: Sampling) -> Drafter | None:
        plan, draft = self.plan, self.plan.draft
        match draft:
            case NgramDraft():
                return self._ngram(draft)
            case ChainDraft() if self.draft is not None:
                return self.make_chain(
                    self.draft,
                    sampling.settings,
                    sampling.uniforms,
                    vocab_size=self.vocab_size,
                    chunk_tokens=plan.prefill_chunk_tokens,
                    draft_len=draft.draft_len,
                    tiers=draft.tiers,
                    costs=Costs.of(plan.round_costs),
                    calibration=plan.draft_calibration,
                )
            case TreeDraft() | HybridDraft() if self.draft is not None:
                return TreeDrafter(
                    self.draft,
                    sampling.settings,
                    sampling.uniforms,
                    vocab_size=self.vocab_size,
                    chunk_tokens=plan.prefill_chunk_tokens,
                    num_nodes=draft.num_nodes,
                    max_depth=draft.max_depth,
                    pass_nodes=draft.pass_nodes,
                    calibration=plan.draft_calibration,
                    costs=None if plan.round_costs is None else Costs(plan.round_costs),
                    ngram=self._ngram(draft) if isinstance(draft, HybridDraft) else None,
                    paths=draft.paths if isinstance(draft, TreeDraft) else (),
                )
        return None

    def _ngram(self, draft: NgramDraft | HybridDraft) -> NgramDrafter:
        return NgramDrafter(
            num_nodes=draft.num_nodes,
            max_depth=min(draft.num_nodes, MAX_DRAFT_LEN),  # copies need no pass for each level
            min_match_tokens=draft.min_match_tokens,
            costs=Costs.of(self.plan.round_costs),
            corpus=self.corpus,
            vocab_size=self.vocab_size,
        )
