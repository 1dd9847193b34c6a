"""Tokens per round of every way to draft, from a profile's recordings of a kind of text, or from a published curve."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Protocol

from planner.acceptance import Yield, chain_yield, curve_yield, sampled_yield
from planner.calibration import calibration, rank_shares
from planner.contracts.errors import BadInputError
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import ProbabilityCurve
from planner.contracts.profile import AcceptanceCurve, AcceptanceRecording
from planner.copies import copies_yield
from planner.drafting import Drafting
from planner.limits import NO_LIMITS, Limits, best_yield, wave_of
from planner.published_tree import published_tree_yield
from planner.static_tree import best_static_tree, static_tree_yield
from planner.timing import missing
from planner.tree_yield import hybrid_yield, sampled_tree_yield, tree_yield

_MIN_MATCH_TOKENS = 1
_NOTHING = Yield(mean=1.0, between_frac=0.0, round_frac=0.0, num_prompts=1, survival=())


class Recorded(Protocol):
    """What is replayed: a profile's recordings and curves, and the drafts that those are of."""

    @property
    def acceptance(self) -> tuple[AcceptanceRecording, ...]:
        """Of drafts, and of texts alone."""

    @property
    def curves(self) -> tuple[AcceptanceCurve, ...]:
        """What was published."""

    @property
    def drafts(self) -> tuple[ModelShape, ...]:
        """By whose names curves are found."""


class Yields:
    """Replays of one profile's recordings of a domain; None stands for all of them."""

    def __init__(self, profile: Recorded, domain: str | None, *, is_sampled: bool) -> None:
        self._profile = profile
        self._domain = domain
        self._is_sampled = is_sampled
        self.of = lru_cache(maxsize=None)(self._of)
        self.calibration = lru_cache(maxsize=None)(self._calibration)
        self._wave = lru_cache(maxsize=None)(lambda fingerprint: wave_of(rank_shares(self._recordings(fingerprint))))
        self._recordings = lru_cache(maxsize=None)(self._recordings_of)

    def best(self, fingerprint: str | None, drafting: Drafting, round_s: Callable[[float, float], float]) -> Yield:
        """What rounds yield and hold that take `round_s(nodes, passes)`, where the runtime drafts what pays.

        As `of` where all rounds are alike: without a draft, in chains and static trees, and by a curve.
        """
        is_recorded = drafting.kind == "ngram" or (fingerprint is not None and self._recordings(fingerprint))
        if drafting.kind in ("none", "chain") or drafting.is_static or not is_recorded:
            return self.of(fingerprint, drafting)
        return best_yield(partial(self.of, fingerprint, drafting), round_s, self._wave(fingerprint))

    def _of(self, fingerprint: str | None, drafting: Drafting, limits: Limits = NO_LIMITS) -> Yield:
        """Tokens per round within limits; `fingerprint` is the draft model's.

        Raises: BadInputError, where nothing says.
        """
        nodes, depth = drafting.num_nodes, drafting.max_depth
        if drafting.kind == "none":
            return replace(_NOTHING, mean_nodes=nodes)
        if self._is_sampled and drafting.kind == "hybrid":
            raise BadInputError(
                "copies in the draft's tree are not predicted where one samples",
                why="what a draft is worth beside a copy that was rejected is not recorded",
                remedy="plan n-grams alone, a chain or a tree, or greedy text",
            )
        texts = self._recordings(None)
        if drafting.kind == "ngram":
            if not texts:
                raise missing(f"matches within {self._domain or 'any text'}", "acceptance")
            return copies_yield(texts, nodes, depth, _MIN_MATCH_TOKENS, limits, is_sampled=self._is_sampled)
        assert fingerprint is not None, f"a {drafting.kind} needs a draft model"
        recordings = self._recordings(fingerprint)
        if drafting.is_static:
            return self._static(fingerprint, drafting)
        if not recordings:
            return self._published(fingerprint, drafting)
        if drafting.kind == "chain":
            return (sampled_yield if self._is_sampled else chain_yield)(recordings, depth)
        curve = self.calibration(fingerprint)
        if drafting.kind == "tree":
            return (sampled_tree_yield if self._is_sampled else tree_yield)(recordings, nodes, depth, curve, limits)
        return hybrid_yield(recordings, texts, nodes, depth, _MIN_MATCH_TOKENS, curve, limits)

    def settled(self, fingerprint: str | None, drafting: Drafting) -> Drafting:
        """The drafting with the shape of its tree, where that is one for all rounds: the best by the recordings."""
        if not drafting.is_static or drafting.paths or fingerprint is None:
            return drafting
        size = drafting.num_nodes, drafting.max_depth, drafting.pass_nodes
        return replace(drafting, paths=tuple(sorted(best_static_tree(self._recordings(fingerprint), *size))))

    def _static(self, fingerprint: str, drafting: Drafting) -> Yield:
        if self._is_sampled or not self._recordings(fingerprint):
            raise BadInputError(
                "trees of one shape are not predicted "
                + ("where one samples" if self._is_sampled else "without recordings"),
                why="their shape is chosen by the ranks that the draft's tokens have in greedy text",
                remedy="planner profile, and greedy text; or a tree that grows by confidence, without --draft-static",
            )
        paths = self.settled(fingerprint, drafting).paths
        if not paths:
            raise BadInputError(
                "no tree of one shape would bring anything",
                why="none of the draft's choices was right anywhere in the recordings",
                remedy="another draft, or n-grams",
            )
        found = static_tree_yield(self._recordings(fingerprint), frozenset(paths))
        return replace(found, mean_nodes=float(len(paths)), mean_passes=float(max(map(len, paths))))

    def _published(self, fingerprint: str, drafting: Drafting) -> Yield:
        name = next(draft.name for draft in self._profile.drafts if draft.fingerprint == fingerprint)
        curve = next((entry for entry in self._profile.curves if entry.draft == name), None)
        if curve is None:
            raise missing(f"the acceptance of the draft {name} on {self._domain or 'any text'}", "acceptance")
        if drafting.kind == "hybrid":
            raise missing(f"matches within {self._domain or 'any text'}", "acceptance")
        if drafting.kind == "tree":
            return published_tree_yield(curve, drafting.num_nodes, drafting.max_depth)
        return curve_yield(curve, drafting.max_depth)

    def _calibration(self, fingerprint: str) -> ProbabilityCurve | None:
        """How often the target takes what the draft gives some probability; None where too little was recorded."""
        return calibration(self._recordings(fingerprint))

    def _recordings_of(self, fingerprint: str | None) -> tuple[AcceptanceRecording, ...]:
        return tuple(
            entry
            for entry in self._profile.acceptance
            if entry.fingerprint == fingerprint and self._domain in (None, entry.domain)
        )
